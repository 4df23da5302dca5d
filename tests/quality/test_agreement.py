"""Which answers are the same."""

from ttsi_jax.quality.agreement import agreement, same
from ttsi_jax.tasks import Call

ONE, ALSO_ONE, TWO = [Call("f", {"a": 1, "b": "X y"})], [Call("f", {"b": "xy", "a": 1.0})], [Call("f", {"a": 2})]


def test_same_calls():
    assert same(ONE, ALSO_ONE)
    assert not same(ONE, TWO)
    assert not same(None, None)
    assert not same([Call("f", {"a": True})], [Call("f", {"a": 1})])
    assert same([*ONE, *TWO], [*TWO, *ONE]) and not same([*ONE, *ONE], ONE)
    assert same([], [])


def test_agreement_is_a_share():
    assert agreement(ONE, [ALSO_ONE, TWO, None, ONE]) == 0.5
    assert agreement(ONE, []) == 0.0
    assert agreement(None, [None]) == 0.0
