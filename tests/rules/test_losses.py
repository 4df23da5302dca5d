"""Each loss against its formula in numpy, on logits that are made up."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttsi_jax.model.decoder import Tokens
from ttsi_jax.rules import LOSSES, answer_cross_entropy, dpo, entropy, kl_anchored, reinforce, self_distillation
from ttsi_jax.rules.interface import Batch, Outputs, needed, needs
from ttsi_jax.rules.losses import kl_to_theta_0

A, V, M = 4, 7, 3
KEY = jax.random.key(0)


def answer(number: int, n_real: int = 3) -> Batch:
    """An answer whose tokens' ids say which logits the model gives."""
    rng = np.random.default_rng(number)
    tokens = Tokens(*(jnp.full(6, number, jnp.int32),) * 3)
    labels = jnp.asarray(rng.integers(0, V, A), jnp.int32)
    return Batch(tokens, jnp.arange(A), labels, jnp.asarray(np.arange(A) < n_real, jnp.float32))


def table(adapted: bool) -> np.ndarray:
    return np.random.default_rng(int(adapted)).normal(size=(10, A, V)).astype(np.float32)


def forward(adapter, tokens, predict, inputs=False):
    return Outputs(jnp.asarray(table(adapter is not None))[tokens.ids[0]])


def log_p(number: int, adapted: bool = True) -> np.ndarray:
    """Log-probabilities of the real part of an answer, [3, V]."""
    logits = np.float64(table(adapted)[number][:3])
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def likelihood(number: int, adapted: bool = True) -> float:
    return log_p(number, adapted)[np.arange(3), np.asarray(answer(number).labels)[:3]].sum()


def value(loss, batch, **settings):
    found, aux = loss(forward, {}, batch, KEY, **settings)
    chex.assert_shape(found, ())
    chex.assert_type(found, jnp.float32)
    for scalar in aux.values():
        chex.assert_shape(scalar, ())
    return float(found), {name: float(x) for name, x in aux.items()}


def test_cross_entropy_counts_the_answer_alone():
    assert value(answer_cross_entropy, answer(1))[0] == pytest.approx(-likelihood(1) / 3, rel=1e-5)
    assert value(answer_cross_entropy, answer(1, n_real=0)) == (0.0, {})


def test_kl_is_that_to_theta_0():
    own, anchor = log_p(1), log_p(1, adapted=False)
    kl = (np.exp(own) * (own - anchor)).sum(-1).mean()
    found, aux = value(kl_anchored, answer(1), beta=0.3)
    assert found == pytest.approx(-likelihood(1) / 3 + 0.3 * kl, rel=1e-5)
    assert aux["kl"] == pytest.approx(kl, rel=1e-4)


def test_rounding_has_no_gradient():
    """An optimizer that divides by the gradient's size would follow it."""

    def barely(adapter, tokens, predict, inputs=False):
        rounded = jnp.asarray(np.random.default_rng(9).normal(size=(A, V)) * 1e-3, jnp.float32)
        return Outputs(jnp.asarray(table(False))[tokens.ids[0]] + (0 if adapter is None else adapter * rounded))

    kl, gradient = jax.value_and_grad(lambda adapter: kl_to_theta_0(barely, adapter, answer(1)))(jnp.float32(1))
    assert kl == gradient == 0 and kl_to_theta_0(barely, jnp.float32(1000), answer(1)) > 0.1


def test_entropy_needs_no_labels():
    expected = -(np.exp(log_p(1)) * log_p(1)).sum(-1).mean()
    other = answer(1)._replace(labels=answer(2).labels)
    assert value(entropy, answer(1))[0] == value(entropy, other)[0] == pytest.approx(expected, rel=1e-5)


def test_the_model_teaches_itself_sharpened():
    target = np.exp(2 * log_p(1, adapted=False))
    target /= target.sum(-1, keepdims=True)
    expected = -(target * log_p(1)).sum(-1).mean()
    assert value(self_distillation, answer(1), temperature=0.5)[0] == pytest.approx(expected, rel=1e-5)


def test_dpo_compares_gains():
    margin = likelihood(1) - likelihood(1, False) - likelihood(2) + likelihood(2, False)
    found, aux = value(dpo, answer(1)._replace(rejected=answer(2)), beta=0.2)
    assert found == pytest.approx(np.log1p(np.exp(-0.2 * margin)), rel=1e-5)
    assert aux["margin"] == pytest.approx(margin, rel=1e-4)


def test_reinforce_follows_rewards_above_their_mean():
    samples = jax.tree.map(lambda *x: jnp.stack(x), *(answer(number) for number in (1, 2, 3)))
    batch = answer(4)._replace(samples=samples, rewards=jnp.asarray([1.0, 0.5, 0.0]))
    expected = -(0.5 * likelihood(1) - 0.5 * likelihood(3)) / 3
    assert value(reinforce, batch)[0] == pytest.approx(expected, rel=1e-4)
    assert value(reinforce, batch._replace(rewards=jnp.ones(M)))[0] == 0.0


def test_losses_say_what_they_need():
    assert {name: needed(loss) for name, loss in LOSSES.items() if needed(loss)} == {
        "dpo": ("rejected",), "reinforce": ("samples",),
    }  # fmt: skip
    assert needed(needs("rejected", "samples")(lambda *args: None)) == ("rejected", "samples")
