# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""What some losses ask for beside a pair: a wrong call, and how good a sampled answer is. No arrays here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call, Tool, check_call


def corrupted(pair: Synthetic, tools: Sequence[Tool]) -> Call | None:
    """A call much like the pair's and wrong: another function's, or with another value; None where there is no other.

    Which of these is decided by the request alone.
    """
    call, number = pair.calls[0], int.from_bytes(hashlib.sha256(pair.query.encode()).digest()[:4], "little")
    names = [Call(tool.name, call.arguments) for tool in tools if tool.name != call.name]
    values = [
        Call(call.name, call.arguments | {key: _another(value, pair.query, number)})
        for key, value in call.arguments.items()
    ]
    kinds = [kind for kind in (names, values) if kind]
    if not kinds:
        return None
    kind = kinds[number % len(kinds)]
    return kind[number // len(kinds) % len(kind)]


def _another(value: Any, query: str, number: int) -> Any:
    """A value of the same JSON type; for text, a word of the request that is not in it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        words = [word for word in query.split() if word.casefold() not in value.casefold()]
        return words[number % len(words)] if words else f"not {value}"
    return type(value)() if value else "none"


def reward(calls: Sequence[Call] | None, pair: Synthetic, tools: Sequence[Tool]) -> float:
    """How good a sampled answer is: half a point for one valid call, and half for the pair's own call."""
    valid = calls is not None and len(calls) == 1 and check_call(calls[0], tools) is None
    return (valid + (valid and calls == list(pair.calls))) / 2
