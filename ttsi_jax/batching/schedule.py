"""From an algorithm written for one input to waves of many.

The algorithm is a generator: it yields the work that it wants done and is sent the result. Many of them run side by
side, and what they wait for is done a wave at a time: full waves first, later stages before earlier ones, so that few
inputs are under way and their prefixes stay in memory. Who shares a wave changes no result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ttsi_jax.batching.guided import GuidedLanes
from ttsi_jax.batching.inputs import Draft
from ttsi_jax.batching.lanes import Lanes, Prompt, Work
from ttsi_jax.batching.waves import Ids, Pair, Row, Waves, training_shape
from ttsi_jax.errors import InputError
from ttsi_jax.runs.record import Record


class Score(NamedTuple):
    """Read a prompt with the base; gives the continuations' log-likelihoods, sums over their tokens [N] float32, and a
    `Prompt`."""

    draft: Draft
    stage: str
    row: Row  # its shape says how many continuations there may be, and of what length
    continuations: Sequence[Ids]


class Decode(NamedTuple):
    """Decode after a prompt; gives what was `Said`."""

    draft: Draft
    stage: str
    work: Work


class Ask(NamedTuple):
    """Have a pair written elsewhere, see `ttsi_jax.synthesis.PairSource`; gives a `Synthetic`."""

    draft: Draft
    stage: str
    attempt: int


class Adapt(NamedTuple):
    """Train on pairs and read prompts with the adapter; gives what was `Learned`."""

    draft: Draft
    stage: str
    rows: Sequence[Row]  # the first one's key draws the adapter
    pairs: Sequence[Pair]
    seed: int = 0  # an input may have several adapters

    def shape(self) -> Hashable:
        """What those that train together have in common."""
        held_out = self.draft.held_out
        trained = training_shape(self.draft.shape, [self.pairs])
        watched = held_out and training_shape(self.draft.shape, [[held_out]])
        return self.draft.shape, trained, watched, len(self.rows)


class Learned(NamedTuple):
    """What training gave."""

    losses: np.ndarray  # [S] float32, before each step that was taken, and before the one at which training stopped
    reads: Sequence[tuple[np.ndarray, Prompt]]  # of each prompt the candidates' log-likelihoods [N] float32 with the
    # adapter, and the prompt to decode from
    held_out: tuple[float, float] | None = None  # the loss on the held-out pair with the base and with the adapter
    kl: float | None = None  # from the base to the adapted model on the prompt, nats per token, where that was asked


class Together(NamedTuple):
    """Do several parts of an algorithm side by side; gives what each returned, in their order, or raises the InputError
    of one when all have ended."""

    parts: Sequence[Wanting]


Wanting = Generator[Score | Decode | Ask | Adapt | Together, Any, Any]  # a part of an algorithm
Steps = Generator[Score | Decode | Ask | Adapt | Together, Any, Record]  # an algorithm under way
Do = Callable[[Sequence[Any]], Iterable[Any]]  # the results of several wishes of one kind
Charge = Callable[[Sequence[tuple[Draft, str]]], None]  # to whom, under which stage, the time since the last call goes


class _Join:
    """A part of an algorithm that waits for several others."""

    def __init__(self, whole: Wanting, n: int):
        self.whole, self.results, self.left = whole, [None] * n, n
        self.error: InputError | None = None  # of one of them, which the whole is told when all have ended


class Schedule:
    """What the inputs of one shape wait for."""

    def __init__(self, waves: Waves, ask: Do, adapt: Do, charge: Charge):
        self.waves, self.charge, self.size = waves, charge, waves.size
        self._ask, self._adapt = ask, adapt
        self.scores: dict[Hashable, list[tuple[Wanting, Score]]] = defaultdict(list)  # by the shape of a wave
        self.adapts: dict[Hashable, list[tuple[Wanting, Adapt]]] = defaultdict(list)  # by the shape of training
        self.asks: list[tuple[Wanting, Ask]] = []
        self.base, self.adapted = waves.lanes(), waves.lanes()  # of each, the free and the guided ones
        self.longer: dict[Hashable, tuple[Lanes, GuidedLanes]] = defaultdict(waves.lanes)  # for prompts of other shapes
        self.joins: dict[Wanting, tuple[_Join, int]] = {}  # of each part that runs beside others, and its place
        self.ended: list[Record] = []

    def run(self, inputs: Iterable[Steps]) -> Iterator[list[Record]]:
        """Takes all inputs to their ends; yields the records that are new after each wave."""
        waiting = iter(inputs)
        while self._wave(waiting):
            yield self.ended
            self.ended = []
        yield self.ended  # of inputs that needed no wave

    def _wave(self, waiting: Iterator[Steps]) -> bool:
        """Does what most is to be gained from; False when nothing is left."""
        size, training = self.size, _fullest(self.adapts)
        if full := [lanes for lanes in self._last_lanes() if lanes.load >= size]:  # before more adapters are there
            self._decode(full[0], to_the_end=False)
        elif len(training) >= size:
            self._do_some(self._adapt, training)
        elif full := [lanes for lanes in self.base if lanes.load >= size]:
            self._decode(full[0], to_the_end=False)
        elif len(self.asks) >= size:
            self._do_some(self._ask, self.asks)
        elif len(scores := self._gather_scores(waiting)) >= size:
            self._do_some(self._score, scores)
        else:
            return self._part_of_a_wave()
        return True

    def _part_of_a_wave(self) -> bool:
        """The same where no full wave is left: what may lead to more work goes first."""
        if base := [lanes for lanes in self.base if lanes.load]:
            self._decode(base[0], to_the_end=True)
        elif self.asks:
            self._do_some(self._ask, self.asks)
        elif scores := _fullest(self.scores):
            self._do_some(self._score, scores)
        elif training := _fullest(self.adapts):
            self._do_some(self._adapt, training)
        elif last := [lanes for lanes in self._last_lanes() if lanes.load]:
            self._decode(last[0], to_the_end=True)
        else:
            return False
        return True

    def _last_lanes(self) -> list[Lanes | GuidedLanes]:
        """Those of final answers."""
        return [lanes for pair in (self.adapted, *self.longer.values()) for lanes in pair]

    def _gather_scores(self, waiting: Iterator[Steps]) -> list[tuple[Wanting, Score]]:
        """Starts new inputs until a wave of prompts of one shape is together; the prompts of the commonest shape."""
        while len(_fullest(self.scores)) < self.size and (steps := next(waiting, None)) is not None:
            self._go_on(steps, None)
        return _fullest(self.scores)

    def _go_on(self, steps: Wanting, result: Any) -> None:
        """Sends an algorithm what it waits for, and takes its next wish."""
        self._take(steps, partial(steps.send, result))

    def _take(self, steps: Wanting, resume: Callable[[], Any]) -> None:
        """Takes an algorithm's next wish."""
        try:
            wish = resume()
        except StopIteration as stop:
            self._end(steps, stop.value)
            return
        except InputError as error:
            if steps not in self.joins:
                raise
            self.joins[steps][0].error = error
            self._end(steps, None)
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
        elif isinstance(wish, Ask):
            self.asks.append((steps, wish))
        elif isinstance(wish, Adapt):
            self.adapts[wish.shape()].append((steps, wish))
        else:
            self._lanes(wish).waiting.append(wish.work._replace(owner=(steps, wish)))

    def _lanes(self, wish: Decode) -> Lanes | GuidedLanes:
        """Those for rows of the same shapes that have adapters or none, and a guide or none."""
        read = wish.work.prompt.read
        if read.shape != wish.draft.shape:
            pair = self.longer[read.shape, read.rows.adapters is None]
        else:
            pair = self.base if read.rows.adapters is None else self.adapted
        return pair[wish.work.guide is not None]

    def _end(self, steps: Wanting, value: Any) -> None:
        """Takes what an algorithm returned; the last of several parts lets their whole go on."""
        if steps not in self.joins:
            self.ended.append(value)
            return
        join, place = self.joins.pop(steps)
        join.results[place] = value
        join.left -= 1
        if not join.left and join.error is not None:
            self._take(join.whole, partial(join.whole.throw, join.error))
        elif not join.left:
            self._go_on(join.whole, join.results)

    def _score(self, wave: Sequence[Score]) -> Iterable[Any]:
        return zip(*self.waves.score([wish.row for wish in wave], [wish.continuations for wish in wave]), strict=True)

    def _do_some(self, do: Do, waiting: list[Any]) -> None:
        """Takes a wave from those that wait, and does it."""
        wave = waiting[: self.size]
        del waiting[: self.size]
        results = do([wish for _, wish in wave])
        self.charge([(wish.draft, wish.stage) for _, wish in wave])
        for (steps, _), result in zip(wave, results, strict=True):
            self._go_on(steps, result)

    def _decode(self, lanes: Lanes | GuidedLanes, to_the_end: bool) -> None:
        took_part, said = lanes.advance(to_the_end)
        self.charge([(work.owner[1].draft, work.owner[1].stage) for work in took_part])
        for work, own in said:
            self._go_on(work.owner[0], own)


def _fullest(waiting: dict[Hashable, list[Any]]) -> list[Any]:
    return max(waiting.values(), key=len, default=[])
