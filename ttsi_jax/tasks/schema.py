"""Parameter descriptions: every dialect becomes one JSON schema, and calls are checked against it."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ttsi_jax.tasks.example import Call, Tool

MAX_DEPTH = 20

_SPELLINGS = {
    "string": ("str", "string", "text"),
    "integer": ("int", "integer", "long"),
    "number": ("float", "double", "number", "decimal"),
    "boolean": ("bool", "boolean"),
    "array": ("array", "list", "tuple", "set", "sequence"),
    "object": ("object", "dict", "mapping", "map"),
    "null": ("null", "none", "nonetype"),
}
_JSON_TYPE = {spelling: json_type for json_type, spellings in _SPELLINGS.items() for spelling in spellings}
# `str`, `List[str]`, `list(str)`, `typing.Optional[int]`
_TYPE_FORM = re.compile(r"\s*(?:typing\.)?(\w+)\s*(?:[\[(<](.*)[\])>])?\s*", re.DOTALL)
_REWRITTEN = ("type", "enum", "choices", "items", "properties", "required", "optional", "additionalProperties")
_COMBINATIONS = ("anyOf", "oneOf", "allOf")


class SchemaError(ValueError):
    """A parameter description that cannot be understood."""


def normalise_parameters(parameters: Any, required: Iterable[str] = ()) -> dict[str, Any]:
    """Turns a tool's parameter description into a JSON schema.

    Takes JSON schemas, BFCL's variant of them (`dict`, `float`, `tuple`, `any`, `optional`), and bare mappings from
    names to descriptions (Seal-Tools, API-Bank, ToolAlpaca), where `required` stands beside the mapping or in each
    description. A type that JSON does not know is left out: any value will do. Annotations such as `default` and
    `example` stay.

    Args:
        parameters: the description as decoded from the file.
        required: names that the tool lists beside its parameters.

    Returns:
        `{"type": "object", "properties": {...}, "required": [...]}`.

    Raises:
        SchemaError: for a description of another form, with a `$ref`, or nested over `MAX_DEPTH` levels deep.
    """
    if not isinstance(parameters, dict):
        raise SchemaError("the parameters are not an object")
    if not _is_schema(parameters):
        parameters = {"properties": parameters}
    listed = [*_names(parameters.get("required", []), "parameters"), *required]
    properties = parameters.get("properties", {})
    return _normalise({**parameters, "type": "object", "properties": properties, "required": listed}, "parameters", 0)


def check_call(call: Call, tools: Sequence[Tool], unjudged: Collection[str] = ()) -> str | None:
    """Says what is wrong with a call, or None if one of the tools takes it; the values of `unjudged` arguments may be
    anything.

    A call is taken when it names a listed tool and gives all required arguments, no unknown ones, and values of the
    right JSON types: 5 is a number and 5.0 an integer, but True is neither. Array items, nested objects and enums
    count too.
    """
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return f"unknown function {_quote(call.name)}"
    return _check_members(call.arguments, tool.parameters, "", unjudged)


def mistyped(call: Call, tools: Sequence[Tool]) -> list[str]:
    """The arguments whose values are not what a tool takes; none where there is more wrong with a call than values."""
    names = call.arguments.keys()
    if check_call(call, tools, names):
        return []
    return [name for name in names if check_call(call, tools, names - {name})]


def _is_schema(parameters: dict[str, Any]) -> bool:
    """Tells a schema from a bare mapping, which may well have a parameter called `type` or `properties`."""
    if isinstance(parameters.get("type"), str):
        return True
    properties = parameters.get("properties")
    return isinstance(properties, dict) and all(isinstance(value, dict) for value in properties.values())


def _normalise(schema: Any, where: str, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise SchemaError(f"the parameters are nested more than {MAX_DEPTH} levels deep")
    if not isinstance(schema, dict):
        raise SchemaError(f"{where} is not described by an object")
    if "$ref" in schema:
        raise SchemaError(f"{where} uses $ref, which is not supported")

    result = _normalise_type(schema.get("type"), where, depth)
    result |= {key: value for key, value in schema.items() if key not in _REWRITTEN}
    for key in _COMBINATIONS:
        if key in result:
            if not isinstance(result[key], list):
                raise SchemaError(f"{key} of {where} is not a list")
            result[key] = [_normalise(option, where, depth + 1) for option in result[key]]

    if (items := schema.get("items")) is not None:
        options = items if isinstance(items, list) else [items]
        items = [_normalise(option, f"items of {where}", depth + 1) for option in options]
        result.setdefault("type", "array")
        result["items"] = items[0] if len(items) == 1 else {"anyOf": items}
    if enum := schema.get("enum", schema.get("choices")):
        if not isinstance(enum, list):
            raise SchemaError(f"the enum of {where} is not a list")
        # BFCL writes the values that an array's items may take beside the array.
        of_items = result.get("type") == "array" and not any(isinstance(value, list) for value in enum)
        if of_items:
            result["items"] = {**result.get("items", {}), "enum": enum}
        else:
            result["enum"] = enum
    if "properties" in schema:
        properties = schema["properties"]
        if not isinstance(properties, dict):
            raise SchemaError(f"the properties of {where} are not an object")
        result.setdefault("type", "object")
        result["properties"] = {
            name: _normalise(inner, f"parameter {_quote(name)}", depth + 1) for name, inner in properties.items()
        }
        result["required"] = _required(schema, properties, where)
    additional = schema.get("additionalProperties")
    if isinstance(additional, dict):
        additional = _normalise(additional, f"additionalProperties of {where}", depth + 1)
    if isinstance(additional, bool | dict):
        result["additionalProperties"] = additional
    return result


def _normalise_type(spelling: Any, where: str, depth: int) -> dict[str, Any]:
    """The part of a schema that a type's spelling stands for; `{}` for a type that JSON does not have."""
    if depth > MAX_DEPTH:
        raise SchemaError(f"the type of {where} is nested more than {MAX_DEPTH} levels deep")
    if spelling is None:
        return {}
    if isinstance(spelling, list) and all(isinstance(option, str) for option in spelling):
        options = [_normalise_type(option, where, depth + 1).get("type") for option in spelling]
        return {"type": options} if options and None not in options else {}
    if not isinstance(spelling, str):
        raise SchemaError(f"the type of {where} is not text")
    if not (form := _TYPE_FORM.fullmatch(spelling)):
        return {}
    outer, inner = form[1].casefold(), form[2]
    if outer == "optional" and inner:
        return _normalise_type(inner, where, depth + 1)
    json_type = _JSON_TYPE.get(outer)
    if json_type is None:
        return {}
    items = _normalise_type(inner, where, depth + 1) if json_type == "array" and inner else {}
    return {"type": json_type, "items": items} if items else {"type": json_type}


def _required(schema: dict[str, Any], properties: dict[str, Any], where: str) -> list[str]:
    """The required names in the properties' order; names that are no property could not be given and are dropped."""
    listed = schema.get("required", [])
    listed = [] if isinstance(listed, bool) else _names(listed, where)  # a bool belongs to the object around this one
    return [name for name, inner in properties.items() if name in listed or inner.get("required") is True]


def _names(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise SchemaError(f"'required' of {where} is not a list of names")
    return value


def _check_members(
    values: dict[str, Any], schema: dict[str, Any], prefix: str, unjudged: Collection[str] = ()
) -> str | None:
    properties = schema["properties"]
    additional = schema.get("additionalProperties", False)
    for name in schema["required"]:
        if name not in values:
            return f"missing argument {_quote(prefix + name)}"
    for name, value in values.items():
        if name not in properties and additional is False:
            return f"unknown argument {_quote(prefix + name)}"
        inner = properties.get(name, additional if isinstance(additional, dict) else {})
        if name not in unjudged and (reason := _check_value(value, inner, prefix + name)):
            return reason
    return None


def _check_value(value: Any, schema: dict[str, Any], path: str) -> str | None:
    accepted = schema.get("type", [])
    accepted = [accepted] if isinstance(accepted, str) else accepted
    if accepted and not any(_is_type(value, json_type) for json_type in accepted):
        return f"argument {_quote(path)} is {_kind(value)}, not {' or '.join(map(_article, accepted))}"
    if "enum" in schema and not any(_same(value, member) for member in schema["enum"]):
        members = ", ".join(_shown(member) for member in schema["enum"][:5])
        more = ", ..." if len(schema["enum"]) > 5 else ""
        return f"argument {_quote(path)} is {_shown(value)}, not one of {members}{more}"
    for key in ("anyOf", "oneOf"):
        reasons = [_check_value(value, option, path) for option in schema.get(key, [])]
        if reasons and all(reasons):
            return reasons[0]
    for option in schema.get("allOf", []):
        if reason := _check_value(value, option, path):
            return reason
    if isinstance(value, list) and "items" in schema:
        reasons = (_check_value(item, schema["items"], f"{path}[{index}]") for index, item in enumerate(value))
        return next(filter(None, reasons), None)
    if isinstance(value, dict) and "properties" in schema:
        return _check_members(value, schema, f"{path}.")
    return None


def _is_type(value: Any, json_type: str) -> bool:
    if isinstance(value, bool) or value is None:
        return json_type == ("null" if value is None else "boolean")
    if isinstance(value, float):
        return json_type == "number" or (json_type == "integer" and value.is_integer())
    classes = {"string": str, "integer": int, "number": int, "array": list, "object": dict}
    return isinstance(value, classes.get(json_type, ()))


def _kind(value: Any) -> str:
    order = ("integer", "number", "string", "boolean", "array", "object", "null")
    return next(_article(json_type) for json_type in order if _is_type(value, json_type))


def _article(json_type: str) -> str:
    if json_type == "null":
        return "null"
    return f"{'an' if json_type[0] in 'aio' else 'a'} {json_type}"


def _same(left: Any, right: Any) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _shown(value: Any, limit: int = 40) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[:limit] + "..."


def _quote(name: str) -> str:
    return f"'{name}'" if len(name) <= 80 else f"'{name[:80]}...'"
