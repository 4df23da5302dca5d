# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""`check_estimator`: a certainty that depends on the real candidates alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttsi_jax.testing.contract import ContractError, check_arguments, check_pure, explained, finite, same_values
from ttsi_jax.uncertainty import Estimator

_CASES = {  # log-likelihoods in nats, smallest cases first
    "one candidate": [-1.0],
    "two alike": [-2.0, -2.0],
    "two": [-1.0, -3.0],
    "one impossible": [-1.0, -300.0],
    "three": [-30.0, -31.5, -30.2],
    "eight": [-7.0, -3.5, -9.0, -4.0, -8.5, -3.6, -12.0, -5.0],
}


def check_estimator(estimator: Estimator) -> None:
    """Checks that an estimator is what the gate takes it for.

    It can be traced, is pure, gives a float32 scalar within [0, 1] for any number of candidates, does not see what is
    outside the mask, does not depend on the candidates' order or on other inputs, and is the same under vmap. Returns
    nothing where all is well.

    >>> from ttsi_jax.uncertainty import margin
    >>> check_estimator(margin)

    Raises:
        ContractError: naming the property, with the smallest case in which it fails.
    """
    what = f"estimator '{getattr(estimator, '__name__', type(estimator).__name__)}'"

    def padded(values: list[float], filler: float = 0.0, size: int = 8) -> tuple[jax.Array, jax.Array]:
        scores = np.full(size, filler, np.float32)
        scores[: len(values)] = values
        return jnp.asarray(scores), jnp.arange(size) < len(values)

    check_arguments(what, "it", estimator, "log_likelihoods", "mask")
    check_pure(what, estimator, *padded([-1.0]))
    one, wave = jax.jit(estimator), jax.jit(jax.vmap(estimator))
    found: dict[str, Any] = {}
    for case, values in _CASES.items():
        with explained(what):
            certainty = found[case] = one(*padded(values))
        if certainty.shape != () or certainty.dtype != jnp.float32:
            raise ContractError(f"{what} gives {certainty.dtype}{list(certainty.shape)}, not a float32 scalar")
        finite(what, certainty, f"{case}, log-likelihoods {values}", "Mind log(0) and division by a count less one.")
        if not 0 <= float(certainty) <= 1:
            raise ContractError(f"{what} is not within [0, 1]: {case}, log-likelihoods {values}, give {certainty:.6g}.")
        _same(what, "sees what is outside the mask", certainty, one(*padded(values, -0.5)), case, "Use the mask.")
        turned = one(*padded(values[::-1]))
        _same(what, "depends on the candidates' order", certainty, turned, case, "They come as the file lists them.")
    finite(what, one(*padded([])), "no candidate", "The mask may be all False in a dummy row.")
    rows = wave(*map(jnp.stack, zip(*map(padded, _CASES.values()), strict=True)))
    for case, alone, row in zip(_CASES, found.values(), rows, strict=True):
        _same(what, "is not the same under vmap", alone, row, f"{case}, in a wave", "Write for one input.")


def check_estimator_shapes(estimator: Estimator) -> None:
    """The quick part of the check, without compiling: can it be traced, and does it give one number?

    Raises:
        ContractError: with the line at fault.
    """
    what = f"estimator '{getattr(estimator, '__name__', type(estimator).__name__)}'"
    check_arguments(what, "it", estimator, "log_likelihoods", "mask")
    with explained(what):
        found = jax.eval_shape(estimator, jnp.zeros(2), jnp.ones(2, bool))
    if getattr(found, "shape", None) != ():
        raise ContractError(f"{what} gives {found}, not a float32 scalar")


def _same(what: str, property: str, one: Any, two: Any, case: str, hint: str) -> None:
    same_values(what, property, one, two, case, hint, tolerance=1e-5)
