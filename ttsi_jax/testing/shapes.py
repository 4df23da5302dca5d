# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""The quick part of the checks: what a rule and a loss return, found by tracing alone, without compiling anything."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ttsi_jax.rules.interface import Loss, UpdateRule, needed
from ttsi_jax.testing.contract import ContractError, check_arguments, explained, leaked, same_types
from ttsi_jax.testing.examples import bound, training_example

STEPS = 3
_STATE = "The state is carried through a scan: the same entries, shapes and dtypes, from `init` on."
_STEP = "a step returns (adapter, state, metrics)"
_LOSS = "a loss returns (scalar, dict of scalars)"


def check_shapes(what: str, rule: UpdateRule, loss: Loss) -> None:
    """Can both be traced, do they return what they should, and do types stay?

    Raises:
        ContractError: with the line or the entry at fault.
    """
    check_arguments(what, "init", rule.init, "adapter", "n_steps")
    check_arguments(what, "step", rule.step, "loss_fn", "adapter", "state", "batch", "key")
    check_arguments(what, "loss", loss, "forward", "adapter", "batch", "key")
    adapter, batch, key = training_example(0, needed(loss))
    for _ in range(2):  # the second time finds what the first has left behind
        with explained(what):
            state = jax.eval_shape(lambda *x: rule.init(*x), adapter, jnp.int32(STEPS))
            if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(rule.init(adapter, jnp.int32(STEPS)))):
                raise leaked(what)  # what was kept of an earlier trace
            value = jax.eval_shape(bound(loss), adapter, batch, key)
        _check_loss_value(what, value)
        with explained(what):
            found = jax.eval_shape(partial(rule.step, bound(loss)), adapter, state, batch, key)
        _check_step_value(what, found)
        same_types(what, "adapter", adapter, found[0], "A step keeps the pytree that it was given.")
        same_types(what, "state", state, found[1], _STATE)


def python_numbers(state: Any) -> list[str]:
    """The entries of a state that are Python numbers, or arrays made of them without a dtype."""
    abstract = jax.eval_shape(lambda: state)
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    return [f"state{jax.tree_util.keystr(path)}" for path, leaf in leaves if leaf.weak_type]


def _check_loss_value(what: str, value: Any) -> None:
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[1], dict):
        raise ContractError(f"{what}: {_LOSS}; this one returns {_shown(value)}")
    if (shown := _shown(value[0])) != "float32[]":
        raise ContractError(f"{what}: the loss is {shown}, not a float32 scalar")
    _check_scalars(what, "the loss's dict", value[1])
    if "loss" in value[1]:
        raise ContractError(
            f"{what}: the loss's dict has an entry 'loss', which would hide the loss itself where a rule reports both. "
            f"Give it another name."
        )


def _check_step_value(what: str, found: Any) -> None:
    if not isinstance(found, tuple):
        raise ContractError(f"{what}: {_STEP}; this one returns {_shown(found)}")
    if len(found) != 3:
        raise ContractError(f"{what}: {_STEP}; this one returns {_shown(found)}, not 3")
    if not isinstance(found[2], dict):
        raise ContractError(f"{what}: metrics is {_shown(found[2])}, not a dict of scalars")
    if "loss" not in found[2]:
        names = ", ".join(map(repr, found[2])) or "nothing"
        raise ContractError(
            f"{what}: metrics has no 'loss', only {names}: return adapter, state, {{**aux, \"loss\": loss}}"
        )
    _check_scalars(what, "metrics", found[2])


def _check_scalars(what: str, where: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if getattr(value, "shape", None) != ():
            raise ContractError(f"{what}: {where}['{name}'] is {_shown(value)}, not a scalar")


def _shown(value: Any) -> str:
    """An abstract value in a few words."""
    if hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"{len(value)} things ({', '.join(map(_brief, value))})"
    return _brief(value)


def _brief(value: Any) -> str:
    return _shown(value) if hasattr(value, "shape") else f"a {type(value).__name__}" if value is not None else "None"
