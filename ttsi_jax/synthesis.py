# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""G: the model writes training examples for an input it is unsure of (paper, Algorithm 1, step 2).

The input's label is never seen. Two ways to a pair (request, call):

- `pair`: the model writes the request and its call in one go, as the paper's models do;
- `request`: it writes only the request; the call is what it answers to that request itself, with the function that its
  own scoring picks and each value decoded after its key. For models too small to write JSON.

Every pair is checked (`ttsi_jax.quality.checks`) before it is learned from, and what was dropped is kept with its
reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ttsi_jax.guided.grammar import pair_schema
from ttsi_jax.runs.record import Record
from ttsi_jax.tasks import Call, CallSyntaxError, Example, Tool, parse_calls, strict_json
from ttsi_jax.tasks.prompts import NEW_PAIR, NEW_REQUEST, request_opening


@dataclass(frozen=True)
class SynthesisConfig:
    """Settings of data synthesis.

    Attributes:
        k: pairs wanted per input (paper: 1).
        form: `pair`, `request`, or `auto`: `request` where answers have the form `keys`, else `pair`. Or
          `package.module:object`: a `Synthesizer`, or a function of an example and the number of the attempt (from 0)
          to a `Synthetic`, which may take its pairs from anywhere.
        tries: attempts per wanted pair, or rounds of candidates, before an input keeps its base answer.
        candidates: pairs that are written side by side, of which the best are kept, by the likelihood of their calls
          and by how unlike each other they are; 1 takes the first good ones.
        diversity: of the choice among candidates: 0 takes the likeliest, 1 the least alike.
        temperature: of sampling.
        top_p: of sampling.
        max_tokens: most tokens of a request (form `request`).
        checks: what a pair must pass to be learned from, by name: `schema`, `copy`, `grounded`, `round-trip`,
          `agreement` (see docs/quality.md).
        labels: sampled answers to a pair's request, for the check `agreement`.
        held_out: write one more pair, which is not trained on; its loss before and after is recorded as evidence.
    """

    k: int = 1
    form: str = "auto"
    tries: int = 3
    candidates: int = 1
    diversity: float = 0.3
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 64
    checks: tuple[str, ...] = ("schema", "copy")
    labels: int = 4
    held_out: bool = False


class Synthetic(NamedTuple):
    """One written pair; `reason` says why it was dropped, `check` which check did (None: it was of no use before)."""

    query: str
    calls: tuple[Call, ...]  # none: the model labels the request, with its own answer to it
    reason: str | None = None
    check: str | None = None

    def record(self) -> dict[str, Any]:
        """The pair as it stands in a run's records."""
        calls, accepted = [asdict(call) for call in self.calls], self.reason is None
        return {"query": self.query, "calls": calls, "accepted": accepted, "reason": self.reason, "check": self.check}


class Synthesizer(NamedTuple):
    """How the model writes one pair for one input; the library writes those of a wave together.

    Attributes:
        prompt: example -> (the user's turn that asks for it, in which `{query}` is the input's request and other braces
            are doubled; how the model's reply begins).
        read: what the model went on to write -> the pair, with the reason where it is of no use.
        line: whether a line break ends the reply; it may then have `synthesis.max_tokens` tokens, else
            `answer.max_tokens`.
        schema: the JSON schema of the reply for a tool list, which it is written under where answers are guided.
    """

    prompt: Callable[[Example], tuple[str, str]]
    read: Callable[[str], Synthetic]
    line: bool = False
    schema: Callable[[Sequence[Tool]], dict[str, Any]] | None = None


PairSource = Synthesizer | Callable[[Example, int], Synthetic]


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
        calls = tuple(parse_calls(json.dumps(value.get("call"))))
        return Synthetic(query, calls, None if calls else "0 calls instead of one")
    except CallSyntaxError as error:
        return Synthetic(query, (), f"the call cannot be read: {error}")


PAIR = Synthesizer(lambda example: (NEW_PAIR, ""), read_pair, schema=pair_schema)
REQUEST = Synthesizer(
    lambda example: (NEW_REQUEST, request_opening(example)), lambda text: Synthetic(read_request(text), ()), line=True
)
SYNTHESIZERS: dict[str, PairSource] = {"pair": PAIR, "request": REQUEST}


def recorded(records: Iterable[Record]) -> Callable[[Example, int], Synthetic]:
    """Writes the pairs that another run accepted, so that runs differ in nothing but what they do with them."""
    pairs = {record.id: [pair for pair in record.synthetic if pair["accepted"]] for record in records}

    def write(example: Example, attempt: int) -> Synthetic:
        own = pairs.get(example.id, [])
        if attempt >= len(own):
            return Synthetic("", (), "the recorded run has no further pair")
        return Synthetic(own[attempt]["query"], tuple(Call(**call) for call in own[attempt]["calls"]))

    return write
