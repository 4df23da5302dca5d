"""Key-value caches: a list entry per layer, and what each slot holds.

A prefix's cache is made once, shared by every phase and never written again. A sequence that decodes owns a second
cache with free slots. Attention reads both side by side; they are never joined.
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


def with_free_slots(cache: Cache, n_slots: int) -> Cache:
    """The cache with `n_slots` empty slots behind its own, for tokens to come."""

    def extend(x: Array, fill: int = 0) -> Array:
        return jnp.pad(x, [(0, n_slots)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)

    return Cache(
        tuple(map(extend, cache.keys)),
        tuple(map(extend, cache.values)),
        extend(cache.positions),
        extend(cache.segments, PADDING),
    )


def write(cache: Cache, new: Cache, slot: Array) -> Cache:
    """The cache with the tokens of `new` written from `slot` on (in place where the buffers are donated or carried)."""
    return jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis=0), cache, new)
