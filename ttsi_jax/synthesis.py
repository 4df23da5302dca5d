"""G: the model writes training examples for an input it is unsure of (paper, Algorithm 1, step 2).

The input's label is never seen. Two ways to a pair (request, call):

- `pair`: the model writes the request and its call in one go, as the paper's models do;
- `request`: it writes only the request; the call is what it answers to that request itself, with the function that its
  own scoring picks and each value decoded after its key. For models too small to write JSON.

Every pair is checked before it is learned from, and what was dropped is kept with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from ttsi_jax.tasks import Call, CallSyntaxError, Tool, check_call, parse_calls, strict_json


@dataclass(frozen=True)
class SynthesisConfig:
    """Settings of data synthesis.

    Attributes:
        k: pairs wanted per input (paper: 1).
        form: `pair`, `request`, or `auto`: `request` where answers have the form `keys`, else `pair`.
        tries: attempts per wanted pair before an input keeps its base answer.
        temperature: of sampling.
        top_p: of sampling.
        max_tokens: most tokens of a request (form `request`).
    """

    k: int = 1
    form: Literal["auto", "pair", "request"] = "auto"
    tries: int = 3
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 64


class Synthetic(NamedTuple):
    """One written pair; `reason` says why it was dropped."""

    query: str
    calls: tuple[Call, ...]
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        """The pair as it stands in a run's records."""
        calls = [asdict(call) for call in self.calls]
        return {"query": self.query, "calls": calls, "accepted": self.reason is None, "reason": self.reason}


def read_request(text: str) -> str:
    """The request in a line that the model wrote, without its label or quotes."""
    line = text.strip().split("\n")[0].strip()
    line = re.sub(r"^(new |another )?request:\s*", "", line, flags=re.IGNORECASE)
    return line[1:-1].strip() if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'`" else line


def read_pair(text: str) -> Synthetic:
    """The pair in a JSON object `{"request": …, "call": …}` that the model wrote, perhaps amid other text."""
    start = text.find("{")
    try:
        value = strict_json.decode_at(text, start)[0] if start >= 0 else None
    except strict_json.JsonError:
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("request"), str):
        return Synthetic("", (), "no JSON object with a request and a call")
    query = value["request"].strip()
    try:
        return Synthetic(query, tuple(parse_calls(json.dumps(value.get("call")))))
    except CallSyntaxError as error:
        return Synthetic(query, (), f"the call cannot be read: {error}")


def check_pair(pair: Synthetic, seed: str, tools: Sequence[Tool], kept: Sequence[str]) -> Synthetic:
    """The pair, with the reason to drop it where there is one.

    A pair is kept if its request is neither empty, nor the seed, nor one of the `kept` ones, and if it has one call
    of a listed function with its required arguments and values of the right JSON types.
    """
    if pair.reason:
        reason = pair.reason
    elif not _normal(pair.query):
        reason = "the request is empty"
    elif _normal(pair.query) == _normal(seed):
        reason = "the request repeats the seed"
    elif _normal(pair.query) in map(_normal, kept):
        reason = "the request repeats another one"
    elif len(pair.calls) != 1:
        reason = f"{len(pair.calls)} calls instead of one"
    else:
        reason = check_call(pair.calls[0], tools)
    return pair._replace(reason=reason)


def _normal(text: str) -> str:
    """Text without case, punctuation and white space, for comparing requests."""
    return re.sub(r"[\W_]+", "", text.casefold())
