"""Votes over calls, and pass@k against counting."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.quality.votes import pass_at, vote
from ttsi_jax.tasks import Call

ONE, ALSO_ONE, TWO = [Call("f", {"a": 1, "b": "X y"})], [Call("f", {"b": "xy", "a": 1.0})], [Call("f", {"a": 2})]


def test_the_largest_group_wins_and_its_first_answer_stands_for_it():
    assert vote([TWO, ONE, ALSO_ONE]) == 1
    assert vote([None, None, ONE]) == 2, "what cannot be read has no vote"
    assert vote([None]) is None and vote([]) is None
    assert vote([[], [], ONE]) == 0, "to call nothing is an answer"


def test_between_equal_groups_the_greedy_answer_decides():
    assert vote([TWO, ONE]) == 0
    assert vote([TWO, ONE], ALSO_ONE) == 1
    assert vote([TWO, ONE, TWO], ONE) == 0
    assert vote([TWO, ONE], None) == 0


@given(st.lists(st.sampled_from([None, ONE, ALSO_ONE, TWO, []]), max_size=8), st.sampled_from([None, ONE, TWO]))
def test_no_other_group_is_larger(answers, first):
    winner = vote(answers, first)
    assert (winner is None) == all(answer is None for answer in answers)
    if winner is not None:
        sizes = {True: sum(a in (ONE, ALSO_ONE) for a in answers), False: 0}
        own = sizes[True] if answers[winner] in (ONE, ALSO_ONE) else answers.count(answers[winner])
        assert own >= max(sizes[True], answers.count(TWO), answers.count([]))


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(n, data):
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(combinations([True] * right + [False] * (n - right), k))
    assert pass_at(n, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_more_than_there_are():
    with pytest.raises(ValueError, match="between 1 and the 2 answers"):
        pass_at(2, 1, 3)
