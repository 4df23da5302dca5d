# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""What checks have in common: an error that explains, and comparisons that show the smallest counter-example."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ttsi_jax.errors import InputError

_LIBRARIES = re.compile(r"[/\\](jax|jaxlib|optax|flax|numpy|chex|ttsi_jax)[/\\]")


class ContractError(InputError):
    """A rule, loss or estimator breaks its contract; the message names the property and shows where."""


@contextmanager
def explained(what: str) -> Generator[None]:
    """Turns what tracing raises into a `ContractError` that shows the line of the user's own code.

    `what`: the kind and name, such as "update rule 'mine'".
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the user's code may raise anything
        where = _own_line(error)
        if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
            raise ContractError(
                f"{what} cannot be traced: {where} needs an array's value in Python, where it has none yet: the "
                f"program is made once, for all values. Choose between arrays with jnp.where or jax.lax.cond, compute "
                f"with jnp instead of numpy, float() or int(), and index with jnp.take."
            ) from error
        raise ContractError(f"{what} cannot be traced: {where} raises {type(error).__name__}: {error}") from error


def _own_line(error: Exception) -> str:
    """The last line of a traceback that is not a library's, as `file:line: code`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _LIBRARIES.search(frame.filename)] or frames
    if Path(own[-1].filename).parent == Path(__file__).parent:
        own = frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}: `{own[-1].line}`"


def check_pure(what: str, function: Callable[..., Any], *args: Any) -> None:
    """The function is traced into the same program twice: it reads no clock, counter or random state of Python's.

    Raises:
        ContractError: showing the first line in which the programs differ.
    """
    with explained(what):
        one, two = (jax.make_jaxpr(lambda *x: function(*x))(*args) for _ in range(2))
    lines = [re.sub(r"0x[0-9a-f]+", "", str(program)).splitlines() for program in (one, two)]
    consts = [[np.asarray(const).tolist() for const in program.consts] for program in (one, two)]
    for first, second in zip(*lines, strict=False):
        if first != second:
            _impure(what, first.strip(), second.strip())
    if len(lines[0]) != len(lines[1]) or consts[0] != consts[1]:
        _impure(what, f"a program with constants {consts[0]}", f"one with {consts[1]}")


def _impure(what: str, one: str, two: str) -> None:
    raise ContractError(
        f"{what} is not pure: traced twice, it gives two programs. The first difference:\n  {one}\n  {two}\n"
        f"Take random numbers from `key`, and keep what lasts from step to step in the state."
    )


def same_types(what: str, property: str, before: Any, after: Any, hint: str) -> None:
    """Two pytrees have the same structure, shapes and dtypes.

    Raises:
        ContractError: showing the first leaf that differs.
    """
    one, two = (dict(_named_leaves(tree)) for tree in (before, after))
    for name in one | two:
        shown = [f"{x[name].dtype}{list(x[name].shape)}" if name in x else "not there" for x in (one, two)]
        if shown[0] != shown[1]:
            raise ContractError(f"{what} {property}: {name or 'it'} is {shown[0]} before and {shown[1]} after. {hint}")
    if jax.tree.structure(before) != jax.tree.structure(after):
        shown = [str(jax.tree.structure(x)) for x in (before, after)]
        raise ContractError(f"{what} {property}: {shown[0]} before and {shown[1]} after. {hint}")


def same_values(
    what: str, property: str, one: Any, two: Any, case: str, hint: str, tolerance: float = 0.0, start: Any = None
) -> None:
    """Two pytrees hold the same numbers, leaf by leaf.

    Args:
        case: the smallest case in which they should, in words.
        tolerance: allowed distance of a leaf, relative to the norm of its change from `start` (or of itself).
        start: the values before the change that is compared.

    Raises:
        ContractError: showing the element that differs most.
    """
    for (name, a), (_, b), (_, s) in zip(*map(_named_leaves, (one, two, start or one)), strict=True):
        a, b, s = (np.asarray(x, np.float64) for x in (a, b, s))
        distance = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
        size = np.linalg.norm(a - s if start is not None else a)
        if np.any(np.isnan(distance)) or np.linalg.norm(distance) > tolerance * size + (1e-7 if tolerance else 0.0):
            index = np.unravel_index(np.argmax(np.where(np.isnan(distance), np.inf, distance)), a.shape)
            element = f"{name}[{', '.join(map(str, index))}]" if a.ndim else name
            raise ContractError(
                f"{what} {property}. Smallest case: {case}: {element} is {a[index]:.6g} and {b[index]:.6g}. {hint}"
            )


def finite(what: str, tree: Any, case: str, hint: str) -> None:
    """Every number is finite.

    Raises:
        ContractError: showing the first that is not.
    """
    for name, leaf in _named_leaves(tree):
        values = np.asarray(leaf)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            index = np.argwhere(~np.isfinite(values))[0]
            element = f"{name}[{', '.join(map(str, index))}]" if values.ndim else name
            raise ContractError(f"{what} is not finite: {case}: {element} is {values[tuple(index)]}. {hint}")


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
