"""What the model wrote, read as a request or a pair, and every reason to drop a pair."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import ADD, GREET, ORDER
from ttsi_jax.synthesis import Synthetic, check_pair, read_pair, read_request
from ttsi_jax.tasks import Call

GOOD = Call("add", {"a": 1, "b": 2})
TOOLS = (ADD, GREET, ORDER)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("Add 3 and 4", "Add 3 and 4"),
        (" Add 3 and 4 \nRequest 3: more", "Add 3 and 4"),
        ("\n\nAdd 3 and 4", "Add 3 and 4"),
        ("Request: Add 3", "Add 3"),
        ("new REQUEST: Add 3", "Add 3"),
        ("Another request:Add 3", "Add 3"),
        ('"Add 3"', "Add 3"),
        ("'Add 3'", "Add 3"),
        ('Request: " Add 3 "', "Add 3"),
        ('Say "hi"', 'Say "hi"'),
        ('"', '"'),
        ("My request: Add 3", "My request: Add 3"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_reading_a_request(text, request_):
    assert read_request(text) == request_


PAIR = '{"request": " Add 1 to 2 ", "call": {"name": "add", "arguments": {"a": 1, "b": 2}}}'


@pytest.mark.parametrize(
    "text",
    [PAIR, f"Sure! {PAIR} I hope it helps {{}}", f"```json\n{PAIR}\n```", PAIR.replace("arguments", "parameters")],
)
def test_reading_a_pair(text):
    assert read_pair(text) == Synthetic("Add 1 to 2", (GOOD,))


def test_a_pair_may_hold_several_calls_or_none_which_its_check_drops():
    many = read_pair('{"request": "r", "call": [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]}')
    assert [call.name for call in many.calls] == ["f", "g"] and many.reason is None
    assert check_pair(many, "seed", TOOLS, []).reason == "2 calls instead of one"
    assert check_pair(read_pair('{"request": "r", "call": []}'), "seed", TOOLS, []).reason == "0 calls instead of one"


NO_PAIR = "no JSON object with a request and a call"


@pytest.mark.parametrize(
    ("text", "query", "reason"),
    [
        ("", "", NO_PAIR),
        ("I cannot do that.", "", NO_PAIR),
        ('{"request": "Add', "", NO_PAIR),
        ("[1, 2]", "", NO_PAIR),
        ('{"call": {"name": "add", "arguments": {}}}', "", NO_PAIR),
        ('{"request": 5, "call": {"name": "add", "arguments": {}}}', "", NO_PAIR),
        ('{"request": NaN}', "", NO_PAIR),
        ('{"request": "half of \\ud83d", "call": {"name": "add", "arguments": {"a": 1, "b": 2}}}', "", NO_PAIR),
        ('{"request": ' + "[" * 5000, "", NO_PAIR),
        ('{"request": "Add"}', "Add", "the call cannot be read: "),
        ('{"request": "Add", "call": {"name": 5}}', "Add", "the call cannot be read: "),
        ('{"request": "Add", "call": {"name": "add", "arguments": [1]}}', "Add", "the call cannot be read: "),
        ('{"request": "Add", "call": "add 1 and 2"}', "Add", "the call cannot be read: "),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_read(text, query, reason):
    pair = read_pair(text)
    assert (pair.query, pair.calls) == (query, ())
    assert (pair.reason or "").startswith(reason)
    assert check_pair(pair, "seed", TOOLS, []) == pair, "its own reason stays"


@given(st.text())
def test_any_text_is_a_pair_or_a_reason(text):
    pair = read_pair(text)
    assert pair.calls or pair.reason or pair.query


SEED = "What's 5 + 6, please?"
KEPT = ["Add three, four"]
DROPPED = [
    ("", [GOOD], "the request is empty"),
    (" ?! ", [GOOD], "the request is empty"),
    (SEED, [GOOD], "the request repeats the seed"),
    ("what s 5 6 PLEASE", [GOOD], "the request repeats the seed"),
    ("add THREE four!", [GOOD], "the request repeats another one"),
    ("New", [], "0 calls instead of one"),
    ("New", [GOOD, GOOD], "2 calls instead of one"),
    ("New", [Call("subtract", {})], "unknown function 'subtract'"),
    ("New", [Call("add", {"a": 1})], "missing argument 'b'"),
    ("New", [Call("add", {"a": 1, "b": 2, "c": 3})], "unknown argument 'c'"),
    ("New", [Call("add", {"a": 1, "b": "2"})], "argument 'b' is a string, not an integer"),
    ("New", [Call("add", {"a": 1, "b": True})], "argument 'b' is a boolean, not an integer"),
    ("New", [Call("order", {"items": [1], "options": {}})], "argument 'items[0]' is an integer, not a string"),
]


@pytest.mark.parametrize(("query", "calls", "reason"), DROPPED)
def test_reasons_to_drop_a_pair(query, calls, reason):
    pair = check_pair(Synthetic(query, tuple(calls)), SEED, TOOLS, KEPT)
    assert pair == Synthetic(query, tuple(calls), reason)
    assert pair.record()["accepted"] is False and pair.record()["reason"] == reason


@pytest.mark.parametrize("query", ["What's 5 + 7, please?", "Add three, four, five", "加 5"])
def test_a_good_pair_is_kept(query):
    pair = check_pair(Synthetic(query, (GOOD,)), SEED, TOOLS, KEPT)
    assert pair.reason is None
    assert pair.record() == {
        "query": query,
        "calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}],
        "accepted": True,
        "reason": None,
    }


def test_a_pair_repeats_only_what_was_kept():
    assert check_pair(Synthetic("Add three, four", (GOOD,)), SEED, TOOLS, []).reason is None
