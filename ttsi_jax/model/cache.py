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

    keys: tuple[Array, ...]  # per layer [S, K, h]
    values: tuple[Array, ...]  # per layer [S, K, h]
    positions: Array  # [S] int32
    segments: Array  # [S] int32


def empty(like: Cache, n_slots: int) -> Cache:
    """A cache of `n_slots` free slots, with the layers, heads and dtype of another one."""
    keys, values, positions, segments = jax.tree.map(lambda x: jnp.zeros((n_slots, *x.shape[1:]), x.dtype), like)
    return Cache(keys, values, positions, jnp.full_like(segments, PADDING))


def cut(cache: Cache, length: Array) -> Cache:
    """The cache with only its first `length` slots visible."""
    index = jnp.arange(cache.segments.shape[0])
    return cache._replace(segments=jnp.where(index < length, cache.segments, PADDING))


def write(cache: Cache, new: Cache, slot: Array) -> Cache:
    """The cache with the tokens of `new` written from `slot` on (in place where the buffers are donated or carried)."""
    return jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis=0), cache, new)


def wave_axis(past: tuple[Cache, ...]) -> int | None:
    """For `jax.vmap`: 0 where every row of a wave has caches of its own, None where all rows share the same."""
    return None if past and past[0].positions.ndim == 1 else 0
