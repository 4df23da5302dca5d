"""Views of an input: the same tools, shown otherwise, and the way back."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided.tools import tool_lists
from tiny_runs import ADD, EVERY_TOOL, GREET, ORDER, PING, STRING, tool
from ttsi_jax.quality.augmentation import View, rename, renamed, reordered, with_distractors
from ttsi_jax.quality.voting import vote
from ttsi_jax.tasks import Call, check_call

SUM = Call("add", {"a": 1, "b": 2})


def rng(seed=0):
    return np.random.default_rng(seed)


def names(view):
    return [tool.name for tool in view.tools]


def test_another_order():
    orders = {tuple(names(reordered(EVERY_TOOL, rng(seed)))) for seed in range(20)}
    assert len(orders) > 10 and all(sorted(order) == sorted(tool.name for tool in EVERY_TOOL) for order in orders)
    assert names(reordered(EVERY_TOOL, rng(3))) == names(reordered(EVERY_TOOL, rng(3)))


@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_distractors_are_others_and_leave_the_order(seed, n):
    fake = replace(ADD, description="another add")
    view = with_distractors([ADD, GREET], [fake, *EVERY_TOOL, PING], n, rng(seed))
    assert len(view.tools) == 2 + min(n, 4) == len(set(names(view)))
    assert [own for own in view.tools if own in (ADD, GREET)] == [ADD, GREET]
    assert fake not in view.tools


def test_distractors_stand_at_any_place():
    first = {names(with_distractors([ADD], [ORDER], 1, rng(seed)))[0] for seed in range(20)}
    assert first == {"add", "order"}


@given(tool_lists, st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_renaming_is_consistent_and_can_be_undone(tools, seed, functions, arguments):
    view = renamed(tools, rng(seed), functions=functions, arguments=arguments)
    for before, after in zip(tools, view.tools, strict=True):
        call = Call(before.name, {name: None for name in before.properties})
        shown = view.write(call)
        assert shown.name == after.name and list(shown.arguments) == list(after.properties)
        assert view.read(shown) == call
        assert len(after.required) == len(before.required)
        assert (after.name != before.name) == functions
        assert not arguments or not set(after.properties) & set(before.properties)


def test_a_call_stays_valid_under_the_names_that_are_shown():
    view = renamed([ADD, GREET], rng())
    assert check_call(view.write(SUM), view.tools) is None
    assert check_call(SUM, view.tools)


def test_descriptions_speak_of_the_new_names_where_the_old_ones_are_identifiers():
    mail = tool("send_mail", to_name={"type": "string", "description": "Not cc_name. See send_mail."}, to=STRING)
    mail = replace(mail, description="send_mail sends to to_name, not send_mails; see add to add.")
    view = rename([mail, ADD], {"send_mail": "x", "add": "y"}, {"send_mail": {"to_name": "z", "to": "w"}})
    assert view.tools[0].description == "x sends to z, not send_mails; see add to add."
    assert view.tools[0].properties["z"]["description"] == "Not cc_name. See x."
    assert mail.description.startswith("send_mail")  # nothing is changed in place


def test_names_must_differ():
    with pytest.raises(ValueError, match="two functions"):
        rename([ADD, GREET], {"add": "greet"}, {})
    with pytest.raises(ValueError, match="two arguments of add"):
        rename([ADD], {}, {"add": {"a": "b"}})
    swapped = rename([ADD, GREET], {"add": "greet", "greet": "add"}, {})
    assert swapped.read(Call("greet", {})) == Call("add", {})


def test_votes_over_views():
    views = [View((ADD, GREET)), *(renamed([ADD, GREET], rng(seed)) for seed in range(2))]
    said = [[views[0].write(Call("greet", {"name": "Bo"}))], *([view.write(SUM)] for view in views[1:]), None]
    answers = [view.read_all(answer) for view, answer in zip([*views, views[0]], said, strict=True)]
    found = vote(answers)
    assert answers[found.winner] == [SUM] and found.share == 0.5
