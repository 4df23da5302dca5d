# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""`check_rule` and `check_loss`: one example's training, taken through every way in which the library runs it.

A loss is checked as the library uses it, under a rule that follows its gradient; a rule under the paper's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.model.lora import Adapter, LowRank
from ttsi_jax.rules.interface import Batch, Loss, LossFn, UpdateRule, needed
from ttsi_jax.rules.losses import answer_cross_entropy
from ttsi_jax.testing.contract import ContractError, check_pure, explained, finite, same_values
from ttsi_jax.testing.examples import bound, stack, training_example
from ttsi_jax.testing.shapes import STEPS, check_shapes, python_numbers

_CLOSE = 1e-3  # of a change's norm: sums in another order round differently, and some rules divide by a gradient's size
_AVERAGE = (
    "Average with batch.weights (padding has weight 0), and leave out tokens where batch.tokens.segments is "
    "ttsi.PADDING (-1)."
)
_SMALL_GRADIENT = "There a gradient is 0: add a small number where you divide by its norm or take its root."


def check_rule(rule: UpdateRule | Callable[..., UpdateRule]) -> None:
    """Checks that an update rule is what the library takes it for.

    It can be traced, is pure, keeps the types and sizes of its state, is compiled once whatever its step or rate,
    begins anew at every `init`, stays finite, reports the loss before each step, and gives an example the same whatever
    its padding, whoever shares its wave, and whether it runs in a wave or alone. Returns nothing where all is well.

    >>> from ttsi_jax.rules import adamw
    >>> check_rule(adamw)

    Args:
        rule: an `UpdateRule`, or a function from the rate to one, which is then checked with two rates.

    Raises:
        ContractError: naming the property, with the smallest case in which it fails.
    """
    what = f"update rule '{_name(rule)}'"
    if not isinstance(rule, UpdateRule):
        rule = _same_program(what, rule)
    trained = _check(what, rule, answer_cross_entropy)
    _check_reported(what, trained)


def check_loss(loss: Loss) -> None:
    """Checks that a loss is what the library takes it for: the properties of `check_rule`, and that it is a float32
    scalar with a gradient. Returns nothing where all is well.

    >>> from ttsi_jax.rules import dpo
    >>> check_loss(dpo)

    Raises:
        ContractError: naming the property, with the smallest case in which it fails.
    """
    what = f"loss '{_name(loss)}'"
    _check(what, UpdateRule(_init_descent, _descend), loss)
    adapter, batch, key = training_example(0, needed(loss))
    gradient = jax.jit(jax.grad(lambda adapter: bound(loss)(adapter, batch, key)[0]))(adapter)
    if not any(np.any(leaf) for leaf in jax.tree.leaves(gradient)):
        raise ContractError(f"{what} has no gradient: it is zero in every factor. Does it ask forward(adapter, ...)?")


class _Trained(NamedTuple):
    """What one example's training gave."""

    adapters: list[Adapter]  # after each step
    losses: list[Array]


def _check(what: str, rule: UpdateRule, loss: Loss) -> _Trained:
    """All properties but those of a rule or a loss alone; returns the first example's training."""
    extras, loss_fn = needed(loss), bound(loss)
    check_shapes(what, rule, loss)
    adapter, batch, key = example = training_example(0, extras)
    state = rule.init(adapter, jnp.int32(STEPS))
    check_pure(what, partial(rule.step, loss_fn), adapter, state, batch, key)

    step = jax.jit(partial(rule.step, loss_fn), compiler_options=_quick())

    def train(
        adapter: Adapter, batch: Batch, key: Array, take: Callable[..., Any] = step, steps: int = STEPS
    ) -> _Trained:
        n_steps = jnp.full(key.shape, steps, jnp.int32)
        init = jax.vmap(rule.init) if key.ndim else rule.init
        state, trained = init(adapter, n_steps), _Trained([], [])
        for _ in range(steps):
            adapter, state, metrics = take(adapter, state, batch, key)
            trained.adapters.append(adapter)
            trained.losses.append(metrics["loss"])
        return trained

    with explained(what):
        alone = train(*example)
        if (n := _n_compiled(step)) != 1:
            numbers = ", ".join(python_numbers(state)) or "what changes its type there"
            raise ContractError(
                f"{what} is compiled {n} times in {STEPS} steps: make an array with a dtype of {numbers} in `init`, "
                f"such as jnp.float32(0.1) or jnp.int32(0), not a Python number"
            )
        again = train(*example)
    _same_training(what, "does not reset", example[0], alone, again, "the same example once more", 0.0,
                   "What an example learned may live in its state alone; `init` starts from nothing.")  # fmt: skip

    fresh = {layer: {name: LowRank(x.a, 0 * x.b) for name, x in own.items()} for layer, own in adapter.items()}
    empty = batch._replace(weights=0 * batch.weights)
    cases = {
        "a fresh adapter (b = 0)": (fresh, batch, _SMALL_GRADIENT),
        "an answer of weight 0": (adapter, empty, "There sum(batch.weights) is 0: divide by jnp.maximum(it, 1.0)."),
    }
    for case, (start, own, hint) in cases.items():
        trained = train(start, own, key)
        for index in range(STEPS):
            now = f"{case}, step {index + 1}"
            finite(what, {"loss": trained.losses[index]}, now, hint)
            finite(what, {"adapter": trained.adapters[index]}, now, _SMALL_GRADIENT)
    hint = "n_steps may be 1: a schedule that divides by n_steps - 1 needs jnp.maximum(n_steps - 1, 1)."
    finite(what, {"adapter": train(*example, steps=1).adapters}, "n_steps = 1, the only step", hint)

    padded = training_example(0, extras, n_padding=1)
    other = train(*training_example(0, extras, n_padding=1, filler=5))
    longer = train(*padded)
    case = "what stands in one padding token and one padding label"
    _same_training(what, "reads padding", adapter, longer, other, case, 0.0, _AVERAGE)
    case = "1 example of 6 tokens, 1 padding token"
    _same_training(what, "is not padding invariant", adapter, alone, longer, case, _CLOSE, _AVERAGE)

    wave = jax.jit(jax.vmap(partial(rule.step, loss_fn)), compiler_options=_quick())
    together = _rows(train(*stack([example, training_example(1, extras)]), take=wave))
    mates = _rows(train(*stack([example, training_example(2, extras)]), take=wave))
    hint = "Write for one example: no averages over the wave, nothing that Python remembers."
    _same_training(what, "depends on batch mates", adapter, together[0], mates[0], "a wave of 2, the other one changed",
                   0.0, hint)  # fmt: skip
    for row, own in enumerate((alone, train(*training_example(1, extras)))):
        start = training_example(row, extras)[0]
        case = f"example {row} of a wave of 2, and alone"
        _same_training(what, "is not the same under vmap", start, own, together[row], case, _CLOSE, hint)
    return alone


def _check_reported(what: str, trained: _Trained) -> None:
    """What a rule reports as its loss is that of the adapter that the step was given."""
    adapter, batch, key = training_example(0, ())
    losses = [float(_paper_loss(x, batch, key)) for x in (adapter, *trained.adapters)]
    for index, reported in enumerate(map(float, trained.losses)):
        before, after = losses[index : index + 2]
        off, rounding = abs(reported - before), 1e-6 * max(1.0, abs(before))
        if off > 100 * rounding or (off > rounding and abs(reported - after) < off / 2):
            raise ContractError(
                f"{what} does not report the loss before the step: in step {index + 1} metrics['loss'] is "
                f"{reported:.7g}; loss_fn gives {before:.7g} for the adapter before it, {after:.7g} for the one after."
            )


@jax.jit
def _paper_loss(adapter: Adapter, batch: Batch, key: Array) -> Array:
    return bound(answer_cross_entropy)(adapter, batch, key)[0]


def _same_training(
    what: str, property: str, start: Adapter, one: _Trained, two: _Trained, case: str, tolerance: float, hint: str
) -> None:
    """Both gave the same after every step; the first step in which they did not is the smallest case."""
    for index in range(STEPS):
        now = f"{case}, step {index + 1}"
        same_values(what, property, {"loss": one.losses[index]}, {"loss": two.losses[index]}, now, hint, tolerance)
        before, after = {"adapter": one.adapters[index]}, {"adapter": two.adapters[index]}
        same_values(what, property, before, after, now, hint, tolerance, {"adapter": start})


def _same_program(what: str, make: Callable[..., Any]) -> UpdateRule:
    """The rule of one rate, after a look at another's."""
    try:
        one, two = make(1e-2), make(2e-2)
    except Exception as error:  # the user's code may raise anything
        raise ContractError(f"{what} is not made from a rate: {error}") from error
    for rule in (one, two):
        if not isinstance(rule, UpdateRule):
            raise ContractError(f"{what} gives {rule!r}, not an UpdateRule")
    if one.step != two.step:
        raise ContractError(
            f"{what} is compiled anew for another rate: two rates give two step functions. Define `step` at the "
            f"module's top level and let `init` put the rate into the state, as an array."
        )
    return one


def _quick() -> dict[str, Any] | None:
    """Compiling takes longest, and on a CPU it need not be thorough here."""
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} if on_cpu else None


def _n_compiled(jitted: Any) -> int:
    return jitted._cache_size()


def _init_descent(adapter: Adapter, n_steps: Array) -> tuple[()]:
    return ()


def _descend(
    loss_fn: LossFn, adapter: Adapter, state: tuple[()], batch: Batch, key: Array
) -> tuple[Adapter, tuple[()], dict[str, Array]]:
    (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(adapter, batch, key)
    return jax.tree.map(lambda x, g: x - 0.1 * g, adapter, gradient), state, {"loss": loss}


def _rows(trained: _Trained) -> list[_Trained]:
    """A wave's training, as its rows'."""
    return [jax.tree.map(lambda x, row=row: x[row], trained) for row in range(len(trained.losses[0]))]


def _name(part: Any) -> str:
    part = getattr(part, "func", part)
    part = part.step if isinstance(part, UpdateRule) else part
    return getattr(part, "__name__", type(part).__name__)
