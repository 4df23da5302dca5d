import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ttsi_jax.runs.statistics import Changes, accuracy, bootstrap, changes, difference, mcnemar_p, mean_difference


@pytest.mark.parametrize(
    "fixed, broke, p",
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 2**5),
        (8, 1, 2 * (1 + 9) / 2**9),
        (6, 16, 2 * (1 + 22 + 231 + 1540 + 7315 + 26334 + 74613) / 2**22),
        (2000, 0, 0.0),
    ],
)
def test_mcnemar_against_known_values(fixed, broke, p):
    assert mcnemar_p(fixed, broke) == pytest.approx(p, rel=1e-4)
    assert mcnemar_p(broke, fixed) == mcnemar_p(fixed, broke)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_and_falls_with_imbalance(fixed, broke):
    if fixed + broke:
        assert mcnemar_p(fixed, broke) == pytest.approx(scipy.stats.binomtest(fixed, fixed + broke).pvalue)
    if fixed > broke:
        assert mcnemar_p(fixed + 1, broke) < mcnemar_p(fixed, broke) <= 1


def test_changes_of_one_seed_by_hand():
    found = changes([[1, 1, 1, 0, 0]], [[1, 0, 1, 1, 0]])
    assert found == Changes(broke=1, fixed=1, unchanged=3, broke_rate=pytest.approx(1 / 3), p=1.0)


def test_changes_over_seeds_count_inputs_and_not_answers():
    before = [[0, 1, 0, 1]]  # one seed
    after = [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]  # three
    found = changes(before, after)
    assert found == Changes(broke=1, fixed=2, unchanged=1, broke_rate=pytest.approx((1 / 3) / 2), p=mcnemar_p(2, 1))
    thirds, sixths = [[1], [0], [0]], [[1], [1], [0], [0], [0], [0]]
    assert changes(thirds, sixths).unchanged == 1  # although 1/3 may be computed in two ways


RIGHT = arrays(np.float64, st.tuples(st.integers(1, 3), st.just(12)), elements=st.sampled_from([0.0, 1.0]))


@given(RIGHT, RIGHT)
def test_changes_mirror_and_add_up(before, after):
    there, back = changes(before, after), changes(after, before)
    assert (there.fixed, there.broke, there.p) == (back.broke, back.fixed, back.p)
    assert there.fixed + there.broke + there.unchanged == 12


@given(RIGHT, RIGHT)
def test_a_difference_lies_within_its_interval_and_mirrors(before, after):
    found = difference(before, after, same_seeds=len(before) == len(after), resamples=100)
    assert found.value == pytest.approx(after.mean() - before.mean())
    assert -1 <= found.low <= found.high <= 1
    assert difference(before, before, resamples=20) == (0, 0, 0)
    again = difference(before, after, same_seeds=len(before) == len(after), resamples=100)
    assert again == found  # no hidden state


def test_the_interval_of_a_share_is_that_of_the_binomial():
    """Resampling n inputs, k of them right, gives binomially many right ones: known quantiles."""
    n, k = 200, 130
    found = accuracy(np.arange(n) < k, resamples=4000)
    expected = scipy.stats.binom(n, k / n).ppf([0.025, 0.975]) / n
    assert found.value == k / n
    assert found[1:] == pytest.approx(expected, abs=0.011)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    before = rng.random((1, 300)) < 0.5
    after = before.copy()
    after[0, :6] = ~after[0, :6]
    paired, alone = difference(before, after), accuracy(after)
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_seeds_that_disagree_widen_the_interval():
    one = np.arange(100)[None] < 60
    agreeing = np.repeat(one, 2, axis=0)
    disagreeing = np.stack([np.arange(100) < 80, np.arange(100) < 40])
    narrow, wide = accuracy(agreeing), accuracy(disagreeing)
    assert narrow.value == wide.value == 0.6
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_only_rows_of_the_same_seeds_are_drawn_together():
    base = np.stack([np.ones(50), np.zeros(50)])
    assert difference(base, base)[1:] == (0, 0)
    assert difference(base, base, same_seeds=False)[1:] == (-1, 1)


def test_the_mean_over_tasks_is_of_independent_samples_that_count_alike():
    rng = np.random.default_rng(3)
    tasks = [(np.zeros((1, n)), rng.integers(0, 2, (1, n))) for n in (50, 200)]
    found, each = mean_difference(tasks), [difference(*task) for task in tasks]
    assert found.value == pytest.approx(sum(one.value for one in each) / 2)
    error = np.hypot(*(one.high - one.low for one in each)) / 2
    assert found.high - found.low == pytest.approx(error, rel=0.1)
    assert math.isnan(mean_difference([*tasks, (np.zeros((1, 0)), np.zeros((1, 0)))]).value)


def test_the_bootstrap_of_the_mean_agrees_with_scipy():
    values = np.random.default_rng(1).normal(size=80)
    found = bootstrap(lambda drawn: float(values[drawn].mean()), 80, resamples=2000)
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2))
    assert found.value == pytest.approx(values.mean())
    assert found[1:] == pytest.approx(tuple(expected.confidence_interval), abs=0.03)


def test_resamples_without_a_value_are_left_out():
    def none_below_one(drawn):
        return math.nan if drawn.min() > 0 else 1.0

    assert bootstrap(none_below_one, 5, resamples=50) == (1, 1, 1)


def test_nothing_gives_no_number():
    assert all(map(math.isnan, accuracy(np.zeros((1, 0)))))
    assert all(map(math.isnan, bootstrap(lambda drawn: 1.0, 0)))
    assert math.isnan(changes(np.zeros((1, 0)), np.zeros((1, 0))).broke_rate)
