"""Augmented pairs: the same request and call, right among the functions that they stand among."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import ADD, CONVERT, EVERY_TOOL, GREET, ORDER, PING, SWITCH
from ttsi_jax.synthesis.augment import AUGMENTATIONS, DISTRACTORS, distractors, order, rename
from ttsi_jax.tasks import Call, check_call

CALLS = [
    Call("add", {"a": 1, "b": 2}),
    Call("greet", {"name": "Bo"}),
    Call("convert", {"amount": 1.5, "unit": "ft"}),
    Call("order", {"items": ["tea"], "options": {"name": "no argument's name", "a": {"b": 1}}}),
    Call("ping", {}),
]


@pytest.mark.parametrize("name", AUGMENTATIONS)
@given(call=st.sampled_from(CALLS), tools=st.permutations(EVERY_TOOL), seed=st.integers(0, 2**32))
def test_the_call_stays_right_and_its_values_stay(name, call, tools, seed):
    augment = lambda: AUGMENTATIONS[name](tools, call, EVERY_TOOL, np.random.default_rng(seed))  # noqa: E731
    found, changed = augment()
    assert check_call(changed, found) is None
    assert list(changed.arguments.values()) == list(call.arguments.values())
    assert len({tool.name for tool in found}) == len(found)
    assert (found, changed) == augment(), "the same random numbers give the same"
    [own] = [tool for tool in found if tool.name == changed.name]
    assert own.description == next(tool.description for tool in tools if tool.name == call.name)


def test_orders_differ():
    found = [order(EVERY_TOOL, CALLS[0], (), np.random.default_rng(seed))[0] for seed in range(20)]
    assert all(sorted(tools, key=EVERY_TOOL.index) == list(EVERY_TOOL) for tools in found)
    assert len({tuple(tool.name for tool in tools) for tools in found}) > 15


def test_distractors_are_functions_of_other_inputs():
    other_add = replace(ADD, description="Another function of the same name.")
    tools, call = distractors((ADD, GREET), CALLS[0], (other_add, GREET, PING, SWITCH, ORDER), np.random.default_rng(0))
    assert len(tools) == 2 + DISTRACTORS and ADD in tools and GREET in tools and other_add not in tools
    assert call == CALLS[0]
    assert len(distractors((ADD, GREET), CALLS[0], (ADD, GREET), np.random.default_rng(0))[0]) == 2


def test_new_names_are_consistent_and_replace_every_old_one():
    tools, call = rename((ADD, GREET, CONVERT), CALLS[2], (), np.random.default_rng(0))
    old = {"add", "a", "b", "greet", "name", "loud", "convert", "amount", "unit"}
    new = {tool.name for tool in tools} | {name for tool in tools for name in tool.properties}
    assert len(new) == len(old) and not new & old
    assert call.name == tools[2].name and list(call.arguments) == list(tools[2].properties)
    assert [len(tool.required) for tool in tools] == [2, 1, 2]
    assert "enum" in json.dumps(tools[2].parameters)
