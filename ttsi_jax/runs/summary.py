"""Counts and accuracies of a run."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ttsi_jax.quality.votes import pass_at
from ttsi_jax.runs.record import Pair, Record

METRICS = ("pick", "tool", "call")
Outcome = Literal["fixed", "broke", "same"]


def outcome(before: bool | None, after: bool | None) -> Outcome | None:
    """What became of an answer; None where either side is not labelled."""
    if before is None or after is None:
        return None
    return "same" if before == after else "fixed" if after else "broke"


def base_and_final(record: Record, metric: str) -> tuple[bool | None, bool | None]:
    """Whether the base's answer and the final one are correct in a metric of `METRICS`."""
    return getattr(record, f"{metric}_correct_base"), getattr(record, f"{metric}_correct")


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """The figures of `summary.json`.

    Returns:
        `n` and `failed` count all records and `seconds` sums them; everything else speaks of those that did not fail.
        `*_accuracy_base` and `*_accuracy` are shares of the labelled records, None where there are none; `correct` and
        `labelled` hold their counts under the same names. `fixed` and `broke` speak of call correctness. `usable_share`
        is the share of uncertain inputs with an accepted pair. `reasons` counts why pairs were rejected and why inputs
        ended as they did, `rejections` the rejected pairs by the check that dropped them, under `unusable` those that
        could not be read, were cut or did not fit. `one_candidate`, `duplicates` (the conversation and functions of an
        earlier input) and `unmatchable` (no answer can be right) count inputs whose figures mean less. `timed` counts
        the inputs that went through a stage of `seconds`. `pass_at_base` and `pass_at` hold the chance that one of k
        sampled answers makes the right calls, by k; `teacher` what a teacher counted (requests, tokens, cost); `seen`
        the inputs whose labels the model was trained on.
    """
    sound = [record for record in records if record.error is None]
    uncertain = [record for record in sound if record.uncertain]
    pairs = [pair for record in sound for pair in record.synthetic]
    changes = {metric: Counter(outcome(*base_and_final(record, metric)) for record in sound) for metric in METRICS}
    accuracies, correct, labelled = _accuracies(sound)
    stages = _stages(records)
    return {
        "n": len(records),
        "failed": len(records) - len(sound),
        "uncertain": len(uncertain),
        "one_candidate": sum(len(record.candidates) == 1 for record in sound),
        "duplicates": len(sound) - len({record.fingerprint or record.id for record in sound}),
        "unmatchable": sum(record.unmatchable is not None for record in sound),
        "adapted": sum(record.adapted for record in sound),
        "reverted": sum(record.reverted for record in sound),
        "fixed": changes["call"]["fixed"],
        "broke": changes["call"]["broke"],
        "fixed_tool": changes["tool"]["fixed"],
        "broke_tool": changes["tool"]["broke"],
        "fixed_pick": changes["pick"]["fixed"],
        "broke_pick": changes["pick"]["broke"],
        **accuracies,
        **_passes(sound),
        "teacher": teacher_usage(pairs),
        "seen": sum(record.seen for record in sound),
        "correct": correct,
        "labelled": labelled,
        "synthetic_written": len(pairs),
        "synthetic_accepted": sum(map(_accepted, pairs)),
        "usable_share": _share(any(map(_accepted, record.synthetic)) for record in uncertain),
        "rejections": dict(Counter(pair.get("check") or "unusable" for pair in pairs if not _accepted(pair))),
        "reasons": _reasons(sound, pairs),
        "seconds": {stage: math.fsum(seconds) for stage, seconds in stages.items()},
        "timed": {stage: len(seconds) for stage, seconds in stages.items()},
    }


def _passes(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Mean pass@k over the labelled inputs, by k; empty where no answers were sampled."""
    found: dict[str, dict[str, float]] = {"pass_at_base": {}, "pass_at": {}}
    sampled = [record for record in records if record.samples_right is not None]
    for k in passes_known(sampled):
        sides = zip(*(passes_at(record, k) for record in sampled), strict=True)
        for name, values in zip(found, sides, strict=True):
            found[name][str(k)] = math.fsum(values) / len(sampled)
    return found


def passes_known(records: Iterable[Record]) -> list[int]:
    """The k of pass@k, up to the fewest samples that an input has: more functions have more orders to sample under."""
    n = min((len(samples) for record in records for samples in record.samples), default=0)
    return [k for k in (1, 2, 5, 10, 20, 50, 100) if k < n] + [n] * (n > 0)


def passes_at(record: Record, k: int) -> tuple[float, float]:
    """pass@k of a labelled input, by the base's samples and by the final ones."""
    right = record.samples_right_base or 0, record.samples_right or 0
    before, after = (pass_at(len(own), n_right, k) for own, n_right in zip(record.samples, right, strict=True))
    return before, after


def teacher_usage(pairs: Iterable[Pair]) -> dict[str, float | None]:
    """What a teacher counted, over all pairs; empty where there was none, None where a pair's is not known."""
    total: dict[str, float | None] = {}
    for pair in pairs:
        for name, value in (pair.get("usage") or {}).items():
            before = total.get(name, 0)
            total[name] = None if before is None or value is None else before + value
    return total


def _accuracies(records: Sequence[Record]) -> tuple[dict[str, float | None], dict[str, int], dict[str, int]]:
    accuracies, correct, labelled = {}, {}, {}
    for metric in METRICS:
        for side, suffix in enumerate(("_base", "")):
            values = [v for record in records if (v := base_and_final(record, metric)[side]) is not None]
            name = f"{metric}_accuracy{suffix}"
            accuracies[name], correct[name], labelled[name] = _share(values), sum(values), len(values)
    return accuracies, correct, labelled


def _share(values: Iterable[bool]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _accepted(pair: Pair) -> bool:
    return pair["accepted"]


def _reasons(records: Iterable[Record], pairs: Iterable[Pair]) -> dict[str, int]:
    """Most frequent first, then by name, so that the same records give the same file."""
    reasons = Counter(record.reason for record in records if record.reason)
    reasons.update(str(pair["reason"]) for pair in pairs if not _accepted(pair) and pair["reason"])
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _stages(records: Iterable[Record]) -> dict[str, list[float]]:
    """Seconds of the inputs that went through each stage, in the order in which the stages first appear."""
    stages: dict[str, list[float]] = {}
    for record in records:
        for stage, seconds in record.seconds.items():
            if seconds:
                stages.setdefault(stage, []).append(seconds)
    return stages
