"""Against brute force over pairs and orders, closed forms, and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ttsi_jax.runs.gate_quality import (
    adapted_fraction,
    augrc,
    auprc,
    auroc,
    brier,
    calibration_error,
    cumulated,
    gain_auroc,
    reliability,
    risk_coverage,
)

N = 14
SCORES = arrays(np.float64, N, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]))  # many ties
FLAGS = arrays(np.bool_, N)
GAINS = arrays(np.float64, N, elements=st.sampled_from([-1.0, 0.0, 1.0]))


def concordance(scores, values):
    """Over all pairs with different values."""
    pairs = [(a, b) for a, b in itertools.permutations(zip(scores, values, strict=True), 2) if a[1] > b[1]]
    return sum((a[0] > b[0]) + (a[0] == b[0]) / 2 for a, b in pairs) / len(pairs) if pairs else math.nan


@given(SCORES, FLAGS)
def test_auroc_is_the_share_of_ordered_pairs(scores, positive):
    assert auroc(scores, positive) == pytest.approx(concordance(scores, positive), nan_ok=True)
    if 0 < positive.sum() < N:
        assert auroc(scores, positive) == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores))
        assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive))


@given(SCORES, FLAGS)
def test_auprc_is_the_average_precision_of_scikit_learn(scores, positive):
    if positive.any():
        assert auprc(scores, positive) == pytest.approx(sklearn.metrics.average_precision_score(positive, scores))
        assert auprc(np.zeros(N), positive) == pytest.approx(positive.mean())
    else:
        assert math.isnan(auprc(scores, positive))


@given(SCORES, FLAGS)
def test_augrc_has_its_closed_form(certainty, error):
    rate = error.mean()
    if 0 < rate < 1:
        assert augrc(certainty, error) == pytest.approx(
            (1 - auroc(certainty, ~error)) * rate * (1 - rate) + rate**2 / 2
        )
    assert augrc(np.zeros(N), error) == pytest.approx(rate / 2)


@given(SCORES, FLAGS, st.randoms())
def test_no_figure_depends_on_the_order_of_inputs(scores, flags, random):
    order = random.sample(range(N), N)
    for figure in (auroc, auprc, augrc, gain_auroc):
        assert figure(scores[order], flags[order]) == pytest.approx(figure(scores, flags), nan_ok=True)
    shuffled, bins = reliability(scores[order], flags[order], 4), reliability(scores, flags, 4)
    for one, other in zip(shuffled, bins, strict=True):
        np.testing.assert_allclose(one, other)


@given(SCORES, GAINS)
def test_gain_auroc_is_concordance(uncertainty, gain):
    assert gain_auroc(uncertainty, gain) == pytest.approx(concordance(uncertainty, gain), nan_ok=True)


def test_ties_are_the_mean_over_their_orders():
    values = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    orders = [(0, *middle, 4) for middle in itertools.permutations((1, 2, 3))]
    mean = np.mean([np.cumsum(values[list(order)]) for order in orders], axis=0)
    curve = cumulated(scores, values)
    np.testing.assert_allclose(np.interp(np.arange(1, 6), curve.x, curve.y), mean)
    assert curve.x.tolist() == [0, 1, 4, 5]


def test_risk_over_coverage_by_hand():
    generalised, selective = risk_coverage([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1])
    assert generalised.x.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert generalised.y.tolist() == [0, 0, 0.25, 0.25, 0.5]
    assert selective.x.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(selective.y, [0, 1 / 2, 1 / 3, 1 / 2])


@given(SCORES, FLAGS, st.integers(1, 20))
def test_bins_part_the_inputs_and_are_ordered(confidence, right, bins):
    found = reliability(confidence, right, bins)
    assert found.size.sum() == N and len(found.size) <= bins and (found.size > 0).all()
    assert (np.diff(found.confidence) > 0).all()
    assert (found.size * found.accuracy).sum() == pytest.approx(right.sum())
    assert 0 <= calibration_error(found) <= 1
    assert calibration_error(found) >= abs(confidence.mean() - right.mean()) - 1e-9  # Jensen; equal with one bin


def test_bins_have_equal_mass_where_nothing_is_tied():
    confidence = np.random.default_rng(0).permutation(100) / 100
    assert reliability(confidence, confidence > 0.5, 10).size.tolist() == [10] * 10
    assert max(reliability(confidence[:97], confidence[:97] > 0.5, 10).size) == 10


def test_bins_agree_with_scikit_learn_where_nothing_is_tied():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    confidence = rng.random(200)
    right = rng.random(200) < confidence**2
    accuracy, mean = calibration_curve(right, confidence, n_bins=10, strategy="quantile")
    found = reliability(confidence, right, 10)
    np.testing.assert_allclose(found.accuracy, accuracy)
    np.testing.assert_allclose(found.confidence, mean)
    expected = np.mean(np.abs(accuracy - mean))
    assert calibration_error(found) == pytest.approx(expected)


@given(SCORES, FLAGS)
def test_brier_is_that_of_scikit_learn(confidence, right):
    if 0 < right.sum() < N:
        assert brier(confidence, right) == pytest.approx(sklearn.metrics.brier_score_loss(right, confidence))


def test_perfect_confidence():
    right = np.array([True, False, True])
    assert brier(right, right) == calibration_error(reliability(right, right)) == 0
    assert auroc(~right, ~right) == auprc(~right, ~right) == 1


@given(SCORES, FLAGS, FLAGS, FLAGS)
def test_every_gate_starts_at_the_base_and_ends_together(score, before, after, known):
    gain = after.astype(float) - before
    gate, oracle, random = (adapted_fraction(s, before, after, known) for s in (score, gain, np.zeros(N)))
    end = np.where(known, after, before).mean()
    for curve in (gate, oracle, random):
        assert (curve.x[0], curve.y[0]) == (0, pytest.approx(before.mean()))
        assert (curve.x[-1], curve.y[-1]) == (pytest.approx(known.mean()), pytest.approx(end))
    assert len(random.x) <= 2
    best = np.interp(gate.x, oracle.x, oracle.y)
    assert (gate.y <= best + 1e-9).all()


def test_accuracy_over_the_adapted_fraction_by_hand():
    curve = adapted_fraction([0.9, 0.1, 0.5, 0.7], [0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0])
    assert curve.x.tolist() == [0, 0.25, 0.5, 0.75]
    assert curve.y.tolist() == [0.5, 0.75, 0.5, 0.25]


def test_nothing_gives_no_number():
    none = np.array([])
    for figure in (auroc, auprc, augrc, gain_auroc, brier):
        assert math.isnan(figure(none, none))
    bins = reliability(none, none)
    assert len(bins.size) == 0 and math.isnan(calibration_error(bins))
    assert math.isnan(gain_auroc([0.5, 0.1], [0, 0]))
