"""Checks on synthetic examples, each by its name: what an example must be to be learned from.

A check is a pure function of a pair and of the evidence about it that a run has gathered; it gives the reason to drop
the pair, or None. Evidence that was not gathered speaks for nothing: a check that needs it drops the pair.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ttsi_jax.quality.agreement import Answer, agreement, same
from ttsi_jax.quality.grounding import ungrounded
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Tool, check_call

AGREEING = 0.5  # more than this share of relabellings must give the pair's call
_POLITE = re.compile(r"\b(please|kindly|could you|can you|would you|i want to|i would like to|i d like to|i need to)\b")


class Evidence(NamedTuple):
    """What a check may look at besides the pair."""

    seed: str  # the input's own request
    tools: Sequence[Tool]
    kept: Sequence[str] = ()  # requests of the input's pairs that were kept
    told: str = ""  # the instruction that the model was given, which it may have echoed
    named: str | None = None  # the function that was named in it
    reread: Answer = None  # the model's own answer to the pair's request
    relabelled: Sequence[Answer] = ()  # n sampled answers to it
    function: str | None = None  # the one that makes the pair's request likeliest


Check = Callable[[Synthetic, Evidence], str | None]


def schema(pair: Synthetic, evidence: Evidence) -> str | None:
    """There is a request and one call, of a listed function, with its required arguments and values of their types (but
    for those that are not learned)."""
    if not normal(pair.query):
        return "the request is empty"
    if len(pair.calls) != 1:
        return f"{len(pair.calls)} calls instead of one"
    return check_call(pair.calls[0], evidence.tools, pair.skipped)


def copy(pair: Synthetic, evidence: Evidence) -> str | None:
    """The request is not the seed, an instruction, or that of a pair already kept, in other spelling or politeness."""
    own = normal(pair.query)
    if own == normal(evidence.seed):
        return "the request repeats the seed"
    if own in map(normal, evidence.kept):
        return "the request repeats another one"
    if own and own in normal(evidence.told):
        return "the request repeats the instruction"
    return None


def grounded(pair: Synthetic, evidence: Evidence) -> str | None:
    """Every value of the call appears in the request or follows from it, see `ttsi_jax.quality.grounding`."""
    for call in pair.calls:
        if names := ungrounded(call, pair.query, evidence.tools):
            return f"the request does not give argument '{names[0]}'"
    return None


def channel(pair: Synthetic, evidence: Evidence) -> str | None:
    """The function that is called, or was named where there is no call yet, is the one that makes the request likeliest
    (noisy channel: Min et al., 2108.04106)."""
    called = pair.calls[0].name if pair.calls else evidence.named
    return None if called == evidence.function else f"the request is likelier for '{evidence.function}'"


def round_trip(pair: Synthetic, evidence: Evidence) -> str | None:
    """The model, asked the request again, gives the same call (after Alberti et al., arXiv 1906.05416)."""
    return None if same(pair.calls, evidence.reread) else "the model answers the request with another call"


def agreement_of_labels(pair: Synthetic, evidence: Evidence) -> str | None:
    """More than half of several sampled answers to the request make the pair's call (self-consistency, 2203.11171)."""
    share = agreement(pair.calls, evidence.relabelled)
    return None if share > AGREEING else f"{share:.0%} of {len(evidence.relabelled)} labels agree"


CHECKS: dict[str, Check] = {  # in the order in which they are made
    "schema": schema,
    "copy": copy,
    "grounded": grounded,
    "channel": channel,
    "round-trip": round_trip,
    "agreement": agreement_of_labels,
}
ANSWERING = ("round-trip", "agreement")  # those for which the model answers the pair's request again
ASKING = ("channel", *ANSWERING)  # those for which it is asked anything


def examine(pair: Synthetic, evidence: Evidence, names: Sequence[str] = tuple(CHECKS)) -> Synthetic:
    """The pair, with the reason of the first check that drops it; a pair that has a reason already keeps it."""
    if pair.reason is not None:
        return pair
    found = ((name, CHECKS[name](pair, evidence)) for name in CHECKS if name in names)
    check, reason = next(((name, why) for name, why in found if why), (None, None))
    return pair._replace(reason=reason, check=check)


def examine_again(pair: Synthetic, evidence: Evidence, names: Sequence[str], room: int) -> Synthetic:
    """The same for one of several pairs that were written side by side, once the better ones are kept: it may repeat
    one of them, or there may be no room left."""
    if pair.reason is None and room < 1:
        return pair._replace(reason="others are better", check="choice")
    return examine(pair, evidence, [name for name in names if name == "copy"])


def normal(text: str) -> str:
    """Text without case, accents, punctuation, white space and polite words, for comparing requests."""
    letters = "".join(x for x in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(x))
    words = re.sub(r"[\W_]+", " ", letters).strip()
    return re.sub(r"\W+", "", _POLITE.sub(" ", words)) or words.replace(" ", "")
