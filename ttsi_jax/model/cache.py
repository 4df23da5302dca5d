"""Key-value caches: a list entry per layer, and what each slot holds.

A prefix's cache is made once, shared by every phase and never written again; so is the prompt's behind it. A sequence
that decodes owns one more, with free slots. Attention reads them side by side; they are never joined.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

SHARED = 0  # segment of tokens that everything after them sees
PADDING = -1  # segment of slots that nothing sees


class Cache(NamedTuple):
    """Keys and values of one sequence; layers are separate arrays, since stacked ones would be copied at every step."""

    keys: tuple[Array, ...]  # per layer [K, h, S]: as the products of attention read them fastest where queries are few
    values: tuple[Array, ...]  # per layer [K, S, h]
    positions: Array  # [S] int32
    segments: Array  # [S] int32


_SLOTS = Cache(-1, -2, -1, -1)  # type: ignore[arg-type]  # the axis of a cache's arrays that counts slots


def _map(function: Callable[..., Array], *caches: Cache) -> Cache:
    """`function(axis of the slots, arrays…)` of every array."""
    return Cache(*(jax.tree.map(partial(function, axis), *parts) for axis, *parts in zip(_SLOTS, *caches, strict=True)))


def empty(like: Cache, n_slots: int) -> Cache:
    """A cache of `n_slots` free slots, with the layers, heads and dtype of another one."""

    def zeros(axis: int, x: Array) -> Array:
        shape = list(x.shape)
        shape[axis] = n_slots
        return jnp.zeros(shape, x.dtype)

    return _map(zeros, like)._replace(segments=jnp.full(n_slots, PADDING, jnp.int32))


def first(cache: Cache, n_slots: int, n_visible: Array) -> Cache:
    """The cache's first `n_slots` slots, of which only the first `n_visible` are seen."""
    found = _map(lambda axis, x: jax.lax.slice_in_dim(x, 0, n_slots, axis=axis), cache)
    return found._replace(segments=jnp.where(jnp.arange(n_slots) < n_visible, found.segments, PADDING))


def write(cache: Cache, new: Cache, slot: Array) -> Cache:
    """The cache with the tokens of `new` written from `slot` on (in place where the buffers are donated or carried)."""
    return _map(lambda axis, old, x: jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis=axis), cache, new)


def wave_axis(past: tuple[Cache, ...]) -> int | None:
    """For `jax.vmap`: 0 where every row of a wave has caches of its own, None where all rows share the same."""
    return None if past and past[0].positions.ndim == 1 else 0
