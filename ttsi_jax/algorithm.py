"""The paper's Algorithm 1 for ONE input: gate -> synthesize -> adapt -> answer.

`Algorithm.improve` is a generator: it yields what it wants the model to do (`Score`, `Decode`, `Adapt`) and is sent the
result. `ttsi_jax.batching.schedule` runs it for many inputs at once, a wave at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from ttsi_jax.answering import KEYS, LINE, TEXT, Answerer, Slot, call_ids, read_calls
from ttsi_jax.batching.inputs import ADAPTATION, ANSWER, CHECKING, SAMPLES, SYNTHESIS, Draft
from ttsi_jax.batching.lanes import GREEDY, Prompt, Said, Work
from ttsi_jax.batching.schedule import Adapt, Decode, Learned, Score, Steps, Together, Wanting
from ttsi_jax.batching.waves import Ids, Pair, Row
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.guided.masks import Grammars, Guide
from ttsi_jax.model.generation import Sampling
from ttsi_jax.model.lora import Adapter
from ttsi_jax.quality.accept import gather, revert_reason
from ttsi_jax.quality.agreement import same
from ttsi_jax.quality.asking import best_first, certainty_of_call
from ttsi_jax.quality.checks import ASKING, Evidence, examine, examine_again
from ttsi_jax.quality.confidence import CallEstimator
from ttsi_jax.quality.thresholds import NONE
from ttsi_jax.rules.extras import corrupted, reward
from ttsi_jax.rules.interface import needed
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import plain
from ttsi_jax.synthesis import Synthesizer, Synthetic
from ttsi_jax.tasks import Tool
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder, answer_messages
from ttsi_jax.uncertainty import gate_wave, margin

NOT_FINITE = "a score is not finite"
EXPLODED = 1e3  # times the first loss, or times 1 where that is smaller


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
        self.tau = NONE if config.gate.tau == "auto" else config.gate.tau  # the loop chooses one
        self.warm: tuple[str, Adapter] | None = None  # where nothing is reset: the last input that adapted, its adapter

    def improve(self, draft: Draft) -> Steps:
        """From the input's prompt to its record."""
        try:
            prompt, text = yield from self.gate(draft)
            adapts = self.adapts(draft.record)
            self.done["score"] += 1
            if text is None:
                # The base's answer to an input that adapts is a measurement, and timed apart.
                tool, stage = draft.tool(draft.record.pick_base), "base_answer" if adapts else "answer"
                text, _ = yield from self.fill_in(self.parts.answerer, draft, prompt, tool, stage)
        except InputError as error:
            return replace(draft.record, error=str(error))
        draft.note(text_base=text, base_calls=plain(read_calls(text)))
        if adapts and (yield from self.synthesize(draft)):
            yield from self.adapt_and_answer(draft)
        return draft.finished()

    def gauge(self, draft: Draft) -> Steps:
        """How certain the model is of an input, and no more: what tau is chosen by."""
        try:
            yield from self.gate(draft)
        except InputError:
            pass  # `improve` will say so
        self.done["gauge"] += 1
        return draft.record

    def read(self, draft: Draft, stage: str, row: Row) -> Wanting:
        """The candidates' scores [N] after a row's prompt, and the prompt for decoding."""
        log_likelihoods, prompt = yield Score(draft, stage, row, draft.names)
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

    def gate(self, draft: Draft) -> Wanting:
        """Notes the candidates' probabilities and the certainty; the prompt to decode from, and the base's answer where
        the certainty is one of the whole answer (else None). Raises what `guide` does."""
        scores, prompt = yield from self.read(draft, "score", self.answer_row(draft))
        (probabilities, certainty), text = self.certainty(draft, scores), None
        if isinstance(self.parts.estimator, CallEstimator):
            tool = draft.tool(draft.best(scores))
            text, _ = yield from self.fill_in(self.parts.answerer, draft, prompt, tool, "score")
            samples = partial(self.sample, self.parts.answerer, draft, prompt, tool, self.config.gate.samples, "score")
            ask = certainty_of_call(self.parts.estimator, draft, certainty, read_calls(text), self.encoder, samples)
            certainty = yield from ask
        draft.note(
            log_likelihoods=scores.tolist(),
            probabilities=probabilities,
            uncertainty=certainty,
            uncertain=certainty < self.tau,
            pick_base=draft.best(scores),
            reason=None if np.isfinite(certainty) else "the certainty is not a number",
        )
        return prompt, text

    def certainty(self, draft: Draft, scores: np.ndarray) -> tuple[list[float], float]:
        """The candidates' probabilities, and how certain they are: by the margin, where the estimator wants a call."""
        padded, n = np.zeros((1, draft.shape.candidates), np.float32), len(scores)
        padded[0, :n] = scores
        estimator = margin if isinstance(self.parts.estimator, CallEstimator) else self.parts.estimator
        gated = gate_wave(estimator, padded, np.arange(draft.shape.candidates)[None] < n)
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
        settings, n_written = self.config.synthesis, 0
        n = settings.k + settings.held_out
        while len(draft.pairs) + bool(draft.held_out) < n and n_written < max(n, settings.candidates) * settings.tries:
            attempts = range(n_written, n_written + settings.candidates)
            pairs = yield Together([self.attempt(draft, number) for number in attempts])
            if len(pairs) > 1:
                pairs = yield from best_first(draft, pairs, partial(self.training_pair, draft), settings.diversity)
            for pair in pairs:
                room = n - len(draft.pairs) - bool(draft.held_out)
                pair = self.keep_if_good(draft, examine_again(pair, self.evidence(draft), settings.checks, room))
                if pair.reason is None and not draft.held_out and "samples" in needed(self.parts.loss):
                    yield from self.sample_answers(draft, pair)
            n_written += settings.candidates
        if not draft.pairs:
            draft.note(reason=f"no usable pair in {n_written} tries")
        self.done["synthesize"] += 1
        return bool(draft.pairs)

    def attempt(self, draft: Draft, number: int) -> Wanting:
        """One pair, labelled and checked; every attempt has its own random numbers."""
        pair = yield from self.write(draft, number)
        if not (pair.calls or pair.reason):
            pair = yield from self.label(draft, pair)
        return (yield from self.examine(draft, pair, number))

    def write(self, draft: Draft, attempt: int) -> Wanting:
        """A pair from the model or from elsewhere."""
        synthesizer, settings = self.parts.synthesizer, self.config.synthesis
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

    def evidence(self, draft: Draft) -> Evidence:
        """What checks know without asking the model."""
        synthesizer, example = self.parts.synthesizer, draft.example
        kept = [other["query"] for other in draft.record.synthetic if other["accepted"]]
        told = synthesizer.prompt(example)[0] if isinstance(synthesizer, Synthesizer) else ""
        return Evidence(example.query, example.tools, kept, told)

    def examine(self, draft: Draft, pair: Synthetic, number: int) -> Wanting:
        """The pair, with the reason to drop it where a check finds one. The model answers the pair's request again only
        where a check asks for that and the others found nothing."""
        checks, evidence = self.config.synthesis.checks, self.evidence(draft)
        pair = examine(pair, evidence, [name for name in checks if name not in ASKING])
        asking = [name for name in checks if name in ASKING]
        if pair.reason or not asking:
            return pair
        purpose, n = (CHECKING, number), self.config.synthesis.labels * ("agreement" in asking)
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

    def sample(
        self, answerer: Answerer, draft: Draft, prompt: Prompt, tool: Tool, n: int, stage: str = "synthesize"
    ) -> Wanting:
        """Several sampled answers with this tool; empty where a logit was not finite."""
        sampling, texts = Sampling(self.config.synthesis.temperature, self.config.synthesis.top_p), list[str]()
        for number in range(n):
            own = prompt._replace(key=jax.random.fold_in(prompt.key, number))
            text, _ = yield from self.fill_in(answerer, draft, own, tool, stage, sampling)
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
        before, settings = self.warm and self.warm[0], self.config.adapt
        seeds = range(2 if "seeds" in (*settings.accept, *settings.measure) else 1)
        own, *others = yield Together([self.learn(draft, seed) for seed in seeds])
        calls, pick = read_calls(own.text), draft.best(own.scores)
        scores_base = np.array(draft.record.log_likelihoods, np.float32)
        margins = self.certainty(draft, scores_base)[1], self.certainty(draft, own.scores)[1]
        agrees = same(calls, read_calls(others[0].text)) if others else None
        evidence = gather(own.held_out, margins, calls, draft.example.tools, own.kl, agrees)
        draft.note(adapted=True, losses=own.losses.tolist(), text_adapted=own.text, adapted_calls=plain(calls))
        draft.note(adapted_after=before, evidence=evidence.record())
        first, largest = own.losses[0], np.max(own.losses, initial=0)
        if not (np.all(np.isfinite(own.losses)) and np.all(np.isfinite(own.scores)) and own.text is not None):
            draft.note(reverted=True, reason="training diverged: a loss or a score is not finite")
        elif largest > EXPLODED * max(1.0, abs(first)):
            draft.note(reverted=True, reason=f"training diverged: the loss grew to {largest:.3g}")
        elif why := revert_reason(evidence, settings.accept):
            draft.note(reverted=True, reason=f"not accepted: {why}")
        else:
            draft.note(pick=pick)
            if settings.reset == "never":  # waves of one, see `check`
                self.warm = draft.example.id, jax.tree.map(lambda x: x[0], own.prompt.read.rows.adapters)
        self.done["adapt"] += 1

    def learn(self, draft: Draft, seed: int) -> Wanting:
        """What one adapter learned and answers; each seed draws its own."""
        key = draft.key_for(ADAPTATION, *filter(None, [seed]))
        learned: Learned = yield Adapt(draft, "adapt", self.answer_row(draft)._replace(key=key), seed)
        steps = [draft.pairs[step % len(draft.pairs)] for step in range(len(learned.losses))]
        pairs = [*steps, *filter(None, [draft.held_out] * 2)]
        n_tokens = sum(len(draft.prefix) + len(pair.prompt) + len(pair.answer) for pair in pairs)
        draft.count("adapt", n_tokens + len(draft.prefix) + len(draft.opened))
        learned = learned._replace(scores=self.scores(draft, learned.scores))
        tool = draft.tool(draft.best(learned.scores))
        text, _ = yield from self.fill_in(self.parts.answerer, draft, learned.prompt, tool, "answer")
        return learned._replace(text=text)
