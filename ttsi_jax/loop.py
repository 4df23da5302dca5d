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
from operator import attrgetter
from os import PathLike
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ttsi_jax.adaptation import UpdateRule
from ttsi_jax.answering import LINE, TEXT, Slot, call_ids, keys_script, read_calls
from ttsi_jax.batching.inputs import ADAPTATION, ANSWER, SYNTHESIS, Draft, assign_shapes, next_wave, prepare
from ttsi_jax.batching.waves import BASE, Adapted, Ids, Pair, Row, Said, Waves
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import RunConfig, check, resolve
from ttsi_jax.errors import InputError
from ttsi_jax.model.generation import Sampling
from ttsi_jax.model.scoring import Prompted
from ttsi_jax.rules import LOSSES, RULES
from ttsi_jax.runs.clock import CompileClock
from ttsi_jax.runs.directory import RunDirectory, open_run, read_summary
from ttsi_jax.runs.environment import environment
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import f1, plain
from ttsi_jax.runs.summary import summarise
from ttsi_jax.synthesis import Synthetic, check_pair, read_pair, read_request
from ttsi_jax.tasks import Task, Tool
from ttsi_jax.tasks.pieces import keys_text
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder, answer_messages
from ttsi_jax.uncertainty import ESTIMATORS, gate_wave

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
) -> Result:
    """Runs a method over a task's inputs.

    Args:
        model: as `load_model` gives it; its params are never changed.
        task: as `load_task` gives it.
        config: the method and its settings.
        out: a directory to keep the run in; the same call resumes it. None keeps nothing.
        progress: called with a stage's name, inputs done and inputs known of so far, after every wave.

    Raises:
        InputError: a setting that cannot be, or a directory that holds another run.
    """
    check(config)
    weights = {"model": model.name, "checksum": model.checksum, "dtype": str(model.params["embed"].dtype)}
    described = weights | {"task": task.name, "inputs": fingerprint(task)}
    with CompileClock() as clock:
        loop = Loop(model, config, progress, clock)
        if out is None:
            return loop.result(list(loop.records(task)), task)
        with open_run(out, described | config.to_dict()) as directory:
            directory.write_environment(environment() | {"seed": config.seed, "weights": weights})
            return _run_in(directory, loop, task)


def _run_in(directory: RunDirectory, loop: Loop, task: Task) -> Result:
    left = [example for example in task.examples if example.id not in directory.finished]
    if not left and (summary := read_summary(directory.path)) is not None:
        return Result([directory.finished[example.id] for example in task.examples], summary)
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

    def __init__(self, model: LanguageModel, config: RunConfig, progress: Progress, clock: CompileClock):
        self.config = config
        self.context_length = model.config.context_length
        self.encoder = PromptEncoder(model.tokenizer)
        self.waves = Waves(model, config.wave, max(config.answer.max_tokens, config.synthesis.max_tokens))
        self.stop = model.stop_ids[:1]
        self.estimator = resolve(config.gate.estimator, ESTIMATORS, "estimator")
        self.loss = resolve(config.adapt.loss, LOSSES, "loss")
        rule = resolve(config.adapt.rule, RULES, "update rule")
        self.rule = rule if isinstance(rule, UpdateRule) else rule(config.adapt.lr)
        if not isinstance(self.rule, UpdateRule):
            raise InputError(f"update rule '{config.adapt.rule}' gives {self.rule!r}, not an UpdateRule")
        self.progress = progress
        self.done: Counter[str] = Counter()  # inputs, by stage
        self.clock = clock

    def records(self, task: Task, finished: Container[str] = ()) -> Iterator[Record]:
        """Takes a task's inputs, but for those `finished` (ids), through all stages; yields each record at its end."""
        drafts: list[Draft] = []
        for example in task.examples:
            draft = prepare(example, task.name, self.encoder, self.config, self.context_length)
            if isinstance(draft, Draft):
                drafts.append(draft)
            elif draft.id not in finished:
                yield draft
        assign_shapes(drafts, self.config.wave)

        queues = Queues([draft for draft in drafts if draft.example.id not in finished], [], [])
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
            gated = gate_wave(self.estimator, jnp.asarray(log_likelihoods), jnp.asarray(mask))
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
        keys = self.config.answer.form == "keys"
        return [draft.row(draft.opened, ANSWER, start=len(draft.opened if keys else draft.answer)) for draft in wave]

    def read(
        self, rows: Sequence[Row], wave: Sequence[Draft], adapted: Adapted = BASE
    ) -> tuple[list[np.ndarray], Prompted]:
        """Scores of each input's candidates after its row's prompt, and the prompts for decoding."""
        scores, prompts = self.waves.score(rows, [draft.names for draft in wave], adapted)
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
        self, wave: Sequence[Draft], prompts: Prompted, picks: Sequence[str | None], adapted: Adapted = BASE
    ) -> list[str | None]:
        """Greedy answers to the inputs themselves; the form `keys` needs the functions that scoring picked.

        None stands for an answer from logits that are not finite.
        """
        rows = self.rows(wave)
        if self.config.answer.form == "keys":
            tools = [draft.tool(pick) for draft, pick in zip(wave, picks, strict=True)]
            return [text for text, _ in self.fill_in(rows, prompts, tools, adapted)]
        script = [Slot(TEXT, limit=self.config.answer.max_tokens)]
        said = self.waves.decode(rows, prompts, [script] * len(rows), adapted=adapted)
        return [own.texts[0] if own.finite else None for own in said]

    def fill_in(
        self, rows: Sequence[Row], prompts: Prompted, tools: Sequence[Tool], adapted: Adapted = BASE
    ) -> list[tuple[str | None, bool]]:
        """Each row's values for its tool's arguments, as a call in JSON (None: from logits that are not finite), and
        whether one of them was cut."""
        scripts = [keys_script(self.encoder, tool, self.config.answer) for tool in tools]
        said = self.waves.decode(rows, prompts, scripts, adapted=adapted)
        return [
            (keys_text(tool, own.texts) if own.finite else None, own.cut) for tool, own in zip(tools, said, strict=True)
        ]

    # G

    def synthesize(self, wave: Sequence[Draft]) -> None:
        """Writes one more pair for each input."""
        with self.timed(wave, synthesize=wave):
            write = self.write_pairs if self.config.synthesis_form == "pair" else self.write_requests
            for draft, pair in zip(wave, write(wave), strict=True):
                self.keep_if_good(draft, pair)

    def keep_if_good(self, draft: Draft, pair: Synthetic) -> None:
        """Checks a pair, records it with the outcome, and makes a training sequence of a good one."""
        kept = [other["query"] for other in draft.record.synthetic if other["accepted"]]
        pair = check_pair(pair, draft.example.query, draft.example.tools, kept)
        if pair.reason is None:
            try:
                draft.pairs.append(self.training_pair(draft, pair))
            except InputError as error:
                pair = pair._replace(reason=str(error))
        draft.note(synthetic=[*draft.record.synthetic, pair.record()])

    def training_pair(self, draft: Draft, pair: Synthetic) -> Pair:
        """The training sequence of a pair.

        Raises:
            InputError: the chat template refuses the request, or the sequence is too long for the model.
        """
        prompt = self.encoder.suffix(draft.example, answer_messages(draft.example, pair.query), draft.prefix)
        answer = call_ids(self.encoder, pair.calls[0]) + self.stop
        if len(draft.prefix) + len(prompt) + len(answer) > self.context_length:
            raise InputError("the pair does not fit the model's context")
        return Pair(prompt, answer)

    def write_pairs(self, wave: Sequence[Draft]) -> list[Synthetic]:
        """A request and its call per input, written in one go."""
        slot = Slot(TEXT, limit=self.config.answer.max_tokens)
        return [
            read_pair(said.texts[0]) if said.finite else Synthetic("", (), NOT_FINITE)
            for said in self.sampled(wave, slot)
        ]

    def write_requests(self, wave: Sequence[Draft]) -> list[Synthetic]:
        """A request per input, with the call that the model answers it with: the function that its scoring picks, and
        each value decoded after its key."""
        slot = Slot(LINE, limit=self.config.synthesis.max_tokens)
        cut = f"the request was cut at {slot.limit} tokens"
        pairs = [
            Synthetic(read_request(said.texts[0]), (), cut if said.cut else None)
            if said.finite
            else Synthetic("", (), NOT_FINITE)
            for said in self.sampled(wave, slot)
        ]
        rows = []
        for index, (draft, pair) in enumerate(zip(wave, pairs, strict=True)):
            try:
                suffix = self.label_prompt(draft, pair)
            except InputError as error:
                pairs[index], suffix = pair._replace(reason=str(error)), draft.opened
            rows.append(draft.row(suffix, SYNTHESIS))
        scores, prompts = self.read(rows, wave)
        tools = [draft.tool(draft.best(own)) for draft, own in zip(wave, scores, strict=True)]
        calls = self.fill_in(rows, prompts, tools)
        for index, (own, (text, cut)) in enumerate(zip(scores, calls, strict=True)):
            if not pairs[index].reason:
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

    def sampled(self, wave: Sequence[Draft], slot: Slot) -> list[Said]:
        """What the model writes to each input's synthesis prompt; every attempt has its own random numbers."""
        config = self.config.synthesis
        rows = [draft.row(draft.request, SYNTHESIS, len(draft.record.synthetic)) for draft in wave]
        _, prompts = self.read(rows, wave)
        return self.waves.decode(rows, prompts, [[slot]] * len(rows), Sampling(config.temperature, config.top_p))

    # T

    def adapt_and_answer(self, wave: Sequence[Draft]) -> None:
        """Trains an adapter per input, answers with it, and drops it."""
        with self.timed(wave, adapt=wave):
            rows = [draft.row(draft.opened, ADAPTATION) for draft in wave]
            adapted, losses = self.waves.adapt(
                rows, [draft.pairs for draft in wave], self.config.synthesis.k, self.rule, self.loss, self.config.adapt
            )
        with self.timed(wave, answer=wave):
            scores, prompts = self.read(self.rows(wave), wave, adapted)
            picks = [draft.best(own) for draft, own in zip(wave, scores, strict=True)]
            texts = self.answers(wave, prompts, picks, adapted)
        for draft, own, all_losses, pick, text in zip(wave, scores, losses, picks, texts, strict=True):
            taken = all_losses[: self.config.adapt.epochs * len(draft.pairs)]
            draft.note(adapted=True, losses=taken.tolist(), text_adapted=text, adapted_calls=plain(read_calls(text)))
            if not (np.all(np.isfinite(taken)) and np.all(np.isfinite(own)) and text is not None):
                draft.note(reverted=True, reason="training diverged: a loss or a score is not finite")
            elif np.max(taken, initial=0) > EXPLODED * max(1.0, abs(taken[0])):
                draft.note(reverted=True, reason=f"training diverged: the loss grew to {np.max(taken):.3g}")
            else:
                draft.note(pick=pick)

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
