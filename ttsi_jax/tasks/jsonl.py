"""The project's own task form: JSON Lines, one input a line.

    {"id": "a1", "query": "...", "tools": [{"name", "description", "parameters"}], "calls": [{"name", "arguments"}]}

`id` may be left out (then it is `line-<number>`), as may `calls` (no label; `[]` says that calling nothing is right,
and `gold` is another spelling). `messages`, a list of `{"role", "content"}` turns, may stand for `query`. `parameters`
is a JSON schema or any of the dialects that `schema.normalise_parameters` knows. Other keys are ignored.
"""

from pathlib import Path

from ttsi_jax.tasks.entries import Entry, EntryError, collect, json_lines, read_gold, read_messages, read_tools
from ttsi_jax.tasks.example import Example, Task


def load_jsonl(path: Path) -> Task:
    """Reads a task file in the form above; the task has the file's name.

    Raises:
        InputError: if the file cannot be read. An unusable line is an example with a problem instead.
    """
    return collect(path.stem, json_lines(path), _read)


def _read(entry: Entry) -> Example:
    value = entry.value
    query = [value[key] for key in ("query", "messages") if key in value]
    if len(query) != 1:
        raise EntryError("there must be one of 'query' and 'messages'")
    if "tools" not in value:
        raise EntryError("there is no 'tools'")
    gold = [value[key] for key in ("calls", "gold") if value.get(key) is not None]
    if len(gold) > 1:
        raise EntryError("there is both 'calls' and 'gold'")
    identifier = value.get("id", entry.default_id)
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier:
        raise EntryError("'id' is neither text nor a whole number")
    return Example(
        identifier, read_messages(query[0]), read_tools(value["tools"]), read_gold(gold[0]) if gold else None
    )
