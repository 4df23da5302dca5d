"""Softmax attention over several blocks of keys and values, which are never joined.

A block that several sequences share is never copied per sequence. The backward pass computes the attention weights
again from each query's normaliser instead of keeping them, as in FlashAttention (Dao et al., arXiv 2205.14135): they
are by far the largest intermediate values of training, and writing them costs more time than computing them.

Letters: t tokens, s keys, k key-value heads, g query heads per key-value head, h head size, m = g * t.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

Blocks = tuple[tuple[Array, Array], ...]  # of each block keys [K, h, S_i] and values [K, S_i, h]
_HIDDEN = jnp.finfo(jnp.float32).min
QUERIES = 128  # of a part; on a CPU 128 and 172 did best of 86 to 344, for 688 tokens


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
    *past, (keys, values) = keys_values
    n_tokens, n_past = len(q), visible.shape[1] - len(q)
    parts = []
    for start in range(0, n_tokens, QUERIES):
        end = min(start + QUERIES, n_tokens)
        blocks = (*past, (keys[..., :end], values[:, :end]))
        parts.append(_attend_part(q[start:end], blocks, visible[start:end, : n_past + end]))
    return jnp.concatenate(parts)


def _attend_part(q: Array, blocks: Blocks, visible: Array) -> Array:
    """`attend` for queries that may see all the keys: lays them heads first."""
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads = blocks[0][0].shape[0]
    split = (n_kv_heads, n_heads // n_kv_heads, n_tokens, head_dim)
    heads_first = jnp.moveaxis(q.reshape(n_tokens, *split[:2], head_dim), 0, 2)
    out = _attention(heads_first.reshape(n_kv_heads, -1, head_dim), blocks, visible)
    return jnp.moveaxis(out.reshape(split), 2, 0).reshape(n_tokens, -1)


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


@jax.custom_vjp
def _attention(q: Array, blocks: Blocks, visible: Array) -> Array:
    """Queries [K, M, h], blocks and visible [T, S] -> [K, M, h]."""
    return _normalised(q, blocks, visible)[0]


def _forward(q: Array, blocks: Blocks, visible: Array) -> tuple[Array, tuple]:
    out, normaliser = _normalised(q, blocks, visible)
    return out, (q, blocks, visible, out, normaliser)


def _backward(kept: tuple, d_out: Array) -> tuple[Array, Blocks, None]:
    q, blocks, visible, out, normaliser = kept
    common = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
    d_q, d_blocks = jnp.zeros(q.shape, jnp.float32), []
    for scores, (keys, values) in zip(_scores(q, blocks, visible), blocks, strict=True):
        weights = jnp.where(scores == _HIDDEN, 0.0, jnp.exp(scores - normaliser))
        d_scores = (weights * (_batched(d_out, values, 2, 2) - common)).astype(q.dtype)
        d_q += _batched(d_scores, keys, 2, 2)
        d_keys, d_values = _batched(q, d_scores, 1, 1), _batched(weights.astype(q.dtype), d_out, 1, 1)
        d_blocks.append((d_keys.astype(keys.dtype), d_values.astype(values.dtype)))
    return d_q.astype(q.dtype), tuple(d_blocks), None


_attention.defvjp(_forward, _backward)
