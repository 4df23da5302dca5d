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

    keys: tuple[Array, ...]  # per layer [K, S, h]: heads first, since attention then reads them as they lie
    values: tuple[Array, ...]  # per layer [K, S, h]
    positions: Array  # [S] int32
    segments: Array  # [S] int32


def empty(like: Cache, n_slots: int) -> Cache:
    """A cache of `n_slots` free slots, with the layers, heads and dtype of another one."""
    keys, values = jax.tree.map(lambda x: jnp.zeros((x.shape[0], n_slots, x.shape[2]), x.dtype), like[:2])
    return Cache(keys, values, jnp.zeros(n_slots, jnp.int32), jnp.full(n_slots, PADDING, jnp.int32))


def first(cache: Cache, n_slots: int, n_visible: Array) -> Cache:
    """The cache's first `n_slots` slots, of which only the first `n_visible` are seen."""
    keys, values = jax.tree.map(lambda x: x[:, :n_slots], cache[:2])
    segments = jnp.where(jnp.arange(n_slots) < n_visible, cache.segments[:n_slots], PADDING)
    return Cache(keys, values, cache.positions[:n_slots], segments)


def write(cache: Cache, new: Cache, slot: Array) -> Cache:
    """The cache with the tokens of `new` written from `slot` on (in place where the buffers are donated or carried)."""

    def put(old: Array, x: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis=max(0, old.ndim - 2))

    return jax.tree.map(put, cache, new)


def wave_axis(past: tuple[Cache, ...]) -> int | None:
    """For `jax.vmap`: 0 where every row of a wave has caches of its own, None where all rows share the same."""
    return None if past and past[0].positions.ndim == 1 else 0
