"""Choosing tau: by budget, by the distribution, by the gain on labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.quality.thresholds import NONE, automatic, by_budget, by_distribution, by_gain

certainties = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def adapted(values, tau):
    return sum(value < tau for value in values)


@given(certainties, st.floats(0, 1))
def test_a_budget_is_kept_and_used(values, fraction):
    tau = by_budget(values, fraction)
    assert adapted(values, tau) <= fraction * len(values) + 1e-6
    above = [value for value in values if value > tau]
    if above:  # the next larger tau would adapt too many
        assert adapted(values, min(above)) > int(fraction * len(values) + 1e-9)


def test_budgets_by_hand():
    values = [0.9, 0.1, 0.5, 0.3]
    assert by_budget(values, 0.5) == 0.5
    assert by_budget(values, 0.0) == 0.1
    assert adapted(values, by_budget(values, 1.0)) == 4
    assert adapted([0.2] * 4, by_budget([0.2] * 4, 0.5)) == 0  # equal ones adapt together or not at all
    assert by_budget([float("nan"), 0.4], 0.0) == 0.4
    assert by_budget([], 0.5) == NONE


def test_two_groups_are_told_apart():
    rng = np.random.default_rng(0)
    values = [*rng.normal(0.2, 0.05, 30), *rng.normal(0.9, 0.03, 70)]
    assert 0.35 < by_distribution(values) < 0.8
    assert by_distribution([0.1, 0.2, 0.9]) == pytest.approx(0.55)
    assert by_distribution([0.4] * 5) == by_distribution([]) == NONE


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_the_cut_has_the_largest_variance_between_groups(values):
    def between(tau):
        low, high = [v for v in values if v < tau], [v for v in values if v >= tau]
        return len(low) * len(high) * (np.mean(high) - np.mean(low)) ** 2 if low and high else 0.0

    found = between(by_distribution(values))
    assert found >= max(between(value) for value in values) * (1 - 1e-9) - 1e-12


def test_gains_by_hand():
    values, gains = [0.1, 0.3, 0.5, 0.9], [1, 1, -1, -1]
    tau = by_gain(values, gains)
    assert adapted(values, tau) == 2
    assert by_gain(values, [-1, 0, 0, 0]) == by_gain([], []) == NONE
    assert adapted(values, by_gain(values, [1, -1, 1, 0])) == 1  # of equal gains the one that adapts fewest
    assert by_gain([0.3, 0.3], [1, -1]) == NONE  # equal certainties cannot be told apart


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.4, 0.8]), st.sampled_from([-1, 0, 1])), max_size=12))
def test_no_tau_gains_more(labelled):
    values, gains = [v for v, _ in labelled], [g for _, g in labelled]
    total = lambda tau: sum(g for v, g in labelled if v < tau)  # noqa: E731
    assert total(by_gain(values, gains)) == max(map(total, (0.0, 0.15, 0.3, 0.6, 1.0)))


def test_automatic():
    values = [0.1, 0.15, 0.2, 0.9, 0.95]
    assert adapted(values, automatic(values)) == 3
    assert adapted(values, automatic(values, budget=0.4)) == 2
    assert adapted(values, automatic(values, labelled=([0.1, 0.16], [1, -1]))) == 1
