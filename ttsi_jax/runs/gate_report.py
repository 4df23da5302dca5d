"""The figures of `gate_quality` for the records of a group of runs."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ttsi_jax.runs import gate_quality as quality
from ttsi_jax.runs.gate_quality import Array, Bins, Curve
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.statistics import Interval, bootstrap
from ttsi_jax.runs.summary import METRICS, base_and_final


class ErrorDetection(NamedTuple):
    """How well low certainty points at the base's wrong answers in one metric."""

    inputs: int
    error_rate: float
    auroc: Interval
    auprc: float
    augrc: float
    risk: Curve  # selective risk over coverage


class Calibration(NamedTuple):
    """How the highest probability agrees with how often its candidate is right; bins hold records."""

    records: int
    error: float  # expected calibration error
    brier: float
    bins: Bins


class Gain(NamedTuple):
    """Whether the uncertain inputs are those that adapting helps, in call correctness.

    Curves are accuracies over the share of records that adapt, chosen by the gate, by an oracle, and at random. They
    end at the share whose outcome is known because they did adapt; a run that adapts all shows all of it.
    """

    adapted: int  # records
    records: int
    auroc: Interval
    gate: Curve
    oracle: Curve
    random: Curve
    uncertain: float  # the share that the gate's threshold adapts


class GateReport(NamedTuple):
    """`errors` by metric; a part is None where no input has what it needs. An input has a record for each seed."""

    errors: dict[str, ErrorDetection]
    calibration: Calibration | None
    gain: Gain | None


def gate_report(runs: Iterable[Run]) -> GateReport | None:
    """The gate's quality over the sound and labelled records of runs; None where there are none.

    Runs of several seeds are pooled, and intervals are over inputs: an input is drawn with its records of all seeds.
    """
    records = [
        record
        for run in runs
        for record in run.records
        if record.error is None and record.uncertainty is not None and record.call_correct_base is not None
    ]
    if not records:
        return None
    errors = {metric: found for metric in METRICS if (found := _errors(records, metric)) is not None}
    return GateReport(errors, _calibration(records), _gain(records))


def _errors(records: list[Record], metric: str) -> ErrorDetection | None:
    records = [record for record in records if base_and_final(record, metric)[0] is not None]
    if not records:
        return None
    certainty = _certainty(records)
    wrong = np.array([not base_and_final(record, metric)[0] for record in records])
    return ErrorDetection(
        inputs=len(set(_ids(records))),
        error_rate=float(wrong.mean()),
        auroc=_over_inputs(records, lambda at: quality.auroc(-certainty[at], wrong[at])),
        auprc=quality.auprc(-certainty, wrong),
        augrc=quality.augrc(certainty, wrong),
        risk=quality.risk_coverage(certainty, wrong)[1],
    )


def _calibration(records: list[Record]) -> Calibration | None:
    pairs = [
        (max(known), record.pick_correct_base)
        for record in records
        if record.pick_correct_base is not None and (known := [p for p in record.probabilities if p is not None])
    ]
    if not pairs:
        return None
    confidence, right = np.array(pairs, np.float64).T
    bins = quality.reliability(confidence, right)
    return Calibration(len(pairs), quality.calibration_error(bins), quality.brier(confidence, right), bins)


def _gain(records: list[Record]) -> Gain | None:
    records = [record for record in records if record.call_correct is not None]
    adapted = np.array([record.adapted for record in records], bool)
    if not adapted.any():
        return None
    before, after = np.array([base_and_final(record, "call") for record in records], np.float64).T
    uncertainty, gain = -_certainty(records), after - before
    known = [record for record in records if record.adapted]
    curves = (quality.adapted_fraction(score, before, after, adapted) for score in (uncertainty, gain, 0 * gain))
    return Gain(
        int(adapted.sum()),
        len(records),
        _over_inputs(known, lambda at: quality.gain_auroc(uncertainty[adapted][at], gain[adapted][at])),
        *curves,
        uncertain=float(np.mean([bool(record.uncertain) for record in records])),
    )


def _over_inputs(records: list[Record], statistic: Callable[[NDArray[np.intp]], float]) -> Interval:
    """A statistic of records, by their positions, with an interval from drawing inputs."""
    ids = _ids(records)
    inputs: dict[str, list[int]] = {}
    for position, id in enumerate(ids):
        inputs.setdefault(id, []).append(position)
    rows = [np.array(positions) for positions in inputs.values()]
    if len(rows) == len(ids):
        return bootstrap(statistic, len(rows))
    return bootstrap(lambda drawn: statistic(np.concatenate([rows[i] for i in drawn])), len(rows))


def _ids(records: list[Record]) -> list[str]:
    return [record.id for record in records]


def _certainty(records: list[Record]) -> Array:
    return np.array([math.nan if record.uncertainty is None else record.uncertainty for record in records])
