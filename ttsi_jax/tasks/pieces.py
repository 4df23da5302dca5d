"""A call in JSON as pieces of text: what is written for a small model, and the values that it fills in between.

Each piece is tokenised by itself, in decoding with the form `keys` and in training alike, so that both see the same
tokens. (With the form `free` the model decodes whatever tokens it likes, and trains on these.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ttsi_jax.tasks import strict_json
from ttsi_jax.tasks.calls import render_call
from ttsi_jax.tasks.example import Call, Tool
from ttsi_jax.tasks.prompts import OPENING

_BARE, _QUOTES, _SQUARE, _CURLY = (" ", ""), (' "', '"'), (" [", "]"), (" {", "}")  # what is forced around a value


def name_text(name: str) -> str:
    """What follows `OPENING` for a function: its name and the closing quote; the candidate that H scores."""
    return json.dumps(name, ensure_ascii=False)[1:]


def written_arguments(tool: Tool) -> tuple[str, ...]:
    """The arguments that are filled in: the required ones, or all of a tool that marks none as required."""
    return tool.required or tuple(tool.properties)


def json_type(schema: Mapping[str, Any]) -> str:
    """A schema's type; of several the first that has a value to fill in."""
    kinds = schema.get("type", "string")
    return kinds if isinstance(kinds, str) else next((kind for kind in kinds if kind != "null"), "null")


def forced_pieces(tool: Tool) -> list[str]:
    """What is written for the model after `OPENING`: the name, and what stands before each value."""
    brackets = [_schema_brackets(tool.properties.get(key, {})) for key in written_arguments(tool)]
    return [name_text(tool.name), *_between(written_arguments(tool), brackets)[:-1]]


def keys_text(tool: Tool, values: Sequence[str]) -> str:
    """The answer as JSON text, from what the model said in each free slot; a value that is no JSON becomes a string.

    There are fewer values than keys where a script was cut; the arguments without one are left out.
    """
    keys = written_arguments(tool)
    arguments = {
        key: read_value(said, *_schema_brackets(tool.properties.get(key, {})))
        for key, said in zip(keys, values, strict=False)
    }
    return render_call(Call(tool.name, arguments))


_LEADING_ZEROS = re.compile(r"^(-?)0+(?=\d)")  # of a number, which JSON does not have: it would read 0 and stop


def read_value(said: str, opening: str, closing: str) -> Any:
    """The JSON value at the start of `opening + said`; its end may be missing, or followed by more."""
    decoder = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)
    for text in (opening + said, opening + said + closing):
        try:
            value, _ = decoder.raw_decode(_LEADING_ZEROS.sub(r"\1", text.strip()))
            strict_json.check(value)
            return value
        except (ValueError, RecursionError):
            continue
    word = said.split('"')[0].strip().rstrip(",}] ")
    return {"True": True, "False": False, "None": None}.get(word, word)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def call_pieces(call: Call) -> list[str]:
    """The whole answer that is this call, cut where `forced_pieces` and the values meet."""
    brackets = [_value_brackets(value) for value in call.arguments.values()]
    *before, end = _between(tuple(call.arguments), brackets)
    pieces = [OPENING, name_text(call.name)]
    for piece, value, (opening, closing) in zip(before, call.arguments.values(), brackets, strict=True):
        text = f" {json.dumps(value, ensure_ascii=False)}"
        pieces += [piece, text[len(opening) : len(text) - len(closing)]]
    return [piece for piece in [*pieces, end] if piece]


def _between(keys: Sequence[str], brackets: Sequence[tuple[str, str]]) -> list[str]:
    """The texts around the values of these keys, one more than there are values."""
    texts, before = [], ', "arguments": {'
    for key, (opening, closing) in zip(keys, brackets, strict=True):
        texts.append(f"{before}{json.dumps(key, ensure_ascii=False)}:{opening}")
        before = f"{closing}, "
    return [*texts, before.removesuffix(", ") + "}}"]


def _schema_brackets(schema: Mapping[str, Any]) -> tuple[str, str]:
    bare = dict.fromkeys(("integer", "number", "boolean"), _BARE)
    return {**bare, "array": _SQUARE, "object": _CURLY}.get(json_type(schema), _QUOTES)


def _value_brackets(value: Any) -> tuple[str, str]:
    kinds = ((str, _QUOTES), (list, _SQUARE), (dict, _CURLY))
    return next((brackets for kind, brackets in kinds if isinstance(value, kind)), _BARE)
