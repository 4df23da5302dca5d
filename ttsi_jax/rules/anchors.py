# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Anchors: terms that any loss may have beside its own, which keep an adapter near the model that it started from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.decoder import Tokens
from ttsi_jax.model.lora import Adapter, LowRank
from ttsi_jax.rules.interface import Batch, Extra, Forward, Loss, Metrics, Outputs, needed
from ttsi_jax.rules.losses import kl_to_theta_0


def anchored(loss: Loss, kl: float = 0.0, l2: float = 0.0) -> Loss:
    """The loss with `kl` times KL(adapted || theta_0) at the answer's tokens (Ziegler et al., arXiv 1909.08593) and
    `l2` times `squared_change`; the loss itself where both are 0. A token's KL of up to 1e-4 nats counts as 0, see
    `ttsi_jax.rules.losses.ROUNDING`. Other weights are another program."""
    return _Anchored(loss, kl, l2) if kl or l2 else loss


def squared_change(adapter: Adapter) -> Array:
    """|a b|^2, summed over all projections: the squared change of the weights, up to (alpha / r)^2.

    Its gradient is 0 where `b` is, so an adapter is held by what it has done and not by how `a` was drawn. Computed as
    the elements of (a^T a) * (b b^T) together: matrices of the adapter's rank.
    """

    def one(factors: LowRank) -> Array:
        return jnp.sum((factors.a.T @ factors.a) * (factors.b @ factors.b.T))

    leaves = jax.tree.leaves(adapter, is_leaf=lambda x: isinstance(x, LowRank))
    return sum(map(one, leaves), start=jnp.float32(0))


def _remembering(forward: Forward) -> Forward:
    """The same, which reads the same objects once: a loss and its anchor ask for the same logits, and once each has its
    backward pass the compiler no longer joins them."""
    known: dict[Any, Any] = {}  # with what was read, or another object might get its id

    def read(adapter: Adapter | None, tokens: Tokens, predict: Array, inputs: bool = False) -> Outputs:
        key = id(adapter), id(tokens), id(predict), inputs
        if key not in known:
            known[key] = adapter, tokens, predict, forward(adapter, tokens, predict, inputs)
        return known[key][-1]

    return read


@dataclass(frozen=True)
class _Anchored:
    """Equal for equal values, so that jit recognises it."""

    loss: Loss
    kl: float
    l2: float

    @property
    def __name__(self) -> str:
        return f"anchored({getattr(self.loss, '__name__', 'a loss')})"

    @property
    def needs(self) -> tuple[Extra, ...]:
        return needed(self.loss)

    def __call__(self, forward: Forward, adapter: Adapter, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        forward = _remembering(forward)
        value, metrics = self.loss(forward, adapter, batch, key)
        if self.kl:
            metrics = metrics | {"kl": kl_to_theta_0(forward, adapter, batch)}
            value = value + self.kl * metrics["kl"]
        if self.l2:
            metrics = metrics | {"squared_change": squared_change(adapter)}
            value = value + self.l2 * metrics["squared_change"]
        return value, metrics
