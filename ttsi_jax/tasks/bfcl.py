"""The single-turn Python categories of the Berkeley function-calling leaderboard.

The data comes from the installed `bfcl-eval` distribution. Its files are read without importing it, as that needs
dozens of packages.
"""

import itertools
import math
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from ttsi_jax.errors import InputError
from ttsi_jax.tasks.entries import Entry, EntryError, collect, json_lines, read_messages, read_tools
from ttsi_jax.tasks.example import Example, GoldCall, Task

CATEGORIES = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "irrelevance",
    "live_irrelevance",
)
_ALIASES = {"simple": "simple_python"}
_MAX_ALTERNATIVES = 4096
INSTALL = "pip install --no-deps bfcl-eval"


def load_bfcl(category: str) -> Task:
    """Reads one category; the task is called `bfcl:<category>`.

    Args:
        category: one of `CATEGORIES`, or `simple` for `simple_python`.

    Raises:
        InputError: for another category, or if `bfcl-eval` is not installed or lacks the file.
    """
    category = _ALIASES.get(category, category)
    if category not in CATEGORIES:
        hint = " (Java and JavaScript are not supported)" if "java" in category.casefold() else ""
        raise InputError(f"unknown BFCL category {category!r}{hint}; known are {', '.join(CATEGORIES)}")
    folder = data_folder()
    questions = _newest(folder, category)
    if "irrelevance" in category:
        return collect(f"bfcl:{category}", json_lines(questions), lambda entry: _read(entry, ()))
    answers = {
        entry.value.get("id"): entry.value.get("ground_truth")
        for entry in json_lines(_newest(folder / "possible_answer", category))
        if isinstance(entry.value, dict)
    }
    return collect(
        f"bfcl:{category}", json_lines(questions), lambda entry: _read(entry, _read_answer(answers.get(_id(entry))))
    )


def data_folder() -> Path:
    """The folder with the leaderboard's test data.

    Raises:
        InputError: if `bfcl-eval` is not installed.
    """
    try:
        return Path(str(metadata.distribution("bfcl-eval").locate_file("bfcl_eval/data")))
    except metadata.PackageNotFoundError:
        raise InputError(f"BFCL tasks need the package bfcl-eval: {INSTALL}") from None


def _newest(folder: Path, category: str) -> Path:
    """The file of a category with the highest version: BFCL_v4_multiple.json."""
    form = re.compile(rf"BFCL_v([0-9]+)_{category}\.json")
    found = [(int(match[1]), path) for path in folder.glob("BFCL_v*.json") if (match := form.fullmatch(path.name))]
    if not found:
        raise InputError(f"the installed bfcl-eval has no file BFCL_v*_{category}.json in {folder}")
    return max(found)[1]


def _id(entry: Entry) -> str:
    identifier = entry.value.get("id")
    if not isinstance(identifier, str) or not identifier:
        raise EntryError("there is no 'id'")
    return identifier


def _read(entry: Entry, gold: tuple[GoldCall, ...]) -> Example:
    turns = entry.value.get("question")
    if not isinstance(turns, list) or len(turns) != 1:
        raise EntryError("'question' is not a list with one conversation")
    return Example(_id(entry), read_messages(turns[0]), read_tools(entry.value.get("function")), gold)


def _read_answer(calls: Any) -> tuple[GoldCall, ...]:
    """Reads `[{function: {argument: [accepted values]}}]`, where "" among the values makes the argument optional."""
    if not isinstance(calls, list):
        raise EntryError("there is no answer with this id")
    gold = []
    for call in calls:
        if not isinstance(call, dict) or len(call) != 1:
            raise EntryError("a call of the answer is not one function with its arguments")
        [(name, arguments)] = call.items()
        if not isinstance(arguments, dict) or not all(isinstance(values, list) for values in arguments.values()):
            raise EntryError(f"the accepted values of an argument of {name!r} are not a list")
        accepted = {argument: _accepted(values) for argument, values in arguments.items()}
        gold.append(GoldCall(name, accepted, frozenset(key for key, values in arguments.items() if "" in values)))
    return tuple(gold)


def _accepted(values: list[Any]) -> tuple[Any, ...]:
    """Accepted values in full: an object is given as `{key: [accepted values]}`, in a list of objects too."""
    return tuple(full for value in values or [[]] for full in _spelled_out(value))


def _spelled_out(value: Any) -> list[Any]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [list(items) for items in _product([_spelled_out(item) for item in value])]
    if not isinstance(value, dict):
        return [value]
    if not all(isinstance(choices, list) for choices in value.values()):
        raise EntryError("an object among the accepted values does not list the values of each key")
    # "" says that the key may be left out; without any accepted value it is the empty list itself that is meant.
    choices = [[(key, choice) for choice in values or [[]]] for key, values in value.items()]
    return [{key: choice for key, choice in members if choice != ""} for members in _product(choices)]


def _product(choices: list[list[Any]]) -> list[tuple[Any, ...]]:
    if math.prod(map(len, choices)) > _MAX_ALTERNATIVES:
        raise EntryError(f"the answer has more than {_MAX_ALTERNATIVES} accepted values for one argument")
    return list(itertools.product(*choices))
