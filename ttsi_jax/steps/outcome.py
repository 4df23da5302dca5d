"""What adapting an input led to, and which of several adapters is believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from ttsi_jax.model.lora import Adapter
from ttsi_jax.quality.votes import vote
from ttsi_jax.tasks import read_calls

EXPLODED = 1e3  # times the first loss, or times 1 where that is smaller


class Answered(NamedTuple):
    """An answer, and others that may have had a vote on it."""

    text: str | None  # None: a logit was not finite
    samples: Sequence[str | None]  # sampled ones
    orders: Sequence[str | None]  # under other orders of the functions


class Outcome(NamedTuple):
    """What one adapter, or the pairs in the prompt, led to."""

    losses: np.ndarray  # see `Learned`, as `held_out` and `kl`
    held_out: tuple[float, float] | None
    kl: float | None
    scores: np.ndarray  # [N] float32, of the candidates, as the gate takes them
    said: Answered
    adapter: Adapter | None  # without a leading axis, where the next input starts from it

    def fault(self) -> str | None:
        """How training diverged, if it did."""
        first, largest = np.max(np.abs(self.losses[:1]), initial=0), np.max(self.losses, initial=0)
        if not (np.all(np.isfinite(self.losses)) and np.all(np.isfinite(self.scores)) and self.said.text is not None):
            return "a loss or a score is not finite"
        return f"the loss grew to {largest:.3g}" if largest > EXPLODED * max(1.0, first) else None


def elect(outcomes: Sequence[Outcome], probabilities: np.ndarray, combine: Literal["vote", "likelihood"]) -> int:
    """The adapter whose answer is taken, of those that did not diverge; the first one where all did.

    Args:
        probabilities: [M, N], of the candidates with each adapter.
        combine: `vote`: one with the calls that most adapters make, in doubt those of the earliest. `likelihood`: the
            surest of those that choose the function with the highest mean probability (a mixture of experts' answers,
            as in deep ensembles, arXiv 1612.01474).
    """
    sound = [place for place, outcome in enumerate(outcomes) if outcome.fault() is None] or [0]
    if combine == "vote":
        winner = vote([read_calls(outcomes[place].said.text) for place in sound])
        return sound[winner or 0]
    function = int(np.argmax(np.mean(probabilities[sound], axis=0)))
    chooses = {place: int(np.argmax(probabilities[place])) == function for place in sound}
    return max(sound, key=lambda place: (chooses[place], probabilities[place, function]))
