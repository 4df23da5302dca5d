"""Tasks by name or by file."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from ttsi_jax.errors import InputError
from ttsi_jax.tasks.bfcl import INSTALL, load_bfcl
from ttsi_jax.tasks.example import Example, Task
from ttsi_jax.tasks.faults import Faults, count_faults
from ttsi_jax.tasks.hammer import load_hammer
from ttsi_jax.tasks.jsonl import load_jsonl
from ttsi_jax.tasks.prompts import ANY_NUMBER
from ttsi_jax.tasks.published import BFCL, PUBLISHED, Published

TASK_NAMES = tuple(PUBLISHED)
_FAULTS = {
    "several_calls": "need several calls",
    "one_candidate": "have one candidate",
    "no_candidate": "have no candidate",
    "duplicates": "duplicates",
    "unmatchable": "cannot be matched",
    "loose": "have loose types",
}


@dataclass(frozen=True)
class TaskInfo:
    """What there is to know about a task before a run.

    Attributes:
        present: whether the data is here.
        n_inputs: of the data that is here, else as published; None where nobody counted.
        faults: of the data that is here, else as known; None where nobody looked.
        source: the command that gets the data.
        remarks: what else is known of the data, or "".
    """

    name: str
    present: bool
    n_inputs: int | None
    faults: Faults | None
    licence: str
    source: str
    remarks: str

    def known(self) -> str:
        """Faults and remarks as text, such as `2 duplicates; no call is right`."""
        counts = self.faults._asdict() if self.faults else {}
        told = ", ".join(f"{count} {_FAULTS[name]}" for name, count in counts.items() if count)
        return "; ".join(filter(None, (told, self.remarks)))


def load_task(task: str, *, data_dir: str | os.PathLike[str] | None = None, limit: int | None = None) -> Task:
    """Loads a task.

    Args:
        task: a name (see `describe_tasks`), or a file: `.jsonl` in the form of `jsonl`, `.json` in that of `hammer`.
        data_dir: where the named tasks' files are; else the environment variable TTSI_DATA, else `data`.
        limit: how many usable examples to take, from the first on, with the unusable ones between them; None takes all.

    Raises:
        InputError: for an unknown task, a file that is missing or not of its form, or a task without a usable example.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit on examples must be at least 1, not {limit}")
    if task.endswith(".jsonl"):
        loaded = load_jsonl(Path(task))
    elif task.endswith(".json"):
        loaded = load_hammer(Path(task))
    elif task.startswith(BFCL):
        loaded = load_bfcl(task.removeprefix(BFCL))
    else:
        loaded = load_hammer(_find(task, data_dir), task)
    if not loaded.usable:
        reasons = "; ".join(loaded.problems[:3]) or "it is empty"
        raise InputError(f"{task} has no usable example: {reasons}")
    examples = loaded.examples if limit is None else _first_usable(loaded.examples, limit)
    if task in PUBLISHED and PUBLISHED[task].any_number:
        examples = tuple(map(_told, examples))
    return replace(loaded, examples=examples)


def find_published(task: str) -> Published:
    """The published set of this name.

    Raises:
        InputError: there is none.
    """
    if task in PUBLISHED:
        return PUBLISHED[task]
    closest = difflib.get_close_matches(task, TASK_NAMES, n=1)
    hint = f" (did you mean {closest[0]}?)" if closest else ""
    raise InputError(f"unknown task {task!r}{hint}; a task is a .jsonl or .json file or one of {', '.join(TASK_NAMES)}")


def file_of(task: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Where the file of a named task is looked for; see `load_task`.

    Raises:
        InputError: there is no such task, or it has no file of its own.
    """
    file = find_published(task).file
    if file is None:
        raise InputError(f"{task} comes with a package, not as a file: {INSTALL}")
    return Path(data_dir if data_dir is not None else os.environ.get("TTSI_DATA") or "data") / file


def describe_tasks(data_dir: Path | None = None) -> list[TaskInfo]:
    """Describes every task that has a name, counting what is in those whose data is here."""
    return [_describe(name, known, data_dir) for name, known in PUBLISHED.items()]


def _describe(name: str, known: Published, data_dir: Path | None) -> TaskInfo:
    source = INSTALL if known.file is None else f"ttsi-jax tasks fetch {name}"
    try:
        examples = load_task(name, data_dir=data_dir).usable
    except InputError:
        return TaskInfo(name, False, known.n_inputs, known.faults, known.licence, source, known.remarks)
    return TaskInfo(name, True, len(examples), count_faults(examples), known.licence, source, known.remarks)


def _told(example: Example) -> Example:
    """The input with the word that several calls, or none, may be right."""
    return replace(example, messages=({"role": "system", "content": ANY_NUMBER}, *example.messages))


def _first_usable(examples: Sequence[Example], limit: int) -> tuple[Example, ...]:
    usable_before = accumulate((example.problem is None for example in examples), initial=0)
    return tuple(example for example, before in zip(examples, usable_before, strict=False) if before < limit)


def _find(task: str, data_dir: str | os.PathLike[str] | None) -> Path:
    path = file_of(task, data_dir)
    if not path.is_file():
        raise InputError(
            f"the task {task} needs the file {path.name} in {path.parent} (another folder: --data, or the environment "
            f"variable TTSI_DATA); to get it: ttsi-jax tasks fetch {task}"
        )
    return path
