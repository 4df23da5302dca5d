"""Losses and update rules that go wrong for an input whose tools are described with a tilde, and for no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tiny_runs import TILDE
from ttsi_jax.adaptation import Batch, UpdateRule
from ttsi_jax.rules import adamw, answer_cross_entropy

NAN, INF, HUGE = float("nan"), float("inf"), 1e30


def marked(batch: Batch) -> Array:
    return jnp.any(batch.tokens.ids == TILDE)


def loss_of(fault: float) -> Callable[..., Any]:
    def loss(forward, adapter, batch, key):  # noqa: ANN001, ANN202
        value, aux = answer_cross_entropy(forward, adapter, batch, key)
        return jnp.where(marked(batch), fault, value), aux

    return loss


@jax.custom_vjp
def poisoned(value: Array, poison: Array) -> Array:
    """The value itself, with a gradient of `poison`."""
    return value


poisoned.defvjp(lambda value, poison: (value, poison), lambda poison, gradient: (gradient + poison, None))


def gradient_of(fault: float) -> Callable[..., Any]:
    def loss(forward, adapter, batch, key):  # noqa: ANN001, ANN202
        value, aux = answer_cross_entropy(forward, adapter, batch, key)
        return poisoned(value, jnp.where(marked(batch), fault, 0.0)), aux

    return loss


def update_of(fault: float, step: int = 0) -> UpdateRule:
    """AdamW that adds the fault to the adapter, from one of its steps on."""
    usual = adamw(3e-2)

    def faulty(loss_fn, adapter, state, batch, key):  # noqa: ANN001, ANN202
        added = jnp.where(marked(batch) & (state.step >= step), fault, 0.0)
        adapter, state, metrics = usual.step(loss_fn, adapter, state, batch, key)
        return jax.tree.map(lambda x: x + added, adapter), state, metrics

    return UpdateRule(usual.init, faulty)


LOSSES = {
    "nan_loss": loss_of(NAN),
    "inf_loss": loss_of(INF),
    "minus_inf_loss": loss_of(-INF),
    "nan_gradient": gradient_of(NAN),
    "inf_gradient": gradient_of(INF),
}
RULES = {
    "nan_update": update_of(NAN),
    "inf_update": update_of(INF),
    "huge_update": update_of(HUGE),
    "nan_last_update": update_of(NAN, step=2),
    "inf_last_update": update_of(INF, step=2),
}


def growing_loss(forward, adapter, batch, key):  # noqa: ANN001, ANN201
    """Stays finite: as large as the training has gone far."""
    value, aux = answer_cross_entropy(forward, adapter, batch, key)
    b = jnp.sum(jnp.abs(adapter[0]["q"].b))
    return jnp.where(marked(batch), 1.0 + 1e9 * b, value), aux


globals().update(LOSSES | RULES)  # so that `reliability.faults:NAME` finds them
