"""From an algorithm written for one input to waves of many.

The algorithm is a generator: it yields the work that it wants done and is sent the result. Many of them run side by
side, and what they wait for is done a wave at a time: full waves first, later stages before earlier ones, so that few
inputs are under way and their prefixes stay in memory. Who shares a wave changes no result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ttsi_jax.batching.guided import GuidedLanes
from ttsi_jax.batching.inputs import Draft
from ttsi_jax.batching.lanes import Lanes, Prompt, Work
from ttsi_jax.batching.waves import Ids, Row, Waves
from ttsi_jax.runs.record import Record


class Score(NamedTuple):
    """Read a prompt with the base; gives the continuations' log-likelihoods token by token [N, C] float32 (0 after
    their ends), and a `Prompt`."""

    draft: Draft
    stage: str
    row: Row  # its shape says how many continuations there may be, and of what length
    continuations: Sequence[Ids]


class Decode(NamedTuple):
    """Decode after a prompt; gives what was `Said`."""

    draft: Draft
    stage: str
    work: Work


class Adapt(NamedTuple):
    """Train on the input's pairs and read a prompt with the adapter; gives what was `Learned`, without a text."""

    draft: Draft
    stage: str
    row: Row
    seed: int = 0  # an input may have several adapters, of which the first is the one that is kept


class Learned(NamedTuple):
    """What training gave."""

    losses: np.ndarray  # [S] float32, before each step that was taken, and before the one at which training stopped
    scores: np.ndarray  # [N] float32, of the candidates after the prompt, with the adapter
    prompt: Prompt  # to decode from
    held_out: tuple[float, float] | None = None  # the loss on the held-out pair with the base and with the adapter
    kl: float | None = None  # from the base to the adapted model on the prompt, nats per token, where that was asked
    text: str | None = None  # the answer


class Together(NamedTuple):
    """Do several parts of an algorithm side by side; gives what each returned, in their order."""

    parts: Sequence[Wanting]


Wanting = Generator[Score | Decode | Adapt | Together, Any, Any]  # a part of an algorithm
Steps = Generator[Score | Decode | Adapt | Together, Any, Record]  # an algorithm under way
Charge = Callable[[Sequence[tuple[Draft, str]]], None]  # to whom, under which stage, the time since the last call goes


class _Join:
    """A part of an algorithm that waits for several others."""

    def __init__(self, whole: Wanting, n: int):
        self.whole, self.results, self.left = whole, [None] * n, n


class Schedule:
    """What the inputs of one shape wait for."""

    def __init__(self, waves: Waves, adapt: Callable[[Sequence[Adapt]], Iterable[Any]], charge: Charge):
        self.waves, self.charge, self.size = waves, charge, waves.size
        self._adapt = adapt
        self.scores: dict[Hashable, list[tuple[Wanting, Score]]] = defaultdict(list)  # by the shape of a wave
        self.adapts: dict[Hashable, list[tuple[Wanting, Adapt]]] = defaultdict(list)  # by the shape of training
        self.base, self.adapted = waves.lanes(), waves.lanes()  # of each, the free and the guided ones
        self.joins: dict[Wanting, tuple[_Join, int]] = {}  # of each part that runs beside others, and its place
        self.ended: list[Record] = []

    def run(self, inputs: Iterable[Steps]) -> Iterator[list[Record]]:
        """Takes all inputs to their ends; yields the records that are new after each wave."""
        waiting = iter(inputs)
        while self._wave(waiting):
            yield self.ended
            self.ended = []

    def _wave(self, waiting: Iterator[Steps]) -> bool:
        """Does what most is to be gained from; False when nothing is left."""
        size = self.size
        training = max(self.adapts.values(), key=len, default=[])
        if len(training) >= size:
            self._adapt_some(training)
        elif full := [lanes for lanes in (*self.adapted, *self.base) if lanes.load >= size]:
            self._decode(full[0], to_the_end=False)
        elif len(scores := self._gather_scores(waiting)) >= size:
            self._score_some(scores)
        # No full wave is left: what may lead to more work goes first.
        elif base := [lanes for lanes in self.base if lanes.load]:
            self._decode(base[0], to_the_end=True)
        elif scores:
            self._score_some(scores)
        elif training:
            self._adapt_some(training)
        elif adapted := [lanes for lanes in self.adapted if lanes.load]:
            self._decode(adapted[0], to_the_end=True)
        else:
            return False
        return True

    def _gather_scores(self, waiting: Iterator[Steps]) -> list[tuple[Wanting, Score]]:
        """Starts new inputs until a wave of prompts of one shape is together; the prompts of the commonest shape."""
        commonest = lambda: max(self.scores.values(), key=len, default=[])  # noqa: E731
        while len(commonest()) < self.size and (steps := next(waiting, None)) is not None:
            self._go_on(steps, None)
        return commonest()

    def _go_on(self, steps: Wanting, result: Any) -> None:
        """Sends an algorithm what it waits for, and takes its next wish."""
        try:
            wish = steps.send(result)
        except StopIteration as stop:
            self._end(steps, stop.value)
            return
        if isinstance(wish, Together):
            if not wish.parts:
                return self._go_on(steps, [])
            join = _Join(steps, len(wish.parts))
            self.joins |= {part: (join, place) for place, part in enumerate(wish.parts)}
            for part in wish.parts:
                self._go_on(part, None)
        elif isinstance(wish, Score):
            self.scores[wish.row.shape].append((steps, wish))
        elif isinstance(wish, Adapt):
            self.adapts[wish.draft.training_shape()].append((steps, wish))
        else:
            adapted = wish.work.prompt.read.rows.adapters is not None
            lanes = (self.adapted if adapted else self.base)[wish.work.guide is not None]
            lanes.waiting.append(wish.work._replace(owner=(steps, wish)))

    def _end(self, steps: Wanting, value: Any) -> None:
        """Takes what an algorithm returned; the last of several parts lets their whole go on."""
        if steps not in self.joins:
            self.ended.append(value)
            return
        join, place = self.joins.pop(steps)
        join.results[place] = value
        join.left -= 1
        if not join.left:
            self._go_on(join.whole, join.results)

    def _finish(self, wave: Sequence[tuple[Wanting, Any]], results: Iterable[Any]) -> None:
        self.charge([(wish.draft, wish.stage) for _, wish in wave])
        for (steps, _), result in zip(wave, results, strict=True):
            self._go_on(steps, result)

    def _score_some(self, scores: list[tuple[Wanting, Score]]) -> None:
        wave = self._take(scores)
        scored = self.waves.score([wish.row for _, wish in wave], [wish.continuations for _, wish in wave])
        self._finish(wave, zip(*scored, strict=True))

    def _adapt_some(self, training: list[tuple[Wanting, Adapt]]) -> None:
        wave = self._take(training)
        self._finish(wave, self._adapt([wish for _, wish in wave]))

    def _decode(self, lanes: Lanes | GuidedLanes, to_the_end: bool) -> None:
        took_part, said = lanes.advance(to_the_end)
        self.charge([(work.owner[1].draft, work.owner[1].stage) for work in took_part])
        for work, own in said:
            self._go_on(work.owner[0], own)

    def _take(self, waiting: list[Any]) -> list[Any]:
        wave = waiting[: self.size]
        del waiting[: self.size]
        return wave
