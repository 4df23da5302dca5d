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
from ttsi_jax.steps.outcome import Answered, Outcome, elect
from ttsi_jax.steps.reading import certainty_of_call
from ttsi_jax.steps.writing import Writing
from ttsi_jax.tasks.prompts import PromptEncoder
from ttsi_jax.uncertainty import gate_wave, margin


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
        reads = yield from self.read_all(draft, "score", draft.in_orders(self.answer_row(draft)))
        text, samples, orders = yield from self.answer(draft, reads, "base_answer")
        log_likelihoods, prompt = reads[0]
        scores, certainty = self.scores(draft, log_likelihoods), None
        if isinstance(self.parts.estimator, CallEstimator):
            samplings = self.samplings(self.config.gate.samples)
            tool = draft.tool(draft.best(scores))
            sample = partial(self.fill_in_all, self.parts.answerer, draft, prompt, tool, "score", samplings)
            calls, of_candidates = read_calls(text), self.certainty(draft, scores)[1]
            certainty = yield from certainty_of_call(
                self.parts.estimator, draft, of_candidates, calls, self.encoder, sample
            )
        draft.note(text_base=text, base_calls=plain(read_calls(text)), samples_base=samples, orders_base=orders)
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

    def answer(self, draft: Draft, reads: Sequence[tuple[np.ndarray, Prompt]], stage: str) -> Wanting:
        """What is `Answered` after the input's prompt and those in other orders (log-likelihoods of the candidates, and
        where to decode from): the greedy answer, or the one that most agree with where several vote."""
        settings, parts = self.config.answer, []
        samplings = [GREEDY, *[Sampling(settings.temperature, settings.top_p)] * settings.samples]
        for log_likelihoods, prompt in reads:
            tool = draft.tool(draft.best(self.scores(draft, log_likelihoods)))
            parts.append(self.fill_in_all(self.parts.answerer, draft, prompt, tool, stage, samplings))
        texts = yield Together(parts)
        greedy, samples = [own[0] for own in texts], [text for own in texts for text in own[1:]]
        voters = (greedy if len(greedy) > 1 else []) + (samples if settings.vote else [])
        winner = vote([*map(read_calls, voters)], read_calls(greedy[0]))
        text = greedy[0] if winner is None or greedy[0] is None else voters[winner]
        return Answered(text, samples, greedy[1:])

    # G

    def synthesize(self, draft: Draft) -> Wanting:
        """Writes pairs; whether there is any."""
        self.reached["synthesize"] += 1
        yield from self.shared.once("pairs", draft, self.write_pairs)
        self.done["synthesize"] += 1
        return bool(draft.pairs)

    # T

    def adapt_and_answer(self, draft: Draft) -> Wanting:
        """Trains the input's adapters, or shows the pairs, answers so, and drops them."""
        self.reached["adapt"] += 1
        before, settings = self.warm and self.warm[0], self.config.adapt
        outcomes: list[Outcome] = yield from self.shared.once("learned", draft, self.learn_all)
        members = outcomes[: settings.adapters]
        probabilities = np.array([self.certainty(draft, one.scores)[0] for one in members])
        chosen = elect(members, probabilities, settings.combine)
        own, others = outcomes[chosen], [one.said.text for one in outcomes if one is not outcomes[chosen]]
        calls, pick = read_calls(own.said.text), draft.best(own.scores)
        scores_base = np.array(draft.record.log_likelihoods, np.float32)
        margins = self.certainty(draft, scores_base)[1], self.certainty(draft, own.scores)[1]
        agrees = same(calls, read_calls(others[0])) if others else None
        evidence = gather(own.held_out, margins, calls, draft.example.tools, own.kl, agrees)
        draft.note(
            adapted=True,
            losses=own.losses.tolist(),
            text_adapted=own.said.text,
            adapted_calls=plain(calls),
            samples_adapted=own.said.samples,
            orders_adapted=own.said.orders,
            adapters=[one.said.text for one in members] if len(members) > 1 else [],
            adapted_after=before,
            evidence=evidence.record(),
        )
        if fault := own.fault():
            draft.note(reverted=True, reason=f"training diverged: {fault}")
        elif why := revert_reason(evidence, settings.accept):
            draft.note(reverted=True, reason=f"not accepted: {why}")
        else:
            draft.note(pick=pick)
            if own.adapter is not None:
                self.warm = draft.example.id, own.adapter
        self.done["adapt"] += 1

    def learn_all(self, draft: Draft) -> Wanting:
        """The outcome of each of the input's adapters, or of the pairs in the prompt."""
        settings = self.config.adapt
        seeds = range(max(settings.adapters, 2 * ("seeds" in (*settings.accept, *settings.measure))))
        return (yield Together([self.show(draft)] if self.in_context else [self.learn(draft, seed) for seed in seeds]))

    def learn(self, draft: Draft, seed: int) -> Wanting:
        """The outcome of one adapter; each seed draws its own, and may have its own share of the pairs."""
        key = draft.key_for(ADAPTATION, *filter(None, [seed]))
        rows = draft.in_orders(self.answer_row(draft)._replace(key=key))
        n_shares = self.config.adapt.adapters if self.config.adapt.divide else 1
        share = draft.pairs[seed % n_shares :: n_shares] or draft.pairs
        pairs = [*share, *(copy for pair in share for copy in pair.copies)]
        learned: Learned = yield Adapt(draft, "adapt", rows, pairs, seed)
        steps = [pairs[step % len(pairs)] for step in range(len(learned.losses))]
        read = [*steps, *filter(None, [draft.held_out] * 2)]
        n_tokens = sum(len(pair.prefix or draft.prefix) + len(pair.prompt) + len(pair.answer) for pair in read)
        draft.count("adapt", n_tokens + sum(len(row.prefix) + len(row.suffix) for row in rows))
        return (yield from self.answer_after(draft, learned))

    def show(self, draft: Draft) -> Wanting:
        """What `learn` gives, where the pairs stand in the prompt and nothing is trained (TT-ICL)."""
        suffix = self.shown_prompt(draft, draft.shown)
        row = self.opened_row(draft, suffix, self.parts.answerer, ADAPTATION)
        row = row._replace(shape=draft.shape._replace(suffix=bucket(len(suffix), draft.shape.suffix)))
        learned = Learned(np.zeros(0, np.float32), (yield from self.read_all(draft, "adapt", draft.in_orders(row))))
        return (yield from self.answer_after(draft, learned))

    def answer_after(self, draft: Draft, learned: Learned) -> Wanting:
        """The outcome of what was learned."""
        said = yield from self.answer(draft, learned.reads, "answer")
        log_likelihoods, prompt = learned.reads[0]
        lives_on = self.config.adapt.reset == "never"  # in waves of one
        adapter = jax.tree.map(lambda x: x[0], prompt.read.rows.adapters) if lives_on else None
        scores = self.scores(draft, log_likelihoods)
        return Outcome(learned.losses, learned.held_out, learned.kl, scores, said, adapter)
