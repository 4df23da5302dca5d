"""Calls brought together."""

import pytest

from ttsi_jax.quality.voting import Vote, agreement, same, vote
from ttsi_jax.tasks import Call

ONE, ALSO_ONE, TWO = [Call("f", {"a": 1, "b": "X y"})], [Call("f", {"b": "xy", "a": 1.0})], [Call("f", {"a": 2})]


def test_same_calls():
    assert same(ONE, ALSO_ONE)
    assert not same(ONE, TWO)
    assert not same(None, None)
    assert not same([Call("f", {"a": True})], [Call("f", {"a": 1})])
    assert same([*ONE, *TWO], [*TWO, *ONE]) and not same([*ONE, *ONE], ONE)
    assert same([], [])


def test_the_largest_group_wins_and_its_first_answer_stands_for_it():
    assert vote([TWO, ONE, ALSO_ONE]) == Vote(1, 2 / 3)
    assert vote([TWO, ONE]) == Vote(0, 0.5)
    assert vote([None, None, ONE]) == Vote(2, 1 / 3)
    assert vote([None]) == Vote(None, 0.0) and vote([]) == Vote(None, 0.0)


def test_votes_may_have_weights():
    assert vote([TWO, ONE, ALSO_ONE], [0.7, 0.1, 0.2]) == Vote(0, pytest.approx(0.7))


def test_agreement_is_a_share():
    assert agreement(ONE, [ALSO_ONE, TWO, None, ONE]) == 0.5
    assert agreement(ONE, []) == 0.0
    assert agreement(None, [None]) == 0.0
