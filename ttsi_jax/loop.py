"""A run: the paper's Algorithm 1 over a task's inputs, kept in a directory.

Inputs of the same shapes go side by side, a wave at a time. Nothing is merged into the base, so resetting is dropping
the adapters.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ttsi_jax.algorithm import Algorithm
from ttsi_jax.batching.inputs import Draft, assign_shapes, prepare
from ttsi_jax.batching.schedule import Adapt, Schedule
from ttsi_jax.batching.waves import BASE, Adapted, Waves
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.checkpoints.adapters import load_adapter, save_adapters
from ttsi_jax.checkpoints.files import checksum
from ttsi_jax.checkpoints.peft import WEIGHTS, load_start
from ttsi_jax.config import Parts, RunConfig, automatic, check, find_parts
from ttsi_jax.errors import InputError
from ttsi_jax.runs.clock import CompileClock
from ttsi_jax.runs.directory import ENVIRONMENT, RunDirectory, open_run, read_summary
from ttsi_jax.runs.environment import environment
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import f1
from ttsi_jax.runs.shards import INPUTS, SETTING, Shard, division, part_of
from ttsi_jax.runs.summary import summarise
from ttsi_jax.tasks import Task
from ttsi_jax.tasks.prompts import PromptEncoder
from ttsi_jax.testing.estimators import check_estimator_shapes
from ttsi_jax.testing.rules import check_shapes

SHAPE = attrgetter("shape")  # what inputs that go side by side have in common
Progress = Callable[[str, int, int], None]  # stage, inputs done, inputs known so far


class Result(NamedTuple):
    """What a run gives: a record per input, in the task's order, and the figures of `summary.json`."""

    records: list[Record]
    summary: dict[str, Any]


def run(
    model: LanguageModel,
    task: Task,
    config: RunConfig = RunConfig(),  # noqa: B008 - frozen
    *,
    out: str | PathLike[str] | None = None,
    shard: Shard | None = None,
    progress: Progress = lambda stage, done, known: None,
    **parts: Any,
) -> Result:
    """Runs a method over a task's inputs.

    Args:
        model: as `load_model` gives it; its params are never changed.
        task: as `load_task` gives it.
        config: the method and its settings.
        out: a directory to keep the run in; the same call resumes it. None keeps nothing.
        shard: takes only this part of the inputs; `ttsi_jax.runs.shards.merge` joins the parts.
        progress: called with a stage's name, inputs done and inputs known of so far, after every wave.
        parts: objects in the place of those that the configuration names: `rule`, `loss`, `estimator`, `synthesizer`,
            `answerer` (see `ttsi_jax.config.Parts`). A kept run knows them by name and a hash of what they do, and
            refuses others.

    Raises:
        InputError: a setting that cannot be, a part that breaks its contract, or a directory that holds another run.
    """
    if unknown := parts.keys() - Parts._fields:
        raise TypeError(f"run() takes no '{min(unknown)}'; exchangeable are {', '.join(Parts._fields)}")
    config = automatic(config).with_parts(parts)
    check(config)
    weights = {"model": model.name, "checksum": model.checksum, "dtype": str(model.params["embed"].dtype)}
    described = weights | {"task": task.name, "inputs": task.fingerprint}
    with CompileClock() as clock:
        found = find_parts(config, parts)
        if parts or ":" in config.adapt.rule + config.adapt.loss:  # not the library's own: explain before anything runs
            pair = f"update rule '{config.adapt.rule}' with loss '{config.adapt.loss}'"
            check_shapes(pair, found.rule, found.loss)
        if parts or ":" in config.gate.estimator:
            check_estimator_shapes(found.estimator)
        loop = Loop(model, config, progress, clock, found)
        if config.adapt.start is not None:
            described |= {"start": checksum([Path(config.adapt.start) / WEIGHTS])}
        if out is not None and config.adapt.reset == "never" and not config.adapt.save:
            raise InputError("a run with --adapt.reset never can only be resumed with its adapters: add --adapt.save")
        if shard is not None and config.adapt.reset == "never":
            raise InputError(f"--adapt.reset never ties all inputs together: they cannot be divided (--shard {shard})")
        own = task if shard is None else part_of(task, shard)
        if out is None:
            others = {example.id for example in task.examples} - {example.id for example in own.examples}
            return loop.result(list(loop.records(task, others)), own)
        described |= {SETTING: str(shard)} if shard else {}
        with open_run(out, described | config.to_dict()) as directory:
            directory.write(ENVIRONMENT, environment() | {"seed": config.seed, "weights": weights})
            if shard is not None:
                directory.write(INPUTS, division(task, shard))
            return _run_in(directory, loop, task, own)


def _run_in(directory: RunDirectory, loop: Loop, task: Task, own: Task) -> Result:
    """Goes on with `own` inputs of a task; all of them together choose their shapes."""
    own_ids = [example.id for example in own.examples]
    left = set(own_ids) - directory.finished.keys()
    if not left and (summary := read_summary(directory.path)) is not None:
        return Result([directory.finished[id] for id in own_ids], summary)
    if loop.config.adapt.save:
        finished = [directory.finished[id] for id in own_ids if id in directory.finished]
        loop.keep = partial(save_adapters, directory.path)
        loop.resume_after(finished, directory.path)
    for record in loop.records(task, {example.id for example in task.examples} - left):
        directory.append([record])
    result = loop.result(list((directory.finished | directory.failed).values()), own)
    directory.complete(own_ids, result.summary)
    return result


class Loop:
    """The algorithm over a task's inputs, with a model and the settings of a run bound."""

    def __init__(
        self,
        model: LanguageModel,
        config: RunConfig,
        progress: Progress,
        clock: CompileClock,
        parts: Parts | None = None,
    ):
        self.model, self.config, self.progress, self.clock = model, config, progress, clock
        self.encoder = PromptEncoder(model.tokenizer)
        self.parts = parts or find_parts(config, {})
        lora, theta_0 = config.adapt.lora, BASE
        lora.chosen(model.config)  # refuses layers that the model does not have
        if config.adapt.start is not None:
            theta_0 = Adapted(load_start(config.adapt.start, lora, model.config), lora.scale, config.adapt.scope)
        self.algorithm = Algorithm(config, self.parts, self.encoder, model)
        self.waves = Waves(model, config.wave, self.algorithm.n_decoded, theta_0)
        self.keep: Callable[..., None] | None = None
        self.lap = 0.0

    def records(self, task: Task, finished: Container[str] = ()) -> Iterator[Record]:
        """Takes a task's inputs, but for those `finished` (ids), to their ends; yields each record when it is there."""
        drafts, length = list[Draft](), self.model.config.context_length
        for example in task.examples:
            draft = prepare(example, task.name, self.encoder, self.config, length, self.parts.synthesizer)
            if isinstance(draft, Draft):
                drafts.append(draft)
            elif draft.id not in finished:
                yield draft
        assign_shapes(drafts, self.config.wave)

        left = [draft for draft in drafts if draft.example.id not in finished]
        if self.config.adapt.reset == "example":  # else they go in the task's order, whatever their shapes
            places = {shape: place for place, shape in enumerate(dict.fromkeys(draft.shape for draft in left))}
            left.sort(key=lambda draft: places[draft.shape])
        self.algorithm.reached, self.algorithm.done = Counter(score=len(left)), Counter()
        self.seconds_since_lap()
        queue = deque(left)
        del drafts, left  # what is finished is let go
        for _, alike in groupby((queue.popleft() for _ in range(len(queue))), SHAPE):
            for ended in Schedule(self.waves, self.adapt, self.charge).run(map(self.algorithm.improve, alike)):
                yield from ended
                self.report()

    def adapt(self, wave: Sequence[Adapt]) -> Iterable[Any]:
        """What the model is to do for several `Adapt` at once; keeps the adapters where that is asked for."""
        drafts, warm = [wish.draft for wish in wave], self.algorithm.warm
        losses, scores, prompts = self.waves.adapt(
            [wish.row for wish in wave], [draft.pairs for draft in drafts], [draft.names for draft in drafts],
            max_pairs=self.config.synthesis.k, rule=self.parts.rule, loss=self.parts.loss, config=self.config.adapt,
            start=warm and warm[1],
        )  # fmt: skip
        if self.keep is not None:
            ids, adapters = [draft.example.id for draft in drafts], prompts[0].read.rows.adapters
            self.keep(ids, adapters, self.config.adapt.lora, self.model.config, self.model.name)
        held_out = [draft.held_out for draft in drafts if draft.held_out]  # all have one, or none has
        if not held_out:
            return zip(losses, scores, prompts, [None] * len(drafts), strict=True)
        adapted = Adapted(prompts[0].read.rows.adapters, prompts[0].read.scale, self.config.adapt.scope)
        siblings = (self.waves.losses([wish.row for wish in wave], held_out, own) for own in (None, adapted))
        return zip(losses, scores, prompts, zip(*siblings, strict=True), strict=True)

    def report(self) -> None:
        """Tells of all stages how many inputs are done with it, of those that are known to reach it."""
        for stage, reached in self.algorithm.reached.items():
            self.progress(stage, self.algorithm.done[stage], reached)

    def result(self, records: Sequence[Record], task: Task) -> Result:
        """Records in the task's order, with their summary."""
        place = {example.id: index for index, example in enumerate(task.examples)}
        records = sorted(records, key=lambda record: place[record.id])
        return Result(records, summarise(records) | f1(records, task) | {"compile_seconds": self.clock.seconds})

    def resume_after(self, finished: Sequence[Record], run: Path) -> None:
        """Where nothing is reset: goes on from the adapter of the last input that adapted."""
        adapted = [record.id for record in finished if record.adapted and not record.reverted]
        if adapted and self.config.adapt.reset == "never":
            self.algorithm.warm = adapted[-1], load_adapter(run, adapted[-1])[0]

    def seconds_since_lap(self) -> float:
        """Seconds since the last call, less those of compiling."""
        before, self.lap = self.lap, time.perf_counter() - self.clock.seconds
        return self.lap - before

    def charge(self, shares: Sequence[tuple[Draft, str]]) -> None:
        """Divides the seconds since the last call equally among inputs, each under its stage."""
        seconds = self.seconds_since_lap() / len(shares)
        for draft, stage in shares:
            so_far = draft.record.seconds
            draft.note(seconds={**so_far, stage: so_far.get(stage, 0.0) + seconds})
