"""Answers that can be right, judged by the request alone."""

from dataclasses import replace

import pytest

from tiny_runs import EXAMPLES, example
from ttsi_jax.quality.soundness import sound
from ttsi_jax.tasks import Call

ADD_ONE_AND_TWO, GREET_BO = EXAMPLES[:2]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([Call("add", {"a": 1, "b": 2})], True),
        ([Call("add", {"a": 2, "b": 1})], True),  # wrong perhaps, but of the request's values
        ([Call("add", {"a": 1, "b": 77})], False),
        ([Call("add", {"a": 1})], False),
        ([Call("subtract", {"a": 1, "b": 2})], False),
        ([Call("add", {"a": 1, "b": 2}), Call("add", {"a": 1, "b": 3})], False),
        ([], False),
        (None, False),
    ],
)
def test_valid_calls_whose_values_the_request_holds(answer, expected):
    assert sound(answer, ADD_ONE_AND_TWO) is expected


def test_the_function_that_an_answer_must_call():
    right = [Call("add", {"a": 1, "b": 2})]
    assert sound(right, ADD_ONE_AND_TWO, "add") and not sound(right, ADD_ONE_AND_TWO, "greet")
    assert not sound(None, ADD_ONE_AND_TWO, "add") and not sound([], ADD_ONE_AND_TWO, "add")


def test_the_whole_conversation_counts_but_for_system_turns():
    turns = [("system", "Call me Alfred"), ("user", "Greet someone"), ("assistant", "Whom?"), ("user", "Bo")]
    one = replace(example("x", ""), messages=tuple({"role": role, "content": said} for role, said in turns))
    assert sound([Call("greet", {"name": "Bo"})], one) and not sound([Call("greet", {"name": "Alfred"})], one)
    assert sound([Call("greet", {"name": "Bo"})], GREET_BO)
