# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""What the model writes itself.

Two ways to a pair (request, call):

- `pair`: the model writes the request and its call in one go, as the paper's models do;
- `request`: it writes only the request; the call is what it answers to that request itself, with the function that its
  own scoring picks and each value decoded after its key. For models too small to write JSON.
"""

from __future__ import annotations

import json
import re

from ttsi_jax.guided.grammar import pair_schema
from ttsi_jax.synthesis.pairs import Synthesizer, Synthetic
from ttsi_jax.tasks import CallSyntaxError, parse_calls, strict_json
from ttsi_jax.tasks.prompts import NEW_PAIR, NEW_REQUEST, request_opening


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
SYNTHESIZERS = {"pair": PAIR, "request": REQUEST}
