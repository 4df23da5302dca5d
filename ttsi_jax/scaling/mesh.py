# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""A mesh of devices, of one process or of several: which there are, and what of the base and of a wave lies on which.

`data` divides the inputs of a wave, with everything that is an input's own. `model` divides the base's weights as
Megatron-LM does (Shoeybi et al., arXiv 1909.08053): projections into heads and into the MLP by their outputs, those
back into the stream by their inputs, so that a layer needs two sums over the devices. `fsdp` divides the inputs as
`data` does and the base along its hidden size, whose layers are gathered where they are used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ttsi_jax.errors import InputError
from ttsi_jax.model.cache import Cache
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, abstract_params
from ttsi_jax.model.lora import LowRank
from ttsi_jax.model.quantized import Quantized
from ttsi_jax.model.sharding import DATA, FSDP, MODEL, ROWS, hidden_axis

AXES = (DATA, FSDP, MODEL)


def make_mesh(text: str, wave: int | None = None) -> Mesh | None:
    """The mesh that `data=D,fsdp=F,model=M` means, of the first D * F * M devices; None where that is one device.

    An axis that is not named has size 1.

    Raises:
        InputError: the text means no mesh, there are fewer devices, D * F does not divide the `wave`, or the devices
            are those of several processes and the mesh does not take all of them.
    """
    shape = mesh_shape(text)
    devices: list[Any] = jax.devices()
    if (n := prod(shape)) > len(devices):
        raise InputError(f"--mesh {text} needs {n} devices; there are {len(devices)}")
    if n < len(devices) and jax.process_count() > 1:
        raise InputError(
            f"--mesh {text} leaves some of the hosts' {len(devices)} devices idle; it must take all of them"
        )
    if wave is not None:
        check_wave(wave, shape[0] * shape[1])
    return None if n == 1 else jax.make_mesh(shape, AXES, (AxisType.Auto,) * 3, devices=devices[:n])


def mesh_shape(text: str) -> tuple[int, int, int]:
    """The sizes of `AXES` that a text means.

    Raises:
        InputError: it means no mesh.
    """
    found = dict(re.findall(rf"({'|'.join(AXES)})=([1-9]\d{{0,5}})(?:,|$)", text))
    if text != ",".join(f"{axis}={found.get(axis)}" for axis in re.findall(r"\w+(?==)", text)) or not found:
        raise InputError(
            f"--mesh is '{text}'; it must be data=D,fsdp=F,model=M or some of these, such as data=4,model=2"
        )
    n_data, n_fsdp, n_model = (int(found.get(axis, 1)) for axis in AXES)
    return n_data, n_fsdp, n_model


def check_wave(wave: int, parts: int) -> None:
    """Refuses waves that cannot be divided, with an InputError."""
    if wave % parts:
        raise InputError(f"--wave is {wave}; --mesh divides it into {parts} parts, so it must be a multiple of {parts}")


def undivided(config: DecoderConfig, n_model: int) -> dict[str, str]:
    """The weights that every device must hold whole, each with what `n_model` does not divide.

    Queries are divided by heads. Where there are fewer key-value heads than devices, several devices have the queries
    of one, and each computes its keys and values.

    Raises:
        InputError: there would be nothing left to divide but the vocabulary.
    """
    heads, kv_heads, found = config.n_heads, config.n_kv_heads, dict[str, str]()
    if heads % n_model:
        found["attention"] = f"{heads} heads"
    elif kv_heads % n_model:
        found["keys and values" if n_model % kv_heads == 0 else "attention"] = f"{kv_heads} key-value heads"
    if config.mlp_size % n_model:
        found["MLP"] = f"{config.mlp_size} MLP features"
    if config.vocab_size % n_model:
        found["vocabulary"] = f"{config.vocab_size} tokens"
    if {"attention", "MLP"} <= found.keys():
        raise InputError(f"model={n_model} in --mesh divides neither the {found['attention']} nor the {found['MLP']}")
    return found


def share_of(config: DecoderConfig, n_model: int) -> DecoderConfig:
    """What one of so many devices along `model` computes: its share of the heads, the MLP and the vocabulary."""
    whole = undivided(config, n_model).keys()
    of = lambda size, *parts: size if whole & set(parts) else size // n_model  # noqa: E731
    return replace(
        config,
        n_heads=of(config.n_heads, "attention"),
        n_kv_heads=of(config.n_kv_heads, "attention", "keys and values"),
        mlp_size=of(config.mlp_size, "MLP"),
        vocab_size=of(config.vocab_size, "vocabulary"),
    )


def device_bytes(x: Any) -> int:
    """Of an array on one device, or of a shape that says where it would lie."""
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return prod(shape) * x.dtype.itemsize


def param_shardings(config: DecoderConfig, mesh: Mesh) -> Params:
    """How the base lies: a tree like `abstract_params` of `NamedSharding`.

    Raises:
        InputError: see `undivided`; or `fsdp` does not divide the hidden size.
    """
    axes, n_fsdp = _axes(config, mesh), mesh.shape.get(FSDP, 1)
    if config.hidden_size % n_fsdp:
        raise InputError(
            f"fsdp={n_fsdp} in --mesh does not divide the hidden size {config.hidden_size}: take a divisor of it"
        )

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        owner, kind = ("", *(key.key for key in path))[-2:]
        n_in, n_out = axes.get(owner or kind, (None, None))
        spec = {"kernel": [n_in, n_out], "bias": [n_out], "embed": [n_in, n_out]}.get(kind, [])
        if n_fsdp > 1 and (axis := hidden_axis(path)) is not None:
            spec[axis] = FSDP  # which `model` does not divide
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, abstract_params(config))


def _axes(config: DecoderConfig, mesh: Mesh) -> dict[str, tuple[str | None, str | None]]:
    """The mesh axes of every projection's inputs and outputs; those that are not there are whole."""
    whole = undivided(config, mesh.shape.get(MODEL, 1))
    into, back = (None, MODEL), (MODEL, None)
    found: dict[str, tuple[str | None, str | None]] = {}
    if mesh.shape.get(MODEL, 1) == 1:
        return found
    if "attention" not in whole:
        found |= {"q": into, "o": back} | ({} if "keys and values" in whole else {"k": into, "v": into})
    if "MLP" not in whole:
        found |= {"gate": into, "up": into, "down": back}
    if "vocabulary" not in whole:
        found |= {"embed": back, "head": into}
    return found


def for_scales(matrix: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """How the scales of a matrix in int8 lie: as its values do, but whole over `fsdp` and on an axis that they cannot
    be divided on."""
    sizes = {axis: n for axis, n in matrix.mesh.shape.items() if axis != FSDP}
    divides = lambda axis, n: axis in sizes and n % sizes[axis] == 0  # noqa: E731
    spec = (axis if divides(axis, n) else None for axis, n in zip(matrix.spec, shape, strict=False))
    return NamedSharding(matrix.mesh, PartitionSpec(*spec))


def put_weight(weight: Any, where: NamedSharding | None) -> Any:
    """Puts a leaf of the base, in int8 with its scales."""
    if isinstance(weight, Quantized) and where is not None:
        return put(weight, Quantized(where, for_scales(where, weight.scales.shape), weight.dtype))
    return put(weight, where)


def mesh_of(params: Params) -> Mesh | None:
    """The mesh that a base lies on; None for one device."""
    sharding = jax.tree.leaves(params)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def put(tree: Any, where: Any) -> Any:
    """`jax.device_put`, also onto devices of several processes, as long as all of these have the same values.

    There every process puts what its own devices hold, which needs no communication; `jax.device_put` would first
    compare the values of all processes. What a program of all processes made is moved by another one.

    Args:
        tree: arrays, or shapes in their place, which only note where they would lie.
        where: a sharding, None, or a tree of these that `tree` begins with.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
        at = lambda own, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own)  # noqa: E731
        under = lambda own, part: jax.tree.map(partial(at, own), part)  # noqa: E731
        return jax.tree.map(under, where, tree, is_leaf=lambda own: own is None)
    if all(own.is_fully_addressable for own in jax.tree.leaves(where)):
        return jax.device_put(tree, where)

    def place(sharding: NamedSharding, x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x if x.sharding.is_equivalent_to(sharding, x.ndim) else jax.jit(_same, out_shardings=sharding)(x)
        own = np.asarray(x)
        return jax.make_array_from_callback(own.shape, sharding, lambda index: own[index])

    def place_all(sharding: NamedSharding, own: Any) -> Any:
        return jax.tree.map(partial(place, sharding), own)

    return jax.tree.map(place_all, where, tree)


def _same(x: Any) -> Any:
    """At the top level, or each call would compile it again."""
    return x


class Layout:
    """Where what belongs to the inputs of a wave lies: on one device, or divided over `data` and `fsdp` of a mesh."""

    def __init__(self, config: DecoderConfig, mesh: Mesh | None = None):
        self.mesh, self._axes = mesh, {} if mesh is None else _axes(config, mesh)
        self.share = config if mesh is None else share_of(config, mesh.shape.get(MODEL, 1))  # that a device computes

    @property
    def shape(self) -> dict[str, int] | None:
        """The size of each axis; None for one device."""
        return None if self.mesh is None else dict(self.mesh.shape)

    @property
    def parts(self) -> int:
        """That a wave is divided into."""
        return 1 if self.mesh is None else prod(self.mesh.shape.get(axis, 1) for axis in ROWS)

    def current(self) -> AbstractContextManager[Any]:
        """Makes the mesh the one that programs are for (see `ttsi_jax.model.sharding`)."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def rows(self, tree: Any) -> Any:
        """Puts what has a leading axis for a wave's rows where the rows are. Over `model` caches are divided by heads,
        and the factors of adapters (also those in a rule's state) as the weights beside them."""
        if self.mesh is None:
            return put(tree, None)
        own = lambda x: isinstance(x, Cache | LowRank)  # noqa: E731
        return put(tree, jax.tree_util.tree_map_with_path(self._of_rows, tree, is_leaf=own))

    def _of_rows(self, path: tuple[Any, ...], x: Any) -> Any:
        rows = self._at(ROWS)
        if isinstance(x, Cache):
            return self._of_caches(ROWS)
        dims = {leaf.ndim for leaf in jax.tree.leaves(x)}  # those of the factors that optax does not mask
        if isinstance(x, LowRank) and dims in ({3}, {4}):
            n_in, n_out = self._axes.get(getattr(path[-1], "key", ""), (None, None))
            layers = (None,) * (4 in dims)  # where a rule's state has all layers together
            return LowRank(self._at(ROWS, *layers, n_in), self._at(ROWS, *layers, None, n_out))
        return rows

    def whole(self, tree: Any) -> Any:
        """Arrays that every process can read; where the mesh is one process's, it can read them as they are."""
        where = self._at()
        return tree if where is None or where.is_fully_addressable else put(tree, where)

    def read(self, tree: Any) -> Any:
        """Arrays as the host's own, with the same values in every process: what all of them may decide by."""
        return jax.device_get(self.whole(tree))

    def everywhere(self, caches: Cache) -> Cache:
        """Caches that were made by the parts, whole in each; what `model` divides stays divided."""
        return caches if self.mesh is None else put(caches, self._of_caches(None))

    def stack(self, caches: Sequence[Cache]) -> Cache:
        """A wave's, from those of its rows, which are whole in every part; each device takes those of its own rows."""
        if self.mesh is None:
            return jax.tree.map(lambda *x: jnp.stack(x), *caches)

        def stacked(where: NamedSharding, *caches: Array) -> Array:
            shape = (len(caches), *caches[0].shape)
            on = [{shard.device: shard.data for shard in cache.addressable_shards} for cache in caches]
            indices = where.addressable_devices_indices_map(shape)
            with jax.set_mesh(None):  # or it would have to be a program of all devices, which stacks all rows on each
                own = [
                    jnp.stack([cache[device] for cache in on[index[0]]]) for device, index in indices.items() if index
                ]
            return jax.make_array_from_single_device_arrays(shape, where, own)

        under = lambda where, *parts: jax.tree.map(partial(stacked, where), *parts)  # noqa: E731
        return jax.tree.map(under, self._of_caches(ROWS), *caches)

    def _of_caches(self, axis: tuple[str, ...] | None) -> Any:
        keys_values, others = self._at(axis, self._axes.get("k", (None, None))[1]), self._at(axis)
        return Cache(keys_values, keys_values, others, others)

    def _at(self, *spec: str | tuple[str, ...] | None) -> Any:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(*spec))
