import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ttsi_jax.testing import ContractError, check_estimator
from ttsi_jax.uncertainty import ESTIMATORS, relative_softmax


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_librarys_estimators_pass(name):
    check_estimator(ESTIMATORS[name])


TICKS = itertools.count()
BROKEN = {
    "cannot be traced": lambda scores, mask: jnp.float32(max(scores.tolist()) > -2),
    "is not pure": lambda scores, mask: jnp.float32(next(TICKS)),
    "not a float32 scalar": relative_softmax,
    r"is not within \[0, 1\]: one candidate": lambda scores, mask: jnp.sum(scores * mask),
    r"is not finite: one candidate": lambda scores, mask: 1 / (jnp.sum(mask) - 1.0),
    "is not finite: no candidate": lambda scores, mask: jnp.where(jnp.any(mask), 0.5, jnp.nan),
    "sees what is outside the mask": lambda scores, mask: jnp.max(jnp.exp(scores)) * jnp.any(mask),
    "depends on the candidates' order": lambda scores, mask: relative_softmax(scores, mask)[0],
}


@pytest.mark.parametrize("property", BROKEN)
def test_a_broken_estimator_is_caught_by_its_property(property):
    with pytest.raises(ContractError, match=property):
        check_estimator(BROKEN[property])


def test_certainties():
    def certainty(name, *log_likelihoods, n=6):
        scores = np.zeros(n, np.float32)
        scores[: len(log_likelihoods)] = log_likelihoods
        return float(ESTIMATORS[name](jnp.asarray(scores), jnp.arange(n) < len(log_likelihoods)))

    assert certainty("top", -1.0, -1.0) == pytest.approx(0.5) and certainty("top") == 0.0
    assert certainty("negentropy", *[-3.0] * 5) == pytest.approx(0.0, abs=1e-6)
    assert certainty("negentropy", -3.0) == 1.0 and certainty("negentropy") == 0.0
    p = np.array([0.5, 0.25, 0.25])
    assert certainty("negentropy", *np.log(p)) == pytest.approx(1 - 1.5 * np.log(2) / np.log(3), rel=1e-5)
