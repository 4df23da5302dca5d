"""The paper's Algorithm 1 for ONE input: gate -> synthesize -> adapt -> answer.

`Algorithm.improve` is a generator: it yields what it wants the model to do (`Score`, `Decode`, `Adapt`) and is sent the
result. `ttsi_jax.batching.schedule` runs it for many inputs at once, a wave at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ttsi_jax.answering import KEYS, LINE, TEXT, Answerer, Slot, call_ids, read_calls
from ttsi_jax.batching.inputs import ADAPTATION, ANSWER, CHECKING, SAMPLES, SYNTHESIS, Draft
from ttsi_jax.batching.lanes import GREEDY, Prompt, Said, Work
from ttsi_jax.batching.schedule import Adapt, Decode, Score, Steps
from ttsi_jax.batching.waves import Ids, Pair, Row
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.guided.masks import Grammars, Guide
from ttsi_jax.model.generation import Sampling
from ttsi_jax.model.lora import Adapter
from ttsi_jax.quality.accept import gather, revert_reason
from ttsi_jax.quality.checks import ASKING, Evidence, examine
from ttsi_jax.rules.extras import corrupted, reward
from ttsi_jax.rules.interface import needed
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import plain
from ttsi_jax.synthesis import Synthesizer, Synthetic
from ttsi_jax.tasks import Tool
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder, answer_messages
from ttsi_jax.uncertainty import gate_wave

NOT_FINITE = "a score is not finite"
EXPLODED = 1e3  # times the first loss, or times 1 where that is smaller
Wanting = Generator[Score | Decode | Adapt, Any, Any]  # a part of the algorithm; what it returns is told beside it


class Algorithm:
    """The steps for one input, with the settings of a run bound."""

    def __init__(self, config: RunConfig, parts: Parts, encoder: PromptEncoder, model: LanguageModel):
        self.config, self.parts, self.encoder = config, parts, encoder
        self.stop, self.context_length = model.stop_ids[:1], model.config.context_length
        guided = parts.answerer.schema is not None
        self.grammars = Grammars(model.tokenizer, model.config.vocab_size, model.stop_ids) if guided else None
        self.n_opening = len(encoder.fragment(OPENING))
        self.n_decoded = max(config.answer.max_tokens, config.synthesis.max_tokens)
        self.reached: Counter[str] = Counter()  # inputs, by stage
        self.done: Counter[str] = Counter()
        self.warm: tuple[str, Adapter] | None = None  # where nothing is reset: the last input that adapted, its adapter

    def improve(self, draft: Draft) -> Steps:
        """From the input's prompt to its record."""
        scores, prompt = yield from self.read(draft, "score", self.answer_row(draft))
        self.gate(draft, scores)
        adapts = self.adapts(draft.record)
        self.done["score"] += 1
        # The base's answer to an input that adapts is a measurement, and timed apart.
        stage = "base_answer" if adapts else "answer"
        try:
            tool = draft.tool(draft.record.pick_base)
            text, _ = yield from self.fill_in(self.parts.answerer, draft, prompt, tool, stage)
        except InputError as error:
            return replace(draft.record, error=str(error))
        draft.note(text_base=text, base_calls=plain(read_calls(text)))
        if adapts and (yield from self.synthesize(draft)):
            yield from self.adapt_and_answer(draft)
        return draft.finished()

    def read(self, draft: Draft, stage: str, row: Row) -> Wanting:
        """The candidates' scores [N] after a row's prompt, and the prompt for decoding."""
        log_likelihoods, prompt = yield Score(draft, stage, row)
        draft.count(stage, len(row.prefix) + len(row.suffix))
        return self.scores(draft, log_likelihoods), prompt

    def decode(self, draft: Draft, stage: str, work: Work) -> Wanting:
        """What the model said."""
        said: Said = yield Decode(draft, stage, work)
        draft.count(stage, said.n_tokens)
        return said

    def scores(self, draft: Draft, log_likelihoods: np.ndarray) -> np.ndarray:
        if self.config.gate.score == "sum":
            return log_likelihoods
        return log_likelihoods / np.array([len(name) for name in draft.names], np.float32)

    def answer_row(self, draft: Draft) -> Row:
        """The input with its answer prompt."""
        return self.opened_row(draft, draft.opened, self.parts.answerer, ANSWER)

    def opened_row(self, draft: Draft, suffix: Ids, answerer: Answerer, *purpose: int) -> Row:
        """A prompt that ends with an answer's opening; the answer starts before that where the model writes it."""
        return draft.row(suffix, *purpose, start=len(suffix) - (0 if answerer.opened else self.n_opening))

    def guide(self, draft: Draft, part: Answerer | Synthesizer, limit: int) -> Guide | None:
        """Through what the model may write, of at most `limit` tokens; None: anything. Raises InputError where no call
        of the input's functions is so short."""
        if self.grammars is None or part.schema is None:
            return None
        return self.grammars.guide(part.schema(draft.example.tools), limit)

    # H

    def gate(self, draft: Draft, scores: np.ndarray) -> None:
        """Notes the candidates' probabilities and the certainty that follows."""
        probabilities, certainty = self.certainty(draft, scores)
        draft.note(
            log_likelihoods=scores.tolist(),
            probabilities=probabilities,
            uncertainty=certainty,
            uncertain=certainty < self.config.gate.tau,
            pick_base=draft.best(scores),
            reason=None if np.isfinite(certainty) else "the certainty is not a number",
        )

    def certainty(self, draft: Draft, scores: np.ndarray) -> tuple[list[float], float]:
        """The candidates' probabilities, and how certain they are."""
        padded, n = np.zeros((1, draft.shape.candidates), np.float32), len(scores)
        padded[0, :n] = scores
        gated = gate_wave(self.parts.estimator, padded, np.arange(draft.shape.candidates)[None] < n)
        [probabilities], [certainty] = map(np.asarray, gated)
        return probabilities[:n].tolist(), float(certainty)

    def adapts(self, record: Record) -> bool:
        wanted = {"uncertain": (True,), "certain": (False,), "all": (True, False)}[self.config.gate.select]
        return self.config.method != "base" and record.uncertain in wanted

    # Answers

    def fill_in(
        self, answerer: Answerer, draft: Draft, prompt: Prompt, tool: Tool, stage: str, sampling: Sampling = GREEDY
    ) -> Wanting:
        """The answer with this tool (None where a logit was not finite), and whether a part of it was cut. Raises what
        `guide` does."""
        script = answerer.script(self.encoder, tool, self.config.answer)
        guide = self.guide(draft, answerer, self.config.answer.max_tokens)
        said = yield from self.decode(draft, stage, Work(prompt, script, sampling, guide=guide))
        return answerer.text(tool, said.texts) if said.finite else None, said.cut

    # G

    def synthesize(self, draft: Draft) -> Wanting:
        """Writes pairs until there are enough or the tries are used up; whether there is any."""
        self.reached["synthesize"] += 1
        n, tries = self.config.synthesis.k + self.config.synthesis.held_out, self.config.synthesis.tries
        while len(draft.pairs) + bool(draft.held_out) < n and len(draft.record.synthetic) < n * tries:
            pair = yield from self.write(draft)
            if not (pair.calls or pair.reason):
                pair = yield from self.label(draft, pair)
            pair = self.keep_if_good(draft, (yield from self.examine(draft, pair)))
            if pair.reason is None and not draft.held_out and "samples" in needed(self.parts.loss):
                yield from self.sample_answers(draft, pair)
        if not draft.pairs:
            draft.note(reason=f"no usable pair in {len(draft.record.synthetic)} tries")
        self.done["synthesize"] += 1
        return bool(draft.pairs)

    def write(self, draft: Draft) -> Wanting:
        """A pair from the model or from elsewhere; every attempt has its own random numbers."""
        synthesizer, settings, attempt = self.parts.synthesizer, self.config.synthesis, len(draft.record.synthetic)
        if not isinstance(synthesizer, Synthesizer):
            return synthesizer(draft.example, attempt)
        slot = Slot(TEXT, limit=self.config.answer.max_tokens)
        if synthesizer.line:
            slot = Slot(LINE, limit=settings.max_tokens)
        try:
            guide = self.guide(draft, synthesizer, slot.limit)
        except InputError as error:
            return Synthetic("", (), str(error))
        _, prompt = yield from self.read(draft, "synthesize", draft.row(draft.request, SYNTHESIS, attempt))
        work = Work(prompt, [slot], Sampling(settings.temperature, settings.top_p), guide=guide)
        said = yield from self.decode(draft, "synthesize", work)
        if not said.finite:
            return Synthetic("", (), NOT_FINITE)
        pair = synthesizer.read(said.texts[0])
        if said.cut and (synthesizer.line or guide) and not pair.reason:
            what = "request" if synthesizer.line else "pair"
            pair = pair._replace(reason=f"the {what} was cut at {slot.limit} tokens")
        return pair

    def label(self, draft: Draft, pair: Synthetic) -> Wanting:
        """The pair with the call that the model answers its request with: guided, where answers are; else the function
        that its scoring picks, and each value decoded after its key."""
        answerer = KEYS if self.parts.answerer.schema is None else self.parts.answerer
        try:
            text, cut, _ = yield from self.reply(draft, pair, answerer, SYNTHESIS)
        except InputError as error:
            return pair._replace(reason=str(error))
        reason = NOT_FINITE if text is None else "a value was cut" if cut else None
        return pair._replace(calls=tuple(read_calls(text) or ()), reason=reason)

    def reply(self, draft: Draft, pair: Synthetic, answerer: Answerer, *purpose: int, n_samples: int = 0) -> Wanting:
        """The model's own answer to a new request (None where a score or logit was not finite), whether a part of it
        was cut, and sampled answers. Raises what `label_prompt` does."""
        row = self.opened_row(draft, self.label_prompt(draft, pair), answerer, *purpose)
        scores, prompt = yield from self.read(draft, "synthesize", row)
        tool = draft.tool(draft.best(scores))
        text, cut = yield from self.fill_in(answerer, draft, prompt, tool, "synthesize")
        samples = yield from self.sample(answerer, draft, prompt, tool, n_samples)
        return text if np.all(np.isfinite(scores)) else None, cut, samples

    def label_prompt(self, draft: Draft, pair: Synthetic) -> Ids:
        """The answer prompt of a new request, after the prefix.

        Raises:
            InputError: the chat template refuses the request, or it is too long.
        """
        messages = answer_messages(draft.example, pair.query)
        suffix = self.encoder.suffix(draft.example, messages, draft.prefix, OPENING)
        room = self.context_length - len(draft.prefix) - self.n_decoded
        if len(suffix) > min(draft.room, room):
            raise InputError("the request is too long")
        return suffix

    def examine(self, draft: Draft, pair: Synthetic) -> Wanting:
        """The pair, with the reason to drop it where a check finds one. The model answers the pair's request again only
        where a check asks for that and the others found nothing."""
        example, checks, synthesizer = draft.example, self.config.synthesis.checks, self.parts.synthesizer
        kept = [other["query"] for other in draft.record.synthetic if other["accepted"]]
        told = synthesizer.prompt(example)[0] if isinstance(synthesizer, Synthesizer) else ""
        evidence = Evidence(example.query, example.tools, kept, told)
        pair = examine(pair, evidence, [name for name in checks if name not in ASKING])
        asking = [name for name in checks if name in ASKING]
        if pair.reason or not asking:
            return pair
        purpose, n = (CHECKING, len(draft.record.synthetic)), self.config.synthesis.labels * ("agreement" in asking)
        try:
            text, _, samples = yield from self.reply(draft, pair, self.parts.answerer, *purpose, n_samples=n)
        except InputError as error:
            return pair._replace(reason=str(error))
        evidence = evidence._replace(reread=read_calls(text), relabelled=[*map(read_calls, samples)])
        return examine(pair, evidence, asking)

    def keep_if_good(self, draft: Draft, pair: Synthetic) -> Synthetic:
        """Records a pair with the outcome of its checks, and makes a training sequence of a good one."""
        if pair.reason is None:
            try:
                sequence = self.training_pair(draft, pair)
                if len(draft.pairs) < self.config.synthesis.k:
                    draft.pairs.append(sequence)
                else:
                    draft.held_out = sequence
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

    def sample_answers(self, draft: Draft, pair: Synthetic) -> Wanting:
        """Samples answers to the request of the newest pair, with the pair's function, and rewards them."""
        answerer = self.parts.answerer
        suffix = draft.pairs[-1].prompt + (self.encoder.fragment(OPENING) if answerer.opened else ())
        if len(suffix) > draft.room:
            for _ in range(self.config.adapt.samples):
                self.add_sample(draft, pair, "")
            return
        _, prompt = yield from self.read(draft, "synthesize", draft.row(suffix, SAMPLES, len(draft.pairs)))
        tool = draft.tool(pair.calls[0].name)
        for text in (yield from self.sample(answerer, draft, prompt, tool, self.config.adapt.samples)):
            self.add_sample(draft, pair, text)

    def sample(self, answerer: Answerer, draft: Draft, prompt: Prompt, tool: Tool, n: int) -> Wanting:
        """Several sampled answers with this tool; empty where a logit was not finite."""
        sampling, texts = Sampling(self.config.synthesis.temperature, self.config.synthesis.top_p), list[str]()
        for number in range(n):
            own = prompt._replace(key=jax.random.fold_in(prompt.key, number))
            text, _ = yield from self.fill_in(answerer, draft, own, tool, "synthesize", sampling)
            texts.append(text or "")
        return texts

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

    def adapt_and_answer(self, draft: Draft) -> Wanting:
        """Trains the input's adapter, answers with it, and drops it."""
        self.reached["adapt"] += 1
        before = self.warm and self.warm[0]
        losses, scores, prompt, held_out = yield from self.train(draft)
        pick = draft.best(scores)
        text, _ = yield from self.fill_in(self.parts.answerer, draft, prompt, draft.tool(pick), "answer")
        calls, margins = read_calls(text), (draft.record.uncertainty, self.certainty(draft, scores)[1])
        evidence, rule = gather(held_out, margins, calls, draft.example.tools), self.config.adapt.accept
        draft.note(adapted=True, losses=losses.tolist(), text_adapted=text, adapted_calls=plain(calls))
        draft.note(adapted_after=before, evidence=evidence._asdict())
        if not (np.all(np.isfinite(losses)) and np.all(np.isfinite(scores)) and text is not None):
            draft.note(reverted=True, reason="training diverged: a loss or a score is not finite")
        elif np.max(losses, initial=0) > EXPLODED * max(1.0, abs(losses[0])):
            draft.note(reverted=True, reason=f"training diverged: the loss grew to {np.max(losses):.3g}")
        elif why := revert_reason(evidence, rule):
            draft.note(reverted=True, reason=f"not accepted: {why}")
        else:
            draft.note(pick=pick)
            if self.config.adapt.reset == "never":  # waves of one, see `check`
                self.warm = draft.example.id, jax.tree.map(lambda x: x[0], prompt.read.rows.adapters)
        self.done["adapt"] += 1

    def train(self, draft: Draft) -> Wanting:
        """The losses of an input's steps, its candidates' scores with the adapter, the prompt for decoding, and the
        losses on the held-out pair with the base and the adapter (None: there is none)."""
        row = self.answer_row(draft)._replace(key=draft.key_for(ADAPTATION))
        losses, log_likelihoods, prompt, held_out = yield Adapt(draft, "adapt", row)
        epochs, n_prefix = self.config.adapt.epochs, len(draft.prefix)
        pairs = [*draft.pairs * epochs, *filter(None, [draft.held_out] * 2)]
        n_tokens = sum(n_prefix + len(pair.prompt) + len(pair.answer) for pair in pairs)
        draft.count("adapt", n_tokens + n_prefix + len(row.suffix))
        return losses[: epochs * len(draft.pairs)], self.scores(draft, log_likelihoods), prompt, held_out
