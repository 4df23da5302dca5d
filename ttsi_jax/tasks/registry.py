"""Tasks by name or by file."""

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ttsi_jax.errors import InputError
from ttsi_jax.tasks.bfcl import CATEGORIES, load_bfcl
from ttsi_jax.tasks.example import Task
from ttsi_jax.tasks.hammer import load_hammer
from ttsi_jax.tasks.jsonl import load_jsonl

_BFCL = "bfcl:"
_HAMMER = "github.com/MadeAgents/Hammer, folder data/test/original"


@dataclass(frozen=True)
class TaskInfo:
    """What there is to know about a task before loading it.

    Attributes:
        n_examples: the number of usable inputs, or None where the data is not there.
        faults: known faults of the data, or "".
    """

    name: str
    n_examples: int | None
    licence: str
    source: str
    faults: str = ""


@dataclass(frozen=True)
class _HammerSet:
    file: str
    licence: str
    faults: str = ""


_HAMMER_SETS = {
    "sealtools": _HammerSet("sealtool.json", "Apache-2.0", "about 12 of the 294 right calls are generator noise"),
    "apibank": _HammerSet(
        "apibank_l1.json",
        "Apache-2.0",
        'the prompts lack the line "The current year is 2023."; many inputs have one candidate only',
    ),
    "toolalpaca": _HammerSet(
        "toolalpaca.json",
        "Apache-2.0 (repository)",
        "40 of the 114 right calls cannot be had from the prompt (34 hidden keys, 6 missing tools)",
    ),
    "nexusraven": _HammerSet("NexusRaven.json", "not verified: see the source"),
}
TASK_NAMES = (*_HAMMER_SETS, *(_BFCL + category for category in CATEGORIES))


def load_task(task: str, *, data_dir: Path | None = None, limit: int | None = None) -> Task:
    """Loads a task.

    Args:
        task: a name (see `describe_tasks`), or a file: `.jsonl` in the form of `jsonl`, `.json` in that of `hammer`.
        data_dir: where the named tasks' files are; else the environment variable TTSI_DATA, else `data`.
        limit: how many usable examples to take, from the first on; None takes all.

    Raises:
        InputError: for an unknown task, a file that is missing or not of its form, or a task without a usable example.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit on examples must be at least 1, not {limit}")
    if task.endswith(".jsonl"):
        loaded = load_jsonl(Path(task))
    elif task.endswith(".json"):
        loaded = load_hammer(Path(task))
    elif task.startswith(_BFCL):
        loaded = load_bfcl(task.removeprefix(_BFCL))
    elif task in _HAMMER_SETS:
        loaded = load_hammer(_find(task, data_dir), task)
    else:
        closest = difflib.get_close_matches(task, TASK_NAMES, n=1)
        hint = f" (did you mean {closest[0]}?)" if closest else ""
        raise InputError(
            f"unknown task {task!r}{hint}; a task is a .jsonl or .json file or one of {', '.join(TASK_NAMES)}"
        )
    if not loaded.examples:
        reasons = "; ".join(loaded.problems[:3]) or "it is empty"
        raise InputError(f"{task} has no usable example: {reasons}")
    return replace(loaded, examples=loaded.examples[:limit])


def describe_tasks(data_dir: Path | None = None) -> list[TaskInfo]:
    """Describes every task that has a name, counting the examples of those whose data is there."""
    hammer = [
        TaskInfo(name, _count(name, data_dir), known.licence, f"{known.file} from {_HAMMER}", known.faults)
        for name, known in _HAMMER_SETS.items()
    ]
    names = [_BFCL + category for category in CATEGORIES]
    bfcl = [TaskInfo(name, _count(name, None), "Apache-2.0", "pip install --no-deps bfcl-eval") for name in names]
    return hammer + bfcl


def _count(name: str, data_dir: Path | None) -> int | None:
    try:
        return len(load_task(name, data_dir=data_dir).examples)
    except InputError:
        return None


def _find(task: str, data_dir: Path | None) -> Path:
    folder = data_dir if data_dir is not None else Path(os.environ.get("TTSI_DATA") or "data")
    path = folder / _HAMMER_SETS[task].file
    if not path.is_file():
        raise InputError(
            f"the task {task} needs the file {path.name}: take it from {_HAMMER}, and put it into {folder} "
            "(or name its folder in the environment variable TTSI_DATA)"
        )
    return path
