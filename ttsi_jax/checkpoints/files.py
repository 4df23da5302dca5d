"""Small helpers for reading model files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttsi_jax.errors import ModelFileError

BLOCK_BYTES = 8 << 20  # tensors are converted in blocks of about this many float32 bytes
HASHED_IN_FULL = 1 << 30
SAMPLES, SAMPLE_BYTES = 1024, 64 << 10


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads a JSON object; `default` is for a file that need not be there."""
    if default is not None and not path.exists():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Puts the file's name before the messages of errors that do not know it."""
    try:
        yield
    except ModelFileError as error:
        message = str(error)
        raise ModelFileError(message if str(path) in message else f"{path}: {message}") from None


def checksum(paths: list[Path]) -> str:
    """A SHA-256 over the files' names, sizes and contents, wherever the files lie.

    Of a file over 1 GiB only 1,024 pieces of 64 KiB enter, evenly spaced from its first byte to its last: enough to
    tell two trainings of one architecture apart, and quick; not a proof against deliberate change.
    """
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= HASHED_IN_FULL:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            else:
                for sample in range(SAMPLES):
                    file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
