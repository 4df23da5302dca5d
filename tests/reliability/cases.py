"""What the cases of the corpus are made of."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Content = bytes | str | None | Callable[[bytes], bytes]  # None: the file is not there; a function changes the good one

GOOD_LINE = json.dumps(
    {
        "id": "good",
        "query": "What is 1 and 2?",
        "tools": [
            {"name": name, "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
            for name in ("add", "greet")
        ],
    }
)
RUN = ("run", "--model", "model", "--task", "good.jsonl")


class Case(NamedTuple):
    """A command with files that are wrong, and how it must end.

    Attributes:
        files: path -> content, put over the good files.
        argv: the command line; `model` is a good directory and `model.gguf` a good file, where `files` leave them so.
        code: the exit code.
        said: a part of the message, its white space as single blanks.
    """

    name: str
    code: int
    said: str
    files: Mapping[str, Content] = {}  # noqa: RUF012 - never changed
    argv: tuple[str, ...] = RUN


def changed(**values: Any) -> Callable[[bytes], bytes]:
    """A JSON object with other values; `...` removes a key."""

    def change(content: bytes) -> bytes:
        merged = json.loads(content) | values
        return json.dumps({key: value for key, value in merged.items() if value is not ...}).encode()

    return change


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """A safetensors file whose header is changed, in place or to what `change` returns; the data stays."""

    def apply(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        return safetensors(change(header) or header, content[8 + length :])

    return apply


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]
