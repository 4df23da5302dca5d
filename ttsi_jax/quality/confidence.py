# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Other measures of how sure the model is of a call than the margin between candidate functions.

Each is a pure function of ONE answer and gives a certainty in [0, 1], where 1 is certain, so that each can stand where
the gate's margin does; `jax.vmap` lifts those of arrays over inputs. Likelihoods are probabilities here: the negative
log-likelihood of an answer is `-log(sequence_probability)`, its mean over tokens `-log(token_probability)`.

The estimators of `ttsi_jax.uncertainty` (the margin, the entropy) need no more than the candidates' log-likelihoods.
These need the greedy call: its tokens' log-probabilities, for which it is read once more, or several sampled calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from ttsi_jax.quality.agreement import Answer, agreement
from ttsi_jax.tasks import Call
from ttsi_jax.tasks.pieces import call_pieces

SYNTAX, NAME = -2, -1  # what a token of a call is part of; arguments have their place, 0, 1, …


class CallTokens(NamedTuple):
    """A call, or several, as the library tokenises them."""

    ids: tuple[int, ...]
    roles: tuple[int, ...]  # of each token: SYNTAX, NAME or the place of its argument


def call_tokens(call: Call, fragment: Callable[[str], Sequence[int]]) -> CallTokens:
    """The tokens of a call, piece by piece, with what each is part of; an empty value has no token of its own.

    `fragment`: text -> ids, as `PromptEncoder.fragment`.
    """
    opening, name, *rest = call_pieces(call)
    pieces, left = [(opening, SYNTAX), (name, NAME)], iter(rest)
    for place, value in enumerate(call.arguments.values()):
        pieces.append((next(left), SYNTAX))
        if value not in ("", [], {}):
            pieces.append((next(left), place))
    pieces += [(text, SYNTAX) for text in left]
    tokens = [(token, role) for text, role in pieces for token in fragment(text)]
    return CallTokens(tuple(token for token, _ in tokens), tuple(role for _, role in tokens))


def answer_tokens(calls: Sequence[Call], fragment: Callable[[str], Sequence[int]]) -> CallTokens:
    """The same for an answer: one call, or a list of several, whose arguments have places one after the other."""
    if len(calls) == 1:
        return call_tokens(calls[0], fragment)
    parts, n_arguments = [], 0
    for number, call in enumerate(calls):
        before, own = fragment(", " if number else "["), call_tokens(call, fragment)
        places = tuple(role + n_arguments if role >= 0 else role for role in own.roles)
        parts += [(token, SYNTAX) for token in before] + [*zip(own.ids, places, strict=True)]
        n_arguments += len(call.arguments)
    ids, roles = zip(*parts, *((token, SYNTAX) for token in fragment("]")), strict=True)
    return CallTokens(ids, roles)


def sequence_probability(log_probs: Array, mask: Array) -> Array:
    """The probability of the whole greedy answer (Malinin and Gales, arXiv 2002.07650).

    Args:
        log_probs: [M] float32, of each token given those before it.
        mask: [M] bool, the tokens that count.
    """
    return jnp.exp(jnp.sum(jnp.where(mask, log_probs, 0.0)))


def token_probability(log_probs: Array, mask: Array) -> Array:
    """The geometric mean of the tokens' probabilities: length-normalised likelihood (Malinin and Gales, 2002.07650).

    1 where no token counts.
    """
    total = jnp.sum(jnp.where(mask, log_probs, 0.0))
    return jnp.exp(total / jnp.maximum(jnp.sum(mask), 1))


def meaningful_probability(log_probs: Array, roles: Array) -> Array:
    """`token_probability` of the tokens of the name and the values: brackets, quotes and keys, which any call of the
    function has, do not count (after SAR: Duan et al., arXiv 2307.01379).

    Args:
        log_probs: [M] float32.
        roles: [M] int32, see `CallTokens`; padding is SYNTAX.
    """
    return token_probability(log_probs, roles != SYNTAX)


def minimum_argument_probability(log_probs: Array, roles: Array) -> Array:
    """The probability of the least likely argument, its tokens together; 1 for a call without arguments.

    A call is wrong as soon as one value is (after the maximum of -log p in SelfCheckGPT: Manakul et al., 2303.08896).
    Shapes as for `meaningful_probability`.
    """
    mine = roles == jnp.arange(roles.shape[0])[:, None]  # [argument, M]: there are no more arguments than tokens
    return jnp.exp(jnp.min(jnp.sum(jnp.where(mine, log_probs, 0.0), axis=1), initial=0.0))


def self_consistency(answers: Sequence[Answer], greedy: Answer) -> float:
    """The share of sampled answers that make the greedy call (Wang et al., arXiv 2203.11171)."""
    return agreement(greedy, answers)


class Reply(NamedTuple):
    """What is known of the base's greedy answer to one input."""

    margin: float  # between the candidates, the paper's
    log_probs: ArrayLike  # [M] float32, of the call's tokens
    roles: Sequence[int]  # [M], see `CallTokens`
    calls: Answer
    answers: Sequence[Answer]  # sampled ones
    sound: bool = True  # whether the answer can be right at all, see `ttsi_jax.quality.soundness`


class CallEstimator(NamedTuple):
    """How certain the model is of a whole call, in place of an `Estimator` of the candidates.

    Attributes:
        certainty: `Reply` -> a number in [0, 1]; an answer that is no call has 0 without being asked for.
        reads: whether it needs the tokens' log-probabilities: the call is read once more.
        samples: whether it needs sampled answers, `--gate.samples` of them.
    """

    certainty: Callable[[Reply], float]
    reads: bool = False
    samples: bool = False


def _of_tokens(measure: Callable[[Array, Array], Array], mask: bool = False) -> CallEstimator:
    def certainty(reply: Reply) -> float:
        roles = jnp.asarray(reply.roles)
        return float(measure(jnp.asarray(reply.log_probs), jnp.ones_like(roles, bool) if mask else roles))

    return CallEstimator(certainty, reads=True)


CALL_ESTIMATORS = {
    "sequence": _of_tokens(sequence_probability, mask=True),
    "token": _of_tokens(token_probability, mask=True),
    "meaningful": _of_tokens(meaningful_probability),
    "least-argument": _of_tokens(minimum_argument_probability),
    "consistency": CallEstimator(lambda reply: self_consistency(reply.answers, reply.calls), samples=True),
    "consistent-margin": CallEstimator(
        lambda reply: float(np.clip(reply.margin, 0, 1)) * self_consistency(reply.answers, reply.calls), samples=True
    ),
    "soundness": CallEstimator(lambda reply: float(reply.sound)),
}
