"""Reads GGUF files, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The header is parsed here, every count and length checked against what is left of the file before anything is made of
it; the values of quantised tensors are computed by the `gguf` package.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from ttsi_jax.checkpoints.files import BLOCK_BYTES
from ttsi_jax.checkpoints.int8 import quantise
from ttsi_jax.errors import ModelFileError

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # type -> struct
Q8_0 = np.dtype([("scale", "<f2"), ("values", "i1", (32,))])  # a block
MAX_DIMENSIONS = 4
MAX_ARRAY = 1 << 22  # a vocabulary has up to about 2^18 entries
MIN_PAIR, MIN_TENSOR = 13, 32  # bytes of the shortest metadata entry and tensor description


class TensorInfo(NamedTuple):
    """One tensor's description: shape in row-major order, storage type, place in the file in bytes."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


class _Header:
    """A cursor over the file that never reads past the end."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ModelFileError(f"ends inside its header: {count} bytes wanted at byte {self.position}")
        self.position += count
        return self.data[self.position - count : self.position]

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        layout = f"<{count}{code}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        (length,) = self.scalars("Q")
        start = self.position
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise ModelFileError(f"holds a text that is not UTF-8 at byte {start}") from None

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalars(SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ModelFileError(f"has a metadata value of unknown type {kind} before byte {self.position}")
        (item_kind,), (count,) = self.scalars("I"), self.scalars("Q")
        if count > MAX_ARRAY:
            raise ModelFileError(f"claims an array of {count} entries at byte {self.position} (limit {MAX_ARRAY})")
        if item_kind in SCALARS:
            return list(self.scalars(SCALARS[item_kind], count))
        if item_kind != STRING:
            raise ModelFileError(f"has an array of type {item_kind} before byte {self.position}, which is not read")
        if count * 8 > self.left:
            raise ModelFileError(f"claims {count} texts at byte {self.position}, more than the file can hold")
        return [self.string() for _ in range(count)]


class GgufFile:
    """A GGUF file: the header read and checked at once, tensor values when asked for.

    Attributes:
        path: the file.
        metadata: key -> value; arrays as lists.
        shapes: tensor name -> shape in row-major order.
        problems: tensors of a type that cannot be read.

    Raises:
        ModelFileError: when the file is damaged, truncated, big-endian or of another version.
    """

    def __init__(self, path: Path):
        self.path = path
        self._data = _map(path)
        header = _Header(self._data)
        n_tensors, n_pairs = _read_preamble(header)
        self.metadata = _read_metadata(header, n_pairs)
        self._tensors = _read_tensors(header, n_tensors, self.metadata)
        self.shapes = {name: info.shape for name, info in self._tensors.items()}
        self.problems = [
            f"tensor {name} is stored as {info.kind.name}, which cannot be dequantised"
            for name, info in self._tensors.items()
            if not _readable(info.kind)
        ]

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor's consecutive rows as float32, in blocks of limited size."""
        info = self._tensors[name]
        for raw in self._raw(info):
            with np.errstate(all="ignore"):  # damaged scales are found as values that are not finite
                block = dequantize(raw, info.kind)
            yield block if len(info.shape) > 1 else block[0]

    def int8_blocks(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same of a matrix in int8: a Q8_0 tensor's own values with its float16 scales [m, n / 32]; the rows of any
        other one are quantised anew, each with one float32 scale [m, 1]."""
        info = self._tensors[name]
        if info.kind != GGMLQuantizationType.Q8_0:
            yield from map(quantise, self.blocks(name))
            return
        for raw in self._raw(info):
            stored = raw.view(Q8_0)
            yield stored["values"].reshape(len(raw), -1), stored["scale"]

    def _raw(self, info: TensorInfo) -> Iterator[np.ndarray]:
        """The bytes of a tensor's rows, of several at a time."""
        n_rows = int(np.prod(info.shape[:-1], dtype=np.int64))
        raw = np.frombuffer(self._data, np.uint8, info.size, info.start).reshape(n_rows, -1)
        rows = max(1, BLOCK_BYTES // (4 * info.shape[-1]))
        for start in range(0, n_rows, rows):
            yield raw[start : start + rows]


@lru_cache
def _readable(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelFileError(f"{path} is empty; download it again") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_preamble(header: _Header) -> tuple[int, int]:
    """Returns the numbers of tensors and of metadata entries."""
    if header.take(4) != b"GGUF":
        raise ModelFileError("is not a GGUF file: it does not begin with GGUF")
    (version,) = header.scalars("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise ModelFileError("is a big-endian GGUF file; convert it to little-endian")
        raise ModelFileError(f"is GGUF version {version}; supported: {', '.join(map(str, VERSIONS))}")
    n_tensors, n_pairs = header.scalars("Q", 2)
    if n_tensors * MIN_TENSOR + n_pairs * MIN_PAIR > header.left:
        raise ModelFileError(f"claims {n_tensors} tensors and {n_pairs} metadata entries, more than it can hold")
    return n_tensors, n_pairs


def _read_metadata(header: _Header, n_pairs: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = header.string()
        if key in metadata:
            raise ModelFileError(f"has the metadata key {key!r} twice")
        (kind,) = header.scalars("I")
        metadata[key] = header.value(kind)
    return metadata


def _read_tensors(header: _Header, n_tensors: int, metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    described = {}
    for _ in range(n_tensors):
        name = header.string()
        if name in described:
            raise ModelFileError(f"has the tensor {name} twice")
        (n_dimensions,) = header.scalars("I")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise ModelFileError(
                f"says tensor {name} has {n_dimensions} dimensions (1 to {MAX_DIMENSIONS} are possible)"
            )
        shape = tuple(reversed(header.scalars("Q", n_dimensions)))
        (kind,), (offset,) = header.scalars("I"), header.scalars("Q")
        described[name] = (shape, kind, offset)

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ModelFileError(f"has general.alignment = {alignment!r}, not a power of two")
    start = -(-header.position // alignment) * alignment
    for name, (_, _, offset) in described.items():
        if offset % alignment:
            raise ModelFileError(f"says tensor {name} begins at byte {offset}, no multiple of {alignment}")
    located = {
        name: _locate(name, shape, kind, start + offset, len(header.data))
        for name, (shape, kind, offset) in described.items()
    }
    in_order = sorted(located, key=lambda name: located[name].start)
    for name, after in pairwise(in_order):
        if located[name].start + located[name].size > located[after].start:
            raise ModelFileError(f"says tensors {name} and {after} overlap")
    return located


def _locate(name: str, shape: tuple[int, ...], kind: int, start: int, file_size: int) -> TensorInfo:
    try:
        storage = GGMLQuantizationType(kind)
    except ValueError:
        raise ModelFileError(f"says tensor {name} is of type {kind}, which the installed gguf does not know") from None
    block_values, block_bytes = GGML_QUANT_SIZES[storage]
    if shape[-1] % block_values:
        raise ModelFileError(
            f"says tensor {name} has rows of {shape[-1]} values in {storage.name} blocks of {block_values}"
        )
    size = math.prod(shape) // block_values * block_bytes
    if not size or start + size > file_size:
        raise ModelFileError(
            f"is damaged or incomplete: tensor {name} {list(shape)} would end at byte {start + size} of {file_size}; "
            f"download it again"
        )
    return TensorInfo(shape, storage, start, size)
