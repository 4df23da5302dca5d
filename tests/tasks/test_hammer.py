import json

import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.tasks import Call, call_correct, check_call
from ttsi_jax.tasks.example import GoldCall
from ttsi_jax.tasks.hammer import load_hammer

from .data import HAMMER, needs_shared

ENTRY = {
    "query": [{"role": "user", "content": "Is it raining?"}, {"role": "agent", "content": "Where?"}],
    "tools": [
        {"name": "get_rain", "description": "Rain.", "parameters": {"city": {"type": "str", "required": True}}},
        {"name": "components", "description": "Types.", "parameters": {}},
    ],
    "answers": [{"tool": "get_rain", "parameters": {"city": "Oslo"}}],
}


def load(tmp_path, value, name=None):
    path = tmp_path / "mine.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return load_hammer(path, name)


def test_an_entry(tmp_path):
    [example] = load(tmp_path, [ENTRY]).examples
    assert example.id == "mine-0"
    assert [message["role"] for message in example.messages] == ["user", "assistant"]
    [tool] = example.tools
    assert tool.parameters == {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert example.gold == (GoldCall("get_rain", {"city": ("Oslo",)}),)


def test_labels_may_be_missing(tmp_path):
    unlabelled = {key: value for key, value in ENTRY.items() if key != "answers"}
    task = load(tmp_path, [unlabelled, {**ENTRY, "answers": []}], "named")
    assert [(example.id, example.gold) for example in task.examples] == [("named-0", None), ("named-1", ())]


def test_a_real_tool_called_components_stays(tmp_path):
    tool = {"name": "components", "parameters": {"kind": {"type": "str"}}}
    [example] = load(tmp_path, [{**ENTRY, "tools": [tool]}]).examples
    assert [tool.name for tool in example.tools] == ["components"]


def test_the_spellings_of_python_signatures(tmp_path):
    """As in NexusRaven, whose tools were functions."""
    parameters = {
        "keywords": {"type": "List[str]", "description": "Words.", "required": True},
        "limit": {"type": "Optional[int]", "description": "At most.", "default": 10},
        "where": {"type": "Dict[str, Any]", "description": "Filters."},
        "kind": {"type": "Union[str, None]", "description": "Kind."},
    }
    tool = {"name": "search_cves", "description": "def search_cves(...)", "parameters": parameters}
    answers = [{"name": "search_cves", "arguments": {"keywords": ["kernel"], "limit": 5}}]
    [example] = load(tmp_path, [{"query": "Find five.", "tools": [tool], "answers": answers}], "nexusraven").examples
    types = {name: schema.get("type") for name, schema in example.tools[0].properties.items()}
    assert types == {"keywords": "array", "limit": "integer", "where": "object", "kind": None}
    assert example.tools[0].required == ("keywords",) and example.id == "nexusraven-0"
    assert check_call(Call("search_cves", {"keywords": ["kernel"], "limit": 5}), example.tools) is None


def test_answers_of_several_calls(tmp_path):
    """As in ToolAlpaca."""
    calls = [{"name": "get_rain", "arguments": {"city": city}} for city in ("Oslo", "Bergen", "Oslo")]
    [example] = load(tmp_path, [{**ENTRY, "answers": calls}]).examples
    assert [call.arguments["city"] for call in example.gold] == [("Oslo",), ("Bergen",), ("Oslo",)]
    assert call_correct([Call("get_rain", {"city": city}) for city in ("Bergen", "Oslo", "Oslo")], example.gold)
    assert not call_correct([Call("get_rain", {"city": city}) for city in ("Bergen", "Bergen", "Oslo")], example.gold)


BAD_ENTRIES = [
    (None, "not an object"),
    ([], "not an object"),
    ({}, "no 'query'"),
    ({"query": "a"}, "no 'tools'"),
    ({**ENTRY, "query": 3}, "neither text nor a list"),
    ({**ENTRY, "query": "\ud800"}, "surrogate"),
    ({**ENTRY, "tools": {}}, "'tools' is not a list"),
    ({**ENTRY, "tools": [ENTRY["tools"][0]] * 2}, "two tools"),
    ({**ENTRY, "answers": "f()"}, "right calls are not a list"),
    ({**ENTRY, "answers": [{}]}, "no function name"),
]


@pytest.mark.parametrize(("entry", "reason"), BAD_ENTRIES, ids=[reason for _, reason in BAD_ENTRIES])
def test_a_bad_entry_is_a_problem_and_the_others_still_run(tmp_path, entry, reason):
    task = load(tmp_path, [ENTRY, entry, ENTRY])
    assert [example.id for example in task.usable] == ["mine-0", "mine-2"]
    [problem] = task.problems
    assert problem.startswith("mine.json, entry 1: ")
    assert reason in problem


@pytest.mark.parametrize(("number", "reason"), [("NaN", "NaN is not a JSON value"), ("9" * 5000, "out of range")])
def test_an_entry_with_what_is_no_number_leaves_the_others(tmp_path, number, reason):
    good = json.dumps(ENTRY)
    bad = good.replace('"Oslo"', number)
    task = load(tmp_path, f"[{good}, {bad}, {good}]".encode())
    assert [example.id for example in task.usable] == ["mine-0", "mine-2"]
    assert task.problems[0].startswith("mine.json, entry 1: ") and reason in task.problems[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[", "not valid JSON"),
        (b"[" * 100_000, "nested"),
        (b'["caf\xe9"]', "not UTF-8"),
        (b"{}", "not a JSON array"),
        (b'{"query": "a"}\n{"query": "b"}', "more text after.*must end in .jsonl"),
    ],
)
def test_a_file_of_another_form(tmp_path, content, reason):
    with pytest.raises(InputError, match=f"mine.json.*{reason}"):
        load(tmp_path, content)


@needs_shared
@pytest.mark.parametrize(("file", "count"), [("sealtool", 294), ("apibank_l1", 399), ("toolalpaca", 114)])
def test_published_files(file, count):
    task = load_hammer(HAMMER / f"{file}.json")
    assert task.problems == ()
    assert len(task.usable) == count
    assert not any(tool.name == "components" for example in task.examples for tool in example.tools)
    assert all(example.gold and example.query for example in task.examples)
