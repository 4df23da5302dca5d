"""Losses and update rules that come with the library, and how names become objects.

Each is written for ONE example; `ttsi_jax.adaptation` lifts it over steps and inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ttsi_jax.adaptation import Batch, Forward, Loss, LossFn, UpdateRule
from ttsi_jax.model.lora import Adapter


def answer_cross_entropy(
    forward: Forward, adapter: Adapter, batch: Batch, key: Array
) -> tuple[Array, dict[str, Array]]:
    """Mean negative log-likelihood of the answer's tokens, in nats (the paper's loss)."""
    del key
    outputs = forward(adapter, batch.tokens, batch.predict)
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch.labels)
    return jnp.sum(losses * batch.weights) / jnp.maximum(jnp.sum(batch.weights), 1.0), {}


def warmup_cosine(step: Array, n_steps: Array, warmup_ratio: Array) -> Array:
    """Share of the peak rate at `step` of `n_steps`: linear from 0 over ceil(ratio * n_steps) steps, then cosine to 0.

    As Hugging Face's `get_cosine_schedule_with_warmup`: of five steps with ratio 0.03 the first has rate 0. Counts and
    ratio may be arrays, so that inputs with different numbers of steps share a program.
    """
    step, n_steps = jnp.asarray(step, jnp.float32), jnp.asarray(n_steps, jnp.float32)
    # The small term keeps 0.05 * 20 from rounding up to 2.
    warmup = jnp.ceil(n_steps * warmup_ratio - 1e-4)
    rising = step / jnp.maximum(warmup, 1.0)
    progress = (step - warmup) / jnp.maximum(n_steps - warmup, 1.0)
    falling = jnp.maximum(0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))
    return jnp.where(step < warmup, rising, falling)


class OptaxState(NamedTuple):
    """State of a rule made from optax; scalars are arrays, so that changing them compiles nothing."""

    optimizer: Any  # optax's own state
    lr: Array  # float32, peak learning rate
    warmup_ratio: Array  # float32
    step: Array  # int32
    n_steps: Array  # int32


@dataclass(frozen=True)
class _OptaxStep:
    """One step of an optax transformation; equal for equal `make`, so that jit recognises it across rules."""

    make: Callable[[Array], optax.GradientTransformation]

    def __call__(
        self, loss_fn: LossFn, adapter: Adapter, state: OptaxState, batch: Batch, key: Array
    ) -> tuple[Adapter, OptaxState, dict[str, Array]]:
        (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(adapter, batch, key)
        lr = state.lr * warmup_cosine(state.step, state.n_steps, state.warmup_ratio)
        updates, optimizer = self.make(lr).update(gradients, state.optimizer, adapter)
        adapter = jax.tree.map(jnp.add, adapter, updates)
        return adapter, state._replace(optimizer=optimizer, step=state.step + 1), {"loss": loss, "lr": lr, **aux}


def optax_rule(
    make: Callable[[Array], optax.GradientTransformation], lr: float, warmup_ratio: float = 0.03
) -> UpdateRule:
    """An update rule from a function of the learning rate to an optax transformation, with warm-up and cosine decay.

    >>> rule = optax_rule(optax.lion, lr=1e-4)

    Args:
        make: for example `optax.sgd`; a module-level function, so that a new `lr` finds the compiled program again.
        lr: peak learning rate.
        warmup_ratio: share of the steps over which the rate rises from 0.
    """

    def init(adapter: Adapter, n_steps: Array) -> OptaxState:
        scalars = (jnp.float32(lr), jnp.float32(warmup_ratio), jnp.int32(0))
        return OptaxState(make(scalars[0]).init(adapter), *scalars, jnp.asarray(n_steps, jnp.int32))

    return UpdateRule(init, _OptaxStep(make))


def _clipped_adamw(lr: Array) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lr, weight_decay=0.0))


def adamw(lr: float = 1e-4) -> UpdateRule:
    """The paper's rule: AdamW without weight decay, gradients clipped to norm 1, warm-up 0.03, cosine decay."""
    return optax_rule(_clipped_adamw, lr)


LOSSES: dict[str, Loss] = {"answer_cross_entropy": answer_cross_entropy}
RULES: dict[str, Callable[[float], UpdateRule]] = {"adamw": adamw}
