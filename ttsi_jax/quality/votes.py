"""Several sampled answers: the one that most of them agree with, and how often one of k would be right."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from ttsi_jax.quality.agreement import Answer, same


def vote(answers: Sequence[Answer], first: Answer = None) -> int | None:
    """The answer of the largest group that makes the same calls (self-consistency, arXiv 2203.11171).

    Args:
        answers: answers that could not be read have no vote.
        first: what decides between groups of the same size, where it is in one of them; else the earliest group wins.

    Returns:
        The index of the first answer of the group; None where none could be read.
    """
    groups: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is not None:
            own = next((group for group in groups if same(answers[group[0]], answer)), None)
            if own is None:
                groups.append([index])
            else:
                own.append(index)
    if not groups:
        return None
    return max(groups, key=lambda group: (len(group), same(answers[group[0]], first), -group[0]))[0]


def pass_at(n: int, right: int, k: int) -> float:
    """The chance that one of k answers is right, where `right` of n sampled ones are: unbiased (arXiv 2107.03374).

    >>> pass_at(4, 1, 1), pass_at(4, 1, 2), pass_at(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it must be between 1 and the {n} answers")
    return 1.0 - comb(n - right, k) / comb(n, k)
