# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""From a prompt to function calls: what the model decodes, and how it is read.

Three forms. `free`: the model writes its whole answer. `guided`: the same, but it can write nothing that is not a call
of a listed function. `keys`: the function that scoring picked and its argument names are written for the model, and it
decodes each value; for models too small to write JSON by themselves. All end as text that the same parser reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ttsi_jax.guided.grammar import call_schema, calls_schema
from ttsi_jax.model.generation import FORCED
from ttsi_jax.tasks import Call, Tool
from ttsi_jax.tasks.pieces import call_pieces, forced_pieces, json_type, keys_text, written_arguments
from ttsi_jax.tasks.prompts import PromptEncoder

TEXT, LINE, STRING, NESTED, INTEGER, NUMBER, BOOLEAN = range(1, 8)  # kinds of free slots; see `ttsi_jax.batching.slots`


@dataclass(frozen=True)
class AnswerConfig:
    """Settings of answering.

    Attributes:
        form: `free` (the model writes JSON or `name(argument=value)`), `guided` (JSON under the functions' schemas;
          needs the extra `guided`), `keys` (it only fills in the values), `auto` (`guided` where the extra is there,
          else `keys`), or `package.module:object`, an `Answerer`.
        max_tokens: most tokens of an answer, forced ones included.
        value_tokens: most tokens of one value in the form `keys`.
        samples: answers that are sampled beside the greedy one; pass@k counts how often one of k is right.
        vote: the answer is the one that most of the sampled ones agree with, by their calls.
        orders: answers are given under so many rotations of the tool list, and vote with the sampled ones.
        repair: an answer that is no valid call, or has values that the request does not hold, gives way to one without
          these faults: the one that most of the sampled ones, orders or adapters agree with. None of the faulty votes.
        judge: what an answer is judged by, for `repair` and for conditions that ask whether it is sound: the `values`
          that the request must hold; `channel`: also its function, which must be the one that makes the request
          likeliest.
        temperature: of sampled answers.
        top_p: of sampled answers.
    """

    form: str = "free"
    max_tokens: int = 192
    value_tokens: int = 32
    samples: int = 0
    vote: bool = False
    orders: int = 1
    repair: bool = False
    judge: Literal["values", "channel"] = "values"
    temperature: float = 0.7
    top_p: float = 0.95


class Slot(NamedTuple):
    """One piece of a row's script: forced token ids, or a free slot."""

    kind: int
    ids: tuple[int, ...] = ()
    limit: int = 0


def script_arrays(
    rows: Sequence[Sequence[Slot]], n_slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The rows' scripts as the arrays of `ttsi_jax.model.generation.Script`, cut to `n_slots`."""
    kinds, tokens, limits = (np.zeros((len(rows), n_slots), np.int32) for _ in range(3))
    lengths = np.zeros(len(rows), np.int32)
    for row, slots in enumerate(rows):
        flat = [(s.kind, i, s.limit) for s in slots for i in (s.ids if s.kind == FORCED else (0,))][:n_slots]
        if flat:
            kinds[row, : len(flat)], tokens[row, : len(flat)], limits[row, : len(flat)] = zip(*flat, strict=True)
        lengths[row] = len(flat)
    return kinds, tokens, limits, lengths


def free_texts(
    tokenizer: Any, special: Collection[int], slots: np.ndarray, ids: np.ndarray, closing: np.ndarray, kinds: np.ndarray
) -> list[str]:
    """What one row said in each of its free slots, in order, with the token that closed it (unless that was a stop).

    Args:
        special: tokens to leave out, see `special_ids`.
        slots: [M] the script's slot of each token, -1 after the end.
        ids: [M] the tokens.
        closing: [S] the token that closed each slot, or -1.
        kinds: [S] the script's kinds.
    """

    def text(slot: int) -> str:
        said = [*ids[slots == slot], *([closing[slot]] if closing[slot] >= 0 else [])]
        return tokenizer.decode([i for i in said if i not in special], clean_up_tokenization_spaces=False)

    return [text(int(slot)) for slot in np.flatnonzero(kinds != FORCED)]


_KINDS = {"array": NESTED, "object": NESTED, "integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN}


def value_kind(schema: Mapping[str, Any]) -> int:
    """The kind of free slot that a parameter's schema asks for; without a type it is a string."""
    return _KINDS.get(json_type(schema), STRING)


def keys_script(encoder: PromptEncoder, tool: Tool, config: AnswerConfig) -> list[Slot]:
    """The script that follows `OPENING`: the tool's name and keys are forced, each value is free."""
    schemas = [tool.properties.get(key, {}) for key in written_arguments(tool)]
    forced = [encoder.fragment(text) for text in forced_pieces(tool)]
    room = config.max_tokens - sum(map(len, forced))
    limit = max(1, min(config.value_tokens, room // max(1, len(schemas))))
    script = [Slot(FORCED, forced[0])]
    for schema, ids in zip(schemas, forced[1:], strict=True):
        script += [Slot(FORCED, ids), Slot(value_kind(schema), limit=limit)]
    return script


class Answerer(NamedTuple):
    """How one input's answer is decoded and read; the library decodes a wave of them together.

    Attributes:
        script: (encoder, tool, settings) -> slots: what is forced, and what the model says freely. `tool` is the
            function that scoring picked.
        text: (tool, what the model said in each free slot, in order) -> the answer, which is then parsed.
        opened: whether the script follows `{"name": "`, the opening of an answer, after which candidates are scored;
            otherwise it begins with the model's turn.
        schema: tools -> the JSON schema that the answer is decoded under; the script is then one free slot.
        several: the same for inputs of which several calls may be right, or none; by default `schema`.
    """

    script: Callable[[PromptEncoder, Tool, AnswerConfig], list[Slot]]
    text: Callable[[Tool, Sequence[str]], str]
    opened: bool = False
    schema: Callable[[Sequence[Tool]], dict[str, Any]] | None = None
    several: Callable[[Sequence[Tool]], dict[str, Any]] | None = None


FREE = Answerer(lambda encoder, tool, config: [Slot(TEXT, limit=config.max_tokens)], lambda tool, texts: texts[0])
KEYS = Answerer(keys_script, keys_text, opened=True)
GUIDED = FREE._replace(schema=call_schema, several=calls_schema)
ANSWERERS = {"free": FREE, "guided": GUIDED, "keys": KEYS}


def call_ids(encoder: PromptEncoder, call: Call) -> tuple[int, ...]:
    """Token ids of a whole answer, piece by piece as `keys` decodes it: what a pair is trained on."""
    return tuple(token for text in call_pieces(call) for token in encoder.fragment(text))
