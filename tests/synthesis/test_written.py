"""What the model wrote, read as a request or a pair."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.synthesis import Synthetic, read_pair, read_request
from ttsi_jax.tasks import Call

GOOD = Call("add", {"a": 1, "b": 2})


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


def test_a_pair_may_hold_several_calls_or_none():
    many = read_pair('{"request": "r", "call": [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]}')
    assert [call.name for call in many.calls] == ["f", "g"] and many.reason is None
    assert read_pair('{"request": "r", "call": []}').reason == "0 calls instead of one"


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


@given(st.text())
def test_any_text_is_a_pair_or_a_reason(text):
    pair = read_pair(text)
    assert pair.calls or pair.reason or pair.query


def test_a_pair_as_it_is_recorded():
    assert Synthetic("Add 1 to 2", (GOOD,)).record() == {
        "query": "Add 1 to 2",
        "calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}],
        "accepted": True,
        "reason": None,
        "check": None,
    }
    dropped = Synthetic("", (), "the request is empty", "schema").record()
    assert (dropped["accepted"], dropped["reason"], dropped["check"]) == (False, "the request is empty", "schema")
