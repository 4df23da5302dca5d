"""The paper's Algorithm 1 for ONE input: gate -> synthesize -> adapt -> answer.

`Algorithm.improve` is a generator: it yields what it wants the model to do (`Score`, `Decode`, `Adapt`) and is sent the
result. `ttsi_jax.batching.schedule` runs it for many inputs at once, a wave at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ttsi_jax.answering import KEYS, LINE, TEXT, Answerer, Slot, call_ids, read_calls
from ttsi_jax.batching.inputs import ADAPTATION, ANSWER, CHECKING, SAMPLES, SYNTHESIS, Draft
from ttsi_jax.batching.lanes import GREEDY, Prompt, Said, Work
from ttsi_jax.batching.schedule import Adapt, Ask, Decode, Score, Steps, Wish
from ttsi_jax.batching.shared import Shared
from ttsi_jax.batching.waves import Ids, Pair, Row, bucket
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.guided.masks import Grammars, Guide
from ttsi_jax.model.generation import Sampling
from ttsi_jax.model.lora import Adapter
from ttsi_jax.quality.accept import gather, revert_reason
from ttsi_jax.quality.checks import ASKING, Evidence, examine
from ttsi_jax.quality.votes import vote
from ttsi_jax.rules.extras import corrupted, reward
from ttsi_jax.rules.interface import needed
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import plain
from ttsi_jax.synthesis import Synthesizer, Synthetic
from ttsi_jax.tasks import Call, Tool
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder, answer_messages
from ttsi_jax.uncertainty import gate_wave

NOT_FINITE, NO_ROOM = "a score is not finite", "the pair does not fit the model's context"
EXPLODED = 1e3  # times the first loss, or times 1 where that is smaller
Wanting = Generator[Wish, Any, Any]  # a part of the algorithm; what it returns is told beside it


class Algorithm:
    """The steps for one input, with the settings of a run bound."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        encoder: PromptEncoder,
        model: LanguageModel,
        shared: Shared | None = None,
    ):
        self.config, self.parts, self.encoder = config, parts, encoder
        self.stop, self.context_length = model.stop_ids[:1], model.config.context_length
        guided = parts.answerer.schema is not None
        self.grammars = Grammars(model.tokenizer, model.config.vocab_size, model.stop_ids) if guided else None
        self.n_opening = len(encoder.fragment(OPENING))
        self.n_decoded = max(config.answer.max_tokens, config.synthesis.max_tokens)
        self.reached: Counter[str] = Counter()  # inputs, by stage
        self.done: Counter[str] = Counter()
        self.in_context = config.method in ("tt-icl", "icl")
        self.extras = () if self.in_context else needed(parts.loss)
        self.shared = Shared() if shared is None else shared.of(config, model, self.n_decoded, self.extras)
        self.warm: tuple[str, Adapter] | None = None  # where nothing is reset: the last input that adapted, its adapter

    def improve(self, draft: Draft) -> Steps:
        """From the input's prompt to its record."""
        try:
            log_likelihoods = yield from self.shared.once("base", draft, self.answer_with_base)
        except InputError as error:
            return replace(draft.record, error=str(error))
        self.gate(draft, self.scores(draft, log_likelihoods))
        adapts = self.adapts(draft.record)
        if not adapts:
            draft.rename("base_answer", "answer")
        self.done["score"] += 1
        if adapts and (yield from self.synthesize(draft)) and self.config.method != "pairs":
            yield from self.adapt_and_answer(draft)
        return draft.finished()

    def answer_with_base(self, draft: Draft) -> Wanting:
        """Notes the base's answer; returns the candidates' log-likelihoods [N]. For an input that adapts the answer is
        a measurement, and timed apart."""
        log_likelihoods, prompt = yield from self.read(draft, "score", self.answer_row(draft))
        tool = draft.tool(draft.best(self.scores(draft, log_likelihoods)))
        text, samples = yield from self.answer(draft, prompt, tool, "base_answer")
        draft.note(text_base=text, base_calls=plain(read_calls(text)), samples_base=samples)
        return log_likelihoods

    def read(self, draft: Draft, stage: str, row: Row) -> Wanting:
        """The candidates' log-likelihoods [N] after a row's prompt, and the prompt for decoding."""
        found = yield Score(draft, stage, row)
        draft.count(stage, len(row.prefix) + len(row.suffix))
        return found

    def decode(self, draft: Draft, stage: str, *work: Work) -> Wanting:
        """What the model said, for each piece of work."""
        said: list[Said] = yield Decode(draft, stage, work)
        draft.count(stage, sum(own.n_tokens for own in said))
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
        return self.config.method == "icl" or (self.config.method != "base" and record.uncertain in wanted)

    # Answers

    def answer(self, draft: Draft, prompt: Prompt, tool: Tool, stage: str) -> Wanting:
        """The answer, and sampled ones: the greedy one, or with a vote the one that most sampled ones agree with."""
        settings = self.config.answer
        sampling = [Sampling(settings.temperature, settings.top_p)] * settings.samples
        filled = yield from self.fill_in(self.parts.answerer, draft, prompt, tool, stage, [GREEDY, *sampling])
        greedy, *samples = [text for text, _ in filled]
        winner = vote([*map(read_calls, samples)], read_calls(greedy)) if settings.vote else None
        return greedy if winner is None or greedy is None else samples[winner], samples

    def fill_in(
        self,
        answerer: Answerer,
        draft: Draft,
        prompt: Prompt,
        tool: Tool,
        stage: str,
        samplings: Sequence[Sampling] = (GREEDY,),
    ) -> Wanting:
        """Answers with this tool, side by side: of each the text (None where a logit was not finite), and whether a
        part of it was cut. Raises what `guide` does."""
        if not samplings:
            return []
        script, limit = answerer.script(self.encoder, tool, self.config.answer), self.config.answer.max_tokens
        work = []
        for number, sampling in enumerate(samplings):
            own = prompt._replace(key=jax.random.fold_in(prompt.key, number))
            work.append(Work(own, script, sampling, guide=self.guide(draft, answerer, limit)))
        said = yield from self.decode(draft, stage, *work)
        return [(answerer.text(tool, own.texts) if own.finite else None, own.cut) for own in said]

    # G

    def synthesize(self, draft: Draft) -> Wanting:
        """Writes pairs; whether there is any."""
        self.reached["synthesize"] += 1
        yield from self.shared.once("pairs", draft, self.write_pairs)
        self.done["synthesize"] += 1
        return bool(draft.pairs)

    def write_pairs(self, draft: Draft) -> Wanting:
        """Writes pairs until there are enough, the tries are used up, or there can be no more."""
        ended = False
        n, tries = self.config.synthesis.k + self.config.synthesis.held_out, self.config.synthesis.tries
        while len(draft.pairs) + bool(draft.held_out) < n and len(draft.record.synthetic) < n * tries:
            pair = yield from self.write(draft)
            if not (pair.calls or pair.reason):
                pair = yield from self.label(draft, pair)
            pair = self.keep_if_good(draft, (yield from self.examine(draft, pair)))
            if ended := pair.last:
                break
            if pair.reason is None and not draft.held_out and "samples" in self.extras:
                yield from self.sample_answers(draft, pair)
        if not draft.pairs:
            last, tries = draft.record.synthetic[-1], len(draft.record.synthetic)
            draft.note(reason=last["reason"] if ended else f"no usable pair in {tries} tries")

    def write(self, draft: Draft) -> Wanting:
        """A pair from the model or from elsewhere; every attempt has its own random numbers."""
        synthesizer, settings, attempt = self.parts.synthesizer, self.config.synthesis, len(draft.record.synthetic)
        if not isinstance(synthesizer, Synthesizer):
            return (yield Ask(draft, "synthesize", attempt))
        slot = Slot(TEXT, limit=self.config.answer.max_tokens)
        if synthesizer.line:
            slot = Slot(LINE, limit=settings.max_tokens)
        try:
            guide = self.guide(draft, synthesizer, slot.limit)
        except InputError as error:
            return Synthetic("", (), str(error))
        _, prompt = yield from self.read(draft, "synthesize", draft.row(draft.request, SYNTHESIS, attempt))
        work = Work(prompt, [slot], Sampling(settings.temperature, settings.top_p), guide=guide)
        [said] = yield from self.decode(draft, "synthesize", work)
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
        log_likelihoods, prompt = yield from self.read(draft, "synthesize", row)
        tool = draft.tool(draft.best(self.scores(draft, log_likelihoods)))
        samplings = [GREEDY, *self.samplings(n_samples)]
        (text, cut), *samples = yield from self.fill_in(answerer, draft, prompt, tool, "synthesize", samplings)
        return text if np.all(np.isfinite(log_likelihoods)) else None, cut, [text for text, _ in samples]

    def samplings(self, n: int) -> list[Sampling]:
        """Of n answers to a pair's request."""
        return [Sampling(self.config.synthesis.temperature, self.config.synthesis.top_p)] * n

    def label_prompt(self, draft: Draft, pair: Synthetic) -> Ids:
        """The answer prompt of a new request, after the prefix.

        Raises:
            InputError: the chat template refuses the request, or it is too long.
        """
        messages = answer_messages(draft.example, pair.asked())
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
        evidence = Evidence(example.query, pair.tools or example.tools, kept, told)
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
                    if self.in_context:
                        draft.shown = [*draft.shown, (pair.asked(), pair.calls)]
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
        if self.in_context and len(draft.pairs) < self.config.synthesis.k:
            self.shown_prompt(draft, [*draft.shown, (pair.asked(), pair.calls)])
        prompt = self.encoder.suffix(draft.example, answer_messages(draft.example, pair.asked()), draft.prefix)
        answer = call_ids(self.encoder, pair.calls[0]) + self.stop
        wrong = corrupted(pair, pair.tools or draft.example.tools) if "rejected" in self.extras else None
        rejected = () if wrong is None else call_ids(self.encoder, wrong) + self.stop
        if len(draft.prefix) + len(prompt) + max(len(answer), len(rejected)) > self.context_length:
            raise InputError(NO_ROOM)
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
        tools = {tool.name: tool for tool in pair.tools or draft.example.tools}
        samplings, tool = self.samplings(self.config.adapt.samples), tools[pair.calls[0].name]
        for text, _ in (yield from self.fill_in(answerer, draft, prompt, tool, "synthesize", samplings)):
            self.add_sample(draft, pair, text or "")

    def add_sample(self, draft: Draft, pair: Synthetic, text: str) -> None:
        """Adds a sampled answer to the input's newest pair, and to its record."""
        calls, newest, entry = read_calls(text), draft.pairs[-1], draft.record.synthetic[-1]
        ids = (call_ids(self.encoder, calls[0]) if calls else self.encoder.fragment(text)) + self.stop
        value = reward(calls, pair, pair.tools or draft.example.tools)
        if not text or len(draft.prefix) + len(newest.prompt) + len(ids) > self.context_length:
            ids, value = (), 0.0
        draft.pairs[-1] = newest._replace(samples=(*newest.samples, ids), rewards=(*newest.rewards, value))
        samples = [*entry.get("samples", []), {"text": text, "reward": value}]
        draft.note(synthetic=[*draft.record.synthetic[:-1], {**entry, "samples": samples}])

    # T

    def adapt_and_answer(self, draft: Draft) -> Wanting:
        """Trains the input's adapter, or shows the pairs, answers so, and drops both."""
        self.reached["adapt"] += 1
        before = self.warm and self.warm[0]
        losses, scores, prompt, held_out = yield from (self.show(draft) if self.in_context else self.train(draft))
        pick = draft.best(scores)
        text, samples = yield from self.answer(draft, prompt, draft.tool(pick), "answer")
        calls, margins = read_calls(text), (draft.record.uncertainty, self.certainty(draft, scores)[1])
        evidence, rule = gather(held_out, margins, calls, draft.example.tools), self.config.adapt.accept
        draft.note(adapted=True, losses=losses.tolist(), text_adapted=text, adapted_calls=plain(calls))
        draft.note(samples_adapted=samples, adapted_after=before, evidence=evidence._asdict())
        if not (np.all(np.isfinite(losses)) and np.all(np.isfinite(scores)) and text is not None):
            draft.note(reverted=True, reason="training diverged: a loss or a score is not finite")
        elif np.max(losses, initial=0) > EXPLODED * np.max(np.abs(losses[:1]), initial=1.0):
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

    def show(self, draft: Draft) -> Wanting:
        """What `train` gives, where the pairs stand in the prompt and nothing is trained (TT-ICL)."""
        suffix = self.shown_prompt(draft, draft.shown)
        row = self.opened_row(draft, suffix, self.parts.answerer, ADAPTATION)
        row = row._replace(shape=draft.shape._replace(suffix=bucket(len(suffix), draft.shape.suffix)))
        log_likelihoods, prompt = yield from self.read(draft, "adapt", row)
        return np.zeros(0, np.float32), self.scores(draft, log_likelihoods), prompt, None

    def shown_prompt(self, draft: Draft, shown: Sequence[tuple[str, Sequence[Call]]]) -> Ids:
        """The answer prompt after the prefix, with examples before the request. Raises what `training_pair` does."""
        messages = answer_messages(draft.example, shown=shown)
        suffix = self.encoder.suffix(draft.example, messages, draft.prefix, OPENING)
        if len(draft.prefix) + len(suffix) + self.n_decoded > self.context_length:
            raise InputError(NO_ROOM)
        return suffix
