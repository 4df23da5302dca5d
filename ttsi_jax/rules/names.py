"""What settings name: the library's objects, `package.module:object`, and one of a few words."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ttsi_jax.errors import InputError
from ttsi_jax.rules.interface import UpdateRule


def resolve(name: str, known: Mapping[str, Any], kind: str) -> Any:
    """The object that a name stands for: a key of `known`, or `package.module:object`.

    Raises:
        InputError: the name is unknown, or the module or object cannot be found.
    """
    name = name.partition("#")[0]  # what follows is its hash
    if name in known:
        return known[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        close = get_close_matches(name, known, 1)
        hint = f"; did you mean '{close[0]}'?" if close else "."
        raise InputError(f"unknown {kind} '{name}'{hint} Known: {', '.join(known)}; or package.module:object")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # importing runs the user's own code, which may raise anything
        raise InputError(f"{kind} '{name}' cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found) and not (
        isinstance(found, tuple) and hasattr(found, "_fields")
    ):  # a named tuple of functions
        raise InputError(f"{kind} '{name}' is {found!r}, which cannot be called")
    return found


def make_rule(make: Callable[..., Any], name: str, lr: float | None) -> UpdateRule:
    """The rule that a function makes of a rate; without one, of its own.

    Raises:
        InputError: it cannot be made, or is none.
    """
    try:
        rule = make() if lr is None else make(lr)
    except TypeError as error:
        hint = "" if lr else "; perhaps it has no rate of its own, then give one: --adapt.lr 1e-4"
        raise InputError(f"update rule '{name}' cannot be made: {error}{hint}") from error
    if not isinstance(rule, UpdateRule):
        raise InputError(f"update rule '{name}' gives {rule!r}, not an UpdateRule")
    return rule


def choices(settings: Any, above: str = "") -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """The settings that take one of a few words: option, value, words."""
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(hint) is Literal:
            yield above + name, value, get_args(hint)
        elif is_dataclass(value):
            yield from choices(value, f"{name}.")
