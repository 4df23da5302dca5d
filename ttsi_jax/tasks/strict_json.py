"""JSON from files and models: bounded, standard, and a `JsonError` whatever is wrong with it."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 50
_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonError(ValueError):
    """Text that is not JSON, or JSON that could not be written to a file again."""


def decode(text: str) -> Any:
    """Decodes a text that holds one JSON value and nothing else.

    Raises:
        JsonError: for any other text, and for a value that `check` refuses.
    """
    value = _parse(text)
    check(value)
    return value


def decode_items(text: str) -> list[Any]:
    """Decodes a text that holds a JSON array; in place of an item that `check` refuses stands its `JsonError`.

    Raises:
        JsonError: for any other text.
    """
    items = _parse(text)
    if not isinstance(items, list):
        raise JsonError("not a JSON array")
    return [_checked(item) for item in items]


def decode_at(text: str, start: int) -> tuple[Any, int]:
    """Decodes the JSON value that begins at `start`.

    Returns:
        The value, and the position just after it.
    """
    value, end = _parse_at(text, start)
    check(value)
    return value, end


def check(value: Any, depth: int = 0) -> None:
    """Raises `JsonError` for what a decoded value must not hold.

    That is: more than `MAX_DEPTH` levels, a number beyond double precision's range, half of a surrogate pair (which
    cannot be written as UTF-8).
    """
    if isinstance(value, JsonError):
        raise value
    if depth > MAX_DEPTH:
        raise JsonError(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise JsonError("a text holds half of a surrogate pair")
    elif isinstance(value, int):
        if value.bit_length() > 1023:
            raise JsonError("a number is out of range")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise JsonError("a number is out of range")
    elif isinstance(value, list):
        for item in value:
            check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            check(key, depth + 1)
            check(item, depth + 1)


def _checked(item: Any) -> Any:
    try:
        check(item)
    except JsonError as error:
        return error
    return item


def _parse(text: str) -> Any:
    value, end = _parse_at(text, len(text) - len(text.lstrip()))
    if text[end:].strip():
        raise JsonError(f"there is more text after the JSON value, from character {end + 1} on")
    return value


def _parse_at(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise JsonError(f"not valid JSON: {error.msg} (character {error.pos + 1})") from None
    except RecursionError:
        raise JsonError(f"nested more than {MAX_DEPTH} levels deep") from None


def _integer(digits: str) -> int | JsonError:
    try:
        return int(digits)
    except ValueError:  # Python refuses to read more than 4,300 digits
        return JsonError("a number is out of range")


def _constant(name: str) -> JsonError:
    return JsonError(f"{name} is not a JSON value")


# What is no number stands as its error until `check` comes to it, so that it spoils one item and not all of a text.
_DECODER = json.JSONDecoder(parse_int=_integer, parse_constant=_constant)
