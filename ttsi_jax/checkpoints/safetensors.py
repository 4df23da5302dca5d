"""Reads tensors of one or several safetensors files (https://huggingface.co/docs/safetensors), a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ttsi_jax.checkpoints.files import BLOCK_BYTES, read_json
from ttsi_jax.checkpoints.int8 import quantise
from ttsi_jax.errors import ModelFileError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


class SafetensorsFiles:
    """Tensors of one checkpoint: headers are read and checked at once, values when asked for.

    Attributes:
        paths: the files.
        shapes: tensor name -> shape.
        problems: tensors that contradict the index, are there twice or have a dtype that is not a float.
    """

    def __init__(self, paths: list[Path], index: dict[str, str] | None = None):
        self.paths = paths
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.problems: list[str] = []
        self._holders: dict[str, Any] = {}
        homes: dict[str, str] = {}
        for path in paths:
            opened = _open(path)
            for name in opened.keys():  # noqa: SIM118  (a safe_open handle is no mapping)
                if name in homes:
                    self.problems.append(f"tensor {name} is in both {homes[name]} and {path.name}")
                homes[name] = path.name
                view = opened.get_slice(name)
                if view.get_dtype() not in FLOATS:
                    self.problems.append(f"tensor {name} is {view.get_dtype()}, not one of {', '.join(FLOATS)}")
                self.shapes[name] = tuple(view.get_shape())
                self._holders[name] = opened
        if index is not None:
            self.problems += [
                f"tensor {name}: {INDEX} says {index.get(name, 'nothing')}, it is in {homes.get(name, 'no file')}"
                for name in sorted(homes.keys() | index.keys())
                if homes.get(name) != index.get(name)
            ]

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor's consecutive rows, in the dtype of the file, in blocks of limited size."""
        shape = self.shapes[name]
        view = self._holders[name].get_slice(name)
        rows = max(1, BLOCK_BYTES // (4 * int(np.prod(shape[1:], dtype=np.int64))))
        for start in range(0, shape[0], rows):
            yield view[start : min(start + rows, shape[0])]

    def int8_blocks(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same of a matrix in int8, each row with a scale [m, 1]."""
        return map(quantise, self.blocks(name))


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a complete safetensors file ({error}); download it again") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from None


def open_checkpoint(directory: Path) -> SafetensorsFiles:
    """Opens the safetensors files of a model directory, single or sharded.

    Raises:
        ModelFileError: when there are none, one is damaged, or the index names a file that is not there.
    """
    if (directory / SINGLE).exists():
        return SafetensorsFiles([directory / SINGLE])
    if (directory / INDEX).exists():
        index = read_json(directory / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
            raise ModelFileError(f"{directory / INDEX} has no weight_map of tensor names to file names")
        files = sorted(set(index.values()))
        absent = [file for file in files if Path(file).name != file or not (directory / file).is_file()]
        if absent:
            raise ModelFileError(f"{directory} lacks {', '.join(absent)}, named in {INDEX}; download the rest")
        return SafetensorsFiles([directory / file for file in files], index)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise ModelFileError(
            f"{directory} holds PyTorch pickle files only, which can run code and are not read; "
            f"convert them to safetensors (save_pretrained does so)"
        )
    raise ModelFileError(f"{directory} has neither {SINGLE} nor {INDEX}")
