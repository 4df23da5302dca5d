"""The paper's Algorithm 1 for ONE input: gate -> synthesize -> adapt -> answer.

`Algorithm.improve` is a generator: it yields what it wants the model to do (`Score`, `Decode`, `Adapt`) and is sent the
result. `ttsi_jax.batching.schedule` runs it for many inputs at once, a wave at a time. How it asks, gates and writes
pairs stands in `ttsi_jax.steps`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import jax
import numpy as np

from ttsi_jax.batching.inputs import ADAPTATION, Draft
from ttsi_jax.batching.schedule import Adapt, Learned, Steps, Together, Wanting
from ttsi_jax.batching.shared import Shared
from ttsi_jax.batching.waves import bucket
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.model.lora import Adapter
from ttsi_jax.quality.accept import DIVERGED, gather, revert_reason
from ttsi_jax.quality.agreement import same
from ttsi_jax.runs.scores import plain
from ttsi_jax.steps.outcome import Outcome, elect
from ttsi_jax.steps.writing import Writing
from ttsi_jax.tasks import read_calls
from ttsi_jax.tasks.prompts import PromptEncoder


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
        if shared is None:  # where tau is chosen, the answers that it is chosen by are kept
            shared = Shared.between_runs() if config.gate.tau == "auto" else Shared()
        self.shared = shared.of(config, parts, model, self.extras)
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
        repair = self.config.answer.repair
        eligible = [one for one in members if repair and self.sound(draft, one.said.text)] or members
        probabilities = np.array([self.certainty(draft, one.scores)[0] for one in eligible])
        own = eligible[elect(eligible, probabilities, settings.combine)]
        others = [one.said.text for one in outcomes if one is not own]
        calls, pick = read_calls(own.said.text), draft.best(own.scores)
        scores_base = np.array(draft.record.log_likelihoods, np.float32)
        margins = self.certainty(draft, scores_base)[1], self.certainty(draft, own.scores)[1]
        agrees = same(calls, read_calls(others[0])) if others and not settings.divide else None  # of the same pairs
        answers = read_calls(draft.record.text_base), calls
        evidence = gather(own.held_out, margins, answers, draft.example, own.kl, agrees, self.required(draft))
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
            draft.note(reverted=True, reason=f"{DIVERGED}: {fault}")
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
        key = draft.key_for(ADAPTATION, *([seed + 1] if seed else []))  # with 1 begin the keys of the first one's steps
        rows = draft.in_orders(self.answer_row(draft)._replace(key=key))
        n_shares = min(self.config.adapt.adapters, len(draft.pairs)) if self.config.adapt.divide else 1
        share = draft.pairs[seed % n_shares :: n_shares]
        pairs = [*share, *(copy for pair in share for copy in pair.copies)]
        learned: Learned = yield Adapt(draft, "adapt", rows, pairs, seed)
        steps = [pairs[step % len(pairs)] for step in range(len(learned.losses))]
        watched = [draft.held_out] * (2 + len(steps) * self.config.adapt.stop_rising)
        prompts = rows if learned.kl is None else [*rows, rows[0], rows[0]]  # with the adapter and without
        n_tokens = sum(draft.n_tokens(pair) for pair in [*steps, *filter(None, watched)])
        draft.count("adapt", n_tokens + sum(len(row.prefix) + len(row.suffix) for row in prompts))
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
