"""The paper's Algorithm 1: gate -> synthesize -> adapt -> answer -> forget.

`Loop.improve` is the algorithm for one input, as the paper has it. It is a generator that yields what it wants the
model to do; `ttsi_jax.batching` does that for many inputs at once. Nothing is merged into the base, so resetting is
dropping the adapter.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from ttsi_jax.adaptation import UpdateRule
from ttsi_jax.answering import LINE, TEXT, Slot, call_ids, keys_script, read_calls
from ttsi_jax.batching.inputs import ADAPTATION, ANSWER, SYNTHESIS, Draft, assign_shapes, prepare
from ttsi_jax.batching.lanes import Prompt, Said, Work
from ttsi_jax.batching.schedule import Adapt, Decode, Schedule, Score, Steps
from ttsi_jax.batching.waves import Ids, Pair, Row, Waves
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import RunConfig, check, resolve
from ttsi_jax.errors import InputError
from ttsi_jax.model.generation import Sampling
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
            return _run_in(directory, loop, task)


def _run_in(directory: RunDirectory, loop: Loop, task: Task) -> Result:
    directory.write_environment(environment())
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


class Loop:
    """The algorithm, with a model and the settings of a run bound."""

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
        self.known: Counter[str] = Counter()  # inputs that reach a stage, as far as is known
        self.done: Counter[str] = Counter()
        self.clock = clock
        self.lap = 0.0

    def records(self, task: Task, finished: Container[str] = ()) -> Iterator[Record]:
        """Takes a task's inputs, but for those `finished` (ids), to their ends; yields each record when it is there."""
        drafts: list[Draft] = []
        for example in task.examples:
            draft = prepare(example, task.name, self.encoder, self.config, self.context_length)
            if isinstance(draft, Draft):
                drafts.append(draft)
            elif draft.id not in finished:
                yield draft
        assign_shapes(drafts, self.config.wave)

        alike = defaultdict(list)
        for draft in drafts:
            if draft.example.id not in finished:
                alike[draft.shape].append(draft)
        self.known, self.done = Counter(score=sum(map(len, alike.values()))), Counter()
        for group in alike.values():
            self.seconds_since_lap()
            for ended in Schedule(self.waves, self.adapt_wave, self.charge).run(map(self.improve, group)):
                yield from ended
                self.report()

    def report(self) -> None:
        for stage, known in self.known.items():
            self.progress(stage, self.done[stage], known)

    def result(self, records: Sequence[Record], task: Task) -> Result:
        """Records in the task's order, with their summary."""
        place = {example.id: index for index, example in enumerate(task.examples)}
        records = sorted(records, key=lambda record: place[record.id])
        return Result(records, summarise(records) | f1(records, task) | {"compile_seconds": self.clock.seconds})

    # Algorithm 1

    def improve(self, draft: Draft) -> Steps:
        """Algorithm 1 for one input, from its prompt to its record."""
        scores, prompt = yield from self.read(draft, "score", self.answer_row(draft))
        self.gate(draft, scores)
        self.done["score"] += 1
        adapts = self.adapts(draft)
        # The base's answer to an input that adapts is a measurement, and timed apart.
        stage = "base_answer" if adapts else "answer"
        text = yield from self.answer(draft, prompt, draft.record.pick_base, stage)
        draft.note(text_base=text, base_calls=plain(read_calls(text)))
        if adapts and (yield from self.synthesize(draft)):
            yield from self.adapt_and_answer(draft)
        return draft.finished()

    def read(self, draft: Draft, stage: str, row: Row) -> Generator[Any, Any, tuple[np.ndarray, Prompt]]:
        """The candidates' scores [N] after a row's prompt, under the base, and the prompt for decoding."""
        log_likelihoods, prompt = yield Score(draft, stage, row)
        return self.scores(draft, log_likelihoods), prompt

    def scores(self, draft: Draft, log_likelihoods: np.ndarray) -> np.ndarray:
        if self.config.gate.score == "sum":
            return log_likelihoods
        return log_likelihoods / np.array([len(name) for name in draft.names], np.float32)

    def answer_row(self, draft: Draft) -> Row:
        """The input with its answer prompt; the answer starts before its opening where the model writes that."""
        keys = self.config.answer.form == "keys"
        return draft.row(draft.opened, ANSWER, start=len(draft.opened if keys else draft.answer))

    # H

    def gate(self, draft: Draft, scores: np.ndarray) -> None:
        """Notes the candidates' probabilities and the certainty that follows."""
        padded, n = np.zeros((1, draft.shape.candidates), np.float32), len(scores)
        padded[0, :n] = scores
        mask = np.arange(draft.shape.candidates)[None] < n
        [probabilities], [certainty] = map(np.asarray, gate_wave(self.estimator, padded, mask))
        draft.note(
            log_likelihoods=scores.tolist(),
            probabilities=probabilities[:n].tolist(),
            uncertainty=float(certainty),
            uncertain=bool(certainty < self.config.gate.tau),
            pick_base=draft.best(scores),
        )

    def adapts(self, draft: Draft) -> bool:
        wanted = {"uncertain": (True,), "certain": (False,), "all": (True, False)}[self.config.gate.select]
        return self.config.method != "base" and draft.record.uncertain in wanted

    # Answers

    def answer(self, draft: Draft, prompt: Prompt, pick: str | None, stage: str) -> Generator[Any, Any, str]:
        """The greedy answer to the input itself; the form `keys` needs the function that scoring picked."""
        if self.config.answer.form == "keys":
            text, _ = yield from self.fill_in(draft, prompt, draft.tool(pick), stage)
            return text
        said: Said = yield Decode(draft, stage, Work(prompt, [Slot(TEXT, limit=self.config.answer.max_tokens)]))
        return said.texts[0]

    def fill_in(self, draft: Draft, prompt: Prompt, tool: Tool, stage: str) -> Generator[Any, Any, tuple[str, bool]]:
        """The values of the tool's arguments, as a call in JSON, and whether one of them was cut."""
        said: Said = yield Decode(draft, stage, Work(prompt, keys_script(self.encoder, tool, self.config.answer)))
        return keys_text(tool, said.texts), said.cut

    # G

    def synthesize(self, draft: Draft) -> Generator[Any, Any, bool]:
        """Writes pairs until there are enough or the tries are used up; whether there is any."""
        self.known["synthesize"] += 1
        wanted = self.config.synthesis
        write = self.write_pair if self.config.synthesis_form == "pair" else self.write_request
        while len(draft.pairs) < wanted.k and len(draft.record.synthetic) < wanted.k * wanted.tries:
            self.keep_if_good(draft, (yield from write(draft)))
        if not draft.pairs:
            draft.note(reason=f"no usable pair in {len(draft.record.synthetic)} tries")
        self.done["synthesize"] += 1
        return bool(draft.pairs)

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

    def write_pair(self, draft: Draft) -> Generator[Any, Any, Synthetic]:
        """A request and its call, written in one go."""
        said = yield from self.sampled(draft, Slot(TEXT, limit=self.config.answer.max_tokens))
        return read_pair(said.texts[0])

    def write_request(self, draft: Draft) -> Generator[Any, Any, Synthetic]:
        """A request, with the call that the model answers it with: the function that its scoring picks, and each value
        decoded after its key."""
        slot = Slot(LINE, limit=self.config.synthesis.max_tokens)
        said = yield from self.sampled(draft, slot)
        pair = Synthetic(read_request(said.texts[0]), ())
        if said.cut:
            return pair._replace(reason=f"the request was cut at {slot.limit} tokens")
        try:
            suffix = self.label_prompt(draft, pair)
        except InputError as error:
            return pair._replace(reason=str(error))
        scores, prompt = yield from self.read(draft, "synthesize", draft.row(suffix, SYNTHESIS))
        text, cut = yield from self.fill_in(draft, prompt, draft.tool(draft.best(scores)), "synthesize")
        return pair._replace(calls=tuple(read_calls(text) or ()), reason="a value was cut" if cut else None)

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

    def sampled(self, draft: Draft, slot: Slot) -> Generator[Any, Any, Said]:
        """What the model writes to the input's synthesis prompt; every attempt has its own random numbers."""
        config = self.config.synthesis
        row = draft.row(draft.request, SYNTHESIS, len(draft.record.synthetic))
        _, prompt = yield from self.read(draft, "synthesize", row)
        said: Said = yield Decode(draft, "synthesize", Work(prompt, [slot], Sampling(config.temperature, config.top_p)))
        return said

    # T

    def adapt_and_answer(self, draft: Draft) -> Generator[Any, Any, None]:
        """Trains the input's adapter, answers with it, and drops it."""
        self.known["adapt"] += 1
        losses, log_likelihoods, prompt = yield Adapt(draft, "adapt", self.answer_row(draft))
        scores = self.scores(draft, log_likelihoods)
        pick = draft.best(scores)
        text = yield from self.answer(draft, prompt, pick, "answer")
        taken = losses[: self.config.adapt.epochs * len(draft.pairs)]
        draft.note(adapted=True, losses=taken.tolist(), text_adapted=text, adapted_calls=plain(read_calls(text)))
        if np.all(np.isfinite(taken)) and np.all(np.isfinite(scores)):
            draft.note(pick=pick)
        else:
            draft.note(reverted=True, reason="training diverged: a loss or a score is not finite")
        self.done["adapt"] += 1

    def adapt_wave(self, wave: Sequence[Adapt]) -> Iterable[Any]:
        """What the model is to do for several `Adapt` at once."""
        drafts = [wish.draft for wish in wave]
        adapted = self.waves.adapt(
            [wish.row for wish in wave], [draft.pairs for draft in drafts], [draft.names for draft in drafts],
            [draft.key_for(ADAPTATION) for draft in drafts], max_pairs=self.config.synthesis.k, rule=self.rule,
            loss=self.loss, config=self.config.adapt,
        )  # fmt: skip
        return zip(*adapted, strict=True)

    # Time

    def seconds_since_lap(self) -> float:
        """Seconds since the last call, less those of compiling."""
        before, self.lap = self.lap, time.perf_counter() - self.clock.seconds
        return self.lap - before

    def charge(self, parts: Sequence[tuple[Draft, str]]) -> None:
        """Divides the seconds since the last call equally among inputs, each under its stage."""
        seconds = self.seconds_since_lap() / len(parts)
        for draft, stage in parts:
            so_far = draft.record.seconds
            draft.note(seconds={**so_far, stage: so_far.get(stage, 0.0) + seconds})
