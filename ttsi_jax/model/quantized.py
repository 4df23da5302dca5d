"""Weights in int8: small integers, each times the scale of its group, with activations and adapters left in float.

A matrix with one scale per output channel is multiplied as it is and the product scaled, so that no dequantised copy of
it is ever asked for. With smaller groups (32 inputs in the Q8_0 format of ggml) a matrix is dequantised for a product,
at most `DEQUANTISED` values at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

DEQUANTISED = 1 << 24  # most values of a matrix at once
LANES = 128  # a TPU's tiles are as wide


class Int8(NamedTuple):
    """How a base is kept in int8, where a dtype says how one is kept in float."""

    dtype: Any  # of activations, and of what else the base has but norms
    group: int | None = None  # inputs that share a float16 scale; None: a float32 scale for all inputs of an output

    def abstract(self, shape: tuple[int, int], axis: int) -> Quantized:
        """A matrix of a shape, with `jax.ShapeDtypeStruct`s; `axis` is that of its inputs."""
        groups = list(shape)
        groups[axis] = 1 if self.group is None else shape[axis] // self.group
        scales = jax.ShapeDtypeStruct(tuple(groups), jnp.float32 if self.group is None else jnp.float16)
        return Quantized(jax.ShapeDtypeStruct(shape, jnp.int8), scales, jnp.dtype(self.dtype))


@partial(jax.tree_util.register_dataclass, data_fields=("values", "scales"), meta_fields=("dtype",))
@dataclass(frozen=True)
class Quantized:
    """An [m, n] matrix in equal groups of values; the shape of a group is the values' over the scales'."""

    values: Any  # [m, n] int8
    scales: Any  # [m / M, n / N] float32 or float16
    dtype: Any  # of what it gives

    def __str__(self) -> str:
        kind = "channel" if 1 in self.scales.shape else f"{self.values.size // self.scales.size} inputs"
        return f"int8 with a scale per {kind}, computed in {self.dtype}"

    def dense(self) -> Array:
        """The matrix [m, n]."""
        (m, n), (g, h) = self.values.shape, self.scales.shape
        scales = self.scales.astype(jnp.float32)
        if h not in (1, n):  # an exact product: to repeat along its lanes, a TPU would transpose the matrix
            spread = jnp.repeat(jnp.eye(h, dtype=jnp.float32), n // h, axis=1)
            scales = jnp.einsum("mh,hn->mn", scales, spread, precision="high")
        elif g not in (1, m):
            scales = jnp.repeat(scales, m // g, axis=0)
        return (self.values.astype(jnp.float32) * scales).astype(self.dtype)


Weight = Array | Quantized


def rows(weight: Weight, ids: Array) -> Array:
    """Rows [T, n] of a matrix whose groups lie within a row."""
    if not isinstance(weight, Quantized):
        return jnp.take(weight, ids, axis=0)
    if len(ids) > 1:
        return jax.tree.map(lambda x: jnp.take(x, ids, axis=0), weight).dense()
    # In decoding: for slices of one row a TPU's compiler would lay the whole matrix and its scales out anew.
    values = jnp.take(weight.values, jnp.resize(ids, (2,)), axis=0)[:1]
    chosen = jax.nn.one_hot(ids, len(weight.scales), dtype=jnp.float32)
    scales = jnp.einsum("tv,vg->tg", chosen, weight.scales, precision="highest")  # exact, in float32 too
    return Quantized(values, scales, weight.dtype).dense()


def contract(x: Array, weight: Weight, axis: int, dtype: Any = None) -> Array:
    """The last axis of x with the given axis of a matrix; in x's dtype, or accumulated and returned in `dtype`."""
    if not isinstance(weight, Quantized):
        return _product(x, weight, axis, dtype)
    product = _per_channel if weight.scales.shape[axis] == 1 else _per_group
    return product(x, weight, axis).astype(dtype or x.dtype)


_SUBSCRIPTS = ("...i,io->...o", "...i,oi->...o")  # by the axis that is contracted


def _product(x: Array, matrix: Array, axis: int, dtype: Any) -> Array:
    if dtype is not None and x.dtype != dtype:
        return _accumulated(x, matrix, axis, dtype)
    plain = partial(jnp.einsum, _SUBSCRIPTS[axis])
    if x.dtype != jnp.bfloat16:
        return plain(x, matrix)
    return jax.lax.platform_dependent(x, matrix, cpu=partial(_rounded, axis), default=plain)


def _rounded(axis: int, x: Array, matrix: Array) -> Array:
    """CPUs that multiply bfloat16 give float32; asked for bfloat16, XLA would make all factors float32 before."""
    return _product(x, matrix, axis, jnp.float32).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _accumulated(x: Array, matrix: Array, axis: int, dtype: Any) -> Array:
    """A product in `dtype` of narrower factors. Its gradients are products of such too: JAX's own would be of one
    narrow and one wide factor, for which GPUs have no unit, and a copy of the matrix would be made wide."""
    return jnp.einsum(_SUBSCRIPTS[axis], x, matrix, preferred_element_type=dtype)


def _accumulated_forward(x: Array, matrix: Array, axis: int, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _accumulated(x, matrix, axis, dtype), (x, matrix)


def _accumulated_backward(axis: int, dtype: Any, kept: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, matrix = kept
    d_out = d_out.astype(x.dtype)
    d_x = jnp.einsum(_SUBSCRIPTS[1 - axis], d_out, matrix, preferred_element_type=dtype)
    d_matrix = jnp.einsum(("...i,...o->io", "...i,...o->oi")[axis], x, d_out, preferred_element_type=dtype)
    return d_x.astype(x.dtype), d_matrix.astype(matrix.dtype)


_accumulated.defvjp(_accumulated_forward, _accumulated_backward)


@partial(jax.checkpoint, static_argnums=2)  # or a copy in float would be kept for the backward pass
def _per_channel(x: Array, weight: Quantized, axis: int) -> Array:
    values = weight.values.astype(x.dtype)
    return _product(x, values, axis, jnp.float32) * weight.scales.squeeze(axis)


def _per_group(x: Array, weight: Quantized, axis: int) -> Array:
    """Some outputs at a time: what is dequantised at once is bounded, where a vocabulary's matrix would be large."""
    n_in, n_out = weight.values.shape[axis], weight.values.shape[1 - axis]
    size = max(LANES, DEQUANTISED // n_in // LANES * LANES)

    @jax.checkpoint
    def part(x: Array, weight: Quantized) -> Array:
        return _product(x, weight.dense(), axis, jnp.float32)

    cut = lambda w, start: jax.lax.slice_in_dim(w, start, min(start + size, n_out), axis=1 - axis)  # noqa: E731
    parts = [jax.tree.map(partial(cut, start=start), weight) for start in range(0, n_out, size)]
    product = lambda x: jnp.concatenate([part(x, own) for own in parts], axis=-1)  # noqa: E731
    if len(parts) == 1 or x.shape[:-1] != (1,):
        return product(x)
    # As above: it would multiply one row as a vector.
    return jax.lax.platform_dependent(x, tpu=lambda x: product(jnp.resize(x, (2, n_in)))[:1], default=product)
