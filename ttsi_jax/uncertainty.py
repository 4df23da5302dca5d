# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""H: how unsure the model is between the candidate functions (paper, Algorithm 1, step 1).

Estimators are pure functions of ONE input: log-likelihoods [N] float32 and a mask [N] bool of real candidates, to a
scalar in [0, 1] where 1 is certain. `jax.vmap` lifts them over inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class GateConfig:
    """Settings of the gate.

    Attributes:
        tau: an input is uncertain if its certainty is below this; `auto` chooses one without labels, after a first
          pass over the inputs (see docs/quality.md).
        select: which inputs adapt: the `uncertain` ones, the `certain` ones, or `all`.
        estimator: an estimator's name, or `package.module:object`; those of whole calls answer with the base first.
        samples: sampled answers, for estimators that compare some.
        budget: with tau `auto`, the share of inputs that adapts at most; the most uncertain ones.
        calibration: with tau `auto`, how many inputs it is chosen by, the task's first; 0 are all.
        labelled: with tau `auto`, directory of a finished run over labelled inputs, made with --gate.select all: the
          tau that would have gained most there.
        score: a candidate's score is the `sum` of its tokens' log-probabilities, or their `mean`. `channel`: the
          log-likelihood of the request, given the function's description alone: the noisy channel
          (see docs/quality.md).
    """

    tau: float | Literal["auto"] = 0.95
    select: Literal["uncertain", "certain", "all"] = "uncertain"
    estimator: str = "margin"
    score: Literal["sum", "mean", "channel"] = "sum"
    samples: int = 4
    budget: float = 1.0
    calibration: int = 0
    labelled: str | None = None


class Estimator(Protocol):
    """log-likelihoods [N] in nats, mask [N] -> certainty, a float32 scalar; below tau the input is uncertain."""

    def __call__(self, log_likelihoods: Array, mask: Array) -> Array: ...


def relative_softmax(log_likelihoods: Array, mask: Array) -> Array:
    """Relative Softmax Scoring: p_n = exp(l_n - max l) / sum_k exp(l_k - max l); [N], 0 outside the mask."""
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, log_likelihoods, -jnp.inf)), 0.0)


def margin(log_likelihoods: Array, mask: Array) -> Array:
    """The paper's u = p_(1) - p_(2): the two largest probabilities' distance.

    A single candidate leaves nothing to be unsure about: u = 1. No candidate gives 0 (the loop reports such inputs).
    """
    p = jnp.sort(relative_softmax(log_likelihoods, mask), descending=True)
    second = p[1] if p.shape[0] > 1 else 0.0
    return jnp.where(jnp.any(mask), p[0] - second, 0.0)


def top_probability(log_likelihoods: Array, mask: Array) -> Array:
    """The largest of the N probabilities, a float32 scalar."""
    return jnp.max(relative_softmax(log_likelihoods, mask), initial=0.0)


def negentropy(log_likelihoods: Array, mask: Array) -> Array:
    """1 less the probabilities' entropy in units of log N: 0 where all N are alike; 1 for a single candidate."""
    p, n = relative_softmax(log_likelihoods, mask), jnp.sum(mask)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    certainty = 1.0 - entropy / jnp.log(jnp.maximum(n, 2))
    return jnp.where(n > 0, jnp.clip(certainty, 0.0, 1.0), 0.0)


def likelihood(log_likelihoods: Array, mask: Array) -> Array:
    """The likeliest candidate's probability itself, not relative to the others: low where the model would rather say
    something else than any of them (Malinin and Gales, arXiv 2002.07650); a float32 scalar."""
    return jnp.exp(jnp.minimum(jnp.max(jnp.where(mask, log_likelihoods, -jnp.inf), initial=-jnp.inf), 0.0))


@partial(jax.jit, static_argnums=0)
def gate_wave(estimator: Estimator, log_likelihoods: Array, mask: Array) -> tuple[Array, Array]:
    """Probabilities [E, N] and certainties [E] of E inputs, from log-likelihoods and a mask [E, N]."""
    return jax.vmap(relative_softmax)(log_likelihoods, mask), jax.vmap(estimator)(log_likelihoods, mask)


ESTIMATORS: dict[str, Estimator] = {
    "margin": margin,
    "top": top_probability,
    "negentropy": negentropy,
    "likelihood": likelihood,
}
