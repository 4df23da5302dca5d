"""Waves that decode under grammars: the host makes the next masks while the device reads, a step at a time.

A stand-in for `ttsi_jax.batching.lanes.Lanes`, whose rows need no host until they end. Here a wave goes to its ends
together, and lanes are not refilled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ttsi_jax.batching.lanes import Said, Work
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.guided.decoding import decode_guided
from ttsi_jax.model.generation import Rows, Sampling


class GuidedLanes:
    """E rows of equal shapes at a time, each with a guide."""

    def __init__(self, model: LanguageModel, size: int, n_steps: int):
        self.model, self.size, self.n_steps = model, size, n_steps
        self.waiting: deque[Work] = deque()

    @property
    def load(self) -> int:
        """Rows that wait."""
        return len(self.waiting)

    def advance(self, to_the_end: bool) -> tuple[list[Work], list[tuple[Work, Said]]]:
        """Decodes up to E rows to their ends, which is also as far as one step of this goes.

        Returns the rows, and again with what they said.
        """
        works = [self.waiting.popleft() for _ in range(min(self.size, len(self.waiting)))]
        rows, places = self._seated(works)
        seats: list[Work | None] = [None] * self.size
        for work, place in zip(works, places, strict=True):
            seats[place] = work
        sampling = np.array([(seat or works[0]).sampling for seat in seats], np.float32)
        read = works[0].prompt.read
        written = decode_guided(
            self.model.config, self.model.params, rows, [seat and seat.guide for seat in seats],
            jnp.stack([(seat or works[0]).prompt.key for seat in seats]), Sampling(*map(jnp.asarray, sampling.T)),
            read.common, n_steps=self.n_steps, scale=read.scale,
        )  # fmt: skip
        said = []
        for work, place in zip(works, places, strict=True):
            ids, cut, finite = written[place]
            text = str(self.model.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            said.append((work, Said([text], cut, finite, len(ids))))
        return works, said

    def _seated(self, works: Sequence[Work]) -> tuple[Rows, Sequence[int]]:
        """The rows as one wave, and each one's place there; a wave that was read together is not copied."""
        reads, places = [work.prompt.read for work in works], [work.prompt.row for work in works]
        if all(read is reads[0] for read in reads) and len(set(places)) == len(places):
            return reads[0].rows, places
        rows = [jax.tree.map(lambda x, i=i: x[i], read.rows) for read, i in zip(reads, places, strict=True)]
        rows += rows[:1] * (self.size - len(rows))
        return jax.tree.map(lambda *x: jnp.stack(x), *rows), range(len(works))
