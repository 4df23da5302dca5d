"""The functions that a run's inputs choose from, beside its records: a line of JSON for each distinct list of them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, cast

from ttsi_jax.errors import InputError
from ttsi_jax.tasks import Task

FUNCTIONS = "functions.jsonl"


class Listed(TypedDict):
    """A list of functions, each with `name`, `description` and `parameters`, and the ids of the inputs that have it."""

    functions: list[dict[str, Any]]
    inputs: list[str]


def listed(task: Task) -> list[Listed]:
    """The distinct lists of functions of a task, in the order of their first inputs."""
    found: dict[str, Listed] = {}
    for example in task.examples:
        if example.tools:
            functions = [asdict(tool) for tool in example.tools]
            found.setdefault(json.dumps(functions), {"functions": functions, "inputs": []})["inputs"].append(example.id)
    return list(found.values())


def read_functions(path: Path) -> list[Listed]:
    """The lists of the run in a directory; none, where it was not kept.

    Raises:
        InputError: the file cannot be read, or is not of this form.
    """
    try:
        lines = (path / FUNCTIONS).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path / FUNCTIONS}: cannot be read: {error.strerror}") from None
    return [_read(line, f"{path / FUNCTIONS}:{number}") for number, line in enumerate(lines, start=1)]


def _read(line: bytes, where: str) -> Listed:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not (isinstance(value, dict) and _all(value.get("functions"), dict) and _all(value.get("inputs"), str)):
        raise InputError(f"{where}: no list of functions with its inputs. Delete the file: runs are read without it.")
    return cast(Listed, value)


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
