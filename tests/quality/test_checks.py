"""Checks by name, and how often each rejects."""

import pytest

from tiny_runs import ADD, GREET
from ttsi_jax.errors import InputError
from ttsi_jax.quality.checks import CHECKS, Evidence, examine, named, normal, rejections
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call

SUM = Call("add", {"a": 4, "b": 5})
GOOD = Synthetic("What is 4 plus 5?", (SUM,))
SEED = Evidence("What is 1 and 2?", (ADD, GREET), told=("Write different requests for the same function.",))
FULL = SEED._replace(reread=[SUM], relabelled=[[SUM], [SUM], None])


def reason(name, pair=GOOD, **evidence):
    return examine(pair, FULL._replace(**evidence), [name]).reason


@pytest.mark.parametrize("name", CHECKS)
def test_a_good_pair_passes(name):
    assert reason(name) is None


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (GOOD._replace(query=" ?! "), "empty"),
        (GOOD._replace(calls=()), "0 calls"),
        (GOOD._replace(calls=(SUM, SUM)), "2 calls"),
        (GOOD._replace(calls=(Call("sub", {}),)), "unknown function"),
        (GOOD._replace(calls=(Call("add", {"a": 4}),)), "missing argument"),
        (GOOD._replace(calls=(Call("add", {"a": 4, "b": "five"}),)), "not an integer"),
        (GOOD._replace(reason="no JSON"), "no JSON"),
    ],
)
def test_schema(pair, why):
    assert why in reason("schema", pair)


@pytest.mark.parametrize("text", ["what is 1 and 2", "Please: what IS 1, and 2?!", "Could you what is 1 and 2"])
def test_copies_of_the_seed(text):
    assert "seed" in reason("copy", GOOD._replace(query=text))


def test_copies_of_others_and_of_the_instruction():
    assert "another" in reason("copy", kept=["what is 4 PLUS 5"])
    assert "instruction" in reason("copy", GOOD._replace(query="Different requests for the same function"))
    assert reason("copy", GOOD._replace(query="What is 1 and 3?")) is None


def test_grounded_round_trip_and_agreement():
    assert "'b'" in reason("grounded", GOOD._replace(calls=(Call("add", {"a": 4, "b": 77}),)))
    assert reason("round-trip", reread=[Call("add", {"a": 4.0, "b": "5"})]) is None  # values are normalised
    assert "another call" in reason("round-trip", reread=[Call("add", {"a": 4, "b": 6})])
    assert reason("agreement", relabelled=[[SUM], None]) == "agreement: 50% of 2 labels agree"


def test_evidence_that_was_not_gathered_speaks_for_nothing():
    bare = Evidence(SEED.seed, SEED.tools)
    assert examine(GOOD, bare, ["round-trip"]).reason
    assert examine(GOOD, bare, ["agreement"]).reason


def test_the_first_check_that_fails_gives_the_reason_and_only_those_switched_on_are_made():
    bad = GOOD._replace(query=SEED.seed, calls=())
    assert examine(bad, SEED, ["schema", "copy"]).reason == "schema: 0 calls instead of one"
    assert examine(bad, SEED, ["copy"]).reason.startswith("copy: ")
    assert examine(bad, SEED, []).reason is None


def test_names():
    assert named("copy, schema") == ("schema", "copy")
    assert named("") == ()
    with pytest.raises(InputError, match="unknown check 'spelling'. Known: schema, copy"):
        named("schema,spelling")


def test_rejections_are_counted_by_name():
    pairs = [GOOD, GOOD._replace(reason="copy: a"), GOOD._replace(reason="copy: b"), GOOD._replace(reason="was cut")]
    found = rejections(pair.record() for pair in pairs)
    assert found == {"kept": 1, **dict.fromkeys(CHECKS, 0), "copy": 2, "was cut": 1}


def test_normal_text():
    assert normal("Could you PLEASE  book São-Paulo?") == "booksaopaulo"
    assert normal("please") == "please"  # a request that is nothing but polite is still not empty
