"""What the readers of task files share: one decoded entry becomes an example, or a sentence that says why it cannot."""

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ttsi_jax.errors import InputError
from ttsi_jax.tasks import strict_json
from ttsi_jax.tasks.example import Example, GoldCall, Task, Tool
from ttsi_jax.tasks.schema import SchemaError, normalise_parameters

# Chat templates know no tool role in common: what a tool returned is told on the assistant's side.
_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "agent": "assistant", "tool": "assistant"}


class EntryError(ValueError):
    """An entry of a task file that cannot be used; the message says what is wrong with it."""


class Entry(NamedTuple):
    """One entry of a task file.

    Attributes:
        where: file and line or entry number, for messages.
        default_id: the example's id if the entry has none, or cannot be used.
        value: the decoded entry, or a `JsonError` that kept it from being decoded.
    """

    where: str
    default_id: str
    value: Any


def collect(name: str, entries: Iterable[Entry], read: Callable[[Entry], Example]) -> Task:
    """Reads every entry; one that cannot be used becomes an example with a problem and leaves the others alone."""
    examples: list[Example] = []
    used_at: dict[str, str] = {}
    for entry in entries:
        try:
            if isinstance(entry.value, strict_json.JsonError):
                raise EntryError(str(entry.value))
            if not isinstance(entry.value, dict):
                raise EntryError("the entry is not an object")
            example = read(entry)
            if example.id in used_at:
                raise EntryError(f"the id {example.id!r} is already used in {used_at[example.id]}")
        except EntryError as error:
            example = Example(entry.default_id, (), (), None, problem=f"{entry.where}: {error}")
        else:
            used_at[example.id] = entry.where
        examples.append(example)
    return Task(name, tuple(_with_own_id(example, used_at) for example in examples))


def _with_own_id(example: Example, used: Container[str]) -> Example:
    """An entry that cannot be used leaves its id to one that has it; two of them have different places."""
    while example.problem is not None and example.id in used:
        example = replace(example, id=f"{example.id} (unusable)")
    return example


def read_bytes(path: Path) -> bytes:
    """The content of a file, or an `InputError` that says why there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the task file {path}: {error.strerror or error}") from None


def json_lines(path: Path) -> Iterator[Entry]:
    """The entries of a JSON Lines file; blank lines count but give none."""
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = strict_json.decode(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            value = strict_json.JsonError(f"not UTF-8 (byte {error.start + 1} of the line)")
        except strict_json.JsonError as error:
            value = error
        yield Entry(f"{path.name}:{number}", f"line-{number}", value)


def read_messages(value: Any) -> tuple[dict[str, str], ...]:
    """Reads a query: text, or a list of `{"role", "content"}` turns.

    Turns of the same side that follow one another are joined, as many chat templates insist on alternation.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise EntryError("the query is neither text nor a list of turns")
    messages: list[dict[str, str]] = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise EntryError("a turn of the query has no text in 'content'")
        role = _ROLES.get(turn["role"]) if isinstance(turn.get("role"), str) else None
        if role is None:
            raise EntryError(f"a turn of the query has the role {turn.get('role')!r}, not one of {', '.join(_ROLES)}")
        content = f"Tool result: {turn['content']}" if turn["role"] == "tool" else turn["content"]
        if messages and messages[-1]["role"] == role:
            content = f"{messages.pop()['content']}\n{content}"
        messages.append({"role": role, "content": content})
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise EntryError("the query has no text from the user")
    return tuple(messages)


def read_tools(value: Any) -> tuple[Tool, ...]:
    """Reads a list of `{"name", "description"?, "parameters"?, "required"?}`; an empty list is allowed."""
    if not isinstance(value, list):
        raise EntryError("'tools' is not a list")
    tools = tuple(_read_tool(tool) for tool in value)
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise EntryError(f"two tools have the name {twice!r}")
    return tools


def read_gold(value: Any) -> tuple[GoldCall, ...]:
    """Reads a list of `{"name" or "tool", "arguments" or "parameters"}`; each argument has one accepted value."""
    if not isinstance(value, list):
        raise EntryError("the right calls are not a list")
    return tuple(_read_gold_call(call) for call in value)


def _read_tool(value: Any) -> Tool:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]  # OpenAI's {"type": "function", "function": {...}}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"].strip():
        raise EntryError("a tool has no name")
    name, description = value["name"], value.get("description")
    if not isinstance(description, str | None):
        raise EntryError(f"the description of the tool {name!r} is not text")
    required = value.get("required")
    if required is not None and not (isinstance(required, list) and all(isinstance(item, str) for item in required)):
        raise EntryError(f"'required' of the tool {name!r} is not a list of names")
    parameters = value.get("parameters")
    try:
        schema = normalise_parameters({} if parameters is None else parameters, required or ())
    except SchemaError as error:
        raise EntryError(f"the tool {name!r}: {error}") from None
    return Tool(name, description or "", schema)


def _read_gold_call(value: Any) -> GoldCall:
    value = value if isinstance(value, dict) else {}
    name = value.get("name", value.get("tool"))
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(name, str) or not name:
        raise EntryError("a right call has no function name")
    if not isinstance(arguments, dict):
        raise EntryError(f"the arguments of the right call of {name!r} are not an object")
    return GoldCall(name, {argument: (accepted,) for argument, accepted in arguments.items()})
