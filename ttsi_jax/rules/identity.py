"""What a run remembers of an object that is no name of the library's: its own name and a hash of what it does.

The hash covers the code of functions as it runs (not comments), what they close over, their defaults and the functions,
classes, objects and numbers of the same module that they use; of an object what it holds and what its classes define;
arrays; and of an update rule also the state that its `init` gives, where hyperparameters are. Libraries are known by
their names alone, so that a new version of them changes nothing.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttsi_jax.model.lora import LowRank
from ttsi_jax.rules.interface import UpdateRule

_PACKAGE = __name__.partition(".")[0]
_LIBRARIES = {_PACKAGE, "jax", "jaxlib", "numpy", "optax", "flax", "chex", "transformers", "tokenizers"}
_WRAPPED = (  # functions within objects: of jax.jit and functools.wraps, properties, jax.custom_vjp and jax.custom_jvp
    "__wrapped__", "fget", "func", "fwd", "bwd", "jvp",
)  # fmt: skip
_LARGE = 1 << 20  # elements; of an array with more (a model, no hyperparameter) only the shape counts


def named(part: Any) -> str:
    """`module:name#hash` of a rule, loss, estimator, synthesizer or answerer; another hash is another object."""
    return f"{_name(part)}#{digest(part)}"


def digest(part: Any) -> str:
    """Eight hexadecimal digits that change with what the object does."""
    found = hashlib.sha256("\n".join(_content(part, set())).encode())
    if isinstance(part, UpdateRule):
        found.update("\n".join(_content(_first_state(part), set())).encode())
    return found.hexdigest()[:8]


def _name(part: Any) -> str:
    if isinstance(part, partial):
        return _name(part.func)
    if isinstance(part, UpdateRule):
        return _name(part.step)
    if isinstance(part, tuple) and part and callable(part[0]):  # a Synthesizer or an Answerer
        return _name(part[0])
    name = getattr(part, "__qualname__", getattr(part, "__name__", type(part).__qualname__))
    return f"{getattr(part, '__module__', None) or type(part).__module__}:{name}"


def _first_state(rule: UpdateRule) -> Any:
    """The state for an adapter of two matrices; None where `init` fails, which its check will explain.

    Traced, so that an `init` that wrongly keeps what it gave is found out and not served from here.
    """
    try:
        adapter = {0: {"q": LowRank(jnp.ones((3, 2)), jnp.ones((2, 3)))}}
        return jax.jit(lambda *x: rule.init(*x))(adapter, jnp.int32(3))
    except Exception:  # the user's code may raise anything
        return None


def _content(value: Any, seen: set[int]) -> Iterator[str]:
    """Lines that say what a value is; the same in every process."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
        yield repr(value)
        return
    if not isinstance(value, tuple | frozenset | CodeType | MethodType):  # these may be one object or two by chance
        if id(value) in seen:
            yield "seen"
            return
        seen.add(id(value))
    yield _type(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        yield from _array(value)
    elif isinstance(value, CodeType):
        yield value.co_code.hex()
        yield repr(value.co_names)
        yield from _items(value.co_consts, seen)
    elif isinstance(value, FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, partial):
        yield from _items((value.func, *value.args), seen)
        yield from _mapping(value.keywords, seen)
    elif isinstance(value, MethodType):
        yield from _items((value.__func__, value.__self__), seen)
    elif isinstance(value, Mapping):
        yield from _mapping(value, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted("\n".join(_content(item, set())) for item in value)
    elif isinstance(value, tuple | list):
        yield from _items(value, seen)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _mapping({field.name: getattr(value, field.name) for field in fields(value)}, seen)
    elif not isinstance(value, type) and _is_own(type(value).__module__):
        yield from _mapping(getattr(value, "__dict__", {}), seen)
    elif not isinstance(value, type):
        yield from _items((found for name in _WRAPPED if (found := getattr(value, name, None)) is not None), seen)
    yield from _code_of(value if isinstance(value, type) else type(value), seen)


def _type(value: Any) -> str:
    """The name of a function or class, or of a value's type."""
    of = value if hasattr(value, "__qualname__") and hasattr(value, "__module__") else type(value)
    return f"{of.__module__}:{of.__qualname__}"


def _code_of(kind: type, seen: set[int]) -> Iterator[str]:
    """What a class and those that it inherits from define, but for libraries', for what Python notes in them (such as
    lines), and for what programs may fill."""
    for own in kind.__mro__:
        if _is_own(own.__module__):
            told = lambda name, x: callable(x) or not (name.startswith("__") or isinstance(x, list | dict | set))  # noqa: E731
            yield from _mapping({name: x for name, x in vars(own).items() if told(name, x)}, seen)


def _items(values: Any, seen: set[int]) -> Iterator[str]:
    for value in values:
        yield from _content(value, seen)


def _mapping(values: Mapping[Any, Any], seen: set[int]) -> Iterator[str]:
    for key in sorted(values, key=repr):
        yield repr(key)
        yield from _content(values[key], seen)


def _array(value: Any) -> Iterator[str]:
    yield f"{value.dtype}{value.shape}"
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if value.size <= _LARGE:
        yield np.asarray(value).tobytes().hex()


def _function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    own = _is_own(function.__module__)
    if own:
        yield from _content(function.__code__, seen)
        for name in _global_names(function.__code__):
            value = function.__globals__.get(name)
            constant = isinstance(value, int | float | str | tuple | partial | jax.Array | np.ndarray)
            function_or_class = callable(value) and _is_own(getattr(value, "__module__", None))
            if constant or function_or_class or _is_own(type(value).__module__):
                yield name
                yield from _content(value, seen)
    yield from _items(function.__defaults__ or (), seen)
    yield from _mapping(function.__kwdefaults__ or {}, seen)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name
        try:
            value = cell.cell_contents
        except ValueError:  # not yet filled
            continue
        yield from _content(value, seen)


def _global_names(code: CodeType) -> list[str]:
    """The names that a function's code and the functions within it look up."""
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _global_names(const)]
    return sorted({*code.co_names, *inner})


def _is_own(module: str | None) -> bool:
    """Whether a module is the user's own."""
    root = (module or "").partition(".")[0]
    return root not in _LIBRARIES and root not in sys.stdlib_module_names
