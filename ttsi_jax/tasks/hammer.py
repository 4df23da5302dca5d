"""Test sets in the form in which the Hammer project publishes them: one JSON array.

An entry is `{"query", "tools", "answers"}`. `query` is text or a list of turns (roles user, agent, assistant, tool),
`tools` describe their parameters by bare mappings, and `answers` are calls `{"tool", "parameters"}` or `{"name",
"arguments"}`.
"""

from pathlib import Path

from ttsi_jax.errors import InputError
from ttsi_jax.tasks import strict_json
from ttsi_jax.tasks.entries import Entry, EntryError, collect, read_bytes, read_gold, read_messages, read_tools
from ttsi_jax.tasks.example import Example, Task


def load_hammer(path: Path, name: str | None = None) -> Task:
    """Reads a file of this form; example ids are `<task>-<index>`, counted from 0.

    Args:
        name: the task's name; the file's own if None.

    Raises:
        InputError: if the file cannot be read or is not a JSON array. An unusable entry is an example
        with a problem instead.
    """
    name = name or path.stem
    try:
        values = strict_json.decode_items(read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start + 1})") from None
    except strict_json.JsonError as error:
        raise InputError(f"{path}: {error} (a file with one object a line must end in .jsonl)") from None
    entries = (Entry(f"{path.name}, entry {i}", f"{name}-{i}", value) for i, value in enumerate(values))
    return collect(name, entries, _read)


def _read(entry: Entry) -> Example:
    value = entry.value
    for key in ("query", "tools"):
        if key not in value:
            raise EntryError(f"there is no {key!r}")
    tools = value["tools"]
    if isinstance(tools, list):
        tools = [tool for tool in tools if not _is_glossary(tool)]
    answers = value.get("answers")
    return Example(
        entry.default_id,
        read_messages(value["query"]),
        read_tools(tools),
        None if answers is None else read_gold(answers),
    )


def _is_glossary(tool: object) -> bool:
    """ToolAlpaca lists the types that its tools return as one more tool, which cannot be called."""
    return isinstance(tool, dict) and tool.get("name") == "components" and not tool.get("parameters")
