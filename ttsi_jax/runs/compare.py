"""Groups of runs side by side, with paired tests on the inputs that they share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ttsi_jax.runs import statistics
from ttsi_jax.runs.directory import config_differences, flat, setting
from ttsi_jax.runs.gate_report import GateReport, gate_report
from ttsi_jax.runs.groups import Group, Run, group_runs, notes
from ttsi_jax.runs.paper import Beside, beside, beside_mean
from ttsi_jax.runs.record import Record, strict_json
from ttsi_jax.runs.statistics import Array, Changes, Interval
from ttsi_jax.runs.summary import METRICS, base_and_final, passes_at, passes_known, teacher_usage

BASE, FINAL = 0, 1
# What tells of a task, or (a wave, its memory) follows from it and changes no answer.
_OF_ONE_TASK = (
    "task", "inputs", "seed", "pairs", "labelled", "upper_bound", "synthesis.file", "wave", "adapt.memory",
)  # fmt: skip
CAUSES = ("parses", "function", "arguments")  # what stands between an answer and being right, in this order


class Cause(NamedTuple):
    """How many inputs it fixed and broke, as means over the seeds."""

    fixed: float
    broke: float


class Contrast(NamedTuple):
    """One side's answers against another's, on the inputs that are labelled and did not fail in any run of both.

    `before` and `after` are the groups' numbers; where a group is held against its own base, `before` is `base`.
    `causes` part the fixed calls by what was wrong before, and the broken ones by what is wrong after; their sum, fixed
    less broke, is the difference in call accuracy.
    """

    before: str
    after: str
    inputs: int
    difference: dict[str, Interval]  # by metric
    changes: dict[str, Changes]
    causes: dict[str, Cause]


class Sampled(NamedTuple):
    """pass@k, the chance that one of k sampled answers is right: with the base, in the end, and the difference."""

    base: Interval
    final: Interval
    difference: Interval


class Cost(NamedTuple):
    """What a run took, as means over the seeds: seconds without compiling and without base answers that only measure,
    tokens (None where the run did not count them), examples that adapters were trained on, before the run too (None
    where the one that it began with does not say), what a teacher counted (requests, tokens, cost; empty where there
    was none), and inputs that were wrong with the base and are right now."""

    seconds: float
    tokens: float | None
    examples: float | None
    teacher: dict[str, float | None]
    corrected: float


class Compared(NamedTuple):
    """A group with its own figures; `seen` are the inputs whose labels the model was trained on before the run,
    `passes` holds pass@k by k where answers were sampled, and `settings` maps each that differs to its value in the
    first group of the same task and here."""

    group: Group
    inputs: int
    seen: int
    settings: dict[str, tuple[str, str]]
    accuracy: dict[str, tuple[Interval, Interval]]  # by metric: with the base, and in the end
    passes: dict[str, Sampled]
    cost: Cost
    gate: GateReport | None
    paper: Beside | None


class Overall(NamedTuple):
    """Means over tasks of groups with the same settings, by their numbers: tasks count alike, whatever their inputs.
    By metric the accuracy with the base and in the end, and their difference."""

    groups: list[int]
    accuracy: dict[str, tuple[float, float]]
    difference: dict[str, Interval]
    paper: Beside | None


class Comparison(NamedTuple):
    """`contrasts` hold each group against its own base, and each later one against the first of the same task."""

    groups: list[Compared]
    contrasts: list[Contrast]
    overall: list[Overall]
    notes: list[str]


def compare(runs: Mapping[str, Run]) -> Comparison:
    """Compares runs, grouped by `group_runs`, in the order given."""
    groups = group_runs(runs)
    firsts: dict[str, Group] = {}
    compared = [_compared(group, firsts.setdefault(group.task, group)) for group in groups]
    contrasts = [_contrast(group, BASE, group, FINAL) for group in groups if _adapts(group)]
    contrasts += [
        _contrast(first, FINAL, group, FINAL) for group in groups if (first := firsts[group.task]) is not group
    ]
    settings: dict[str, dict[str, Compared]] = {}
    for one in compared:
        settings.setdefault(_across_tasks(one.group.config), {}).setdefault(one.group.task, one)
    overall = [_overall(list(tasks.values())) for tasks in settings.values() if len(tasks) > 1]
    return Comparison(compared, contrasts, overall, notes(runs))


def to_json(comparison: Comparison) -> str:
    """All figures as a JSON document; what is not a number is null."""
    return strict_json(plain(comparison), indent=1) + "\n"


def plain(value: Any) -> Any:
    """A comparison, or a part of it, as JSON values."""
    if isinstance(value, Run):
        return {"finished": value.summary is not None, "inputs": len(value.records), "config": value.config}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None)
        items = [plain(item) for item in value]
        return dict(zip(fields, items, strict=True)) if fields else items
    return value


def cause_of(calls: Sequence[Any] | None, tool: bool | None, call: bool | None) -> str | None:
    """What keeps an answer from being right; None where nothing does."""
    return None if call else "parses" if calls is None else "arguments" if tool else "function"


def _compared(group: Group, first: Group) -> Compared:
    shared = _shared(group)
    accuracy = {}
    for metric in METRICS:
        rows = [_right(group, shared, metric, side) for side in (BASE, FINAL)]
        # Only a task without any right function has inputs that are labelled but have no right pick.
        known = ~np.isnan(np.concatenate(rows)).any(0)
        accuracy[metric] = tuple(statistics.accuracy(right[:, known]) for right in rows)
    inputs = max(len(run.records) for run in group.runs.values())
    seen = max(sum(record.seen for record in run.records) for run in group.runs.values())
    settings = config_differences({**first.config, "seed": None}, {**group.config, "seed": None})
    published = beside(group.config, inputs, seen)
    report = gate_report(group.runs.values())
    return Compared(group, inputs, seen, settings, accuracy, _passes(group, shared), _cost(group), report, published)


def _passes(group: Group, shared: Iterable[str]) -> dict[str, Sampled]:
    runs, found = [_by_id(run) for run in group.runs.values()], {}
    ids = [id for id in shared if all(own[id].samples_right is not None for own in runs)]
    for k in passes_known(own[id] for own in runs for id in ids):
        before, after = np.moveaxis(np.array([[passes_at(own[id], k) for id in ids] for own in runs]), -1, 0)
        both = statistics.accuracy(before), statistics.accuracy(after)
        found[str(k)] = Sampled(*both, statistics.difference(before, after))
    return found


def _contrast(first: Group, side: int, second: Group, other: int) -> Contrast:
    shared = _shared(first, second)
    same_seeds = first.seeds == second.seeds
    difference, changes = {}, {}
    for metric in ("tool", "call"):
        before, after = _right(first, shared, metric, side), _right(second, shared, metric, other)
        difference[metric] = statistics.difference(before, after, same_seeds=same_seeds)
        changes[metric] = statistics.changes(before, after)
    firsts, seconds = ([_by_id(run) for run in group.runs.values()] for group in (first, second))
    pairs = list(zip(firsts, seconds, strict=True) if same_seeds else product(firsts, seconds))
    fixed: dict[str, int] = dict.fromkeys(CAUSES, 0)
    broke = fixed.copy()
    for one, another in pairs:
        for id in shared:
            before, after = _cause(one[id], side), _cause(another[id], other)
            if before and not after:
                fixed[before] += 1
            if after and not before:
                broke[after] += 1
    causes = {name: Cause(fixed[name] / len(pairs), broke[name] / len(pairs)) for name in CAUSES}
    before = "base" if side == BASE else str(first.number)
    return Contrast(before, str(second.number), len(shared), difference, changes, causes)


def _across_tasks(config: Mapping[str, Any]) -> str:
    """The settings that runs of several tasks may have in common."""
    return strict_json([item for item in sorted(flat(config)) if item[0] not in _OF_ONE_TASK])


def _overall(tasks: Sequence[Compared]) -> Overall:
    shared = [_shared(one.group) for one in tasks]
    accuracy, difference = {}, {}
    for metric in ("tool", "call"):
        sides = [
            (_right(one.group, ids, metric, BASE), _right(one.group, ids, metric, FINAL))
            for one, ids in zip(tasks, shared, strict=True)
        ]
        difference[metric] = statistics.mean_difference(sides)
        means = [[float(side.mean()) if side.size else math.nan for side in task] for task in sides]
        accuracy[metric] = tuple(math.fsum(values) / len(tasks) for values in zip(*means, strict=True))
    published = beside_mean([(one.group.config, one.inputs, one.seen) for one in tasks])
    return Overall([one.group.number for one in tasks], accuracy, difference, published)


def _adapts(group: Group) -> bool:
    return any(record.adapted for run in group.runs.values() for record in run.records) or (
        group.config.get("method") != "base"
    )


def _shared(*groups: Group) -> list[str]:
    """The inputs that are the same, labelled and did not fail in every run, in the first run's order."""
    runs = [_by_id(run) for group in groups for run in group.runs.values()]
    found = ((id, [run.get(id) for run in runs]) for id in runs[0])
    return [id for id, records in found if all(map(_labelled, records)) and _alike(records)]


def _alike(records: Iterable[Record | None]) -> bool:
    """Whether records of one id are of one input, as far as older ones tell."""
    return len({record.fingerprint for record in records if record and record.fingerprint}) <= 1


def _labelled(record: Record | None) -> bool:
    return record is not None and record.error is None and None not in base_and_final(record, "call")


def _right(group: Group, ids: Iterable[str], metric: str, side: int) -> Array:
    """Whether answers are right, `[S, N]`; NaN where that is not known."""
    ids = list(ids)
    found = [[base_and_final(own[id], metric)[side] for id in ids] for own in map(_by_id, group.runs.values())]
    return np.array(found, np.float64).reshape(len(group.runs), len(ids))


def _cause(record: Record, side: int) -> str | None:
    if side == BASE:
        return cause_of(record.base_calls, record.tool_correct_base, record.call_correct_base)
    return cause_of(record.calls, record.tool_correct, record.call_correct)


def _cost(group: Group) -> Cost:
    records = [record for run in group.runs.values() for record in run.records]
    n = len(group.runs)
    seconds = math.fsum(value for record in records for stage, value in record.seconds.items() if _counts(stage))
    counted = [value for record in records for stage, value in record.tokens.items() if _counts(stage)]
    tokens = sum(counted) / n if counted else None
    before, learned = _trained_before(group.config), sum(_learned(record, group.config) for record in records)
    examples = None if before is None else before + learned / n
    usage = teacher_usage(pair for record in records for pair in record.synthetic)
    teacher = {name: None if value is None else value / n for name, value in usage.items()}
    corrected = sum(_labelled(record) and base_and_final(record, "call") == (False, True) for record in records)
    return Cost(seconds / n, tokens, examples, teacher, corrected / n)


def _trained_before(config: Mapping[str, Any]) -> int | None:
    """Examples behind the adapter that a run begins with."""
    if setting(config, "adapt.start") is None:
        return 0
    n = config.get("trained_on")
    return n if isinstance(n, int) else None


def _learned(record: Record, config: Mapping[str, Any]) -> int:
    """Pairs that an input's adapters were trained on: none that were shown in its prompt, nor the one held out, which
    is written beyond --synthesis.k."""
    if not record.adapted or config.get("method") in ("tt-icl", "icl"):
        return 0
    accepted, k = sum(pair["accepted"] for pair in record.synthetic), setting(config, "synthesis.k")
    return min(accepted, k) if isinstance(k, int) else accepted


def _counts(stage: str) -> bool:
    return stage != "base_answer"


def _by_id(run: Run) -> dict[str, Record]:
    return {record.id: record for record in run.records}
