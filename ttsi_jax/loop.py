"""A run: the paper's Algorithm 1 over a task's inputs, kept in a directory.

Inputs of the same shapes go side by side, a wave at a time. Nothing is merged into the base, so resetting is dropping
the adapters.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ttsi_jax.algorithm import Algorithm
from ttsi_jax.batching.inputs import Draft, assign_shapes, passes, prepare
from ttsi_jax.batching.memory import LOG
from ttsi_jax.batching.schedule import Adapt, Ask, Learned, Schedule, Steps
from ttsi_jax.batching.shared import Shared
from ttsi_jax.batching.training import learn
from ttsi_jax.batching.waves import BASE, PREFIX_MEMORY, Adapted, Waves
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.checkpoints.adapters import load_adapter, save_adapters
from ttsi_jax.checkpoints.files import checksum
from ttsi_jax.checkpoints.int8 import storage
from ttsi_jax.checkpoints.peft import WEIGHTS, load_start
from ttsi_jax.config import Parts, RunConfig, automatic, check, find_parts
from ttsi_jax.errors import InputError
from ttsi_jax.quality.confidence import CallEstimator
from ttsi_jax.quality.thresholds import Chosen, Labelled, automatic_tau, labelled
from ttsi_jax.rules.identity import digest
from ttsi_jax.runs.clock import CompileClock
from ttsi_jax.runs.directory import ENVIRONMENT, RunDirectory, flat
from ttsi_jax.runs.environment import environment
from ttsi_jax.runs.functions import FUNCTIONS, listed
from ttsi_jax.runs.groups import load_run
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import f1
from ttsi_jax.runs.shards import INPUTS, SETTING, Shard, division, part_of
from ttsi_jax.runs.summary import summarise
from ttsi_jax.scaling.budget import within
from ttsi_jax.scaling.hosts import by_the_first, check_job, open_run, told_pairs
from ttsi_jax.scaling.mesh import Layout, mesh_of
from ttsi_jax.synthesis.pairs import Collection, write_all
from ttsi_jax.synthesis.training import trained_on
from ttsi_jax.tasks import Task
from ttsi_jax.tasks.faults import fingerprint as fingerprint_of
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
    memory: float | None = None,
    data: str | PathLike[str] | None = None,
    progress: Progress = lambda stage, done, known: None,
    tell: Callable[[str], None] = LOG.info,
    shared: Shared | None = None,
    n_passes: int | None = None,
    **parts: Any,
) -> Result:
    """Runs a method over a task's inputs.

    Args:
        model: as `load_model` gives it; its params are never changed. Where they lie on a mesh, so does all of the run:
            the results are those of one device but for rounding, so the mesh is no setting of the run.
        task: as `load_task` gives it.
        config: the method and its settings.
        out: a directory to keep the run in; the same call resumes it. None keeps nothing.
        shard: takes only this part of the inputs; `ttsi_jax.runs.shards.merge` joins the parts.
        memory: GiB that the run may take on each device: it decides the wave, see `ttsi_jax.scaling.budget.within`.
        data: the folder of the files of a task that `synthesis.file` names; see `load_task`.
        progress: called with a stage's name, inputs done and inputs known of so far, after every wave.
        tell: called with what the run has decided for itself, and what is to be known of pairs that are there already.
        shared: `Shared.between_runs()`, given to several runs that should compute once what they have in common.
        n_passes: how often a prefix counts as read where the length buckets are chosen; by default as often as this run
            reads it. Runs with the same number pad their inputs alike, which sharing needs.
        parts: objects in the place of those that the configuration names: `rule`, `loss`, `estimator`, `synthesizer`,
            `answerer` (see `ttsi_jax.config.Parts`). A kept run knows them by name and a hash of what they do, and
            refuses others.

    Raises:
        InputError: a setting that cannot be, a part that breaks its contract, too little memory, or another run there.
    """
    if unknown := parts.keys() - Parts._fields:
        raise TypeError(f"run() takes no '{min(unknown)}'; exchangeable are {', '.join(Parts._fields)}")
    config = automatic(config).with_parts(parts)
    check(config)
    weights = weights_of(model)
    described = weights | {"task": task.name, "inputs": task.fingerprint}
    layout, bounds = Layout(model.config, mesh_of(model.params)), list[str]()  # why it is an upper bound, where it is
    with CompileClock() as clock, layout.current():
        found = find_parts(config, parts, data)
        if isinstance(found.synthesizer, Collection):
            described |= {"pairs": found.synthesizer.checksum}
            if found.synthesizer.upper_bound is not None and config.method != "base":
                bounds.append(found.synthesizer.upper_bound)
            for note in found.synthesizer.notes:
                tell(note)
        if parts or ":" in config.adapt.rule + config.adapt.loss:  # not the library's own: explain before anything runs
            pair = f"update rule '{config.adapt.rule}' with loss '{config.adapt.loss}'"
            check_shapes(pair, found.rule, found.loss)
        if (parts or ":" in config.gate.estimator) and not isinstance(found.estimator, CallEstimator):
            check_estimator_shapes(found.estimator)
        config, prefix_memory, takes = within(memory, model, task, layout, config, found, out, tell, n_passes)
        loop = Loop(model, config, progress, clock, found, shared, prefix_memory, n_passes)
        if config.adapt.start is not None:
            described |= start_of(config)
            if loop.trained_on.n_examples is not None:
                described |= {"trained_on": loop.trained_on.n_examples}
            if n_seen := sum(fingerprint_of(one) in loop.trained_on.fingerprints for one in task.usable):
                bounds.append(f"trained on the labels of {n_seen} of its inputs")
        if config.synthesis.label == "gold" and config.method != "base":
            bounds.append("pairs are written for the function of each input's label")
        if out is not None and config.adapt.reset == "never" and not config.adapt.save:
            raise InputError("a run with --adapt.reset never can only be resumed with its adapters: add --adapt.save")
        if loop.labelled:
            described |= {"labelled": digest(loop.labelled)}
            chosen_by = {record.fingerprint for record in load_run(config.gate.labelled or "").records}
            if n_known := sum(fingerprint_of(one) in chosen_by for one in task.usable):
                bounds.append(f"tau is chosen by the labels of {n_known} of its inputs")
                tell(bounds[-1])
        described |= {"upper_bound": "; ".join(bounds)} if bounds else {}
        if shard is not None and config.adapt.reset == "never":
            raise InputError(f"--adapt.reset never ties all inputs together: they cannot be divided (--shard {shard})")
        own = task if shard is None else part_of(task, shard)
        described |= {SETTING: str(shard)} if shard else {}
        check_job(described | config.to_dict(), layout.shape)
        if out is None:
            others = {example.id for example in task.examples} - {example.id for example in own.examples}
            return loop.result(list(loop.records(task, others)), own)
        with open_run(out, described | config.to_dict()) as directory:
            directory.refuse_strays(example.id for example in own.examples)
            own_run = {"seed": config.seed, "weights": weights, "mesh": layout.shape, "memory": takes}
            if {example.id for example in own.examples} - directory.finished.keys():  # else it was made elsewhere
                directory.write(ENVIRONMENT, environment() | own_run)
            directory.write_once(FUNCTIONS, listed(task))
            if shard is not None:
                directory.write(INPUTS, division(task, shard))
            return _run_in(directory, loop, task, own)


def _run_in(directory: RunDirectory, loop: Loop, task: Task, own: Task) -> Result:
    """Goes on with `own` inputs of a task; all of them together choose their shapes."""
    own_ids = [example.id for example in own.examples]
    left = set(own_ids) - directory.finished.keys()
    if not left and (summary := directory.summary()) is not None:
        return Result([directory.finished[id] for id in own_ids], summary)
    if loop.config.adapt.save:
        finished = [directory.finished[id] for id in own_ids if id in directory.finished]
        loop.keep = by_the_first(partial(save_adapters, directory.path))
        loop.resume_after(finished, directory.path)
    for record in loop.records(task, {example.id for example in task.examples} - left, directory.finished):
        directory.append([record])
    result = loop.result(list((directory.finished | directory.failed).values()), own)
    directory.complete(own_ids, result.summary)
    return result


def weights_of(model: LanguageModel) -> dict[str, Any]:
    """What a run's `config.json` says of the base."""
    return {"model": model.name, "checksum": model.checksum, "dtype": storage(model.params)}


def start_of(config: RunConfig) -> dict[str, Any]:
    """What it says of the adapter that a run starts from."""
    return {"start": checksum([Path(config.adapt.start) / WEIGHTS])} if config.adapt.start is not None else {}


def labelled_by(config: RunConfig, weights: dict[str, Any], estimator: Any) -> Labelled:
    """What the run that tau is chosen by (`--gate.labelled`) knows, for certainties by `estimator`.

    Raises:
        InputError: its certainties are not of the same kind as those of this run, or what `labelled` raises.
    """
    there = load_run(config.gate.labelled or "")
    known, ours = (dict(flat(one)) for one in (there.config, weights | start_of(config) | config.to_dict()))
    if there.summary is None:
        raise InputError(f"--gate.labelled {config.gate.labelled}: the run is not finished")
    names = {"checksum", "dtype", "start", "gate.estimator", "gate.score", "answer.form"}
    if isinstance(estimator, CallEstimator):  # which judges the answer
        names |= {name for name in ours if name.startswith("answer.")}
        names |= {"gate.samples", "synthesis.temperature", "synthesis.top_p"} if estimator.samples else set()
    for name in sorted(names):
        if known.get(name) != ours.get(name):
            raise InputError(
                f"--gate.labelled {config.gate.labelled}: its {name} is {known.get(name)}, here it is {ours.get(name)};"
                " its certainties say nothing about these"
            )
    return labelled(there.records)


class Loop:
    """The algorithm over a task's inputs, with a model and the settings of a run bound."""

    def __init__(
        self,
        model: LanguageModel,
        config: RunConfig,
        progress: Progress,
        clock: CompileClock,
        parts: Parts | None = None,
        shared: Shared | None = None,
        prefix_memory: float = PREFIX_MEMORY,
        n_passes: int | None = None,
    ):
        self.model, self.config, self.progress, self.clock = model, config, progress, clock
        self.n_passes = n_passes or passes(config)
        self.encoder = PromptEncoder(model.tokenizer, model.config.vocab_size)
        self.parts = parts or find_parts(config, {})
        lora, theta_0, self.trained_on = config.adapt.lora, BASE, trained_on(config.adapt.start)
        lora.chosen(model.config)  # refuses layers that the model does not have
        if config.adapt.start is not None:
            theta_0 = Adapted(load_start(config.adapt.start, lora, model.config), lora.scale, config.adapt.scope)
        self.algorithm = Algorithm(config, self.parts, self.encoder, model, shared)
        self.waves = Waves(model, config.wave, config.n_decoded, theta_0, prefix_memory)
        self.labelled = labelled_by(config, weights_of(model), self.parts.estimator) if config.gate.labelled else None
        self.chosen: Chosen | None = None  # tau, where it was not given
        self.keep: Callable[..., None] | None = None
        self.lap = 0.0

    def records(
        self, task: Task, others: Container[str] = (), known: Mapping[str, Record] = MappingProxyType({})
    ) -> Iterator[Record]:
        """Takes a task's inputs, but for `others` (ids), to their ends; yields each record when it is there. `known`
        are records of earlier."""
        drafts, length = list[Draft](), self.model.config.context_length
        for example in task.examples:
            draft = prepare(example, task.name, self.encoder, self.config, length, self.parts.synthesizer)
            if isinstance(draft, Draft):
                draft.note(seen=draft.record.fingerprint in self.trained_on.fingerprints)
                drafts.append(draft)
            elif draft.id not in others:
                yield draft
        assign_shapes(drafts, self.config.wave, self.n_passes)

        left = [draft for draft in drafts if draft.example.id not in others]
        if self.config.adapt.reset == "example":  # else they go in the task's order, whatever their shapes
            places = {shape: place for place, shape in enumerate(dict.fromkeys(draft.shape for draft in left))}
            left.sort(key=lambda draft: places[draft.shape])
        self.algorithm.functions = list({tool.name: tool for one in task.examples for tool in one.tools}.values())
        self.algorithm.reached, self.algorithm.done = Counter(), Counter()
        self.seconds_since_lap()
        if self.config.gate.tau == "auto":
            self.choose_tau(drafts[: self.config.gate.calibration or None], known)
        self.algorithm.reached["score"] = len(left)
        queue = deque(left)
        del drafts, left  # what is finished is let go
        for ended in self.side_by_side(self.algorithm.improve, (queue.popleft() for _ in range(len(queue)))):
            yield from ended

    def side_by_side(self, steps: Callable[[Draft], Steps], drafts: Iterable[Draft]) -> Iterator[list[Record]]:
        """Runs an algorithm over inputs, those of one shape together; what is new, wave by wave."""
        for _, alike in groupby(drafts, SHAPE):
            for ended in Schedule(self.waves, self.ask, self.adapt, self.charge).run(map(steps, alike)):
                yield ended
                self.report()

    def choose_tau(self, drafts: Sequence[Draft], known: Mapping[str, Record]) -> None:
        """Chooses tau by the certainties of these inputs; resumed, divided among hosts or not, it is the same."""
        ordered = sorted((d for d in drafts if d.example.id not in known), key=SHAPE)
        self.algorithm.reached["gauge"] = len(ordered)
        known = dict(known)
        for ended in self.side_by_side(self.algorithm.gauge, ordered):
            known |= {record.id: record for record in ended}
        certainties = [known[draft.example.id].uncertainty for draft in drafts]
        self.chosen = automatic_tau(certainties, self.config.gate.budget, self.labelled)
        self.algorithm.tau = self.chosen.tau

    def ask(self, wave: Sequence[Ask]) -> Iterable[Any]:
        """Pairs from elsewhere, for several `Ask` at once."""
        questions = [wish.draft.example for wish in wave], [wish.attempt for wish in wave]
        return told_pairs(partial(write_all, self.parts.synthesizer, *questions))

    def adapt(self, wave: Sequence[Adapt]) -> Iterable[Learned]:
        """What several adapters learn; keeps them where that is asked for."""
        warm, settings = self.algorithm.warm, self.config
        learned = learn(self.waves, wave, self.parts.rule, self.parts.loss, settings, warm and warm[1])
        if self.keep is not None:
            ids = [wish.draft.example.id + (f"#{wish.seed}" if wish.seed else "") for wish in wave]
            adapters = self.waves.layout.read(learned[0].reads[0][1].read.rows.adapters)
            self.keep(ids, adapters, settings.adapt.lora, self.model.config, self.model.name)
        return learned

    def report(self) -> None:
        """Tells of all stages how many inputs are done with it, of those that are known to reach it."""
        for stage, reached in self.algorithm.reached.items():
            self.progress(stage, self.algorithm.done[stage], reached)

    def result(self, records: Sequence[Record], task: Task) -> Result:
        """Records in the task's order, with their summary."""
        place = {example.id: index for index, example in enumerate(task.examples)}
        records = sorted(records, key=lambda record: place[record.id])
        chosen = {} if self.chosen is None else self.chosen._asdict()
        figures = summarise(records) | f1(records, task) | chosen
        return Result(records, figures | {"compile_seconds": self.clock.seconds})

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
