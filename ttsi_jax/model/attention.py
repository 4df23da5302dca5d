"""Softmax attention over several blocks of keys and values, which are never joined.

A block that several sequences share is never copied per sequence, and on a CPU the rows of a wave may take turns. The
backward pass computes the attention weights again from each query's normaliser instead of keeping them, as in
FlashAttention (Dao et al., arXiv 2205.14135): they are by far the largest intermediate values of training, and writing
them costs more time than computing them.

Letters: t tokens, s keys, k key-value heads, g query heads per key-value head, h head size, m = g * t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Blocks = tuple[tuple[Array, Array], ...]  # of each block keys [K, h, S_i] and values [K, S_i, h]
_HIDDEN = jnp.finfo(jnp.float32).min
QUERIES = 128  # of a part; on a CPU 128 and 172 did best of 86 to 344, for 688 tokens
CACHED = 2**21  # scores: of more than so many, 8 MiB, a CPU takes a row at a time


def attend(q: Array, keys_values: Sequence[tuple[Array, Array]], visible: Array) -> Array:
    """Softmax attention of queries over all blocks together; softmax in float32.

    Long sequences go a part of the queries at a time, over the keys up to its end: no query sees a key of its own block
    that stands behind it.

    Args:
        q: [T, H, h], already scaled.
        keys_values: of each block keys [K, h, S_i] and values [K, S_i, h], in the dtype of q; K divides H. The last
          block is the queries' own, T keys in the same order.
        visible: [T, S_1 + S_2 + … + T] bool, which keys each query sees.

    Returns:
        [T, H * h] in the dtype of q.
    """
    return _attention(q, tuple(keys_values), visible).reshape(len(q), -1)


@jax.custom_vjp
def _attention(q: Array, blocks: Blocks, visible: Array) -> Array:
    """Like `attend`, [T, H, h]."""
    return _outputs(q, blocks, visible)[0]


def _forward(q: Array, blocks: Blocks, visible: Array) -> tuple[Array, tuple[Any, ...]]:
    out, normalisers = _outputs(q, blocks, visible)
    return out, (q, blocks, visible, out, normalisers)


def _backward(kept: tuple[Any, ...], d_out: Array) -> tuple[Array, Blocks, None]:
    return *_gradients(*kept, d_out), None


_attention.defvjp(_forward, _backward)


def _in_turn_on_cpu(of_row: Callable[..., Any]) -> Callable[..., Any]:
    """`of_row` (queries [T, H, h], blocks, visible [T, S], …), whose rows a CPU takes one at a time under `jax.vmap`
    where the scores of all would not stay in its caches: writing them to memory and reading them takes longest.

    A decoding token has few scores, and its rows stay together.
    """
    of_wave = jax.custom_batching.custom_vmap(of_row)

    @of_wave.def_vmap
    def _(n_rows: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        together = jax.vmap(of_row, jax.tree.map(lambda has_rows: 0 if has_rows else None, list(batched)))
        in_turn = partial(_in_turn, of_row, n_rows, tuple(batched))
        n_heads, (n_queries, n_keys) = arguments[0].shape[-2], arguments[2].shape[-2:]
        if n_queries == 1 or n_rows * n_heads * min(n_queries, QUERIES) * n_keys <= CACHED:
            out = together(*arguments)
        else:
            out = jax.lax.platform_dependent(*arguments, cpu=in_turn, default=together)
        return out, jax.tree.map(lambda _: True, out)

    return of_wave


def _in_turn(of_row: Callable[..., Any], n_rows: int, batched: Any, *arguments: Any) -> Any:
    """`of_row` of each row, one after the other; `batched` says which arguments have rows."""

    def one(row: Array | int) -> Any:
        own = lambda x, has_rows: jax.lax.dynamic_index_in_dim(x, row, keepdims=False) if has_rows else x  # noqa: E731
        return of_row(*jax.tree.map(own, arguments, batched))

    def put(row: Array, found: Any) -> Any:
        return jax.tree.map(lambda all_, x: jax.lax.dynamic_update_index_in_dim(all_, x, row, 0), found, one(row))

    # Filled with what this layer has computed: arrays of zeros XLA would make for all layers at once, at the start.
    anything = arguments[0][(0,) * arguments[0].ndim]
    blank = jax.tree.map(lambda x: jnp.full((n_rows, *x.shape), anything, x.dtype), jax.eval_shape(one, 0))
    return jax.lax.fori_loop(0, n_rows, put, blank)


@_in_turn_on_cpu
def _outputs(q: Array, blocks: Blocks, visible: Array) -> tuple[Array, list[Array]]:
    """Outputs [T, H, h], and of each part of the queries `_normalised`'s second."""
    n_kv_heads = blocks[0][0].shape[0]
    parts = [
        _normalised(_heads_first(q[own], n_kv_heads), of_part, seen) for own, of_part, seen in _parts(blocks, visible)
    ]
    return jnp.concatenate([_tokens_first(out, q.shape[1]) for out, _ in parts]), [own for _, own in parts]


@_in_turn_on_cpu
def _gradients(
    q: Array, blocks: Blocks, visible: Array, out: Array, normalisers: list[Array], d_out: Array
) -> tuple[Array, Blocks]:
    """Of queries [T, H, h] and of each block's keys and values, in their dtypes."""
    n_tokens, n_heads, _ = q.shape
    n_kv_heads = blocks[0][0].shape[0]
    d_q, d_blocks = [], []
    for (own, of_part, seen), normaliser in zip(_parts(blocks, visible), normalisers, strict=True):
        queries, outputs, d_outputs = (_heads_first(x[own], n_kv_heads) for x in (q, out, d_out))
        d_part, (*past, (d_keys, d_values)) = _part_gradients(queries, outputs, d_outputs, normaliser, of_part, seen)
        after = (0, n_tokens - own.stop)
        padded = jnp.pad(d_keys, ((0, 0), (0, 0), after)), jnp.pad(d_values, ((0, 0), after, (0, 0)))
        d_q.append(_tokens_first(d_part, n_heads))
        d_blocks.append((*past, padded))
    total = jax.tree.map(lambda x, *parts: reduce(add, parts).astype(x.dtype), blocks, *d_blocks)
    return jnp.concatenate(d_q), total


def _parts(blocks: Blocks, visible: Array) -> Iterator[tuple[slice, Blocks, Array]]:
    """Each part of the queries, the keys and values up to its end, and what it sees of them."""
    n_tokens, n_keys = visible.shape
    *past, (keys, values) = blocks
    for start in range(0, n_tokens, QUERIES):
        end = min(start + QUERIES, n_tokens)
        seen = visible[start:end, : n_keys - n_tokens + end]
        yield slice(start, end), (*past, (keys[..., :end], values[:, :end])), seen


def _heads_first(x: Array, n_kv_heads: int) -> Array:
    """[t, H, h] -> [K, m, h]."""
    n_tokens, n_heads, head_dim = x.shape
    split = x.reshape(n_tokens, n_kv_heads, n_heads // n_kv_heads, head_dim)
    return jnp.moveaxis(split, 0, 2).reshape(n_kv_heads, -1, head_dim)


def _tokens_first(x: Array, n_heads: int) -> Array:
    """[K, m, h] -> [t, H, h]."""
    n_kv_heads, _, head_dim = x.shape
    split = x.reshape(n_kv_heads, n_heads // n_kv_heads, -1, head_dim)
    return jnp.moveaxis(split, 2, 0).reshape(-1, n_heads, head_dim)


def _batched(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """The products of matrices [K, …] and [K, …] over the named axes, float32.

    Both operands stay as they lie: XLA's CPU compiler takes slow paths for some of the orders that einsum chooses. The
    products with one key, a decoding token's own, are no calls of the matrix library but fuse with their neighbours.
    """
    if x.shape[x_axis] == 1 or y.shape[3 - y_axis] == 1:
        x, y = (jnp.moveaxis(z, axis, to).astype(jnp.float32) for z, axis, to in ((x, x_axis, 2), (y, y_axis, 1)))
        return x * y if x.shape[2] == 1 else jnp.sum(x * jnp.swapaxes(y, 1, 2), axis=2, keepdims=True)
    axes = ((x_axis,), (y_axis,)), ((0,), (0,))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _scores(q: Array, blocks: Blocks, visible: Array) -> list[Array]:
    """Per block [K, M, S_i] float32; `_HIDDEN` where the query does not see the key."""
    scores, start = [], 0
    for keys, _ in blocks:
        block = visible[:, start : start + keys.shape[2]]
        start += keys.shape[2]
        seen = jnp.tile(block, (q.shape[1] // visible.shape[0], 1))
        scores.append(jnp.where(seen, _batched(q, keys, 2, 1), _HIDDEN))
    return scores


def _normalised(q: Array, blocks: Blocks, visible: Array) -> tuple[Array, Array]:
    """Outputs [K, M, h], and each query's log of the sum of exponentials [K, M, 1] float32."""
    scores = _scores(q, blocks, visible)
    largest = scores[0].max(-1, keepdims=True)
    for own in scores[1:]:
        largest = jnp.maximum(largest, own.max(-1, keepdims=True))
    exponentials = [jnp.exp(own - largest) for own in scores]
    total, out = jnp.zeros((*q.shape[:2], 1), jnp.float32), jnp.zeros(q.shape, jnp.float32)
    for own, (_, values) in zip(exponentials, blocks, strict=True):
        total += own.sum(-1, keepdims=True)
        out += _batched(own.astype(q.dtype), values, 2, 1)
    return (out / total).astype(q.dtype), largest + jnp.log(total)


def _part_gradients(
    q: Array, out: Array, d_out: Array, normaliser: Array, blocks: Blocks, visible: Array
) -> tuple[Array, Blocks]:
    """Of one part's queries [K, m, h] in their dtype, and of the blocks' keys and values in float32; `normaliser` is
    `_normalised`'s second [K, m, 1]."""
    common = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
    d_q, d_blocks = jnp.zeros(q.shape, jnp.float32), []
    for scores, (keys, values) in zip(_scores(q, blocks, visible), blocks, strict=True):
        weights = jnp.where(scores == _HIDDEN, 0.0, jnp.exp(scores - normaliser))
        d_scores = (weights * (_batched(d_out, values, 2, 2) - common)).astype(q.dtype)
        d_q += _batched(d_scores, keys, 2, 2)
        d_blocks.append((_batched(q, d_scores, 1, 1), _batched(weights.astype(q.dtype), d_out, 1, 1)))
    return d_q.astype(q.dtype), tuple(d_blocks)
