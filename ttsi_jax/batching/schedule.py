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
from ttsi_jax.batching.lanes import Lanes, Said, Work
from ttsi_jax.batching.waves import Row, Waves
from ttsi_jax.runs.record import Record


class Score(NamedTuple):
    """Read a prompt with the base; gives the candidates' log-likelihoods [N] float32, and a `Prompt`."""

    draft: Draft
    stage: str
    row: Row


class Decode(NamedTuple):
    """Decode after a prompt, as often as there is `work`, all of it side by side; gives a list of what was `Said`."""

    draft: Draft
    stage: str
    work: Sequence[Work]


class Ask(NamedTuple):
    """Have a pair written elsewhere, see `ttsi_jax.synthesis.PairSource`; gives a `Synthetic`."""

    draft: Draft
    stage: str
    attempt: int


class Adapt(NamedTuple):
    """Train on the input's pairs and read a prompt with the adapter; gives the loss before each step [max_steps]
    float32 (NaN where no step was taken), what `Score` gives, and where a pair is held out its loss with the base and
    with the adapter."""

    draft: Draft
    stage: str
    row: Row


Wish = Score | Decode | Ask | Adapt
Steps = Generator[Wish, Any, Record]  # an algorithm under way
Do = Callable[[Sequence[Any]], Iterable[Any]]  # the results of several wishes of one kind
Charge = Callable[[Sequence[tuple[Draft, str]]], None]  # to whom, under which stage, the time since the last call goes


class Schedule:
    """What the inputs of one shape wait for."""

    def __init__(self, waves: Waves, ask: Do, adapt: Do, charge: Charge):
        self.waves, self.charge, self.size = waves, charge, waves.size
        self._ask, self._adapt = ask, adapt
        self.scores: list[tuple[Steps, Score]] = []
        self.rescores: dict[Hashable, list[tuple[Steps, Score]]] = defaultdict(list)  # longer prompts, by their shape
        self.asks: list[tuple[Steps, Ask]] = []
        self.adapts: dict[Hashable, list[tuple[Steps, Adapt]]] = defaultdict(list)  # by the shape of training
        self.base, self.adapted = waves.lanes(), waves.lanes()  # of each, the free and the guided ones
        self.longer: dict[Hashable, tuple[Lanes, GuidedLanes]] = defaultdict(waves.lanes)  # by shape, with the base
        self.said: dict[int, list[Said | None]] = {}  # by the generator that waits for all of them
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
        size, training, rescores = self.size, _fullest(self.adapts), _fullest(self.rescores)
        if len(training) >= size:
            self._do_some(self._adapt, training)
        elif full := [lanes for lanes in (*self._last_lanes(), *self.base) if lanes.load >= size]:
            self._decode(full[0], to_the_end=False)
        elif len(rescores) >= size:
            self._do_some(self._score, rescores)
        elif len(self.asks) >= size:
            self._do_some(self._ask, self.asks)
        elif self._gather_scores(waiting) >= size:
            self._do_some(self._score, self.scores)
        else:
            return self._part_of_a_wave()
        return True

    def _part_of_a_wave(self) -> bool:
        """The same where no full wave is left: what may lead to more work goes first."""
        if base := [lanes for lanes in self.base if lanes.load]:
            self._decode(base[0], to_the_end=True)
        elif self.scores:
            self._do_some(self._score, self.scores)
        elif self.asks:
            self._do_some(self._ask, self.asks)
        elif rescores := _fullest(self.rescores):
            self._do_some(self._score, rescores)
        elif training := _fullest(self.adapts):
            self._do_some(self._adapt, training)
        elif last := [lanes for lanes in self._last_lanes() if lanes.load]:
            self._decode(last[0], to_the_end=True)
        else:
            return False
        return True

    def _last_lanes(self) -> list[Lanes | GuidedLanes]:
        """Those of final answers."""
        return [*self.adapted, *(lanes for pair in self.longer.values() for lanes in pair)]

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
            own = self.scores if wish.row.shape == wish.draft.shape else self.rescores[wish.row.shape]
            own.append((steps, wish))
        elif isinstance(wish, Ask):
            self.asks.append((steps, wish))
        elif isinstance(wish, Adapt):
            self.adapts[wish.draft.training_shape()].append((steps, wish))
        else:
            self.said[id(steps)] = [None] * len(wish.work)
            for place, work in enumerate(wish.work):
                self._lanes(wish.draft, work).waiting.append(work._replace(owner=(steps, wish, place)))

    def _lanes(self, draft: Draft, work: Work) -> Lanes | GuidedLanes:
        """Those for rows of the same shapes that have adapters or none, and a guide or none."""
        read = work.prompt.read
        if read.shape != draft.shape:
            pair = self.longer[read.shape]
        else:
            pair = self.base if read.rows.adapters is None else self.adapted
        return pair[work.guide is not None]

    def _score(self, wave: Sequence[Score]) -> Iterable[Any]:
        return zip(*self.waves.score([wish.row for wish in wave], [wish.draft.names for wish in wave]), strict=True)

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
            steps, _, place = work.owner
            self.said[id(steps)][place] = own
            if None not in self.said[id(steps)]:
                self._go_on(steps, self.said.pop(id(steps)))


def _fullest(waiting: dict[Hashable, list[Any]]) -> list[Any]:
    return max(waiting.values(), key=len, default=[])
