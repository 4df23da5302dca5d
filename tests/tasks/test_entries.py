import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.tasks.entries import EntryError, read_bytes, read_gold, read_messages, read_tools
from ttsi_jax.tasks.example import GoldCall

from .data import WEATHER


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def test_text_is_one_user_turn():
    assert read_messages("hello") == ({"role": "user", "content": "hello"},)


def test_roles_are_the_three_of_chat_templates_and_alternate():
    read = read_messages(
        turns(
            ("system", "s"),
            ("user", "a"),
            ("agent", "b"),
            ("assistant", "c"),
            ("tool", "d"),
            ("user", "e"),
            ("user", "f"),
        )
    )
    assert list(read) == turns(("system", "s"), ("user", "a"), ("assistant", "b\nc\nTool result: d"), ("user", "e\nf"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "neither text nor a list"),
        (3, "neither text nor a list"),
        ("", "no text from the user"),
        (" \n", "no text from the user"),
        ([], "no text from the user"),
        (turns(("assistant", "a")), "no text from the user"),
        (["a"], "no text in 'content'"),
        ([{"role": "user"}], "no text in 'content'"),
        ([{"role": "user", "content": None}], "no text in 'content'"),
        ([{"content": "a"}], "has the role None"),
        ([{"role": "boss", "content": "a"}], "has the role 'boss'"),
        ([{"role": ["user"], "content": "a"}], "has the role"),
    ],
)
def test_bad_queries(value, reason):
    with pytest.raises(EntryError, match=reason):
        read_messages(value)


def test_tools_keep_their_order_and_wrappings_are_undone():
    tools = read_tools([{"type": "function", "function": WEATHER}, {"name": "b"}, {"name": "a", "description": None}])
    assert [(tool.name, tool.description) for tool in tools] == [
        ("get_weather", "The weather in a city."),
        ("b", ""),
        ("a", ""),
    ]
    assert tools[0].required == ("city",)
    assert tools[1].parameters == {"type": "object", "properties": {}, "required": []}
    assert read_tools([]) == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "'tools' is not a list"),
        ({}, "'tools' is not a list"),
        (["f"], "a tool has no name"),
        ([{}], "a tool has no name"),
        ([{"name": ""}], "a tool has no name"),
        ([{"name": " "}], "a tool has no name"),
        ([{"name": 3}], "a tool has no name"),
        ([WEATHER, WEATHER], "two tools have the name 'get_weather'"),
        ([{"name": "f", "description": 3}], "description of the tool 'f'"),
        ([{"name": "f", "parameters": []}], "tool 'f': the parameters are not an object"),
        ([{"name": "f", "parameters": {"a": {"$ref": "#"}}}], r"tool 'f': parameter 'a' uses \$ref"),
        ([{"name": "f", "required": "a"}], "'required' of the tool 'f'"),
    ],
)
def test_bad_tools(value, reason):
    with pytest.raises(EntryError, match=reason):
        read_tools(value)


def test_gold_calls_in_either_spelling():
    wanted = (GoldCall("f", {"a": ([1, 2],)}),)
    assert read_gold([{"name": "f", "arguments": {"a": [1, 2]}}]) == wanted
    assert read_gold([{"tool": "f", "parameters": {"a": [1, 2]}}]) == wanted
    assert read_gold([]) == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "not a list"),
        (["f"], "no function name"),
        ([{"arguments": {}}], "no function name"),
        ([{"name": 1, "arguments": {}}], "no function name"),
        ([{"name": "f"}], "arguments of the right call of 'f'"),
        ([{"name": "f", "arguments": []}], "arguments of the right call of 'f'"),
    ],
)
def test_bad_gold_calls(value, reason):
    with pytest.raises(EntryError, match=reason):
        read_gold(value)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot read the task file"):
            read_bytes(path)
