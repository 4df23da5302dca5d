"""From an algorithm written for one input to waves of many.

The algorithm is a generator: it yields the work that it wants done and is sent the result. Many of them run side by
side, and what they wait for is done a wave at a time: full waves first, later stages before earlier ones, so that few
inputs are under way and their prefixes stay in memory. Who shares a wave changes no result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ttsi_jax.batching.guided import GuidedLanes
from ttsi_jax.batching.inputs import Draft
from ttsi_jax.batching.lanes import Lanes, Work
from ttsi_jax.batching.waves import Row, Waves
from ttsi_jax.runs.record import Record


class Score(NamedTuple):
    """Read a prompt with the base; gives the candidates' log-likelihoods [N] float32, and a `Prompt`."""

    draft: Draft
    stage: str
    row: Row


class Decode(NamedTuple):
    """Decode after a prompt; gives what was `Said`."""

    draft: Draft
    stage: str
    work: Work


class Adapt(NamedTuple):
    """Train on the input's pairs and read a prompt with the adapter; gives the loss before each step [max_steps]
    float32 (NaN where no step was taken), what `Score` gives, and where a pair is held out its loss with the base and
    with the adapter."""

    draft: Draft
    stage: str
    row: Row


Steps = Generator[Score | Decode | Adapt, Any, Record]  # an algorithm under way
Charge = Callable[[Sequence[tuple[Draft, str]]], None]  # to whom, under which stage, the time since the last call goes


class Schedule:
    """What the inputs of one shape wait for."""

    def __init__(self, waves: Waves, adapt: Callable[[Sequence[Adapt]], Iterable[Any]], charge: Charge):
        self.waves, self.charge, self.size = waves, charge, waves.size
        self._adapt = adapt
        self.scores: list[tuple[Steps, Score]] = []
        self.adapts: dict[Hashable, list[tuple[Steps, Adapt]]] = defaultdict(list)  # by the shape of training
        self.base, self.adapted = waves.lanes(), waves.lanes()  # of each, the free and the guided ones
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
        elif self._gather_scores(waiting) >= size:
            self._score_some()
        # No full wave is left: what may lead to more work goes first.
        elif base := [lanes for lanes in self.base if lanes.load]:
            self._decode(base[0], to_the_end=True)
        elif self.scores:
            self._score_some()
        elif training:
            self._adapt_some(training)
        elif adapted := [lanes for lanes in self.adapted if lanes.load]:
            self._decode(adapted[0], to_the_end=True)
        else:
            return False
        return True

    def _gather_scores(self, waiting: Iterator[Steps]) -> int:
        """Starts new inputs until a wave of prompts is together; the number of prompts."""
        while len(self.scores) < self.size and (steps := next(waiting, None)) is not None:
            self._go_on(steps, None)
        return len(self.scores)

    def _go_on(self, steps: Steps, result: Any) -> None:
        """Sends an algorithm what it waits for, and takes its next wish."""
        try:
            wish = steps.send(result)
        except StopIteration as stop:
            self.ended.append(stop.value)
            return
        if isinstance(wish, Score):
            self.scores.append((steps, wish))
        elif isinstance(wish, Adapt):
            self.adapts[wish.draft.training_shape()].append((steps, wish))
        else:
            adapted = wish.work.prompt.read.rows.adapters is not None
            lanes = (self.adapted if adapted else self.base)[wish.work.guide is not None]
            lanes.waiting.append(wish.work._replace(owner=(steps, wish)))

    def _finish(self, wave: Sequence[tuple[Steps, Any]], results: Iterable[Any]) -> None:
        self.charge([(wish.draft, wish.stage) for _, wish in wave])
        for (steps, _), result in zip(wave, results, strict=True):
            self._go_on(steps, result)

    def _score_some(self) -> None:
        wave = self._take(self.scores)
        scored = self.waves.score([wish.row for _, wish in wave], [wish.draft.names for _, wish in wave])
        self._finish(wave, zip(*scored, strict=True))

    def _adapt_some(self, training: list[tuple[Steps, Adapt]]) -> None:
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
