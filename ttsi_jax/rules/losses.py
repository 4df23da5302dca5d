# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Losses of one example. All are in nats; `forward(None, ...)` is theta_0, which no loss trains.

Shapes: A answer tokens, V vocabulary, M samples.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.lora import Adapter
from ttsi_jax.rules.interface import Batch, Forward, Metrics, needs

# Nats of KL that rounding may make where nothing has changed, in bfloat16 too. Optimizers that divide a gradient by its
# own size would follow even that.
ROUNDING = 1e-4


def answer_cross_entropy(forward: Forward, adapter: Adapter, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood of the answer's tokens (the paper's loss)."""
    del key
    return -_mean(_label_log_probs(forward, adapter, batch), batch.weights), {}


def kl_anchored(
    forward: Forward, adapter: Adapter, batch: Batch, key: Array, *, beta: float = 0.1
) -> tuple[Array, Metrics]:
    """Cross-entropy plus `beta` times KL(adapted || theta_0) at the answer's tokens: learn, but stay near.

    The penalty is that of RLHF (Ziegler et al., arXiv 1909.08593). A token's KL of up to `ROUNDING` counts as 0.
    """
    del key
    log_p = _log_probs(forward, adapter, batch)
    kl = _kl(log_p, _log_probs(forward, None, batch), batch.weights)
    cross_entropy = -_mean(_at(log_p, batch.labels), batch.weights)
    return cross_entropy + beta * kl, {"cross_entropy": cross_entropy, "kl": kl}


def kl_to_theta_0(forward: Forward, adapter: Adapter, batch: Batch) -> Array:
    """Mean KL(adapted || theta_0) of the next token along the answer, a float32 scalar.

    A token's KL of up to `ROUNDING` counts as 0.
    """
    return _kl(_log_probs(forward, adapter, batch), _log_probs(forward, None, batch), batch.weights)


def entropy(forward: Forward, adapter: Adapter, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """Mean entropy of the next-token distributions along the answer: be surer, without labels.

    As TENT (Wang et al., arXiv 2006.10726), with adapters in the place of norm factors. The answer's tokens are only
    read as context; nothing says that they are right.
    """
    del key
    log_p = _log_probs(forward, adapter, batch)
    return _mean(-jnp.sum(jnp.exp(log_p) * log_p, axis=-1), batch.weights), {}


def self_distillation(
    forward: Forward, adapter: Adapter, batch: Batch, key: Array, *, temperature: float = 0.5
) -> tuple[Array, Metrics]:
    """Cross-entropy towards theta_0's own next-token distributions, sharpened by a temperature below 1.

    Distillation (Hinton et al., arXiv 1503.02531) with the model as its own teacher; labels are not used.
    """
    del key
    theta_0 = forward(None, batch.tokens, batch.predict).logits
    target = jax.lax.stop_gradient(jax.nn.softmax(theta_0 / temperature))
    return -_mean(jnp.sum(target * _log_probs(forward, adapter, batch), axis=-1), batch.weights), {}


@needs("rejected")
def dpo(forward: Forward, adapter: Adapter, batch: Batch, key: Array, *, beta: float = 0.1) -> tuple[Array, Metrics]:
    """Direct preference of the pair's call over a corrupted one (Rafailov et al., arXiv 2305.18290).

    -log sigmoid(beta * margin), where the margin is how much more likely than under theta_0 the right call has become,
    less the same of the wrong call. Reports the margin in nats.
    """
    del key
    assert isinstance(batch.rejected, Batch)

    def gain(answer: Batch) -> Array:
        change = _label_log_probs(forward, adapter, answer) - _label_log_probs(forward, None, answer)
        return jnp.sum(change * answer.weights)

    margin = gain(batch) - gain(batch.rejected)
    return -jax.nn.log_sigmoid(beta * margin), {"margin": margin}


@needs("samples")
def reinforce(forward: Forward, adapter: Adapter, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """Policy gradient on answers that theta_0 sampled to the pair's request (Williams, 1992).

    -mean_m (reward_m - mean reward) * log P(sample_m): where all rewards are equal, there is nothing to learn. After
    the first step the samples are no longer the policy's own; they are not weighted for that.
    """
    del key
    assert isinstance(batch.samples, Batch) and isinstance(batch.rewards, Array)
    token_log_p = jax.vmap(partial(_label_log_probs, forward, adapter))(batch.samples)  # [M, A]
    advantages = batch.rewards - jnp.mean(batch.rewards)
    loss = -jnp.mean(advantages * jnp.sum(token_log_p * batch.samples.weights, axis=-1))
    return loss, {"reward": jnp.mean(batch.rewards)}


def _log_probs(forward: Forward, adapter: Adapter | None, batch: Batch) -> Array:
    """Log-probabilities of every next token along the answer, [A, V]."""
    return jax.nn.log_softmax(forward(adapter, batch.tokens, batch.predict).logits)


def _label_log_probs(forward: Forward, adapter: Adapter | None, batch: Batch) -> Array:
    """Log-probabilities of the answer's tokens, [A]."""
    return _at(_log_probs(forward, adapter, batch), batch.labels)


def _kl(log_p: Array, anchor: Array, weights: Array) -> Array:
    """Mean over tokens of KL(p || anchor), from log-probabilities [A, V]; a token's up to `ROUNDING` counts as 0."""
    of_tokens = jnp.sum(jnp.exp(log_p) * (log_p - anchor), axis=-1)
    return _mean(jnp.where(of_tokens > ROUNDING, of_tokens, 0.0), weights)


def _at(log_probs: Array, labels: Array) -> Array:
    return jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]


def _mean(values: Array, weights: Array) -> Array:
    """Mean over the tokens that count; 0 where none do."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)
