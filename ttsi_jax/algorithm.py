"""The paper's Algorithm 1 for ONE input: gate -> synthesize -> adapt -> answer.

`Algorithm.improve` is a generator: it yields what it wants the model to do (`Score`, `Decode`, `Adapt`) and is sent the
result. `ttsi_jax.batching.schedule` runs it for many inputs at once, a wave at a time. What it asks, and how pairs are
written, stands in `ttsi_jax.steps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from ttsi_jax.answering import read_calls
from ttsi_jax.batching.inputs import ADAPTATION, Draft
from ttsi_jax.batching.lanes import GREEDY, Prompt
from ttsi_jax.batching.schedule import Adapt, Learned, Steps, Together, Wanting
from ttsi_jax.batching.shared import Shared
from ttsi_jax.batching.waves import bucket
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.model.generation import Sampling
from ttsi_jax.model.lora import Adapter
from ttsi_jax.quality.accept import gather, revert_reason
from ttsi_jax.quality.agreement import same
from ttsi_jax.quality.confidence import CallEstimator
from ttsi_jax.quality.thresholds import NONE
from ttsi_jax.quality.votes import vote
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import plain
from ttsi_jax.steps.reading import certainty_of_call
from ttsi_jax.steps.writing import Writing
from ttsi_jax.tasks import Tool
from ttsi_jax.tasks.prompts import PromptEncoder
from ttsi_jax.uncertainty import gate_wave, margin

EXPLODED = 1e3  # times the first loss, or times 1 where that is smaller


class Outcome(NamedTuple):
    """What an adapter, or the pairs in the prompt, led to."""

    losses: np.ndarray  # see `Learned`, as `held_out` and `kl`
    scores: np.ndarray  # [N] float32, of the candidates, as the gate takes them
    held_out: tuple[float, float] | None
    kl: float | None
    text: str | None  # the answer
    samples: Sequence[str | None]  # sampled ones
    adapter: Adapter | None  # without a leading axis, where the next input starts from it


class Algorithm(Writing):
    """The steps for one input, with the settings of a run bound."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        encoder: PromptEncoder,
        model: LanguageModel,
        shared: Shared | None = None,
    ):
        super().__init__(config, parts, encoder, model)
        self.reached: Counter[str] = Counter()  # inputs, by stage
        self.done: Counter[str] = Counter()
        self.tau = NONE if config.gate.tau == "auto" else config.gate.tau  # the loop chooses one
        if shared is None:  # where tau is chosen, the answers that it is chosen by are kept
            shared = Shared.between_runs() if config.gate.tau == "auto" else Shared()
        self.shared = shared.of(config, model, self.n_decoded, self.extras)
        self.warm: tuple[str, Adapter] | None = None  # where nothing is reset: the last input that adapted, its adapter

    def improve(self, draft: Draft) -> Steps:
        """From the input's prompt to its record."""
        try:
            log_likelihoods, certainty = yield from self.shared.once("base", draft, self.answer_with_base)
        except InputError as error:
            return replace(draft.record, error=str(error))
        self.gate(draft, log_likelihoods, certainty)
        adapts = self.adapts(draft.record)
        if not adapts:
            draft.rename("base_answer", "answer")
        self.done["score"] += 1
        if adapts and (yield from self.synthesize(draft)) and self.config.method != "pairs":
            yield from self.adapt_and_answer(draft)
        return draft.finished()

    def gauge(self, draft: Draft) -> Steps:
        """How certain the model is of an input, which tau is chosen by; `improve` does not ask for it again."""
        try:
            self.gate(draft, *(yield from self.shared.once("base", draft, self.answer_with_base)))
        except InputError:
            pass  # `improve` will say so
        self.done["gauge"] += 1
        return draft.record

    def answer_with_base(self, draft: Draft) -> Wanting:
        """Notes the base's answer; returns the candidates' log-likelihoods [N], and how certain the answer is where the
        estimator judges that (else None). For an input that adapts the answer is a measurement, and timed apart."""
        log_likelihoods, prompt = yield from self.read(draft, "score", self.answer_row(draft))
        scores, certainty = self.scores(draft, log_likelihoods), None
        tool = draft.tool(draft.best(scores))
        text, samples = yield from self.answer(draft, prompt, tool, "base_answer")
        if isinstance(self.parts.estimator, CallEstimator):
            samplings = self.samplings(self.config.gate.samples)
            sample = partial(self.fill_in_all, self.parts.answerer, draft, prompt, tool, "score", samplings)
            calls, of_candidates = read_calls(text), self.certainty(draft, scores)[1]
            certainty = yield from certainty_of_call(
                self.parts.estimator, draft, of_candidates, calls, self.encoder, sample
            )
        draft.note(text_base=text, base_calls=plain(read_calls(text)), samples_base=samples)
        return log_likelihoods, certainty

    # H

    def gate(self, draft: Draft, log_likelihoods: np.ndarray, certainty_of_call: float | None) -> None:
        """Notes the candidates' probabilities and the certainty."""
        scores = self.scores(draft, log_likelihoods)
        probabilities, certainty = self.certainty(draft, scores)
        certainty = certainty if certainty_of_call is None else certainty_of_call
        draft.note(
            log_likelihoods=scores.tolist(),
            probabilities=probabilities,
            uncertainty=certainty,
            uncertain=certainty < self.tau,
            pick_base=draft.best(scores),
            reason=None if np.isfinite(certainty) else "the certainty is not a number",
        )

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
        return self.config.method == "icl" or (self.config.method != "base" and record.uncertain in wanted)

    # Answers

    def answer(self, draft: Draft, prompt: Prompt, tool: Tool, stage: str) -> Wanting:
        """The answer, and sampled ones: the greedy one, or with a vote the one that most sampled ones agree with."""
        settings = self.config.answer
        samplings = [GREEDY, *[Sampling(settings.temperature, settings.top_p)] * settings.samples]
        greedy, *samples = yield from self.fill_in_all(self.parts.answerer, draft, prompt, tool, stage, samplings)
        winner = vote([*map(read_calls, samples)], read_calls(greedy)) if settings.vote else None
        return greedy if winner is None or greedy is None else samples[winner], samples

    # G

    def synthesize(self, draft: Draft) -> Wanting:
        """Writes pairs; whether there is any."""
        self.reached["synthesize"] += 1
        yield from self.shared.once("pairs", draft, self.write_pairs)
        self.done["synthesize"] += 1
        return bool(draft.pairs)

    # T

    def adapt_and_answer(self, draft: Draft) -> Wanting:
        """Trains the input's adapter, or shows the pairs, answers so, and drops both."""
        self.reached["adapt"] += 1
        before, settings = self.warm and self.warm[0], self.config.adapt
        own, *others = yield from self.shared.once("learned", draft, self.learn_all)
        calls, pick = read_calls(own.text), draft.best(own.scores)
        scores_base = np.array(draft.record.log_likelihoods, np.float32)
        margins = self.certainty(draft, scores_base)[1], self.certainty(draft, own.scores)[1]
        agrees = same(calls, read_calls(others[0].text)) if others else None
        evidence = gather(own.held_out, margins, calls, draft.example.tools, own.kl, agrees)
        draft.note(adapted=True, losses=own.losses.tolist(), text_adapted=own.text, adapted_calls=plain(calls))
        draft.note(samples_adapted=own.samples, adapted_after=before, evidence=evidence.record())
        first, largest = np.max(np.abs(own.losses[:1]), initial=0), np.max(own.losses, initial=0)
        if not (np.all(np.isfinite(own.losses)) and np.all(np.isfinite(own.scores)) and own.text is not None):
            draft.note(reverted=True, reason="training diverged: a loss or a score is not finite")
        elif largest > EXPLODED * max(1.0, first):
            draft.note(reverted=True, reason=f"training diverged: the loss grew to {largest:.3g}")
        elif why := revert_reason(evidence, settings.accept):
            draft.note(reverted=True, reason=f"not accepted: {why}")
        else:
            draft.note(pick=pick)
            if settings.reset == "never":  # waves of one, see `check`
                self.warm = draft.example.id, own.adapter
        self.done["adapt"] += 1

    def learn_all(self, draft: Draft) -> Wanting:
        """The outcome of each of the input's adapters, or of the pairs in the prompt."""
        settings = self.config.adapt
        seeds = range(2 if "seeds" in (*settings.accept, *settings.measure) else 1)
        return (yield Together([self.show(draft)] if self.in_context else [self.learn(draft, seed) for seed in seeds]))

    def learn(self, draft: Draft, seed: int) -> Wanting:
        """The outcome of one adapter; each seed draws its own."""
        key = draft.key_for(ADAPTATION, *filter(None, [seed]))
        learned: Learned = yield Adapt(draft, "adapt", self.answer_row(draft)._replace(key=key), seed)
        steps = [draft.pairs[step % len(draft.pairs)] for step in range(len(learned.losses))]
        pairs = [*steps, *filter(None, [draft.held_out] * 2)]
        n_tokens = sum(len(draft.prefix) + len(pair.prompt) + len(pair.answer) for pair in pairs)
        draft.count("adapt", n_tokens + len(draft.prefix) + len(draft.opened))
        return (yield from self.answer_after(draft, learned))

    def show(self, draft: Draft) -> Wanting:
        """What `learn` gives, where the pairs stand in the prompt and nothing is trained (TT-ICL)."""
        suffix = self.shown_prompt(draft, draft.shown)
        row = self.opened_row(draft, suffix, self.parts.answerer, ADAPTATION)
        row = row._replace(shape=draft.shape._replace(suffix=bucket(len(suffix), draft.shape.suffix)))
        learned = Learned(np.zeros(0, np.float32), *(yield from self.read(draft, "adapt", row)))
        return (yield from self.answer_after(draft, learned))

    def answer_after(self, draft: Draft, learned: Learned) -> Wanting:
        """The answers that follow from it."""
        scores, prompt = self.scores(draft, learned.scores), learned.prompt
        text, samples = yield from self.answer(draft, prompt, draft.tool(draft.best(scores)), "answer")
        lives_on = self.config.adapt.reset == "never"  # in waves of one
        adapter = jax.tree.map(lambda x: x[0], prompt.read.rows.adapters) if lives_on else None
        return Outcome(learned.losses, scores, learned.held_out, learned.kl, text, samples, adapter)
