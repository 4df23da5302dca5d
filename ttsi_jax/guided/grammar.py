"""What a guided call may look like: one JSON schema for a tool list, in which nothing is endless.

The schema is narrower than the tools' own: properties come in their listed order, strings and lists have a greatest
length, values of any type a greatest depth. It says what `ttsi_jax.tasks.check_call` looks at (names, types, enums,
required arguments) and leaves out everything else that a tool's author may have written, such as patterns and formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttsi_jax.tasks import Call, Tool, check_call

_COMBINATIONS = ("anyOf", "oneOf", "allOf")
_SCALARS = ("string", "integer", "number", "boolean", "null")

Schema = dict[str, Any]


@dataclass(frozen=True)
class Bounds:
    """What keeps a call finite.

    Attributes:
        characters: most characters of a string.
        items: most items of a list.
        depth: most levels of lists and objects in a value that may be anything.
        magnitude: largest absolute value of a number.
    """

    characters: int = 256
    items: int = 16
    depth: int = 2
    magnitude: int = 10**15


def call_schema(tools: Sequence[Tool], bounds: Bounds = Bounds()) -> Schema:  # noqa: B008 - frozen
    """The JSON schema of one call `{"name": …, "arguments": {…}}` of one of the tools."""
    calls = [
        _closed({"name": {"const": tool.name}, "arguments": bounded(tool.parameters, bounds)}, ("name", "arguments"))
        for tool in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def calls_schema(tools: Sequence[Tool], bounds: Bounds = Bounds()) -> Schema:  # noqa: B008
    """The JSON schema of one call, or of a list of any number of them."""
    call = call_schema(tools, bounds)
    return {"anyOf": [call, {"type": "array", "items": call, "maxItems": bounds.items}]}


def pair_schema(tools: Sequence[Tool], bounds: Bounds = Bounds()) -> Schema:  # noqa: B008
    """The JSON schema of a synthetic example `{"request": …, "call": …}`."""
    return _closed({"request": _scalar("string", bounds), "call": call_schema(tools, bounds)}, ("request", "call"))


def bounded(schema: Mapping[str, Any], bounds: Bounds) -> Schema:
    """A schema as `normalise_parameters` gives it, in the few words of a grammar and without endless values."""
    for key in _COMBINATIONS:
        if options := schema.get(key):
            rest = {name: value for name, value in schema.items() if name != key}
            merged = [_both(rest, option) for option in options]
            if key != "allOf":
                return {"anyOf": [bounded(option, bounds) for option in merged]}
            for option in options:
                rest = _both(rest, option)
            return bounded(rest, bounds)
    if possible := [value for value in schema.get("enum", ()) if _fits(value, schema)]:
        return {"enum": possible}
    kinds = schema.get("type") or ("object" if "properties" in schema else "array" if "items" in schema else None)
    if kinds is None:
        return _anything(bounds, bounds.depth)
    if isinstance(kinds, list):
        return {"anyOf": [bounded({**schema, "type": kind, "enum": ()}, bounds) for kind in kinds]}
    if kinds == "array":
        items = bounded(schema["items"], bounds) if "items" in schema else _anything(bounds, bounds.depth - 1)
        return {"type": "array", "items": items, "maxItems": bounds.items}
    if kinds == "object":
        return _object(schema, bounds)
    return _scalar(kinds, bounds)


def _object(schema: Mapping[str, Any], bounds: Bounds) -> Schema:
    more = schema.get("additionalProperties", "properties" not in schema)
    inner = {name: bounded(value, bounds) for name, value in schema.get("properties", {}).items()}
    result = _closed(inner, schema.get("required", ()))
    if more is not False:  # {} is anything
        values = bounded(more, bounds) if more not in (True, {}) else _anything(bounds, bounds.depth - 1)
        result["additionalProperties"] = values
    return result


def _closed(properties: Mapping[str, Schema], required: Sequence[str]) -> Schema:
    """An object with these members and no others."""
    known = {"properties": dict(properties), "required": list(required), "additionalProperties": False}
    return {"type": "object", **known}


def _scalar(kind: str, bounds: Bounds) -> Schema:
    number = {"minimum": -bounds.magnitude, "maximum": bounds.magnitude}
    limits = {"string": {"maxLength": bounds.characters}, "integer": number, "number": number}
    return {"type": kind, **limits.get(kind, {})}


def _anything(bounds: Bounds, depth: int) -> Schema:
    """Any JSON value with at most `depth` levels of lists and objects."""
    options = [_scalar(kind, bounds) for kind in _SCALARS if kind != "integer"]
    if depth > 0:
        inner = _anything(bounds, depth - 1)
        options.append({"type": "array", "items": inner, "maxItems": bounds.items})
        options.append({**_closed({}, ()), "additionalProperties": inner})
    return {"anyOf": options}


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
    """A schema for values that fit two; where both say what a value may be, the second is taken to be the narrower."""
    result = {**one, **other}
    if "properties" in one and "properties" in other:
        result["properties"] = {**one["properties"], **other["properties"]}
        required = (*one.get("required", ()), *other.get("required", ()))
        result["required"] = [name for name in result["properties"] if name in required]
    return result


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    parameters = {"type": "object", "properties": {"value": schema}, "required": []}
    return check_call(Call("f", {"value": value}), [Tool("f", "", parameters)]) is None
