# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportMissingTypeStubs=false
"""Update rules of one example's adapter.

Rates and other hyperparameters are arrays in the rule's state, so that another value compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ttsi_jax.model.cache import PADDING
from ttsi_jax.model.lora import Adapter, LowRank
from ttsi_jax.rules.interface import Batch, LossFn, Metrics, UpdateRule


def warmup_cosine(step: Array, n_steps: Array, warmup_ratio: Array) -> Array:
    """Share of the peak rate at `step` of `n_steps`: linear from 0 over ceil(ratio * n_steps) steps, then cosine to 0.

    As Hugging Face's `get_cosine_schedule_with_warmup`: of five steps with ratio 0.03 the first has rate 0. But the
    last is never of the warm-up: a single step, which would have rate 0 there, has the whole rate. Counts and ratio may
    be arrays, so that inputs with different numbers of steps share a program. All scalars.

    >>> [round(float(warmup_cosine(step, 5, 0.03)), 2) for step in range(5)]
    [0.0, 1.0, 0.85, 0.5, 0.15]
    """
    step, n_steps = jnp.asarray(step, jnp.float32), jnp.asarray(n_steps, jnp.float32)
    # The small term keeps 0.05 * 20 from rounding up to 2.
    warmup = jnp.minimum(jnp.ceil(n_steps * warmup_ratio - 1e-4), n_steps - 1)
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
    others: dict[str, Array]  # float32, further hyperparameters by name


@dataclass(frozen=True)
class _OptaxStep:
    """One step of an optax transformation; equal for equal `make`, so that jit recognises it across rules."""

    make: Callable[..., optax.GradientTransformation]

    @property
    def __name__(self) -> str:
        return f"optax_rule({getattr(self.make, '__name__', 'ready-made')})"

    def __call__(
        self, loss_fn: LossFn, adapter: Adapter, state: OptaxState, batch: Batch, key: Array
    ) -> tuple[Adapter, OptaxState, Metrics]:
        (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(adapter, batch, key)
        lr = state.lr * warmup_cosine(state.step, state.n_steps, state.warmup_ratio)
        updates, optimizer = self.make(lr, **state.others).update(gradients, state.optimizer, adapter)
        adapter = jax.tree.map(jnp.add, adapter, updates)
        return adapter, state._replace(optimizer=optimizer, step=state.step + 1), {**aux, "loss": loss, "lr": lr}


@dataclass(frozen=True)
class _Fixed:
    """A transformation that has its rate already, scaled by the share of it that a step's turn gives."""

    tx: optax.GradientTransformation

    def __call__(self, share: Array) -> optax.GradientTransformation:
        return optax.chain(self.tx, optax.scale(share))  # pyright: ignore[reportArgumentType]


def optax_rule(
    make: Callable[..., optax.GradientTransformation] | optax.GradientTransformation,
    lr: float | None = None,
    warmup_ratio: float = 0.03,
    **others: float,
) -> UpdateRule:
    """An update rule from optax, with warm-up and cosine decay.

    >>> rule = optax_rule(optax.lion, lr=3e-5)
    >>> rule = optax_rule(optax.adamw, lr=1e-4, weight_decay=0.01)
    >>> rule = optax_rule(optax.sgd(0.1, momentum=0.9))

    Args:
        make: a function from the rate (float32 scalar) to a transformation, best at a module's top level: rules of the
            same function share compiled programs whatever their rate. Or a transformation that has its rate already;
            each new one is compiled anew.
        lr: peak learning rate; only with a function.
        warmup_ratio: share of the steps over which the rate rises from 0.
        others: further hyperparameters of `make`; they do not decay, and other values compile nothing.

    Raises:
        TypeError: a function without a rate, or a transformation with one.
    """
    if isinstance(make, optax.GradientTransformation):
        if lr is not None or others:
            raise TypeError("a ready optax transformation has its rate and settings already: give it alone")
        make, lr = _Fixed(make), 1.0
    elif lr is None:
        raise TypeError(f"give the peak rate as well: optax_rule({getattr(make, '__name__', make)}, lr=1e-4)")

    def init(adapter: Adapter, n_steps: Array) -> OptaxState:
        scalars = (jnp.float32(lr), jnp.float32(warmup_ratio), jnp.int32(0))
        own = {name: jnp.float32(value) for name, value in others.items()}
        return OptaxState(make(scalars[0], **own).init(adapter), *scalars, jnp.asarray(n_steps, jnp.int32), own)

    return UpdateRule(init, _OptaxStep(make))


def by_projection(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` on the factors of a projection in all layers together: [L, in, rank] and [L, rank, out].

    A step is then a few large operations where it was thousands of small ones, which take longer to compile and to
    launch than to compute. For transformations that treat all elements alike, or the last two axes as a matrix; not for
    those with a norm of each matrix, which would be that of all layers.
    """

    def init(adapter: Adapter) -> Any:
        return tx.init(_stacked(adapter))  # pyright: ignore[reportArgumentType]

    def update(gradients: Adapter, state: Any, adapter: Adapter | None = None) -> tuple[Adapter, Any]:
        own = None if adapter is None else _stacked(adapter)
        updates, state = tx.update(_stacked(gradients), state, own)  # pyright: ignore[reportArgumentType]
        return _unstacked(updates, gradients), state  # pyright: ignore[reportArgumentType]

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _stacked(adapter: Adapter) -> dict[str, LowRank]:
    """The factors of each projection in the layers that have it, rising, as one array with a leading axis."""
    names = dict.fromkeys(name for factors in adapter.values() for name in factors)
    own = {name: [adapter[layer][name] for layer in sorted(adapter) if name in adapter[layer]] for name in names}
    return {name: jax.tree.map(lambda *layers: jnp.stack(layers), *factors) for name, factors in own.items()}


def _unstacked(stacked: dict[str, LowRank], like: Adapter) -> Adapter:
    """The inverse of `_stacked`, for an adapter with the projections of `like`."""
    layers = {name: iter(zip(factors.a, factors.b, strict=True)) for name, factors in stacked.items()}
    return {layer: {name: LowRank(*next(layers[name])) for name in like[layer]} for layer in sorted(like)}


def _clipped(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), tx)


def _clipped_adamw(lr: Array) -> optax.GradientTransformation:
    return _clipped(optax.adamw(lr, weight_decay=0.0))


def _adamw(lr: Array) -> optax.GradientTransformation:
    return by_projection(_clipped_adamw(lr))


def adamw(lr: float = 1e-4) -> UpdateRule:
    """The paper's rule: AdamW without weight decay, gradients clipped to norm 1, warm-up 0.03, cosine decay."""
    return optax_rule(_adamw, lr)


def _clipped_sgd(lr: Array) -> optax.GradientTransformation:
    return by_projection(_clipped(optax.sgd(lr)))


def sgd(lr: float = 0.1) -> UpdateRule:
    """Gradient descent with gradients clipped to norm 1: no state to reset, and `lr` bounds the length of a step."""
    return optax_rule(_clipped_sgd, lr)


def sign_sgd(lr: float = 1e-4) -> UpdateRule:
    """Every element moves by the rate, whatever its gradient's size (Bernstein et al., arXiv 1802.04434)."""
    return optax_rule(_sign_sgd, lr)


def _sign_sgd(lr: Array) -> optax.GradientTransformation:
    return by_projection(optax.sign_sgd(lr))


def lion(lr: float = 1e-4) -> UpdateRule:
    """The sign of an interpolated momentum, half of AdamW's memory (Chen et al., arXiv 2302.06675).

    No weight decay, as everywhere here: an adapter starts at zero and is dropped after a few steps.
    """
    return optax_rule(_lion, lr)


def _lion(lr: Array) -> optax.GradientTransformation:
    return by_projection(optax.lion(lr, weight_decay=0.0))


def muon(lr: float = 1e-2) -> UpdateRule:
    """Momentum, orthogonalised factor by factor with five Newton-Schulz steps (Jordan et al., 2024).

    For `a` [in, r] and `b` [r, out] that is r singular values made equal, so all r directions of an update learn alike.
    Source: https://kellerjordan.github.io/posts/muon/
    """
    return optax_rule(_muon, lr)


def _muon(lr: Array) -> optax.GradientTransformation:
    matrices = lambda tree: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), tree)  # noqa: E731
    orthogonalise = optax.contrib.scale_by_muon(weight_dimension_numbers=matrices)
    return by_projection(optax.chain(orthogonalise, optax.scale_by_learning_rate(lr)))


def lora_plus(lr: float = 1e-4, ratio: float = 16.0) -> UpdateRule:
    """AdamW with a rate for `b` that is `ratio` times that of `a` (Hayou et al., arXiv 2402.12354)."""
    return optax_rule(_lora_plus, lr, ratio=ratio)


def _lora_plus(lr: Array, ratio: Array) -> optax.GradientTransformation:
    return by_projection(optax.partition({"a": _clipped_adamw(lr), "b": _clipped_adamw(lr * ratio)}, _factor_names))


def _factor_names(factors: dict[str, LowRank]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].name, factors)


class RidgeState(NamedTuple):
    """State of `ridge`, all scalars."""

    lr: Array  # float32, norm of the outputs' movement in the first step
    damping: Array  # float32
    step: Array  # int32
    n_steps: Array  # int32


def ridge(lr: float = 1.0, damping: float = 0.1) -> UpdateRule:
    """Fits `b` in closed form to the way that the projections' outputs should go; `a` stays as it is drawn.

    With Z = x @ a [T, r] what `b` reads and G [T, out] the loss's gradient at a projection's output, the change D of
    `b` minimises, in each projection by itself,

        |Z D + t G|^2 + damping * mean(diag(Z^T Z)) * |D|^2,   so   D = -t (Z^T Z + ...)^-1 Z^T G,

    where Z^T G is the gradient of `b` (up to alpha / rank, which t takes in): nothing but the layers' inputs is needed
    beside the gradient. The step length t is one for all projections, chosen so that the movement Z D, of all tokens
    and projections together, has the norm `lr` where the damping is small; it decays as a half cosine. One step
    (`--adapt.epochs 1`) is a whole fit. The idea is gradient descent on neurons (Benzing, arXiv 2201.12250).
    """

    def init(adapter: Adapter, n_steps: Array) -> RidgeState:
        return RidgeState(jnp.float32(lr), jnp.float32(damping), jnp.int32(0), jnp.asarray(n_steps, jnp.int32))

    return UpdateRule(init, _ridge_step)


def _ridge_step(
    loss_fn: LossFn, adapter: Adapter, state: RidgeState, batch: Batch, key: Array
) -> tuple[Adapter, RidgeState, Metrics]:
    (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(adapter, batch, key)
    inputs = loss_fn.forward(adapter, batch.tokens, batch.predict, inputs=True).inputs
    real = batch.tokens.segments != PADDING

    def gram(factors: LowRank, x: Array) -> Array:
        z = jnp.einsum("ti,ir->tr", x.astype(jnp.float32), factors.a) * real[:, None]
        own = jnp.einsum("tr,ts->rs", z, z)
        damping = state.damping * jnp.trace(own) / own.shape[0] + 1e-20
        return own + damping * jnp.eye(own.shape[0])

    def each(change: Callable[..., Any], *trees: Any) -> Any:
        return {layer: {name: change(*(t[layer][name] for t in trees)) for name in adapter[layer]} for layer in adapter}

    grams, tree = jax.tree.flatten(each(gram, adapter, inputs))
    inverses = jax.tree.unflatten(tree, list(jnp.linalg.inv(jnp.stack(grams))))  # as one: hundreds compile for minutes
    directions = each(lambda inverse, gradient: inverse @ gradient.b, inverses, gradients)
    slopes = each(lambda gradient, d: jnp.vdot(gradient.b, d), gradients, directions)
    rate = state.lr * warmup_cosine(state.step, state.n_steps, jnp.float32(0))
    length = rate * jax.lax.rsqrt(sum(jax.tree.leaves(slopes)) + 1e-20)
    adapter = each(lambda factors, d: factors._replace(b=factors.b - length * d), adapter, directions)
    return adapter, state._replace(step=state.step + 1), {**aux, "loss": loss, "lr": rate}
