"""Bringing several calls together: when two are the same, how far many agree, and which one most of them give."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ttsi_jax.tasks import Call, normalise

Answer = Sequence[Call] | None  # None: an answer that could not be read


class Vote(NamedTuple):
    """What most answers say."""

    winner: int | None  # index of the first answer of the largest group; None where no answer could be read
    share: float  # of all answers, unreadable ones included, in that group


def key(answer: Sequence[Call]) -> str:
    """Text that two answers share if they make the same calls, in any order, with values equal after `normalise`."""
    return json.dumps(sorted(json.dumps([c.name, normalise(c.arguments)], sort_keys=True) for c in answer))


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers make the same calls; an unreadable one is like no other."""
    return one is not None and other is not None and key(one) == key(other)


def vote(answers: Sequence[Answer], weights: Sequence[float] | None = None) -> Vote:
    """The answer that most give (self-consistency: Wang et al., arXiv 2203.11171); ties go to the earlier one.

    `weights`: of each answer, such as its likelihood; equal by default.
    """
    weights = [1.0] * len(answers) if weights is None else weights
    counts, first = Counter[str](), dict[str, int]()
    for index, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is not None:
            counts[key(answer)] += weight  # type: ignore[assignment]
            first.setdefault(key(answer), index)
    if not counts:
        return Vote(None, 0.0)
    best = max(counts, key=lambda found: counts[found])  # the first of equal ones: dictionaries keep their order
    total = sum(weights)
    return Vote(first[best], float(counts[best] / total) if total > 0 else 0.0)


def agreement(answer: Answer, others: Sequence[Answer]) -> float:
    """The share of other answers that make the same calls as one; 0 where there are none."""
    return sum(same(answer, other) for other in others) / len(others) if others else 0.0
