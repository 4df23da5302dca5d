"""Runs read from their directories, and grouped: runs that differ in nothing but their seed are one group."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import RECORDS, read_config, read_records, read_summary
from ttsi_jax.runs.functions import Listed, read_functions
from ttsi_jax.runs.record import Record, strict_json
from ttsi_jax.runs.summary import summarise

_SHOULD_AGREE = {  # in the runs of one task
    "inputs": "the runs are not of the same inputs: differences are over those that both sides have",
    "checksum": "the runs are not of the same weights: differences are between models too",
}


class Run(NamedTuple):
    """A run as read from its directory; `summary` is None while it is unfinished, and `functions` is empty where they
    were not kept."""

    config: dict[str, Any]
    records: list[Record]
    summary: dict[str, Any] | None
    functions: Sequence[Listed] = ()


class Group(NamedTuple):
    """Runs of the same settings, by name, each with another seed; `seeds` in the same order, and `number` from 1."""

    number: int
    name: str
    runs: dict[str, Run]
    seeds: tuple[Any, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The settings that the runs have in common, with the seed of the first."""
        return next(iter(self.runs.values())).config

    @property
    def task(self) -> str:
        """What groups must have in common to be held against each other."""
        return _task(next(iter(self.runs.values())))


def load_run(path: str | os.PathLike[str]) -> Run:
    """Reads a run, finished or not, and changes nothing.

    Raises:
        InputError: the directory holds no run, or a damaged one.
    """
    path = Path(path)
    config = read_config(path)
    records = list(read_records(path / RECORDS)[0].values())
    return Run(config, records, read_summary(path), read_functions(path))


def load_runs(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Run]:
    """Reads several runs, named after their directories: by the last part of the path where that tells them apart.

    Raises:
        InputError: no directory is given, or one holds no run or a damaged one, or is given twice.
    """
    if not paths:
        raise InputError("no run given; name at least one run directory")
    resolved = [Path(path).resolve() for path in paths]
    if twice := [str(path) for path, count in Counter(resolved).items() if count > 1]:
        raise InputError(f"{', '.join(twice)}: given twice")
    distinct = len({path.name for path in resolved}) == len(resolved)
    names = [path.name if distinct else str(given) for path, given in zip(resolved, paths, strict=True)]
    return {name: load_run(path) for name, path in zip(names, paths, strict=True)}


def group_runs(runs: Mapping[str, Run]) -> list[Group]:
    """Groups in the order of their first runs, and in each the runs by seed.

    Two runs belong together when their `config.json` differ in `seed` alone: the same weights and inputs, by their
    checksums, are part of that. A seed that a group has already begins another group, because a repeated run is no
    second sample.
    """
    found: dict[tuple[str, int], dict[Any, str]] = {}
    for name, run in runs.items():
        settings, seed = strict_json({k: v for k, v in run.config.items() if k != "seed"}), run.config.get("seed")
        number = 0
        while strict_json(seed) in found.setdefault((settings, number), {}):
            number += 1
        found[settings, number][strict_json(seed)] = name
    return [_group(n, {name: runs[name] for name in names.values()}) for n, names in enumerate(found.values(), 1)]


def _group(number: int, runs: dict[str, Run]) -> Group:
    runs = dict(sorted(runs.items(), key=lambda item: strict_json(item[1].config.get("seed")).zfill(10)))
    name = next(iter(runs))
    if len(runs) > 1:
        name = f"{os.path.commonprefix(list(runs)).rstrip('-_./ ') or name} ({len(runs)} seeds)"
    return Group(number, name, runs, tuple(run.config.get("seed") for run in runs.values()))


def notes(runs: Mapping[str, Run]) -> list[str]:
    """What a reader must know before believing figures: runs that are unfinished, mixed, or not of the same inputs."""
    found = [f"{name}: {note}" for name, run in runs.items() for note in _notes(run)]
    for setting, said in _SHOULD_AGREE.items():
        values = {(_task(run), strict_json(run.config.get(setting))) for run in runs.values()}
        if len(values) > len({task for task, _ in values}):
            found.append(said)
    return found


def _task(run: Run) -> str:
    return str(run.config.get("task"))


def _notes(run: Run) -> list[str]:
    found = []
    tasks = {record.task for record in run.records}
    if "task" in run.config and run.records:
        tasks.add(str(run.config["task"]))
    failed = sum(record.error is not None for record in run.records)
    if run.summary is None:
        found.append(f"unfinished, with {len(run.records)} inputs so far")
    elif any(run.summary.get(key) != value for key, value in summarise(run.records).items() if isinstance(value, int)):
        found.append("mixed: its summary is not that of its records")
    if len(tasks) > 1:
        found.append(f"mixed: inputs of {', '.join(sorted(tasks))}")
    if run.config.get("method") == "base" and any(record.adapted for record in run.records):
        found.append("mixed: a run of the base alone with inputs that adapted")
    if seen := sum(record.seen for record in run.records):
        found.append(f"an upper bound: trained on the labels of {seen} of its {len(run.records)} inputs")
    elif bound := run.config.get("upper_bound"):
        found.append(f"an upper bound: {bound}")
    if failed:
        found.append(f"{failed} of {len(run.records)} inputs failed and are left out of every accuracy")
    return found
