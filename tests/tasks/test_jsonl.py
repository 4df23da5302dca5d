import json

import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.tasks.example import GoldCall
from ttsi_jax.tasks.jsonl import load_jsonl

from .data import LINE, SHARED, WEATHER, needs_shared


def load(tmp_path, *lines):
    path = tmp_path / "mine.jsonl"
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(encoded))
    return load_jsonl(path)


def test_a_whole_file(tmp_path):
    task = load(
        tmp_path,
        {**LINE, "id": "a"},
        b"",
        {"messages": [{"role": "user", "content": "Hi"}], "tools": [], "calls": []},
        {"id": 7, "query": "Hm", "tools": [WEATHER], "note": "ignored"},
        {"id": "g", "query": "Hm", "tools": [], "gold": [{"name": "f", "arguments": {"a": 1}}]},
    )
    assert task.name == "mine"
    assert task.problems == ()
    assert [example.id for example in task.usable] == ["a", "line-3", "7", "g"]
    labelled, no_call, unlabelled, other_spelling = task.examples
    assert labelled.gold == (GoldCall("get_weather", {}),)
    assert labelled.query == "Is it raining in Oslo?"
    assert labelled.tools[0].name == "get_weather"
    assert no_call.gold == ()
    assert no_call.tools == ()
    assert unlabelled.gold is None
    assert other_spelling.gold == (GoldCall("f", {"a": (1,)}),)


def test_line_ends_and_byte_order_mark(tmp_path):
    line = json.dumps(LINE).encode()
    task = load(tmp_path, b"\xef\xbb\xbf" + line + b"\r", b"  \r", line + b"\r")
    assert [example.id for example in task.usable] == ["line-1", "line-3"]


BAD_LINES = [
    (b"{", "not valid JSON"),
    (b"not json", "not valid JSON"),
    (b'{"query": "caf\xe9"}', "not UTF-8"),
    (b'{"query": NaN}', "NaN is not a JSON value"),
    (b'{"query": "\\ud800"}', "surrogate"),
    (b'{"query": ' + b"9" * 9000 + b"}", "out of range"),
    (b'{"query": ' + b"[" * 9000 + b"]" * 9000 + b"}", "nested"),
    (b"[]", "not an object"),
    (b'"text"', "not an object"),
    (b"null", "not an object"),
    ({}, "one of 'query' and 'messages'"),
    ({**LINE, "messages": []}, "one of 'query' and 'messages'"),
    ({"query": "a"}, "no 'tools'"),
    ({**LINE, "query": None}, "neither text nor a list"),
    ({**LINE, "query": " "}, "no text from the user"),
    ({**LINE, "tools": "f"}, "'tools' is not a list"),
    ({**LINE, "tools": [WEATHER, WEATHER]}, "two tools"),
    ({**LINE, "id": ""}, "'id' is neither"),
    ({**LINE, "id": None}, "'id' is neither"),
    ({**LINE, "id": True}, "'id' is neither"),
    ({**LINE, "calls": {}}, "right calls are not a list"),
    ({**LINE, "gold": []}, "both 'calls' and 'gold'"),
    ({**LINE, "calls": [{"name": "f"}]}, "arguments of the right call"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_bad_line_is_a_problem_and_the_others_still_run(tmp_path, line, reason):
    task = load(tmp_path, LINE, line, LINE)
    assert [example.id for example in task.usable] == ["line-1", "line-3"]
    [problem] = task.problems
    assert problem.startswith("mine.jsonl:2: ")
    assert reason in problem


def test_duplicate_ids_name_both_lines(tmp_path):
    task = load(tmp_path, {**LINE, "id": "line-3"}, {**LINE, "id": "x"}, LINE)
    assert [example.id for example in task.usable] == ["line-3", "x"]
    assert task.problems == ("mine.jsonl:3: the id 'line-3' is already used in mine.jsonl:1",)


def test_a_bad_line_keeps_its_place_and_leaves_the_ids_to_the_good_ones(tmp_path):
    task = load(tmp_path, b"{", {**LINE, "id": "line-1"}, {**LINE, "id": "line-4"}, LINE)
    ids = ["line-1 (unusable)", "line-1", "line-4", "line-4 (unusable)"]
    assert [example.id for example in task.examples] == ids
    broken = task.examples[0]
    assert broken.problem and (broken.query, broken.tools, broken.gold) == ("", (), None)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl"):
        load_jsonl(tmp_path / "none.jsonl")


@needs_shared
def test_seal_tools_dev_split():
    task = load_jsonl(SHARED / "sealtools.dev.jsonl")
    assert task.problems == ()
    assert len(task.usable) == 700
    assert task.examples[0].id == "dev-easy-0"
    assert all(example.gold for example in task.examples)
