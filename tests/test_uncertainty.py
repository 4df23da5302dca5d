import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.uncertainty import ESTIMATORS, margin, relative_softmax

log_likelihoods = st.lists(st.floats(-200, 0, width=32), min_size=2, max_size=8)
_margin = jax.jit(margin)


def certainty(values, mask=None) -> float:
    """The margin of some candidates, in an array of fixed size."""
    padded = list(values) + [3.0] * (12 - len(values))
    real = [True] * len(values) if mask is None else mask
    return float(_margin(jnp.asarray(padded), jnp.asarray(real + [False] * (12 - len(values)))))


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([0.7, 0.2, 0.1], 0.5), ([0.1, 0.3, 0.6], 0.3), ([0.5, 0.5], 0.0), ([0.25] * 4, 0.0), ([0.9, 0.05, 0.05], 0.85)],
)
def test_the_margin_by_hand(probabilities, expected):
    values = np.log(probabilities) - 40.0  # likelihoods of whole names are small; only ratios count
    assert certainty(values) == pytest.approx(expected, abs=1e-5)


def test_relative_softmax_by_hand():
    p = relative_softmax(jnp.asarray([-1.0, -1.0 - np.log(4), 50.0]), jnp.asarray([True, True, False]))
    np.testing.assert_allclose(p, [0.8, 0.2, 0.0], atol=1e-6)
    far = relative_softmax(jnp.asarray([-1e4, -2e4]), jnp.asarray([True, True]))
    np.testing.assert_array_equal(far, [1.0, 0.0])


@pytest.mark.parametrize("value", [0.0, -1.0, -1e6])
def test_one_candidate_is_certain(value):
    assert certainty([value]) == 1.0
    assert float(margin(jnp.asarray([value]), jnp.asarray([True]))) == 1.0


def test_no_candidate_gives_zero():
    assert certainty([]) == 0.0
    assert float(margin(jnp.asarray([-1.0]), jnp.asarray([False]))) == 0.0


@given(log_likelihoods, st.data())
def test_masked_candidates_do_not_count(values, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    kept = [value for value, real in zip(values, mask, strict=True) if real]
    assert certainty(values, mask) == pytest.approx(certainty(kept), abs=1e-6)
    hidden = [value if real else float("nan") for value, real in zip(values, mask, strict=True)]
    assert certainty(hidden, mask) == pytest.approx(certainty(kept), abs=1e-6)


@given(log_likelihoods, st.data())
def test_order_does_not_count(values, data):
    assert certainty(data.draw(st.permutations(values))) == pytest.approx(certainty(values), abs=1e-6)


@given(log_likelihoods, st.floats(-300, 300, width=32))
def test_a_common_factor_does_not_count(values, shift):
    # float32 keeps differences of shifted values to about 5e-5
    assert certainty([value + shift for value in values]) == pytest.approx(certainty(values), abs=2e-4)


@given(log_likelihoods)
def test_the_margin_is_that_of_the_formula_and_within_0_and_1(values):
    p = np.exp(np.asarray(values, np.float64) - max(values))
    second, first = np.sort(p / p.sum())[-2:]
    found = certainty(values)
    assert found == pytest.approx(first - second, abs=1e-5)
    assert 0.0 <= found <= 1.0


def test_the_likelihood_is_the_best_names_own():
    values, mask = jnp.log(jnp.asarray([0.2, 0.1, 0.9])), jnp.asarray([True, True, False])
    assert float(ESTIMATORS["likelihood"](values, mask)) == pytest.approx(0.2)
    assert float(ESTIMATORS["likelihood"](values, mask & False)) == 0.0


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=list(ESTIMATORS))
def test_estimators_map_over_inputs_and_trace_once(estimator):
    values = jnp.asarray([[-1.0, -2.0, -3.0], [-5.0, -5.0, -9.0]])
    mask = jnp.asarray([[True, True, True], [True, True, False]])
    wave = jax.jit(jax.vmap(estimator))
    expected = [estimator(own, real) for own, real in zip(values, mask, strict=True)]
    np.testing.assert_allclose(wave(values, mask), expected, atol=1e-6)
    wave(values * 2, ~mask)
    assert wave._cache_size() == 1
