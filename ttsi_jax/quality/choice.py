"""The best K of several candidates: those that the model itself finds likely, and that differ from each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np


def similarity(one: str, other: str) -> float:
    """The share of words that two texts have in common (Jaccard), in [0, 1]; 1 for two empty ones."""
    first, second = (set(re.findall(r"\w+", text.casefold())) for text in (one, other))
    return len(first & second) / len(first | second) if first | second else 1.0


def best(
    log_likelihoods: Sequence[float],
    texts: Sequence[str],
    k: int,
    diversity: float = 0.3,
    kept: Sequence[str] = (),
    similar: Callable[[str, str], float] = similarity,
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): one candidate after the other, each with the
    largest `(1 - diversity) * relevance - diversity * similarity` to the ones chosen before.

    Args:
        log_likelihoods: of each candidate under the model, in nats per token; one that is not finite is never chosen.
        texts: the candidates.
        k: how many are wanted.
        diversity: 0 takes the likeliest, 1 the least alike.
        kept: texts that were chosen before, which the candidates should be unlike too.

    Returns:
        At most `k` indices, best first. Relevance is the likelihood's place between the least and the most likely
        candidate, so that no unit has to be chosen; of equal candidates the earlier one comes first.
    """
    scores = np.asarray(log_likelihoods, np.float64)
    left = [index for index in range(len(texts)) if np.isfinite(scores[index])]
    if not left:
        return []
    low, high = scores[left].min(), scores[left].max()
    relevance = (scores - low) / (high - low) if high > low else np.ones_like(scores)
    chosen: list[int] = []
    while left and len(chosen) < k:

        def value(index: int) -> float:
            others = (*kept, *(texts[other] for other in chosen))
            alike = max((similar(texts[index], other) for other in others), default=0.0)
            return float((1 - diversity) * relevance[index] - diversity * alike)

        chosen.append(max(left, key=value))
        left.remove(chosen[-1])
    return chosen
