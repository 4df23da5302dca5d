"""What is kept of one input, and its form as one line of strict JSON."""

import json
import re
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

Call = dict[str, Any]  # {"name": str, "arguments": dict}

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Record:
    """One input on its way through a run; all values are plain JSON values.

    Fields that a run did not get to keep their defaults: None, False or empty. `*_base` is what the base model gives;
    the same name without the suffix is the final outcome, which is the base's for an input that was not adapted.
    `uncertainty` is the gate's certainty: 1 is sure, and below tau the input is uncertain. `log_likelihoods` are means
    over tokens where the run asked for that.
    `seconds` holds the seconds that this input took per stage: score, synthesize, adapt, answer.
    """

    id: str
    task: str
    query: str | list[dict[str, Any]]
    n_prompt_tokens: int | None = None
    candidates: list[str] = field(default_factory=list)
    log_likelihoods: list[float | None] = field(default_factory=list)
    probabilities: list[float | None] = field(default_factory=list)
    uncertainty: float | None = None
    uncertain: bool | None = None
    synthetic: list[dict[str, Any]] = field(default_factory=list)  # query, calls, accepted, reason
    losses: list[float | None] = field(default_factory=list)
    pick_base: str | None = None
    pick: str | None = None
    pick_correct_base: bool | None = None
    pick_correct: bool | None = None
    text_base: str | None = None
    base_calls: list[Call] | None = None
    text_adapted: str | None = None
    adapted_calls: list[Call] | None = None
    calls: list[Call] | None = None
    adapted: bool = False
    adapted_after: str | None = None  # the input whose adapter this one's began as, where a run does not reset
    reverted: bool = False
    reason: str | None = None
    gold: list[Call] | None = None
    tool_correct_base: bool | None = None
    call_correct_base: bool | None = None
    tool_correct: bool | None = None
    call_correct: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts and UTF-8 can encode: NaN and infinities become null, lone surrogates escapes."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    text = json.dumps(finite, indent=indent, ensure_ascii=False, allow_nan=False)
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_json(record: Record) -> str:
    """One line, without its line end."""
    return strict_json(vars(record))


def from_json(line: str) -> Record:
    """The record that `to_json` wrote.

    Raises:
        ValueError: the line is no JSON object, lacks a field that has no default, or has an unknown or mistyped one.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object is expected, not {type(values).__name__}")
    if unknown := values.keys() - _CONTAINERS.keys():
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    if missing := _REQUIRED - values.keys():
        raise ValueError(f"missing fields: {', '.join(sorted(missing))}")
    for name, value in values.items():
        expected = _CONTAINERS[name]
        if expected and not isinstance(value, expected):
            raise ValueError(f"field {name!r} must be a {expected.__name__}, not {type(value).__name__}")
    if not all(isinstance(pair, dict) for pair in values.get("synthetic", [])):
        raise ValueError("field 'synthetic' must hold objects")
    if not all(isinstance(seconds, int | float) for seconds in values.get("seconds", {}).values()):
        raise ValueError("field 'seconds' must hold numbers")
    return Record(**values)


_REQUIRED = {f.name for f in fields(Record) if f.default is MISSING and f.default_factory is MISSING}
# The types that other modules iterate over or index by, checked on reading; None: not checked.
_CONTAINERS: dict[str, type | None] = {
    **{f.name: f.default_factory if isinstance(f.default_factory, type) else None for f in fields(Record)},
    **{"id": str, "task": str},
}
