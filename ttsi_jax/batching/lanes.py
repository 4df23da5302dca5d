"""Decoding lanes: E rows at a time, and where one ends the next that waits takes its lane.

So a long answer holds one lane, not a wave. Rows of different inputs and stages decode side by side (requests, labels,
answers), as long as they have the same shapes and all have adapters or none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.answering import Slot, free_texts, script_arrays
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.guided.masks import Guide
from ttsi_jax.model.cache import Cache
from ttsi_jax.model.generation import (
    FORCED,
    Arrivals,
    Decoding,
    Generated,
    Rows,
    Sampling,
    Script,
    SlotTables,
    decode_wave,
    nothing_decoding,
)
from ttsi_jax.scaling.mesh import Layout

GREEDY = Sampling(0.0, 1.0)


class Read(NamedTuple):
    """A wave of prompts that have been read."""

    rows: Rows
    common: tuple[Cache, ...]  # caches before all rows' own
    scale: float  # of the adapters
    token_log_likelihoods: Array  # [E, N, C] of the continuations that were read with the prompts
    shape: Any = None  # see `ttsi_jax.batching.waves.Shape`


class Prompt(NamedTuple):
    """One of them, as decoding goes on from it."""

    read: Read
    row: int
    key: Array  # a scalar key, of the row's random numbers


class Work(NamedTuple):
    """A prompt to go on from, and what to decode."""

    prompt: Prompt
    script: Sequence[Slot]
    sampling: Sampling = GREEDY
    owner: Any = None  # whom the caller does it for
    guide: Guide | None = None  # through the grammar that the script's one free slot is under


class Said(NamedTuple):
    """What one row decoded."""

    texts: list[str]  # of each free slot in its script, in order
    cut: tuple[
        int, ...
    ]  # the free slots that ended at their limits, or had no room, and not where the model ended them
    finite: bool  # whether all logits were: else the texts mean nothing
    n_tokens: int  # forced ones included


def arrivals(waiting: deque[Work], working: list[Work | None], layout: Layout) -> list[tuple[Read, Arrivals]]:
    """Gives idle lanes (None) to those who wait: the waves they were read in, and which rows of it go where.

    Of the parts of a mesh each has lanes of its own, for the rows that it read.
    """
    size, n = len(working), len(working) // layout.parts
    found: dict[int, tuple[Read, list[tuple[int, int]]]] = {}
    for lane in [lane for lane, work in enumerate(working) if work is None]:
        place = next((place for place, work in enumerate(waiting) if work.prompt.row // n == lane // n), None)
        if place is not None:
            working[lane] = work = waiting[place]
            del waiting[place]
            read, row, _ = work.prompt
            found.setdefault(id(read), (read, []))[1].append((row, lane))
    return [(read, _arrivals(read, moves, size, n, layout)) for read, moves in found.values()]


def _arrivals(read: Read, moves: list[tuple[int, int]], size: int, n: int, layout: Layout) -> Arrivals:
    """Of rows that go into lanes, in parts of `n`."""
    sources, lanes = np.full(size, -1, np.int32), np.zeros(size, np.int32)
    for part in range(layout.parts):
        own = [(row % n, lane % n) for row, lane in moves if lane // n == part]
        if own:
            of_part = slice(part * n, part * n + len(own))
            sources[of_part], lanes[of_part] = zip(*own, strict=True)
    return Arrivals(read.rows, *layout.rows((sources, lanes)))


class Lanes:
    """E lanes for rows of equal shapes; their arrays live on the device while any row decodes."""

    def __init__(
        self, model: LanguageModel, size: int, n_steps: int, tables: SlotTables, special: Collection[int],
        layout: Layout,
    ):  # fmt: skip
        """Prepares `size` lanes for rows that decode up to `n_steps` tokens; see `slot_tables` and `special_ids`."""
        self.model, self.size, self.n_steps, self.layout = model, size, n_steps, layout
        self._tables, self._special = tables, special
        self.waiting: deque[Work] = deque()
        self.working: list[Work | None] = [None] * size
        self._state: tuple[Decoding, Read] | None = None  # with the wave that arrived last

    @property
    def load(self) -> int:
        """Rows that decode or wait."""
        return len(self.waiting) + sum(work is not None for work in self.working)

    def advance(self, to_the_end: bool) -> tuple[list[Work], list[tuple[Work, Said]]]:
        """Lets waiting rows into idle lanes and decodes: until all lanes are idle, or until a quarter more of them is.

        Returns the rows that decoded, and those of them that ended, with what they said.
        """
        arriving = arrivals(self.waiting, self.working, self.layout)
        took_part = [work for work in self.working if work is not None]
        for read, rows in arriving[:-1]:
            self._decode(read, rows, more=0)
        n = self.size // self.layout.parts
        if not arriving:
            assert self._state is not None, "there is work"
            arriving = [(self._state[1], _arrivals(self._state[1], [], self.size, n, self.layout))]
        state = self._decode(*arriving[-1], more=n if to_the_end else max(1, n // 4))
        ended, generated = self.layout.read((state.ended, state.generated))
        said = []
        for lane, work in enumerate(self.working):
            if work is not None and ended[lane]:
                said.append((work, self._read_out(work, jax.tree.map(lambda x, i=lane: x[i], generated))))
                self.working[lane] = None
        if not self.load:
            self._state = None
        return took_part, said

    def _decode(self, read: Read, arriving: Arrivals, more: int) -> Decoding:
        if self._state is None:
            self._state = nothing_decoding(read.rows, self.n_steps, self.n_steps), read
        works = self.working
        some = next(work for work in works if work is not None)
        scripts = script_arrays([work.script if work else () for work in works], self.n_steps)
        sampling = np.array([work.sampling if work else some.sampling for work in works], np.float32)
        keys = jnp.stack([(work or some).prompt.key for work in works])
        *scripts, keys, temperature, top_p = self.layout.rows((*scripts, keys, *sampling.T))
        state = decode_wave(
            self.model.config, self.model.params, self._state[0], arriving, Script(*scripts), self._tables, keys,
            Sampling(temperature, top_p), jnp.int32(more), read.common, scale=read.scale,
        )  # fmt: skip
        self._state = state, read
        return state

    def _read_out(self, work: Work, row: Generated) -> Said:
        kinds = script_arrays([work.script], self.n_steps)[0][0]
        ids, slots, closing = map(np.asarray, (row.ids, row.slots, row.closing))
        texts = free_texts(self.model.tokenizer, self._special, slots, ids, closing, kinds)
        ended = np.flatnonzero(closing[kinds != FORCED] >= 0)
        wanted = sum(slot.kind != FORCED for slot in work.script)
        cut = tuple(place for place in range(wanted) if place not in ended)
        return Said(texts, cut, bool(row.finite), int(np.sum(slots >= 0)))
