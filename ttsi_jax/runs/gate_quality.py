"""How well the gate's certainty tells wrong answers from right ones, and inputs that adapting helps from others.

Pure functions of numpy arrays `[N]`. Inputs of equal score have no order: every curve passes over them in a straight
line, which is the mean over all their orders, so no figure depends on the order of the inputs.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Curve(NamedTuple):
    """Corners of a piecewise linear curve, by growing x."""

    x: Array
    y: Array


class Bins(NamedTuple):
    """A reliability diagram: per bin the mean confidence, the share that is right, and how many there are."""

    confidence: Array
    accuracy: Array
    size: Array


def cumulated(scores: ArrayLike, values: ArrayLike) -> Curve:
    """Sum of the values of the inputs with the highest scores, over how many they are; starts at (0, 0)."""
    scores, values = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1) if len(scores) else np.array([], int)
    return Curve(np.append(0.0, last + 1.0), np.append(0.0, np.cumsum(values[order])[last]))


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive input scores higher than a negative one, ties counting half; NaN where one kind lacks.

    J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC)
    curve", Radiology 143 (1982).
    """
    taken, hits = cumulated(scores, np.asarray(positive, bool))
    misses = taken - hits
    return _ratio(_area(misses, hits), hits[-1] * misses[-1])


def auprc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Average precision: the mean over positive inputs of the precision at their score; NaN without positive inputs.

    No interpolation, which would be too good (J. Davis and M. Goadrich, "The relationship between Precision-Recall and
    ROC curves", ICML 2006). A useless score has the share of positive inputs.
    """
    taken, hits = cumulated(scores, np.asarray(positive, bool))
    return _ratio(float(np.sum(np.diff(hits) * hits[1:] / taken[1:])), hits[-1])


def risk_coverage(certainty: ArrayLike, error: ArrayLike) -> tuple[Curve, Curve]:
    """Over the share of inputs that are answered, the most certain first: the generalised risk, which is the share of
    all inputs that are answered and wrong, and the selective risk, the share of the answered ones that is wrong.

    Y. Geifman and R. El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017 (selective risk).
    """
    taken, wrong = cumulated(certainty, error)
    n = max(len(np.asarray(error)), 1)
    return Curve(taken / n, wrong / n), Curve(taken[1:] / n, wrong[1:] / np.maximum(taken[1:], 1))


def augrc(certainty: ArrayLike, error: ArrayLike) -> float:
    """Area under the generalised risk over coverage: smaller is better, a useless score has half the error rate.

    J. Traub et al., "Overcoming common flaws in the evaluation of selective classification systems", NeurIPS 2024
    (arXiv 2407.01032). With error rate e it is (1 - AUROC) e (1 - e) + e^2 / 2.
    """
    coverage, risk = risk_coverage(certainty, error)[0]
    return _area(coverage, risk) if len(coverage) > 1 else math.nan


def brier(confidence: ArrayLike, right: ArrayLike) -> float:
    """Mean squared distance of confidence and outcome (G. W. Brier, Monthly Weather Review 78 (1950)), in one class."""
    confidence = np.asarray(confidence, np.float64)
    return float(np.mean((confidence - np.asarray(right, np.float64)) ** 2)) if confidence.size else math.nan


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> Bins:
    """Inputs by growing confidence in bins of equally many, give or take one; inputs of equal confidence share a bin.

    K. Nguyen and B. O'Connor, "Posterior calibration and exploratory analysis for natural language processing models",
    EMNLP 2015: equal-width bins leave most inputs of a confident model in one bin.
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order]
    # Each bin begins where a part of equal size would, moved to the first input of that confidence.
    equal = np.arange(bins if len(ordered) else 0) * len(ordered) // bins
    starts = np.unique(np.searchsorted(ordered, ordered[equal]))
    parts = np.split(order, starts[1:]) if len(starts) else []
    rows = [(confidence[part].mean(), right[part].mean(), len(part)) for part in parts]
    means, shares, sizes = np.array(rows, np.float64).reshape(-1, 3).T
    return Bins(means, shares, sizes)


def calibration_error(bins: Bins) -> float:
    """Expected calibration error: mean distance of confidence and accuracy of the bins, weighted by their inputs.

    M. P. Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015; with equal-mass
    bins (J. Nixon et al., "Measuring calibration in deep learning", 2019).
    """
    return _ratio(float(np.sum(bins.size * np.abs(bins.confidence - bins.accuracy))), bins.size.sum())


def gain_auroc(uncertainty: ArrayLike, gain: ArrayLike) -> float:
    """Chance that of two inputs that adapting changes differently, the one that gains more is the more uncertain one.

    `gain` is the change of correctness, -1, 0 or 1. With two different values this is the AUROC, with three the index
    of concordance (F. E. Harrell et al., "Evaluating the yield of medical tests", JAMA 247 (1982)). At 1/2 the gate
    chooses no better than chance; NaN where all inputs gain the same.
    """
    uncertainty, gain = np.asarray(uncertainty, np.float64), np.asarray(gain, np.float64)
    agreeing = pairs = 0.0
    levels = np.unique(gain)
    for number, low in enumerate(levels):
        for high in levels[number + 1 :]:
            either = (gain == low) | (gain == high)
            weight = float(np.sum(gain == low)) * float(np.sum(gain == high))
            agreeing += weight * auroc(uncertainty[either], gain[either] == high)
            pairs += weight
    return _ratio(agreeing, pairs)


def adapted_fraction(score: ArrayLike, before: ArrayLike, after: ArrayLike, known: ArrayLike) -> Curve:
    """Accuracy over the share of inputs that adapt, those with the highest score first; the others keep `before`.

    Only inputs whose outcome is known from adapting can adapt, so the curve ends at their share.

    Args:
        score: such as the uncertainty; the gain itself gives what an oracle would reach, a constant the random gate.
        before, after: whether the base's and the adapted answer are right, `[N]`.
        known: whether the input adapted.
    """
    before, known = np.asarray(before, np.float64), np.asarray(known, bool)
    gain = np.asarray(after, np.float64)[known] - before[known]
    n = max(len(before), 1)
    taken, gained = cumulated(np.asarray(score, np.float64)[known], gain)
    return Curve(taken / n, (before.sum() + gained) / n)


def _area(x: Array, y: Array) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
