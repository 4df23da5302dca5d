"""Lanes for rows that decode under grammars: the host makes the next masks while the device reads, a step at a time.

They stand beside `ttsi_jax.batching.lanes.Lanes`, whose rows need no host until they end; as there, the row that waits
longest takes the lane of one that has ended.
"""

from __future__ import annotations

from collections import deque

from ttsi_jax.batching.lanes import Read, Said, Work, arrivals
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.guided.decoding import Guided, Seat, admit, decode_guided, no_lanes
from ttsi_jax.scaling.mesh import Layout


class GuidedLanes:
    """E lanes for rows of equal shapes, each with a guide; their arrays live while any row decodes."""

    def __init__(self, model: LanguageModel, size: int, n_steps: int, layout: Layout):
        """Prepares `size` lanes for rows that write up to `n_steps` tokens."""
        self.model, self.size, self.n_steps, self.layout = model, size, n_steps, layout
        self.waiting: deque[Work] = deque()
        self.working: list[Work | None] = [None] * size
        self._seats: list[Seat | None] = [None] * size
        self._state: tuple[Guided, Read] | None = None  # with the wave that arrived last

    @property
    def load(self) -> int:
        """Rows that decode or wait."""
        return len(self.waiting) + sum(work is not None for work in self.working)

    def advance(self, to_the_end: bool) -> tuple[list[Work], list[tuple[Work, Said]]]:
        """Lets waiting rows into idle lanes and decodes: until all lanes are idle, or until a quarter more of them is.

        Returns the rows that decoded, and those of them that ended, with what they said.
        """
        self._admit()
        took_part = [work for work in self.working if work is not None]
        idle = self.size - len(took_part)
        enough = self.size if to_the_end else min(self.size, idle + max(1, self.size // 4))
        assert self._state is not None, "there is work"
        lanes, read = self._state
        lanes = decode_guided(
            self.model.config, self.model.params, lanes, self._seats, enough, read.common, scale=read.scale,
            read=self.layout.read,
        )  # fmt: skip
        self._state = lanes, read
        said = []
        for lane, (work, seat) in enumerate(zip(self.working, self._seats, strict=True)):
            if work is not None and seat is not None and seat.guide.done:
                text = str(self.model.tokenizer.decode(seat.ids, clean_up_tokenization_spaces=False))
                said.append((work, Said([text], (0,) * seat.cut, seat.finite, len(seat.ids))))
                self.working[lane], self._seats[lane] = None, None
        if not self.load:
            self._state = None
        return took_part, said

    def _admit(self) -> None:
        for read, arriving in arrivals(self.waiting, self.working, self.layout):
            lanes = no_lanes(read.rows, self.n_steps) if self._state is None else self._state[0]
            self._state = admit(lanes, arriving), read
        for lane, work in enumerate(self.working):
            if work is not None and self._seats[lane] is None:
                assert work.guide is not None, "these lanes are for guided rows"
                self._seats[lane] = Seat(work.guide, work.prompt.key, work.sampling)
