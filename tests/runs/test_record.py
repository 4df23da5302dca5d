import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.runs.record import Record, from_json, to_json

TEXT = st.text(st.characters())  # control characters and lone surrogates too
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | st.integers() | FLOATS | TEXT


def objects(values):
    return st.dictionaries(TEXT, values, max_size=4)


JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | objects(inner))
CALL = st.fixed_dictionaries({"name": TEXT, "arguments": objects(JSON)})
CALLS = st.none() | st.lists(CALL, max_size=2)
FUNCTION = st.fixed_dictionaries({"name": TEXT, "description": TEXT, "parameters": objects(TEXT)})
SAMPLES = st.lists(st.fixed_dictionaries({"text": TEXT, "reward": FLOATS}), max_size=2)
PAIR = st.fixed_dictionaries(
    {"query": TEXT, "calls": st.lists(CALL, max_size=2), "accepted": st.booleans(), "reason": st.none() | TEXT},
    optional={
        "samples": SAMPLES,
        "check": st.none() | TEXT,
        "tools": st.lists(FUNCTION, max_size=2),
        "origin": TEXT,
        "usage": objects(st.none() | FLOATS),
    },
)
RECORDS = st.builds(
    Record,
    id=TEXT,
    task=TEXT,
    query=TEXT,
    candidates=st.lists(TEXT),
    probabilities=st.lists(FLOATS),
    uncertainty=st.none() | FLOATS,
    text_base=st.none() | TEXT,
    calls=CALLS,
    samples_base=st.lists(st.none() | TEXT, min_size=2, max_size=3),
    samples_right_base=st.none() | st.integers(0, 2),
    samples_right=st.none() | st.integers(0, 2),
    gold=CALLS,
    synthetic=st.lists(PAIR, max_size=2),
    seconds=objects(FLOATS),
    tokens=objects(st.integers(0)),
    error=st.none() | TEXT,
)


def test_fields_are_those_of_the_design_in_order():
    assert [f.name for f in fields(Record)] == (
        "id task query n_prompt_tokens candidates fingerprint log_likelihoods channel probabilities uncertainty "
        "uncertain synthetic losses pick_base pick pick_correct_base pick_correct text_base base_calls "
        "text_adapted adapted_calls calls samples_base samples_adapted orders_base orders_adapted adapters "
        "samples_right_base samples_right seen adapted adapted_after reverted reason evidence gold unmatchable "
        "tool_correct_base call_correct_base tool_correct call_correct seconds tokens error"
    ).split()


@given(RECORDS)
def test_a_record_survives_the_file(record):
    line = to_json(record)
    assert "\n" not in line
    assert line.encode().decode() == line
    # Neighbouring surrogates are one character in every encoding, so two strings of them count as equal.
    read = from_json(line)
    assert _joined(vars(read)) == _joined(vars(record))
    assert to_json(read) == line


def _joined(value):
    return json.loads(json.dumps(value))


def test_numbers_that_are_not_finite_become_null():
    nan, inf = float("nan"), float("inf")
    calls = [{"name": "f", "arguments": {"x": -inf, "said": "NaN"}}]
    record = from_json(to_json(Record("a", "t", "q", probabilities=[nan, 0.1], uncertainty=inf, calls=calls)))
    assert record.probabilities == [None, 0.1]
    assert record.uncertainty is None
    assert record.calls == [{"name": "f", "arguments": {"x": None, "said": "NaN"}}]


def test_text_stays_readable_and_lone_surrogates_are_escaped():
    line = to_json(Record("a", "t", "Zürich 東京 \ud800"))
    assert 'Zürich 東京 \\ud800"' in line


def sampled(name, n_right, **values):
    return json.dumps({"id": "a", "task": "t", "query": "q", "samples_base": ["x"], name: n_right, **values})


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("[]", "object"),
        ('{"id": "a", "task": "t"}', "missing fields: query"),
        ('{"id": "a", "task": "t", "query": "q", "colour": 1}', "unknown fields: colour"),
        ('{"id": 1, "task": "t", "query": "q"}', "'id' must be a str"),
        ('{"id": "a", "task": "t", "query": "q", "candidates": null}', "'candidates' must be a list"),
        ('{"id": "a", "task": "t", "query": "q", "seconds": []}', "'seconds' must be a dict"),
        ('{"id": "a", "task": "t", "query": "q", "losses": ["high"]}', r"'losses' must be a list\[float | None\]"),
        ('{"id": "a", "task": "t", "query": "q", "adapted": 1}', "'adapted' must be a bool"),
        (f'{{"id": "a", "task": "t", "query": "q", "uncertainty": 1{"0" * 400}}}', "'uncertainty' must be a float"),
        ('{"id": "a", "task": "t", "query": "q", "n_prompt_tokens": true}', "'n_prompt_tokens' must be a int"),
        ('{"id": "a", "task": "t", "query": "q", "calls": [{"name": "f"}]}', r"must be a list\[Call\] | None"),
        (sampled("samples_right", 5), "'samples_right' is 5, and there are 1 samples"),
        (sampled("samples_right_base", -1), "'samples_right_base' is -1, and there are 1 samples"),
        (sampled("samples_right", 1, adapted=True), "'samples_right' is 1, and there are 0 samples"),
    ],
)
def test_what_is_no_record_is_named(line, complaint):
    with pytest.raises(ValueError, match=complaint):
        from_json(line)


def test_the_request_is_the_last_thing_the_user_said():
    turns = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "Where to?"}]
    assert Record("a", "t", turns).request == Record("a", "t", "Go.").request == "Go."
    assert Record("a", "t", []).request == Record("a", "t", [{"role": "user"}]).request == ""
    assert from_json(to_json(Record("a", "t", turns))).query == turns
