"""Checks by name: every reason to drop a pair."""

import pytest

from tiny_runs import ADD, GREET, ORDER
from ttsi_jax.quality.checks import CHECKS, Evidence, examine, normal
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call

SUM = Call("add", {"a": 4, "b": 5})
GOOD = Synthetic("What is 4 plus 5?", (SUM,))
SEED = Evidence("What's 5 + 6, please?", (ADD, GREET, ORDER), told="Write different requests for the same function.")
FULL = SEED._replace(reread=[SUM], relabelled=[[SUM], [SUM], None], function="add")


def reason(name, pair=GOOD, **evidence):
    found = examine(pair, FULL._replace(**evidence), [name])
    assert found.check == (name if found.reason else None)
    return found.reason


@pytest.mark.parametrize("name", CHECKS)
def test_a_good_pair_passes(name):
    assert reason(name) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"query": ""}, "the request is empty"),
        ({"query": " ?! "}, "the request is empty"),
        ({"calls": ()}, "0 calls instead of one"),
        ({"calls": (SUM, SUM)}, "2 calls instead of one"),
        ({"calls": (Call("subtract", {}),)}, "unknown function 'subtract'"),
        ({"calls": (Call("add", {"a": 1}),)}, "missing argument 'b'"),
        ({"calls": (Call("add", {"a": 1, "b": 2, "c": 3}),)}, "unknown argument 'c'"),
        ({"calls": (Call("add", {"a": 1, "b": "2"}),)}, "argument 'b' is a string, not an integer"),
        ({"calls": (Call("add", {"a": 1, "b": True}),)}, "argument 'b' is a boolean, not an integer"),
        (
            {"calls": (Call("order", {"items": [1], "options": {}}),)},
            "argument 'items[0]' is an integer, not a string",
        ),
    ],
)
def test_schema(changes, why):
    assert reason("schema", GOOD._replace(**changes)) == why


@pytest.mark.parametrize("text", [SEED.seed, "what s 5 6 PLEASE", "Could you: What's 5, 6?"])
def test_copies_of_the_seed(text):
    assert reason("copy", GOOD._replace(query=text)) == "the request repeats the seed"


def test_copies_of_others_and_of_the_instruction():
    assert reason("copy", kept=["what is 4 PLUS 5"]) == "the request repeats another one"
    assert reason("copy", kept=[]) is None
    echo = GOOD._replace(query="Different requests for the same function")
    assert reason("copy", echo) == "the request repeats the instruction"


@pytest.mark.parametrize("text", ["What's 5 + 7, please?", "Add three, four, five", "\u52a0 5"])
def test_what_is_no_copy(text):
    assert reason("copy", GOOD._replace(query=text), kept=["Add three, four"]) is None


def test_grounded_round_trip_and_agreement():
    assert "'b'" in reason("grounded", GOOD._replace(calls=(Call("add", {"a": 4, "b": 77}),)))
    assert reason("round-trip", reread=[Call("add", {"a": 4.0, "b": "5"})]) is None  # values are normalised
    assert "another call" in reason("round-trip", reread=[Call("add", {"a": 4, "b": 6})])
    assert reason("agreement", relabelled=[[SUM], None]) == "50% of 2 labels agree"
    assert reason("channel", function="greet") == "the request is likelier for 'greet'"
    unlabelled = GOOD._replace(calls=())
    assert reason("channel", unlabelled, named="add") is None
    assert reason("channel", unlabelled, named="greet") == "the request is likelier for 'add'"


def test_evidence_that_was_not_gathered_speaks_for_nothing():
    assert examine(GOOD, SEED, ["round-trip"]).reason
    assert examine(GOOD, SEED, ["agreement"]).reason
    assert examine(GOOD, SEED, ["channel"]).reason


def test_the_first_check_that_fails_gives_the_reason_and_only_those_switched_on_are_made():
    bad = GOOD._replace(query=SEED.seed, calls=())
    assert examine(bad, SEED, ["copy", "schema"]).check == "schema"
    assert examine(bad, SEED, ["copy"]).check == "copy"
    assert examine(bad, SEED, []).reason is None
    unreadable = GOOD._replace(reason="no JSON")
    assert examine(unreadable, SEED) == unreadable, "its own reason stays"


def test_normal_text():
    assert normal("Could you PLEASE  book São-Paulo?") == "booksaopaulo"
    assert normal("please") == "please"  # a request that is nothing but polite is still not empty
