"""Key-value caches: a list entry per layer, and what each slot holds.

A prefix's cache is made once, shared by every phase and never written again; so is the prompt's behind it. A sequence
that decodes owns one more, with free slots. Attention reads them side by side; they are never joined.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

SHARED = 0  # segment of tokens that everything after them sees
PADDING = -1  # segment of slots that nothing sees


class Cache(NamedTuple):
    """Keys and values of one sequence; layers are separate arrays, since stacked ones would be copied at every step."""

    keys: tuple[Array, ...]  # per layer [K, h, S], and values [K, S, h]: attention multiplies both as they lie
    values: tuple[Array, ...]
    positions: Array  # [S] int32
    segments: Array  # [S] int32


def empty(like: Cache, n_slots: int) -> Cache:
    """A cache of `n_slots` free slots, with the layers, heads and dtype of another one."""
    shape = lambda x, axis: (*x.shape[:axis], n_slots, *x.shape[axis + 1 :])  # noqa: E731
    keys = tuple(jnp.zeros(shape(x, 2), x.dtype) for x in like.keys)
    values = tuple(jnp.zeros(shape(x, 1), x.dtype) for x in like.values)
    return Cache(keys, values, jnp.zeros(n_slots, jnp.int32), jnp.full(n_slots, PADDING, jnp.int32))


def first(cache: Cache, n_slots: int, n_visible: Array) -> Cache:
    """The cache's first `n_slots` slots, of which only the first `n_visible` are seen."""
    keys, values = tuple(x[:, :, :n_slots] for x in cache.keys), tuple(x[:, :n_slots] for x in cache.values)
    segments = jnp.where(jnp.arange(n_slots) < n_visible, cache.segments[:n_slots], PADDING)
    return Cache(keys, values, cache.positions[:n_slots], segments)


def write(cache: Cache, new: Cache, slot: Array) -> Cache:
    """The cache with the tokens of `new` written from `slot` on (in place where the buffers are donated or carried)."""
    put = lambda old, x, axis: jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis)  # noqa: E731
    return Cache(
        tuple(put(old, x, 2) for old, x in zip(cache.keys, new.keys, strict=True)),
        tuple(put(old, x, 1) for old, x in zip(cache.values, new.values, strict=True)),
        put(cache.positions, new.positions, 0),
        put(cache.segments, new.segments, 0),
    )


def wave_axis(past: tuple[Cache, ...]) -> int | None:
    """For `jax.vmap`: 0 where every row of a wave has caches of its own, None where all rows share the same."""
    return None if past and past[0].positions.ndim == 1 else 0
