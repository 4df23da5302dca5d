"""The decoder: one sequence of tokens in, hidden states and keys and values out.

Everything is written for ONE sequence; batches are `jax.vmap`. A sequence is described by three arrays (`Tokens`):
ids, positions and segments. They alone decide what sees what, so padding on either side, cached prefixes, candidates
packed behind a shared request and decoding are all the same forward pass:

    a query sees a key  iff  key.segment is SHARED or the query's own  and  key.position <= query.position

Einsum letters: t tokens, s keys, d hidden size, k key-value heads, g query heads per key-value head, h head size,
v vocabulary, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ttsi_jax.model.attention import attend
from ttsi_jax.model.cache import PADDING, SHARED, Cache
from ttsi_jax.model.config import DecoderConfig, Rope
from ttsi_jax.model.lora import Adapter, LowRank
from ttsi_jax.model.quantized import Int8, contract, rows
from ttsi_jax.model.sharding import FSDP, axis_size, drop_gathered, gathered

Params = dict[str, Any]
Past = Sequence[Cache]
LayerInputs = dict[int, dict[str, Array]]  # layer -> projection -> what it read, [T, in]


class Tokens(NamedTuple):
    """One sequence."""

    ids: Array  # [T] int32
    positions: Array  # [T] int32, counted from the start of the whole sequence, past included
    segments: Array  # [T] int32: PADDING, SHARED, or n > 0 for tokens that only segment n sees


def tokens_after(ids: Array, length: Array, start: Array | int = 0) -> Tokens:
    """A right-padded sequence: `length` tokens of `ids` [T], the first at position `start`."""
    index = jnp.arange(ids.shape[0])
    segments = jnp.where(index < length, jnp.int32(SHARED), jnp.int32(PADDING))  # plain numbers would be weakly typed
    return Tokens(ids, start + index, segments)


class Linear(nnx.Module):
    """A projection, with a low-rank update when it is given one."""

    def __init__(self, n_in: int, n_out: int, dtype: Any, bias: bool = False):
        self.kernel = nnx.Param(jnp.zeros((n_in, n_out), dtype))
        self.bias = nnx.Param(jnp.zeros((n_out,), dtype)) if bias else None

    def __call__(self, x: Array, low_rank: LowRank | None, scale: float) -> Array:
        y = contract(x, self.kernel.get_value(), axis=0)
        if self.bias is not None:
            y = y + self.bias[...]
        if low_rank is None:
            return y
        a, b = low_rank.a.astype(x.dtype), low_rank.b.astype(x.dtype)
        inner = contract(x, a, axis=0, dtype=jnp.float32)
        update = contract((inner * scale).astype(x.dtype), b, axis=0, dtype=jnp.float32)
        return y + update.astype(y.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.zeros((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class DecoderLayer(nnx.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, dtype: Any):
        d, f, h = config.hidden_size, config.mlp_size, config.head_dim
        norm = lambda size: RMSNorm(size, config.norm_eps)  # noqa: E731
        self.attention_norm = norm(d)
        self.q = Linear(d, config.n_heads * h, dtype, config.qkv_bias)
        self.k = Linear(d, config.n_kv_heads * h, dtype, config.qkv_bias)
        self.v = Linear(d, config.n_kv_heads * h, dtype, config.qkv_bias)
        self.q_norm = norm(h) if config.qk_norm else None
        self.k_norm = norm(h) if config.qk_norm else None
        self.o = Linear(config.n_heads * h, d, dtype)
        self.post_attention_norm = norm(d) if config.sandwich_norms else None
        self.mlp_norm = norm(d)
        self.gate = Linear(d, f, dtype)
        self.up = Linear(d, f, dtype)
        self.down = Linear(f, d, dtype)
        self.post_mlp_norm = norm(d) if config.sandwich_norms else None
        self.config = config

    def __call__(
        self,
        x: Array,  # [T, D]
        rotation: tuple[Array, Array],  # cos and sin, each [T, h/2]
        visible: Array,  # [T, S + T] bool: past keys first, then this sequence's own
        past: Sequence[tuple[Array, Array]],  # of each cache keys [K, h, S_i] and values [K, S_i, h]
        adapter: dict[str, LowRank],
        scale: float,
    ) -> tuple[Array, tuple[Array, Array], dict[str, Array]]:
        """Returns the stream after this layer [T, D], the new keys [K, h, T] and values [K, T, h], and what each
        projection read [T, in]."""
        read: dict[str, Array] = {}

        def project(name: str, inputs: Array) -> Array:
            read[name] = inputs
            return getattr(self, name)(inputs, adapter.get(name), scale)

        with jax.named_scope("attention"):
            y = self.attention_norm(x)
            heads = lambda name, n: project(name, y).reshape(y.shape[0], n, self.config.head_dim)  # noqa: E731
            q, k = heads("q", self.config.n_heads), heads("k", self.config.n_kv_heads)
            v = heads("v", self.config.n_kv_heads)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q), self.k_norm(k)
            q, k = rotate(q, *rotation) * self.config.query_scale, rotate(k, *rotation)
            k, v = jnp.transpose(k, (1, 2, 0)), jnp.swapaxes(v, 0, 1)
            y = project("o", attend(q, [*past, (k, v)], visible))
            x = x + (y if self.post_attention_norm is None else self.post_attention_norm(y))
        with jax.named_scope("mlp"):
            y = self.mlp_norm(x)
            activate = jax.nn.silu if self.config.activation == "silu" else jax.nn.gelu
            y = project("down", activate(project("gate", y)) * project("up", y))
            x = x + (y if self.post_mlp_norm is None else self.post_mlp_norm(y))
        return x, (k, v), read


class Decoder(nnx.Module):
    """Embedding, layers, final norm and head: the parameters' layout and the layers' arithmetic."""

    def __init__(self, config: DecoderConfig, dtype: Any):
        self.embed = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))
        self.layers = nnx.List([DecoderLayer(config, dtype) for _ in range(config.n_layers)])
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = None if config.tied_head else Linear(config.hidden_size, config.vocab_size, dtype)


@lru_cache
def _abstract(config: DecoderConfig, dtype: Any) -> tuple[Any, Params]:
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype)))
    return graph, nnx.to_pure_dict(state)


def abstract_params(config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
    """The parameters' nested dict with a `jax.ShapeDtypeStruct` for each array; norms are float32 whatever `dtype`.

    An `Int8` in the place of a dtype makes every matrix a `Quantized`.
    """
    if not isinstance(dtype, Int8):
        return _abstract(config, jnp.dtype(dtype))[1]

    def matrix(path: Any, x: Any) -> Any:
        return x if x.ndim == 1 else dtype.abstract(x.shape, axis=1 if path[-1].key == "embed" else 0)

    return jax.tree_util.tree_map_with_path(matrix, _abstract(config, jnp.dtype(dtype.dtype))[1])


def merge(config: DecoderConfig, params: Params) -> Decoder:
    """The Flax module over a params pytree (inside a trace this costs nothing at run time)."""
    return nnx.merge(_abstract(config, jnp.dtype(jnp.float32))[0], params)  # whose graph is that of every dtype


def rotation_angles(rope: Rope, head_dim: int, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines of rotary embedding for positions [T], each [T, h/2] float32 (Su et al., arXiv 2104.09864)."""

    def found(positions: Array) -> tuple[Array, Array]:
        frequencies = rope.theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        if rope.divisors:
            frequencies = frequencies / jnp.asarray(rope.divisors, jnp.float32)
        angles = positions.astype(jnp.float32)[:, None] * frequencies
        return jnp.cos(angles), jnp.sin(angles)

    def found_once(positions: Array) -> tuple[Array, Array]:
        """XLA's CPU compiler would compute them anew in every layer, for every head; out of a loop whose turns it
        cannot count (here one) it takes nothing."""
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(found, positions))
        return jax.lax.fori_loop(0, 1 + (positions[0] < 0), lambda _, __: found(positions), blank)

    return jax.lax.platform_dependent(positions, cpu=found_once, default=found)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the two halves of each head of x [T, n, h] by the angles of its position."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def visibility(queries: Tokens, positions: Array, segments: Array, window: int | None) -> Array:
    """Which keys (positions and segments [S]) each query sees, [T, S] bool; see the module's rule."""
    distance = queries.positions[:, None] - positions
    visible = (segments == SHARED) | ((segments == queries.segments[:, None]) & (segments != PADDING))
    visible &= distance >= 0
    return visible if window is None else visible & (distance < window)


def forward(
    config: DecoderConfig,
    params: Params,
    tokens: Tokens,
    past: Past = (),
    adapter: Adapter | None = None,
    scale: float = 1.0,
    remat: bool = False,
) -> tuple[Array, Cache]:
    """Runs one sequence through the decoder.

    Args:
        config: the decoder's shape (static under jit).
        params: the base, as `abstract_params` lays it out.
        tokens: the sequence, T tokens.
        past: caches of tokens that came before; the positions of `tokens` continue theirs.
        adapter: low-rank updates; None is the base.
        scale: alpha / rank of the adapter.
        remat: recompute each layer in the backward pass instead of keeping its intermediate values.

    Returns:
        Hidden states after the final norm [T, D], and a `Cache` of the T tokens' keys and values.
    """
    return run_layers(config, params, tokens, past, adapter, scale, remat)[:2]


def run_layers(
    config: DecoderConfig,
    params: Params,
    tokens: Tokens,
    past: Past,
    adapter: Adapter | None,
    scale: float,
    remat: bool,
) -> tuple[Array, Cache, LayerInputs]:
    """`forward`, with what each layer's projections read; what is not used of that costs nothing under jit."""
    model = merge(config, params)
    table, ids = gathered({"embed": params["embed"]}, tokens.ids)
    x = rows(table["embed"], ids)
    x = x * jnp.asarray(config.embed_scale, x.dtype)

    positions = jnp.concatenate([*(cache.positions for cache in past), tokens.positions])
    segments = jnp.concatenate([*(cache.segments for cache in past), tokens.segments])
    ropes = {False: config.rope, True: config.local_rope or config.rope}
    kinds = set(config.local_layers)
    rotations = {kind: rotation_angles(ropes[kind], config.head_dim, tokens.positions) for kind in kinds}
    windows = {False: None, True: config.sliding_window}
    visible = {kind: visibility(tokens, positions, segments, windows[kind]) for kind in kinds}

    keys, values, inputs = [], [], {}
    for index, layer in enumerate(model.layers):
        local = config.local_layers[index]
        layer_past = [(cache.keys[index], cache.values[index]) for cache in past]
        layer_adapter = {} if adapter is None else adapter.get(index, {})
        x, (k, v), inputs[index] = _layer(
            *nnx.split(layer), x, rotations[local], visible[local], layer_past, layer_adapter, scale, remat=remat
        )
        keys.append(k)
        values.append(v)
    return model.final_norm(x), Cache(tuple(keys), tuple(values), tokens.positions, tokens.segments), inputs


@partial(jax.jit, static_argnames=("graph", "remat"))
def _layer(graph: Any, weights: Any, *arguments: Any, remat: bool) -> Any:
    """One layer; as a jitted function it is traced once for all layers of the same kind."""

    def call(weights: Any, x: Array, *others: Any) -> Any:
        weights, x = gathered(weights, x)
        return nnx.merge(graph, weights)(x, *others)

    if remat:
        call = jax.checkpoint(call)
    elif axis_size(FSDP) > 1:  # or the backward pass would keep all layers whole
        call = jax.checkpoint(call, policy=drop_gathered)
    return call(weights, *arguments)


def logits(config: DecoderConfig, params: Params, hidden: Array) -> Array:
    """Next-token logits [..., V] float32 of hidden states [..., D]: ask only for the positions that are needed."""
    with jax.named_scope("logits"):
        name = "embed" if config.tied_head else "head"
        head, hidden = gathered({name: params[name]}, hidden)
        if config.tied_head:
            return contract(hidden, head[name], axis=1, dtype=jnp.float32)
        return contract(hidden, head[name]["kernel"], axis=0, dtype=jnp.float32)
