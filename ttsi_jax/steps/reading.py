"""Reading what was written once more: how likely the model finds an answer, for choosing pairs and for the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ttsi_jax.batching.inputs import Draft
from ttsi_jax.batching.schedule import Score, Together, Wanting
from ttsi_jax.batching.waves import Pair, pair_shape
from ttsi_jax.errors import InputError
from ttsi_jax.quality.agreement import Answer
from ttsi_jax.quality.choice import best
from ttsi_jax.quality.confidence import CallEstimator, Reply, answer_tokens
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import read_calls
from ttsi_jax.tasks.prompts import PromptEncoder


def read_answer(draft: Draft, stage: str, pair: Pair) -> Wanting:
    """The log-likelihood of each token of a pair's answer under the base, float32 [A] in nats."""
    row = draft.row(pair.prompt)._replace(shape=pair_shape(draft.shape, [pair]))
    _, prompt = yield Score(draft, stage, row, [pair.answer])
    draft.count(stage, len(row.prefix) + len(row.suffix) + len(pair.answer))
    log_likelihoods = np.asarray(prompt.read.token_log_likelihoods)  # sliced on the device, each length would compile
    return log_likelihoods[prompt.row, 0, : len(pair.answer)]


def best_first(
    draft: Draft, pairs: Sequence[Synthetic], sequence: Callable[[Synthetic], Pair], diversity: float
) -> Wanting:
    """The pairs that one input's candidates came to: the good ones by how likely they are and how unlike each other and
    those kept before (see `choice.best`), then those that have a reason to be dropped.

    A pair's likelihood is that of its call after its request, under the base, in nats per token. `sequence` makes what
    is read of a pair, or raises InputError.
    """

    def likelihood(pair: Synthetic) -> Wanting:
        try:
            own = sequence(pair)
        except InputError:
            return -np.inf  # never chosen; who keeps pairs will say why
        log_probs = yield from read_answer(draft, "synthesize", own)
        return float(np.mean(log_probs))

    good = [pair for pair in pairs if pair.reason is None]
    likely = yield Together([likelihood(pair) for pair in good])
    kept = [pair["query"] for pair in draft.record.synthetic if pair["accepted"]]
    order = best(likely, [pair.query for pair in good], len(good), diversity, kept)
    order += [place for place in range(len(good)) if place not in order]
    return [*(good[place] for place in order), *(pair for pair in pairs if pair.reason is not None)]


def certainty_of_call(
    estimator: CallEstimator,
    draft: Draft,
    margin: float,
    calls: Answer,
    encoder: PromptEncoder,
    sample: Callable[[], Wanting],
    sound: bool,
) -> Wanting:
    """How certain the base's answer as a whole is, 0 for one that is no call; `sample` gives sampled answers' texts."""
    if not calls:
        return 0.0
    log_probs, roles, answers = np.zeros(0, np.float32), (), []
    if estimator.reads:
        ids, roles = answer_tokens(calls, encoder.fragment)
        log_probs = yield from read_answer(draft, "score", Pair(draft.answer, ids))
    if estimator.samples:
        texts = yield from sample()
        answers = [read_calls(text) for text in texts]
    return float(estimator.certainty(Reply(margin, log_probs, roles, calls, answers, sound)))
