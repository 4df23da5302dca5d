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
    cut: bool  # whether a slot ended at its limit, or had no room, and not where the model ended it
    finite: bool  # whether all logits were: else the texts mean nothing
    n_tokens: int  # forced ones included


def arrivals(waiting: deque[Work], working: list[Work | None]) -> list[tuple[Read, list[tuple[int, int]]]]:
    """Gives idle lanes (None) to those who wait: the waves they were read in, and their (row there, lane)."""
    found: list[tuple[Read, list[tuple[int, int]]]] = []
    for lane in [lane for lane, work in enumerate(working) if work is None][: len(waiting)]:
        working[lane] = work = waiting.popleft()
        read, row, _ = work.prompt
        if not found or found[-1][0] is not read:
            found.append((read, []))
        found[-1][1].append((row, lane))
    return found


class Lanes:
    """E lanes for rows of equal shapes; their arrays live on the device while any row decodes."""

    def __init__(self, model: LanguageModel, size: int, n_steps: int, tables: SlotTables, special: Collection[int]):
        """Prepares `size` lanes for rows that decode up to `n_steps` tokens; see `slot_tables` and `special_ids`."""
        self.model, self.size, self.n_steps = model, size, n_steps
        self._tables, self._special = tables, special
        self.waiting: deque[Work] = deque()
        self.working: list[Work | None] = [None] * size
        self._state: tuple[Decoding, Read] | None = None  # with the wave that arrived last

    @property
    def load(self) -> int:
        """Rows that decode or wait."""
        return len(self.waiting) + self.size - len(self._idle)

    @property
    def _idle(self) -> list[int]:
        return [lane for lane, work in enumerate(self.working) if work is None]

    def advance(self, to_the_end: bool) -> tuple[list[Work], list[tuple[Work, Said]]]:
        """Lets waiting rows into idle lanes and decodes: until all lanes are idle, or until a quarter more of them is.

        Returns the rows that decoded, and those of them that ended, with what they said.
        """
        arriving = arrivals(self.waiting, self.working)
        took_part = [work for work in self.working if work is not None]
        for read, moves in arriving[:-1]:
            self._decode(read, moves, enough=0)
        enough = self.size if to_the_end else min(self.size, len(self._idle) + max(1, self.size // 4))
        state = self._decode(*(arriving[-1] if arriving else (None, [])), enough)
        ended, generated = np.asarray(state.ended), jax.device_get(state.generated)
        said = []
        for lane, work in enumerate(self.working):
            if work is not None and ended[lane]:
                said.append((work, self._read_out(work, jax.tree.map(lambda x, i=lane: x[i], generated))))
                self.working[lane] = None
        if not self.load:
            self._state = None
        return took_part, said

    def _decode(self, read: Read | None, moves: list[tuple[int, int]], enough: int) -> Decoding:
        if self._state is None:
            assert read is not None, "there is work"
            self._state = nothing_decoding(read.rows, self.n_steps, self.n_steps), read
        state, last = self._state
        read = read or last
        sources, lanes = np.zeros((2, self.size), np.int32)
        if moves:
            sources[: len(moves)], lanes[: len(moves)] = zip(*moves, strict=True)
        arrivals = Arrivals(read.rows, jnp.asarray(sources), jnp.asarray(lanes), jnp.int32(len(moves)))
        works = self.working
        some = next(work for work in works if work is not None)
        scripts = script_arrays([work.script if work else () for work in works], self.n_steps)
        sampling = np.array([work.sampling if work else some.sampling for work in works], np.float32)
        keys = jnp.stack([(work or some).prompt.key for work in works])
        state = decode_wave(
            self.model.config, self.model.params, state, arrivals, Script(*map(jnp.asarray, scripts)), self._tables,
            keys, Sampling(*map(jnp.asarray, sampling.T)), jnp.int32(enough), read.common, scale=read.scale,
        )  # fmt: skip
        self._state = state, read
        return state

    def _read_out(self, work: Work, row: Generated) -> Said:
        kinds = script_arrays([work.script], self.n_steps)[0][0]
        ids, slots, closing = map(np.asarray, (row.ids, row.slots, row.closing))
        texts = free_texts(self.model.tokenizer, self._special, slots, ids, closing, kinds)
        ended = closing[kinds != FORCED] >= 0
        wanted = sum(slot.kind != FORCED for slot in work.script)
        return Said(texts, len(texts) < wanted or not ended.all(), bool(row.finite), int(np.sum(slots >= 0)))
