"""When two answers make the same calls, and how far several agree."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ttsi_jax.tasks import Call, normalise

Answer = Sequence[Call] | None  # None: an answer that could not be read


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers make the same calls, in any order, with values equal after `normalise`; an unreadable one is
    like no other."""
    return one is not None and other is not None and _key(one) == _key(other)


def agreement(answer: Answer, others: Sequence[Answer]) -> float:
    """The share of other answers that make the same calls as one; 0 where there are none."""
    return sum(same(answer, other) for other in others) / len(others) if others else 0.0


def _key(answer: Sequence[Call]) -> str:
    return json.dumps(sorted(json.dumps([c.name, normalise(c.arguments)], sort_keys=True) for c in answer))
