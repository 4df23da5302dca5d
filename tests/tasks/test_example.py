import dataclasses

import pytest

from ttsi_jax.tasks.example import Example, Tool


def test_query_is_the_last_user_message():
    messages = tuple(
        {"role": role, "content": content}
        for role, content in [
            ("system", "s"),
            ("user", "first"),
            ("assistant", "a"),
            ("user", "second"),
            ("assistant", "b"),
        ]
    )
    assert Example("x", messages, (), None).query == "second"


def test_tool_shortcuts():
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}
    tool = Tool("f", "", schema)
    assert tool.properties == {"a": {"type": "string"}, "b": {}}
    assert tool.required == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tool.name = "g"  # pyright: ignore[reportAttributeAccessIssue]
