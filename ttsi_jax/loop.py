"""The paper's Algorithm 1 over waves of inputs: gate -> synthesize -> adapt -> answer -> forget.

Inputs of the same shapes go through each stage together. Those that the gate selects wait until they fill a wave of
their own, first for synthesis, then for training; the rest are finished with the base's answer. Nothing is merged into
the base, so resetting is dropping the adapters.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ttsi_jax.adaptation import repeat
from ttsi_jax.answering import KEYS, LINE, TEXT, Answerer, Slot, call_ids, read_calls
from ttsi_jax.batching.inputs import ADAPTATION, ANSWER, SAMPLES, SYNTHESIS, Draft, assign_shapes, next_wave, prepare
from ttsi_jax.batching.waves import BASE, GREEDY, Adapted, Ids, Pair, Row, Waves
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.checkpoints.adapters import load_adapter, save_adapters
from ttsi_jax.checkpoints.files import checksum
from ttsi_jax.checkpoints.peft import WEIGHTS, load_start
from ttsi_jax.config import Parts, RunConfig, check, find_parts
from ttsi_jax.errors import InputError
from ttsi_jax.model.generation import Sampling
from ttsi_jax.model.lora import Adapter
from ttsi_jax.model.scoring import Prompted
from ttsi_jax.rules.extras import corrupted, reward
from ttsi_jax.rules.interface import needed
from ttsi_jax.runs.clock import CompileClock
from ttsi_jax.runs.directory import RunDirectory, open_run, read_summary
from ttsi_jax.runs.environment import environment
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import f1, plain
from ttsi_jax.runs.summary import summarise
from ttsi_jax.synthesis import Synthesizer, Synthetic, check_pair
from ttsi_jax.tasks import Task, Tool
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder, answer_messages
from ttsi_jax.testing.estimators import check_estimator_shapes
from ttsi_jax.testing.rules import check_shapes
from ttsi_jax.uncertainty import gate_wave

NOT_FINITE = "a score is not finite"
EXPLODED = 1e3  # times the first loss, or times 1 where that is smaller
SHAPE = attrgetter("shape")  # what the inputs of a wave have in common
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
    progress: Progress = lambda stage, done, known: None,
    **parts: Any,
) -> Result:
    """Runs a method over a task's inputs.

    Args:
        model: as `load_model` gives it; its params are never changed.
        task: as `load_task` gives it.
        config: the method and its settings.
        out: a directory to keep the run in; the same call resumes it. None keeps nothing.
        progress: called with a stage's name, inputs done and inputs known of so far, after every wave.
        parts: objects in the place of those that the configuration names: `rule`, `loss`, `estimator`, `synthesizer`,
            `answerer` (see `ttsi_jax.config.Parts`). A kept run knows them by their names alone.

    Raises:
        InputError: a setting that cannot be, a part that breaks its contract, or a directory that holds another run.
    """
    if unknown := parts.keys() - Parts._fields:
        raise TypeError(f"run() takes no '{min(unknown)}'; exchangeable are {', '.join(Parts._fields)}")
    config = config.with_parts(parts)
    check(config)
    weights = {"model": model.name, "checksum": model.checksum, "dtype": str(model.params["embed"].dtype)}
    described = weights | {"task": task.name, "inputs": fingerprint(task)}
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
        if out is None:
            return loop.result(list(loop.records(task)), task)
        with open_run(out, described | config.to_dict()) as directory:
            directory.write_environment(environment() | {"seed": config.seed, "weights": weights})
            return _run_in(directory, loop, task)


def _run_in(directory: RunDirectory, loop: Loop, task: Task) -> Result:
    left = [example for example in task.examples if example.id not in directory.finished]
    if not left and (summary := read_summary(directory.path)) is not None:
        return Result([directory.finished[example.id] for example in task.examples], summary)
    if loop.config.adapt.save:
        finished = [directory.finished[example.id] for example in task.examples if example.id in directory.finished]
        loop.keep = partial(save_adapters, directory.path)
        loop.resume_after(finished, directory.path)
    for record in loop.records(task, directory.finished):
        directory.append([record])
    result = loop.result(list((directory.finished | directory.failed).values()), task)
    directory.complete([example.id for example in task.examples], result.summary)
    return result


def fingerprint(task: Task) -> str:
    """A short hash of a task's inputs, so that a run is not resumed with others."""
    text = json.dumps([asdict(example) for example in task.examples], sort_keys=True, default=sorted)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Queues(NamedTuple):
    """The inputs that wait for each stage."""

    score: list[Draft]
    synthesize: list[Draft]
    adapt: list[Draft]


class Loop:
    """The stages, with a model and the settings of a run bound."""

    def __init__(
        self,
        model: LanguageModel,
        config: RunConfig,
        progress: Progress,
        clock: CompileClock,
        parts: Parts | None = None,
    ):
        self.model = model
        self.config = config
        self.context_length = model.config.context_length
        self.encoder = PromptEncoder(model.tokenizer)
        self.waves = Waves(model, config.wave, max(config.answer.max_tokens, config.synthesis.max_tokens))
        self.stop = model.stop_ids[:1]
        self.parts = parts or find_parts(config, {})
        lora, self.theta_0 = config.adapt.lora, None
        lora.chosen(model.config)  # refuses layers that the model does not have
        if config.adapt.start is not None:
            self.theta_0 = load_start(config.adapt.start, lora, model.config)
        self.base = BASE  # theta_0 in every row
        if self.theta_0 is not None:
            self.base = Adapted(repeat(self.theta_0, config.wave), lora.scale, config.adapt.scope)
        self.warm: tuple[str, Adapter] | None = None  # where nothing is reset: the last input that adapted, its adapter
        self.keep: Callable[..., None] | None = None
        self.progress = progress
        self.done: Counter[str] = Counter()  # inputs, by stage
        self.clock = clock

    def records(self, task: Task, finished: Container[str] = ()) -> Iterator[Record]:
        """Takes a task's inputs, but for those `finished` (ids), through all stages; yields each record at its end."""
        drafts: list[Draft] = []
        for example in task.examples:
            draft = prepare(example, task.name, self.encoder, self.config, self.context_length, self.parts.synthesizer)
            if isinstance(draft, Draft):
                drafts.append(draft)
            elif draft.id not in finished:
                yield draft
        assign_shapes(drafts, self.config.wave)

        queues = Queues([draft for draft in drafts if draft.example.id not in finished], [], [])
        del drafts  # what is held of an input goes at its end
        while wave := next_wave(queues.score, SHAPE, self.config.wave, last=True):
            prompts = self.score(wave)
            chosen, others = self.chosen(wave)
            self.answer_with_base(wave, prompts, chosen, others)
            yield from (draft.finished() for draft in others)
            queues.synthesize.extend(chosen)
            self.report(queues, score=len(wave))
            yield from self.improve(queues, last=not queues.score)

    def improve(self, queues: Queues, last: bool) -> Iterator[Record]:
        """Takes inputs from the gate to their adapted answers as far as they fill waves; the last ones in any case."""
        size, wanted = self.config.wave, self.config.synthesis
        while wave := next_wave(queues.synthesize, SHAPE, size, last):
            self.synthesize(wave)
            again = [
                draft
                for draft in wave
                if len(draft.pairs) < wanted.k and len(draft.record.synthetic) < wanted.k * wanted.tries
            ]
            queues.synthesize.extend(again)
            for draft in wave:
                if draft.pairs and draft not in again:
                    queues.adapt.append(draft)
                elif draft not in again:
                    draft.note(reason=f"no usable pair in {len(draft.record.synthetic)} tries")
                    yield draft.finished()
            self.report(queues, synthesize=len(wave) - len(again))
        while wave := next_wave(queues.adapt, Draft.training_shape, size, last):
            self.adapt_and_answer(wave)
            yield from (draft.finished() for draft in wave)
            self.report(queues, adapt=len(wave))

    def report(self, queues: Queues, **done: int) -> None:
        """Counts the inputs that are done with a stage, and tells of all stages."""
        self.done.update(done)
        for stage, waiting in queues._asdict().items():
            self.progress(stage, self.done[stage], self.done[stage] + len(waiting))

    def result(self, records: Sequence[Record], task: Task) -> Result:
        """Records in the task's order, with their summary."""
        place = {example.id: index for index, example in enumerate(task.examples)}
        records = sorted(records, key=lambda record: place[record.id])
        return Result(records, summarise(records) | f1(records, task) | {"compile_seconds": self.clock.seconds})

    # H

    def score(self, wave: Sequence[Draft]) -> Prompted:
        """The gate: candidates' log-likelihoods, their probabilities and the certainty that follows. Returns the
        prompts as they were read."""
        with self.timed(wave, score=wave):
            scores, prompts = self.read(self.rows(wave), wave)
            shape = self.config.wave, wave[0].shape.candidates
            log_likelihoods, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
            for row, own in enumerate(scores):
                log_likelihoods[row, : len(own)], mask[row, : len(own)] = own, True
            gated = gate_wave(self.parts.estimator, jnp.asarray(log_likelihoods), jnp.asarray(mask))
            for draft, own, probabilities, certainty in zip(wave, scores, *map(np.asarray, gated), strict=False):
                draft.note(
                    log_likelihoods=own.tolist(),
                    probabilities=probabilities[: len(own)].tolist(),
                    uncertainty=float(certainty),
                    uncertain=bool(certainty < self.config.gate.tau),
                    pick_base=draft.best(own),
                    reason=None if np.isfinite(certainty) else "the certainty is not a number",
                )
        return prompts

    def rows(self, wave: Sequence[Draft]) -> list[Row]:
        """The inputs with their answer prompts; the answer starts before its opening where the model writes that."""
        opened = self.parts.answerer.opened
        return [draft.row(draft.opened, ANSWER, start=len(draft.opened if opened else draft.answer)) for draft in wave]

    def read(
        self, rows: Sequence[Row], wave: Sequence[Draft], adapted: Adapted | None = None
    ) -> tuple[list[np.ndarray], Prompted]:
        """Scores of each input's candidates after its row's prompt, and the prompts for decoding."""
        scores, prompts = self.waves.score(rows, [draft.names for draft in wave], adapted or self.base)
        if self.config.gate.score == "mean":
            lengths = [np.array([len(name) for name in draft.names], np.float32) for draft in wave]
            scores = [own / length for own, length in zip(scores, lengths, strict=True)]
        return scores, prompts

    def chosen(self, wave: Sequence[Draft]) -> tuple[list[Draft], list[Draft]]:
        """The inputs that adapt, and the others."""
        select, adapts = self.config.gate.select, self.config.method != "base"
        wanted = {"uncertain": (True,), "certain": (False,), "all": (True, False)}[select] if adapts else ()
        chosen = [draft for draft in wave if draft.record.uncertain in wanted]
        return chosen, [draft for draft in wave if draft.record.uncertain not in wanted]

    # Answers

    def answer_with_base(
        self, wave: Sequence[Draft], prompts: Prompted, chosen: Sequence[Draft], others: Sequence[Draft]
    ) -> None:
        """The base's answers: final for `others`, and for the chosen a measurement that is timed apart."""
        with self.timed(wave, base_answer=chosen, answer=others):
            texts = self.answers(wave, prompts, [draft.record.pick_base for draft in wave])
        for draft, text in zip(wave, texts, strict=True):
            draft.note(text_base=text, base_calls=plain(read_calls(text)))

    def answers(
        self, wave: Sequence[Draft], prompts: Prompted, picks: Sequence[str | None], adapted: Adapted | None = None
    ) -> list[str | None]:
        """Greedy answers to the inputs themselves, with the functions that scoring picked.

        None stands for an answer from logits that are not finite.
        """
        tools = [draft.tool(pick) for draft, pick in zip(wave, picks, strict=True)]
        return [text for text, _ in self.fill_in(self.parts.answerer, self.rows(wave), prompts, tools, adapted)]

    def fill_in(
        self,
        answerer: Answerer,
        rows: Sequence[Row],
        prompts: Prompted,
        tools: Sequence[Tool],
        adapted: Adapted | None = None,
        sampling: Sampling = GREEDY,
    ) -> list[tuple[str | None, bool]]:
        """Each row's answer with its tool (None: from logits that are not finite), and whether a part of it was cut."""
        scripts = [answerer.script(self.encoder, tool, self.config.answer) for tool in tools]
        said = self.waves.decode(rows, prompts, scripts, sampling, adapted or self.base)
        return [
            (answerer.text(tool, own.texts) if own.finite else None, own.cut)
            for tool, own in zip(tools, said, strict=True)
        ]

    # G

    def synthesize(self, wave: Sequence[Draft]) -> None:
        """Writes one more pair for each input."""
        with self.timed(wave, synthesize=wave):
            written = self.label(wave, self.write(wave))
            checked = [self.keep_if_good(draft, pair) for draft, pair in zip(wave, written, strict=True)]
            good = [(draft, pair) for draft, pair in zip(wave, checked, strict=True) if pair.reason is None]
            if good and "samples" in needed(self.parts.loss):
                self.sample_answers(*zip(*good, strict=True))

    def keep_if_good(self, draft: Draft, pair: Synthetic) -> Synthetic:
        """Checks a pair, records it with the outcome, and makes a training sequence of a good one."""
        kept = [other["query"] for other in draft.record.synthetic if other["accepted"]]
        pair = check_pair(pair, draft.example.query, draft.example.tools, kept)
        if pair.reason is None:
            try:
                draft.pairs.append(self.training_pair(draft, pair))
            except InputError as error:
                pair = pair._replace(reason=str(error))
        draft.note(synthetic=[*draft.record.synthetic, pair.record()])
        return pair

    def training_pair(self, draft: Draft, pair: Synthetic) -> Pair:
        """The training sequence of a pair.

        Raises:
            InputError: the chat template refuses the request, or the sequence is too long for the model.
        """
        prompt = self.encoder.suffix(draft.example, answer_messages(draft.example, pair.query), draft.prefix)
        answer = call_ids(self.encoder, pair.calls[0]) + self.stop
        wrong = corrupted(pair, draft.example.tools) if "rejected" in needed(self.parts.loss) else None
        rejected = () if wrong is None else call_ids(self.encoder, wrong) + self.stop
        if len(draft.prefix) + len(prompt) + max(len(answer), len(rejected)) > self.context_length:
            raise InputError("the pair does not fit the model's context")
        return Pair(prompt, answer, rejected)

    def write(self, wave: Sequence[Draft]) -> list[Synthetic]:
        """A pair per input, from the model or from elsewhere; every attempt has its own random numbers."""
        synthesizer, settings = self.parts.synthesizer, self.config.synthesis
        if not isinstance(synthesizer, Synthesizer):
            return [synthesizer(draft.example, len(draft.record.synthetic)) for draft in wave]
        slot = Slot(TEXT, limit=self.config.answer.max_tokens)
        if synthesizer.line:
            slot = Slot(LINE, limit=settings.max_tokens)
        rows = [draft.row(draft.request, SYNTHESIS, len(draft.record.synthetic)) for draft in wave]
        _, prompts = self.read(rows, wave)
        sampling = Sampling(settings.temperature, settings.top_p)
        said = self.waves.decode(rows, prompts, [[slot]] * len(rows), sampling, self.base)
        cut = f"the request was cut at {slot.limit} tokens"
        pairs = [synthesizer.read(own.texts[0]) if own.finite else Synthetic("", (), NOT_FINITE) for own in said]
        return [
            pair._replace(reason=cut) if own.cut and synthesizer.line and not pair.reason else pair
            for pair, own in zip(pairs, said, strict=True)
        ]

    def label(self, wave: Sequence[Draft], pairs: list[Synthetic]) -> list[Synthetic]:
        """The pairs, where those without a call get the one that the model answers with: the function that its scoring
        picks, and each value decoded after its key."""
        if all(pair.calls or pair.reason for pair in pairs):
            return pairs
        rows = []
        for index, (draft, pair) in enumerate(zip(wave, pairs, strict=True)):
            try:
                suffix = draft.opened if pair.calls or pair.reason else self.label_prompt(draft, pair)
            except InputError as error:
                pairs[index], suffix = pair._replace(reason=str(error)), draft.opened
            rows.append(draft.row(suffix, SYNTHESIS))
        scores, prompts = self.read(rows, wave)
        tools = [draft.tool(draft.best(own)) for draft, own in zip(wave, scores, strict=True)]
        calls = self.fill_in(KEYS, rows, prompts, tools)
        for index, (own, (text, cut)) in enumerate(zip(scores, calls, strict=True)):
            if not (pairs[index].reason or pairs[index].calls):
                finite = text is not None and np.all(np.isfinite(own))
                reason = None if finite and not cut else "a value was cut" if finite else NOT_FINITE
                pairs[index] = pairs[index]._replace(calls=tuple(read_calls(text) or ()), reason=reason)
        return pairs

    def label_prompt(self, draft: Draft, pair: Synthetic) -> Ids:
        """The answer prompt of a new request, after the prefix.

        Raises:
            InputError: the chat template refuses the request, or it is too long.
        """
        messages = answer_messages(draft.example, pair.query)
        suffix = self.encoder.suffix(draft.example, messages, draft.prefix, OPENING)
        room = self.context_length - len(draft.prefix) - self.waves.n_steps
        if len(suffix) > min(draft.room, room):
            raise InputError("the request is too long")
        return suffix

    def sample_answers(self, wave: Sequence[Draft], pairs: Sequence[Synthetic]) -> None:
        """Samples answers to the request of each input's newest pair, with the pair's function, and rewards them."""
        answerer, settings = self.parts.answerer, self.config.synthesis
        opening = self.encoder.fragment(OPENING) if answerer.opened else ()
        suffixes = [draft.pairs[-1].prompt + opening for draft in wave]
        fits = [len(suffix) <= draft.room for draft, suffix in zip(wave, suffixes, strict=True)]
        suffixes = [own if fit else draft.opened for draft, own, fit in zip(wave, suffixes, fits, strict=True)]
        rows = [draft.row(own, SAMPLES, len(draft.pairs)) for draft, own in zip(wave, suffixes, strict=True)]
        tools = [draft.tool(pair.calls[0].name) for draft, pair in zip(wave, pairs, strict=True)]
        _, prompts = self.read(rows, wave)
        for number in range(self.config.adapt.samples):
            own = [row._replace(key=jax.random.fold_in(row.key, number)) for row in rows]
            sampling = Sampling(settings.temperature, settings.top_p)
            texts = self.fill_in(answerer, own, prompts, tools, sampling=sampling)
            for draft, pair, (text, _), fit in zip(wave, pairs, texts, fits, strict=True):
                self.add_sample(draft, pair, (text or "") if fit else "")

    def add_sample(self, draft: Draft, pair: Synthetic, text: str) -> None:
        """Adds a sampled answer to the input's newest pair, and to its record."""
        calls, newest, entry = read_calls(text), draft.pairs[-1], draft.record.synthetic[-1]
        ids = (call_ids(self.encoder, calls[0]) if calls else self.encoder.fragment(text)) + self.stop
        value = reward(calls, pair, draft.example.tools)
        if not text or len(draft.prefix) + len(newest.prompt) + len(ids) > self.context_length:
            ids, value = (), 0.0
        draft.pairs[-1] = newest._replace(samples=(*newest.samples, ids), rewards=(*newest.rewards, value))
        samples = [*entry.get("samples", []), {"text": text, "reward": value}]
        draft.note(synthetic=[*draft.record.synthetic[:-1], {**entry, "samples": samples}])

    # T

    def adapt_and_answer(self, wave: Sequence[Draft]) -> None:
        """Trains an adapter per input, answers with it, and drops it unless it is to be kept."""
        before, start = self.warm or (None, None)
        with self.timed(wave, adapt=wave):
            rows = [draft.row(draft.opened, ADAPTATION) for draft in wave]
            adapted, losses = self.waves.adapt(
                rows, [draft.pairs for draft in wave], self.config.synthesis.k, self.parts.rule, self.parts.loss,
                self.config.adapt, self.theta_0, start,
            )  # fmt: skip
            if self.keep is not None:
                lora, ids = self.config.adapt.lora, [draft.example.id for draft in wave]
                self.keep(ids, adapted.adapters, lora, self.model.config, self.model.name)
        with self.timed(wave, answer=wave):
            scores, prompts = self.read(self.rows(wave), wave, adapted)
            picks = [draft.best(own) for draft, own in zip(wave, scores, strict=True)]
            texts = self.answers(wave, prompts, picks, adapted)
        for draft, own, all_losses, pick, text in zip(wave, scores, losses, picks, texts, strict=True):
            taken = all_losses[: self.config.adapt.epochs * len(draft.pairs)]
            draft.note(adapted=True, losses=taken.tolist(), text_adapted=text, adapted_calls=plain(read_calls(text)))
            draft.note(adapted_after=before)
            if not (np.all(np.isfinite(taken)) and np.all(np.isfinite(own)) and text is not None):
                draft.note(reverted=True, reason="training diverged: a loss or a score is not finite")
            elif np.max(taken, initial=0) > EXPLODED * max(1.0, abs(taken[0])):
                draft.note(reverted=True, reason=f"training diverged: the loss grew to {np.max(taken):.3g}")
            else:
                draft.note(pick=pick)
                if self.config.adapt.reset == "never":  # waves of one, see `check`
                    self.warm = draft.example.id, jax.tree.map(lambda x: x[0], adapted.adapters)

    def resume_after(self, finished: Sequence[Record], run: Path) -> None:
        """Where nothing is reset: goes on from the adapter of the last input that adapted."""
        adapted = [record.id for record in finished if record.adapted and not record.reverted]
        if adapted and self.config.adapt.reset == "never":
            self.warm = adapted[-1], load_adapter(run, adapted[-1])[0]

    @contextmanager
    def timed(self, wave: Sequence[Draft], **stages: Sequence[Draft]) -> Iterator[None]:
        """Divides the seconds of a wave, less those of compiling, equally among its inputs, each under its stage."""
        start, compiled = time.perf_counter(), self.clock.seconds
        yield
        seconds = time.perf_counter() - start - (self.clock.seconds - compiled)
        for stage, drafts in stages.items():
            for draft in drafts:
                so_far = draft.record.seconds
                draft.note(seconds={**so_far, stage: so_far.get(stage, 0.0) + seconds / len(wave)})
