"""A task's inputs divided among processes that know nothing of each other, and their runs joined into one.

Every process reads the whole task, since all inputs together choose the shapes that each is padded to, and then takes
its own: an input's record is the same in a shard as in a run of everything.
"""

from __future__ import annotations

import heapq
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple

from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import (
    CONFIG,
    ENVIRONMENT,
    RECORDS,
    SUMMARY,
    RunDirectory,
    config_differences,
    open_run,
    read_config,
    read_object,
    read_records,
    read_summary,
)
from ttsi_jax.runs.functions import FUNCTIONS, read_functions
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import f1
from ttsi_jax.runs.summary import summarise
from ttsi_jax.tasks import Example, GoldCall, Task
from ttsi_jax.tasks.prompts import render_tools

INPUTS = "inputs.json"  # in a shard's directory: what joining it needs to know of the whole task
SETTING = "shard"  # in its config.json
ADAPTERS = "adapters"  # the folder of kept adapters
FIXED_COST = 3_000  # characters of prompt that cost as much as what every input needs: its decoding, its request


class Shard(NamedTuple):
    """One part of so many; parts count from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_shard(text: str) -> Shard:
    """The shard that `i/n` means.

    Raises:
        InputError: the text is no `i/n` with 1 <= i <= n.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    shard = Shard(*map(int, found.groups())) if found else Shard(0, 0)
    if not 1 <= shard.number <= shard.of:
        raise InputError(f"--shard is '{text}'; it must be i/n with i from 1 to n, such as 2/4")
    return shard


def cost(example: Example) -> int:
    """What an input is expected to cost, in characters of prompt; 0 for one that cannot run."""
    if example.problem is not None:
        return 0
    return FIXED_COST + len(render_tools(example.tools)) + sum(len(turn["content"]) for turn in example.messages)


def divide(task: Task, n: int) -> list[int]:
    """For each input the shard that takes it, 1 to n: the longest first, each to the shard with the least to do.

    So every shard gets inputs of all lengths, and sums of costs that differ by one input at most.
    """
    costs = list(map(cost, task.examples))
    loads = [(0, 0, index) for index in range(1, n + 1)]
    owners = [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        load, count, owner = loads[0]
        heapq.heapreplace(loads, (load + costs[place], count + 1, owner))
        owners[place] = owner
    return owners


def part_of(task: Task, shard: Shard) -> Task:
    """The inputs of one shard.

    Raises:
        InputError: there are fewer inputs than shards.
    """
    if shard.of > len(task.examples):
        raise InputError(f"--shard {shard}: {task.name} has only {len(task.examples)} inputs to divide")
    owners = divide(task, shard.of)
    own = tuple(example for example, owner in zip(task.examples, owners, strict=True) if owner == shard.number)
    return replace(task, examples=own)


def division(task: Task, shard: Shard) -> dict[str, Any]:
    """The content of a shard's `inputs.json`: every input of the task, in order."""
    owners = divide(task, shard.of)
    gold = [None if example.gold is None else list(map(_plain, example.gold)) for example in task.examples]
    inputs = [
        {"id": example.id, "shard": owner, "gold": own}
        for example, owner, own in zip(task.examples, owners, gold, strict=True)
    ]
    return {"task": task.name, "inputs": inputs}


def _plain(call: GoldCall) -> dict[str, Any]:
    arguments = {name: list(values) for name, values in call.arguments.items()}
    return {"name": call.name, "arguments": arguments, "optional": sorted(call.optional)}


def _gold(call: Mapping[str, Any]) -> GoldCall:
    arguments = {name: tuple(values) for name, values in call["arguments"].items()}
    return GoldCall(call["name"], arguments, frozenset(call["optional"]))


@dataclass(frozen=True)
class Merged:
    """What became of joining.

    Attributes:
        n: inputs of the whole task.
        missing: of each shard that has not finished all of its inputs, how many are left.
        given: the shards that were joined.
        failed: the records that ended in an error.
    """

    n: int
    missing: dict[int, int]
    given: tuple[Shard, ...]
    failed: list[Record]


class _Part(NamedTuple):
    path: Path
    shard: Shard
    config: dict[str, Any]  # without the shard
    task: Task  # all of it: the ids and right calls of its inputs
    owners: dict[str, int]  # the shard of each
    records: dict[str, Record]
    summary: dict[str, Any] | None


def merge(paths: Sequence[Path], out: Path) -> Merged:
    """Joins the runs of shards into one in the directory `out`, as one run of all inputs would have written it.

    Shards may be unfinished or missing: then the run is unfinished, and `ttsi-jax run` with its settings resumes it.
    Joining again adds what is new; where nothing is, a finished run stays as it is.

    Raises:
        InputError: the directories are not shards of the same run, or `out` holds something else.
    """
    parts = [_read(path) for path in paths]
    _refuse_strangers(parts)
    owners = parts[0].owners
    with open_run(out, parts[0].config) as directory:
        found = [record for part in parts for record in part.records.values()]
        new = [one for one in found if one.id not in directory.finished and one != directory.failed.get(one.id)]
        if new or directory.summary() is None:
            _join(parts, new, directory)
        records = directory.finished | directory.failed
        left = Counter(owner for id, owner in owners.items() if id not in records)
        failed = [record for id, record in directory.failed.items() if id in owners]
    return Merged(len(owners), dict(sorted(left.items())), tuple(part.shard for part in parts), failed)


def _join(parts: Sequence[_Part], new: Sequence[Record], directory: RunDirectory) -> None:
    """Adds records and what the parts hold beside them, and ends the run where every input has a record."""
    known = directory.summary() or {}
    there, *environments = (_environment(path) for path in (directory.path, *(part.path for part in parts)))
    if environments := list(filter(None, environments)):
        directory.write(ENVIRONMENT, environments[0] | there | {"shards": environments})
    if functions := next(filter(None, (read_functions(part.path) for part in parts)), None):  # of all inputs
        directory.write_once(FUNCTIONS, functions)
    for part in parts:
        if (part.path / ADAPTERS).is_dir():  # before the records that say that they are there
            shutil.copytree(part.path / ADAPTERS, directory.path / ADAPTERS, dirs_exist_ok=True)
    if new:
        directory.append(new)
    records, order = directory.finished | directory.failed, list(parts[0].owners)
    if records.keys() >= set(order):
        directory.complete(order, _summary(parts, [records[id] for id in order], known))


def _environment(path: Path) -> dict[str, Any]:
    return read_object(path / ENVIRONMENT) if (path / ENVIRONMENT).exists() else {}


def _summary(parts: Sequence[_Part], records: Sequence[Record], known: dict[str, Any]) -> dict[str, Any]:
    """Of all records; what they do not tell is from the finished parts, or else from `known`, the summary of before."""
    told = [part.summary for part in parts if part.summary is not None] or [known]
    chosen = {name: told[0][name] for name in ("tau", "tau_by") if name in told[0]}
    compiling = fsum(summary.get("compile_seconds", 0.0) for summary in told)
    return summarise(records) | f1(records, parts[0].task) | chosen | {"compile_seconds": compiling}


def _read(path: Path) -> _Part:
    config = read_config(path)
    if SETTING not in config:
        raise InputError(f"{path}: is a run of all inputs, not of a shard; only runs with --shard can be joined")
    shard = parse_shard(str(config.pop(SETTING)))
    if lacking := [name for name in ("task", "model", "method") if name not in config]:
        raise InputError(f"{path / CONFIG}: has no {' and no '.join(lacking)}, as a run writes it; leave {path} out")
    inputs = read_object(path / INPUTS, missing=f"{path}: ended before it began (it has no {INPUTS}); leave it out")
    summary = read_summary(path)
    if summary is not None and not isinstance(summary.get("compile_seconds"), int | float):
        raise InputError(f"{path / SUMMARY}: has no compile_seconds. Delete it, and the same command writes it again.")
    return _Part(path, shard, config, *_divided(inputs, path), read_records(path / RECORDS)[0], summary)


def _divided(inputs: Mapping[str, Any], path: Path) -> tuple[Task, dict[str, int]]:
    """The task and the shard of each of its inputs, from what `division` made."""
    try:
        examples = (
            Example(one["id"], (), (), None if one["gold"] is None else tuple(map(_gold, one["gold"])))
            for one in inputs["inputs"]
        )
        return Task(inputs["task"], tuple(examples)), {one["id"]: int(one["shard"]) for one in inputs["inputs"]}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path / INPUTS}: is not what a run with --shard writes; leave {path} out") from None


def _refuse_strangers(parts: Sequence[_Part]) -> None:
    """Refuses parts of different runs or divisions, and a shard that is there twice."""
    if not parts:
        raise InputError("no run given; name the directories of the shards")
    first = parts[0]
    seen: dict[Shard, Path] = {}
    for part in parts:
        if differences := config_differences(first.config, part.config):
            lines = [f"  {name}: {old} there, {new} here" for name, (old, new) in differences.items()]
            raise InputError("\n".join([f"{part.path}: has other settings than {first.path}:", *lines]))
        if part.shard.of != first.shard.of:
            there = f"{part.path} is shard {part.shard}, {first.path} is shard {first.shard}"
            raise InputError(f"{there}: the inputs were divided otherwise")
        if (part.task, part.owners) != (first.task, first.owners):
            raise InputError(f"{part.path} and {first.path} were divided otherwise: their {INPUTS} differ")
        if part.shard in seen:
            raise InputError(f"{part.path} and {seen[part.shard]} are both shard {part.shard}")
        seen[part.shard] = part.path
