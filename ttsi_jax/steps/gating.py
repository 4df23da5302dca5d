"""H: the base's answer to an input and how sure it is of it; and how answers are decoded, adapted or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ttsi_jax.batching.inputs import GATE, Draft
from ttsi_jax.batching.lanes import GREEDY, Prompt
from ttsi_jax.batching.schedule import Together, Wanting
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.model.generation import Sampling
from ttsi_jax.quality.confidence import CallEstimator
from ttsi_jax.quality.soundness import sound
from ttsi_jax.quality.thresholds import NONE
from ttsi_jax.quality.votes import vote
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import plain
from ttsi_jax.steps.asking import Asking
from ttsi_jax.steps.outcome import Answered
from ttsi_jax.steps.reading import certainty_of_call
from ttsi_jax.tasks import read_calls
from ttsi_jax.tasks.prompts import PromptEncoder, asked
from ttsi_jax.uncertainty import gate_wave, margin


class Gating(Asking):
    """Answers, and which inputs adapt."""

    def __init__(self, config: RunConfig, parts: Parts, encoder: PromptEncoder, model: LanguageModel):
        super().__init__(config, parts, encoder, model)
        self.tau = NONE if config.gate.tau == "auto" else config.gate.tau  # the loop chooses one

    def answer_with_base(self, draft: Draft) -> Wanting:
        """Notes the base's answer; returns the candidates' log-likelihoods [N], and how certain the answer is where the
        estimator judges that (else None). For an input that adapts the answer is a measurement, and timed apart."""
        if self.config.asks_channel:
            [found] = yield from self.request_likelihoods(draft, [asked(draft.example)], "score")
            draft.note(channel=found.tolist())
        reads = yield from self.read_all(draft, "score", draft.in_orders(self.answer_row(draft)))
        text, samples, orders = yield from self.answer(draft, reads, "base_answer")
        log_likelihoods, prompt = reads[0]
        scores, certainty = self.scores(draft, log_likelihoods), None
        if isinstance(self.parts.estimator, CallEstimator):
            samplings = self.samplings(self.config.gate.samples)
            tool, own = draft.tool(draft.best(scores)), prompt._replace(key=draft.key_for(GATE))
            sample = partial(self.fill_in_all, self.parts.answerer, draft, own, tool, "score", samplings)
            calls, of_candidates = read_calls(text), self.certainty(draft, scores)[1]
            certainty = yield from certainty_of_call(
                self.parts.estimator, draft, of_candidates, calls, self.encoder, sample, self.sound(draft, text)
            )
        draft.note(text_base=text, base_calls=plain(read_calls(text)), samples_base=samples, orders_base=orders)
        return log_likelihoods, certainty

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
        if settings.repair:
            faultless = lambda texts: [text for text in texts if self.sound(draft, text)]  # noqa: E731
            voters = faultless(voters) or faultless(greedy[:1]) or faultless(samples) or voters
        winner = vote([*map(read_calls, voters)], read_calls(greedy[0]))
        text = greedy[0] if winner is None or greedy[0] is None else voters[winner]
        return Answered(text, samples, greedy[1:])

    def sound(self, draft: Draft, text: str | None) -> bool:
        """Whether an answer can be right at all."""
        return sound(read_calls(text), draft.example, self.required(draft))

    def required(self, draft: Draft) -> str | None:
        """The function that an answer must call to be sound: by the noisy channel, where it is asked."""
        return None if self.config.answer.judge == "values" else self.likeliest(draft).name
