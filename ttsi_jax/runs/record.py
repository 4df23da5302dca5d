"""What is kept of one input, and its form as one line of strict JSON."""

import json
import re
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, NotRequired, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Call(TypedDict):
    name: str
    arguments: dict[str, Any]


class Sample(TypedDict):
    """An answer that the model sampled, and what it was worth."""

    text: str
    reward: float


class Function(TypedDict):
    name: str
    description: str
    parameters: dict[str, Any]


class Pair(TypedDict):
    """One written pair; `reason` says why it was dropped, `check` which check did. `samples` are there where the loss
    asked for some, `tools` are the functions that the pair is about, where they are not the input's, `origin` is the
    labelled example that it is, `usage` what a teacher counted: requests, prompt_tokens, completion_tokens, cost;
    `skipped` are the arguments whose values were not learned."""

    query: str
    calls: list[Call]
    accepted: bool
    reason: str | None
    check: NotRequired[str | None]
    samples: NotRequired[list[Sample]]
    tools: NotRequired[list[Function]]
    origin: NotRequired[str]
    usage: NotRequired[dict[str, float | None]]
    skipped: NotRequired[list[str]]


@dataclass(frozen=True)
class Record:
    """One input on its way through a run; all values are plain JSON values.

    Fields that a run did not get to keep their defaults: None, False or empty. `*_base` is what the base model gives;
    the same name without the suffix is the final outcome, which is the base's for an input that was not adapted.
    `uncertainty` is the gate's certainty: 1 is sure, and below tau the input is uncertain. `log_likelihoods` are the
    candidates' scores: sums over tokens, or what else `--gate.score` asked for.
    `seconds` holds the seconds that this input took per stage: score, synthesize, adapt, answer; `tokens` the tokens
    that it had the model read (cached prefixes too), train on and write there. `fingerprint` is equal in duplicates,
    and `unmatchable` says why no answer can be right. `calls` is None for an answer that cannot be read as calls; where
    none is right and it is in words, it counts as correct all the same. `query` is the request, or the messages of an
    input with more turns than that (but for the library's own, on how many calls may be right).
    """

    id: str
    task: str
    query: str | list[dict[str, Any]]
    n_prompt_tokens: int | None = None
    candidates: list[str] = field(default_factory=list)
    fingerprint: str | None = None
    log_likelihoods: list[float | None] = field(default_factory=list)
    channel: list[float | None] = field(default_factory=list)  # log P(request | function), where that was asked
    probabilities: list[float | None] = field(default_factory=list)
    uncertainty: float | None = None
    uncertain: bool | None = None
    synthetic: list[Pair] = field(default_factory=list)
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
    samples_base: list[str | None] = field(default_factory=list)  # sampled answers
    samples_adapted: list[str | None] = field(default_factory=list)
    orders_base: list[str | None] = field(default_factory=list)  # answers under other orders of the functions
    orders_adapted: list[str | None] = field(default_factory=list)
    adapters: list[str | None] = field(default_factory=list)  # the answer of each adapter, where there are several
    samples_right_base: int | None = None  # how many of them make the right calls
    samples_right: int | None = None
    seen: bool = False  # the model, or what it was shown, was trained on this input's label: an upper bound
    adapted: bool = False
    adapted_after: str | None = None  # the input whose adapter this one's began as, where a run does not reset
    reverted: bool = False
    reason: str | None = None
    evidence: dict[str, float | bool | None] = field(default_factory=dict)  # see `ttsi_jax.quality.accept.Evidence`
    gold: list[Call] | None = None
    unmatchable: str | None = None
    tool_correct_base: bool | None = None
    call_correct_base: bool | None = None
    tool_correct: bool | None = None
    call_correct: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def samples(self) -> tuple[list[str | None], list[str | None]]:
        """Sampled answers: the base's, and those of what the final answer is from."""
        uses_adapter = self.adapted and not self.reverted
        return self.samples_base, self.samples_adapted if uses_adapter else self.samples_base

    @property
    def request(self) -> str:
        """The last thing the user said."""
        if isinstance(self.query, str):
            return self.query
        said = (str(turn.get("content", "")) for turn in reversed(self.query) if turn.get("role") == "user")
        return next(said, "")


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
        ValueError: the line is no JSON object, lacks a field that has no default, or has an unknown one or one whose
            value is of another type, or counts more right samples than there are.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object is expected, not {type(values).__name__}")
    if unknown := values.keys() - _TYPES.keys():
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    if missing := _REQUIRED - values.keys():
        raise ValueError(f"missing fields: {', '.join(sorted(missing))}")
    for name, value in values.items():
        if not _is(value, _TYPES[name]):
            raise ValueError(f"field {name!r} must be a {_name(_TYPES[name])}")
    record = Record(**values)
    for name, samples in zip(("samples_right_base", "samples_right"), record.samples, strict=True):
        n_right = getattr(record, name)
        if n_right is not None and not 0 <= n_right <= len(samples):
            raise ValueError(f"field {name!r} is {n_right}, and there are {len(samples)} samples")
    return record


_REQUIRED = {f.name for f in fields(Record) if f.default is MISSING and f.default_factory is MISSING}
_TYPES = get_type_hints(Record)


def _is(value: Any, kind: Any) -> bool:
    """Whether a decoded value is of a type as the fields of `Record` have them."""
    inner = get_args(kind)
    if kind is Any:
        return True
    if isinstance(kind, UnionType):
        return any(_is(value, option) for option in inner)
    if is_typeddict(kind):
        members = get_type_hints(kind)
        return (
            isinstance(value, dict)
            and kind.__required_keys__ <= value.keys() <= members.keys()
            and all(_is(value[name], members[name]) for name in value)
        )
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(item, inner[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(item, inner[1]) for item in value.values())
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int):
        return kind in (int, float) and value.bit_length() < 1024  # more is no figure: no float can hold it
    return isinstance(value, kind)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace(f"{__name__}.", "")
