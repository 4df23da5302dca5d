"""Loads a model: files on disk or the hub -> configuration, parameters, tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from ttsi_jax.checkpoints.config import from_gguf, from_hf
from ttsi_jax.checkpoints.files import checksum, errors_name, read_json
from ttsi_jax.checkpoints.gguf import GgufFile
from ttsi_jax.checkpoints.hub import locate
from ttsi_jax.checkpoints.names import (
    ROPE_DIVISORS,
    Shape,
    Slot,
    find_problems,
    gguf_plain_name,
    gguf_slots,
    hf_plain_name,
    hf_slots,
    refuse_if_any,
)
from ttsi_jax.checkpoints.safetensors import open_checkpoint
from ttsi_jax.checkpoints.tokenizer import stop_ids, tokenizer_from_directory, tokenizer_from_gguf
from ttsi_jax.errors import InputError, ModelFileError
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import abstract_params
from ttsi_jax.model.quantized import Int8, Quantized
from ttsi_jax.scaling.mesh import param_shardings, put_weight

DTYPES = ("float32", "bfloat16", "int8")
GENERATION = "generation_config.json"
SIDE_FILES = (
    "config.json",
    GENERATION,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class LanguageModel(NamedTuple):
    """A loaded model.

    Attributes:
        config: the decoder's shape.
        params: the read-only base, laid out as `ttsi_jax.model.decoder.abstract_params` says.
        tokenizer: with the model's chat template.
        stop_ids: token ids that end an answer; the first one ends a turn of the chat template.
        name: what it was asked for as, without the path.
        checksum: SHA-256 that identifies the files (see `ttsi_jax.checkpoints.files.checksum`).
    """

    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    stop_ids: tuple[int, ...]
    name: str
    checksum: str


class TensorFile(Protocol):
    """Tensors in files: shapes at once, values in blocks of consecutive rows."""

    shapes: dict[str, Shape]
    problems: list[str]

    def blocks(self, name: str) -> Iterator[np.ndarray]: ...

    def int8_blocks(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Int8 values [m, n] and their scales [m, n / N]."""
        ...


def load_model(source: str | Path, *, dtype: str | None = None, mesh: Mesh | None = None) -> LanguageModel:
    """Loads a model from a directory, a ``.gguf`` file, an alias or a hub name.

    Tensors are read one at a time, so that the host holds little more than the parameters themselves; on a mesh little
    more than one tensor, of which each device gets its own part.

    Args:
        source: where the model is; see `ttsi_jax.checkpoints.hub.locate`.
        dtype: float32 or bfloat16 for all but the norms; by default float32 on CPU and bfloat16 elsewhere. With int8
          the matrices are int8, and that default is what the rest is and what everything is computed in.
        mesh: see `ttsi_jax.scaling.mesh.make_mesh`; None is one device. What runs the model then runs on the mesh.

    Raises:
        ModelFileError: when a file is missing, damaged or not supported.
        InputError: for another dtype, or a mesh that the model cannot be divided over.
    """
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    dtype = dtype or default
    if dtype not in DTYPES:
        raise InputError(f"dtype '{dtype}' is not supported; supported: {', '.join(DTYPES)}")
    name, path = locate(source)
    with errors_name(path):
        load = _load_gguf if path.is_file() else _load_directory
        return load(path, name, Int8(default) if dtype == "int8" else dtype, mesh)


def _load_directory(path: Path, name: str, dtype: str | Int8, mesh: Mesh | None) -> LanguageModel:
    settings = read_json(path / "config.json")
    with errors_name(path / "config.json"):
        config = from_hf(settings)
    tensors = open_checkpoint(path)
    tokenizer = tokenizer_from_directory(path)
    _check_vocabulary(tokenizer, config)
    stops = stop_ids(tokenizer, [*_eos_ids(settings), *_eos_ids(read_json(path / GENERATION, default={}))])
    params = read_params(tensors, hf_slots(config), lambda name: hf_plain_name(name, config), config, dtype, path, mesh)
    sides = [path / file for file in SIDE_FILES if (path / file).exists()]
    return LanguageModel(config, params, tokenizer, stops, name, checksum([*sides, *tensors.paths]))


def _load_gguf(path: Path, name: str, dtype: str | Int8, mesh: Mesh | None) -> LanguageModel:
    file = GgufFile(path)
    divisors = _rope_divisors(file)
    config = from_gguf(file.metadata, file.shapes, divisors)
    if divisors and len(divisors) * 2 != config.head_dim:
        raise ModelFileError(f"rope_freqs.weight has {len(divisors)} values, expected {config.head_dim // 2}")
    tokenizer = tokenizer_from_gguf(file.metadata)
    _check_vocabulary(tokenizer, config)
    stops = stop_ids(tokenizer, [file.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eot", "eom")])
    params = read_params(file, gguf_slots(config), gguf_plain_name, config, dtype, path, mesh)
    return LanguageModel(config, params, tokenizer, stops, name, checksum([path]))


def _eos_ids(settings: Mapping[str, Any]) -> list[Any]:
    ids = settings.get("eos_token_id")
    return ids if isinstance(ids, list) else [ids]


def _rope_divisors(file: GgufFile) -> tuple[float, ...]:
    if ROPE_DIVISORS not in file.shapes:
        return ()
    refuse_if_any(file.problems, file.path, "its types are not supported")
    values = np.concatenate([block.ravel() for block in file.blocks(ROPE_DIVISORS)])
    if not (np.isfinite(values) & (values > 0)).all():
        raise ModelFileError(f"{ROPE_DIVISORS} has values that are not positive numbers")
    return tuple(values.tolist())


def _check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: DecoderConfig) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelFileError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding only {config.vocab_size}; "
            f"they are not of the same model"
        )


def read_params(
    file: TensorFile,
    slots: Mapping[str, Slot],
    plain_name: Callable[[str], str | None],
    config: DecoderConfig,
    dtype: str | Int8,
    where: Path,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Fills the params pytree from a file, one tensor at a time.

    Args:
        file: the tensors.
        slots: the table of names for this format and model.
        plain_name: the name to look up in the table; None for a tensor to leave out.
        config: the decoder's shape.
        dtype: of everything but the norms. With `Int8` every matrix has the scales that the file gives it.
        where: for error messages.
        mesh: that the parameters are divided over; None is one device.

    Raises:
        InputError: the model cannot be divided so.
        ModelFileError: naming every tensor that is unknown, missing, there twice or of the wrong shape or type; or the
          first one with a value that is not finite.
    """
    unquantised = dtype.dtype if isinstance(dtype, Int8) else dtype
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_params(config, unquantised))
    targets = {tuple(key.key for key in path): leaf for path, leaf in leaves}
    stored = {name: plain for name in file.shapes if (plain := plain_name(name)) is not None}
    names = {plain: name for name, plain in stored.items()}
    twice = [f"tensor {plain} is there twice, also as {name}" for name, plain in stored.items() if names[plain] != name]
    found = {plain: file.shapes[name] for plain, name in names.items()}
    problems = file.problems + twice + find_problems(slots, found, targets)
    refuse_if_any(problems, where, f"it does not fit its {config.family} configuration")

    places = dict.fromkeys(targets)
    if mesh is not None:
        places = dict(zip(targets, jax.tree.leaves(param_shardings(config, mesh)), strict=True))

    def read(name: str, slot: Slot) -> jax.Array | Quantized:
        target = targets[slot.path]
        quantised = isinstance(dtype, Int8) and len(target.shape) == 2
        param = (_read_int8 if quantised else _read_param)(file, name, slot, target)
        return jax.block_until_ready(put_weight(param, places[slot.path]))  # so that the host's copy can go at once

    filled = {slot.path: read(names[plain], slot) for plain, slot in slots.items()}
    return jax.tree_util.tree_unflatten(treedef, [filled[path] for path in targets])


def _read_param(file: TensorFile, name: str, slot: Slot, target: jax.ShapeDtypeStruct) -> np.ndarray:
    param = np.empty(target.shape, target.dtype)
    rows = param.T if slot.transposed else param
    order = slot.row_order(len(rows))
    start = 0
    for block in file.blocks(name):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite and refused
            values = block.astype(target.dtype)
            if slot.offset:
                values += slot.offset
        if not np.isfinite(values).all():
            raise ModelFileError(f"tensor {name} has values that are not finite in {target.dtype}; the file is damaged")
        rows[order[start : start + len(values)]] = values
        start += len(values)
    return param


def _read_int8(file: TensorFile, name: str, slot: Slot, target: jax.ShapeDtypeStruct) -> Quantized:
    values = np.empty(target.shape, np.int8)
    rows = values.T if slot.transposed else values
    order = slot.row_order(len(rows))
    read: list[np.ndarray] = []
    start = 0
    for block, scales in file.int8_blocks(name):
        if not np.isfinite(scales).all():
            raise ModelFileError(f"tensor {name} has values that are not finite; the file is damaged")
        rows[order[start : start + len(block)]] = block
        read.append(scales)
        start += len(block)
    stored = np.concatenate(read)
    scales = np.empty_like(stored)
    scales[order] = stored
    return Quantized(values, scales.T if slot.transposed else scales, target.dtype)
