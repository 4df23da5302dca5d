"""Runs side by side, with paired tests on the inputs that they share."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import RECORDS, config_differences, read_config, read_records, read_summary
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.summary import base_and_final, outcome, summarise


class Run(NamedTuple):
    """A run as read from its directory; `summary` is None while it is unfinished."""

    config: dict[str, Any]
    records: list[Record]
    summary: dict[str, Any] | None


class Paired(NamedTuple):
    """How a run's answers differ from the first run's on the inputs that are labelled and did not fail in both."""

    fixed: int
    broke: int
    same: int
    p: float  # exact two-sided McNemar


class Comparison(NamedTuple):
    """One run beside the first one; `settings` maps each that differs to its value in the first run and in this one."""

    name: str
    finished: bool
    summary: dict[str, Any]
    settings: dict[str, tuple[str, str]]
    tool: Paired
    call: Paired


def load_run(path: str | os.PathLike[str]) -> Run:
    """Reads a run, finished or not, and changes nothing.

    Raises:
        InputError: the directory holds no run, or a damaged one.
    """
    path = Path(path)
    return Run(read_config(path), list(read_records(path / RECORDS)[0].values()), read_summary(path))


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


def compare(runs: Mapping[str, Run]) -> list[Comparison]:
    """Each run beside the first one, in the order given; the first beside itself differs in nothing."""
    if not runs:
        return []
    first = next(iter(runs.values()))
    return [
        Comparison(
            name=name,
            finished=run.summary is not None,
            summary=summarise(run.records),
            settings=config_differences(first.config, run.config),
            tool=_paired(first.records, run.records, "tool"),
            call=_paired(first.records, run.records, "call"),
        )
        for name, run in runs.items()
    ]


def mcnemar_p(fixed: int, broke: int) -> float:
    """Exact two-sided McNemar test: how likely a split at least this uneven is if either change is a coin toss."""
    n = fixed + broke
    tail = sum(math.comb(n, k) for k in range(min(fixed, broke) + 1))
    return min(1.0, 2 * tail / 2**n)


def _paired(first: Sequence[Record], second: Sequence[Record], metric: str) -> Paired:
    before, after = _final(first, metric), _final(second, metric)
    outcomes = Counter(outcome(before[id], after[id]) for id in before.keys() & after.keys())
    fixed, broke = outcomes["fixed"], outcomes["broke"]
    return Paired(fixed, broke, outcomes["same"], mcnemar_p(fixed, broke))


def _final(records: Sequence[Record], metric: str) -> dict[str, bool | None]:
    return {record.id: base_and_final(record, metric)[1] for record in records if record.error is None}
