# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""What checks have in common: an error that explains, and comparisons that show the smallest counter-example."""

from __future__ import annotations

import gc
import inspect
import re
import traceback
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ttsi_jax.errors import InputError

_LIBRARIES = re.compile(r"-packages[/\\](jax|jaxlib|optax|flax|numpy|chex)[/\\]")
_PACKAGE, _STANDARD = Path(__file__).parents[1], Path(inspect.__file__).parent


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
        if isinstance(error, jax.errors.UnexpectedTracerError):
            raise leaked(what) from error
        where, text = _own_line(error), str(error)
        if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
            raise ContractError(
                f"{what} cannot be traced: {where} needs an array's value in Python, where it has none yet: the "
                f"program is made once, for all values. Choose between arrays with jnp.where or jax.lax.cond, compute "
                f"with jnp instead of numpy, float() or int(), and index with jnp.take."
            ) from error
        hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text)), "")
        said = text if len(text) < 300 else text[:300] + "…"
        raise ContractError(f"{what} cannot be traced: {where} raises {type(error).__name__}: {said}{hint}") from error


_HINTS = {  # what an error says -> what to do
    "Gradient only defined for scalar-output": ". loss_fn returns (loss, dict of scalars): write "
    "jax.value_and_grad(loss_fn, has_aux=True).",
    r"'tuple' object has no attribute|got .*tuple": ". batch.rejected, batch.samples and batch.rewards are () unless "
    'the loss declares them: @ttsi.needs("rejected") or @ttsi.needs("samples").',
    r"forward\(\) (missing|takes|got)": ". It is forward(adapter, tokens, predict), such as "
    "forward(adapter, batch.tokens, batch.predict).",
}


def leaked(what: str) -> ContractError:
    """The error of a function that keeps what it traced."""
    return ContractError(
        f"{what} keeps traced values outside of itself, in a list, dictionary, attribute or global name: they mean "
        f"nothing once the program is made, and what an earlier call left behind would be another input's. Keep what "
        f"lasts from step to step in the state, make the state anew in every `init`, and look at numbers with "
        f"jax.debug.print."
    )


def _own_line(error: Exception) -> str:
    """The last line of a traceback that is not a library's, as `file:line: code`; "it" where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}: `{own[-1].line}`" if own else "it"


def _is_library(file: str) -> bool:
    standard = Path(file).is_relative_to(_STANDARD) and "-packages" not in file
    own = Path(file).is_relative_to(_PACKAGE)
    return own or standard or bool(_LIBRARIES.search(file)) or file.startswith("<frozen")


def check_arguments(what: str, role: str, function: Any, *names: str) -> None:
    """A function takes its arguments by position.

    Raises:
        ContractError: showing what it takes and how it is called.
    """
    if not callable(function):
        raise ContractError(f"{what}: {role} is {function!r}, not a function")
    try:
        taken = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin's cannot be read
        return
    try:
        taken.bind(*names)
    except TypeError as error:
        called = f"{role}({', '.join(names)})"
        raise ContractError(f"{what}: {role} takes {taken}, but is called as {called}: {error}") from None


def check_pure(what: str, function: Callable[..., Any], *args: Any) -> None:
    """The function is traced into the same program twice, and leaves nothing behind: it reads no clock, counter or
    random state of Python's, and keeps no traced value.

    Raises:
        ContractError: showing the first line in which the programs differ, or what holds a traced value.
    """
    inputs: list[weakref.ref[Any]] = []  # they live as long as anything traced from them; jax.checking_leaks is slow

    def watched(*args: Any) -> Any:
        inputs.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(args))
        return function(*args)

    with explained(what):
        one, two = (jax.make_jaxpr(lambda *x: watched(*x))(*args) for _ in range(2))
        gc.collect()
        if any(traced() is not None for traced in inputs):
            raise leaked(what)
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


def same_types(what: str, part: str, before: Any, after: Any, hint: str) -> None:
    """Two pytrees have the same structure, shapes and dtypes; `part` is `adapter` or `state`.

    Raises:
        ContractError: showing the first leaf that differs.
    """
    one, two = (dict(_named_leaves(tree)) for tree in (before, after))
    for name in one | two:
        old, new = one.get(name), two.get(name)
        shown = ["not there" if x is None else f"{x.dtype}{list(x.shape)}" for x in (old, new)]
        if shown[0] == shown[1]:
            continue
        changed, advice = "structure", hint
        if old is not None and new is not None:
            changed, advice = ("dtype", _DTYPE) if old.shape == new.shape else ("shape", hint)
        raise ContractError(
            f"{what} changes the {part}'s {changed}: {part}{name} is {shown[0]} before and {shown[1]} after a step. "
            f"{advice}"
        )
    if jax.tree.structure(before) != jax.tree.structure(after):
        shown = [str(jax.tree.structure(x)) for x in (before, after)]
        raise ContractError(f"{what} changes the {part}'s structure: {shown[0]} before and {shown[1]} after. {hint}")


_DTYPE = "`+ 1.0` and `/` make floats of integers: write `+ 1`, or `.astype(x.dtype)` at the end."


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
