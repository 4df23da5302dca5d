"""What the programs of a run cost on a TPU: pieces without loops, compiled for it, times how often a program does them.

XLA's cost analysis counts the body of a loop once, so a program with loops says nothing of its work. Here each piece is
compiled with one layer and with two; the difference is a layer's, and all others are like it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ttsi_jax.adaptation import bind_forward
from ttsi_jax.guided.decoding import read_tokens
from ttsi_jax.model.attention import QUERIES
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Tokens, forward, logits
from ttsi_jax.model.lora import projection_shapes
from ttsi_jax.rules.interface import LossFn
from ttsi_jax.scaling.programs import Program


class Counts(NamedTuple):
    """What a compiled piece does on each chip, as the compiler counts it."""

    flops: float
    bytes: float
    received: Mapping[str, float]  # bytes by collectives of each kind
    sent: float  # bytes

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        kinds = {**self.received, **other.received}
        received = {kind: self.received.get(kind, 0.0) + other.received.get(kind, 0.0) for kind in kinds}
        return Counts(self.flops + other.flops, self.bytes + other.bytes, received, self.sent + other.sent)

    def __mul__(self, times: float) -> Counts:  # type: ignore[override]
        received = {kind: times * size for kind, size in self.received.items()}
        return Counts(times * self.flops, times * self.bytes, received, times * self.sent)


NOTHING = Counts(0.0, 0.0, {}, 0.0)


class Piece(NamedTuple):
    """A function without loops and the shapes it is given; how often the program does it, and FLOPs by hand."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    times: float
    flops: float  # of all layers, once
    divided: bool = False  # whether the function itself divides its rows over a mesh
    passes: int = 1  # through the base, which is too large to stay on the chip from one to the next


def first_layers(config: DecoderConfig, n: int) -> DecoderConfig:
    """The decoder with its first n layers alone."""
    return replace(config, n_layers=n, local_layers=config.local_layers[:n])


def pieces(name: str, program: Program, flops: Flops, parts: int = 1) -> list[Piece]:
    """The pieces of a program that `run_programs` made for a wave in so many `parts`; its arguments may be of a decoder
    with fewer layers."""
    config, params, *rest = program.arguments
    if name == "prefill":
        n_rows, n_tokens = rest[0].shape
        call = lambda params, *rest: program.function(config, params, *rest)  # noqa: E731
        return [Piece(call, (params, *rest), 1, n_rows * flops.read(n_tokens, 0, 0), divided=True)]
    if name == "score":
        tokens, _, candidates, past, adapters = rest
        return [_reading(config, params, tokens, candidates, past, adapters, program.options["scale"], flops)]
    if name.startswith("decode"):
        return [_decoding(config, params, rest[0], rest[1], program.options["scale"], flops)]
    rule_step, loss, adapters, states, batches, _, _, keys, tokens, _, candidates, past, _, _ = rest
    options = program.options
    own = (adapters, states, batches, keys, past)
    training = _training(config, params, rule_step, loss, own, options, flops, parts)
    return [training, _reading(config, params, tokens, candidates, past, adapters, options["scale"], flops)]


def _reading(
    config: DecoderConfig,
    params: Any,
    tokens: Tokens,
    candidates: Any,
    past: Any,
    adapters: Any,
    scale: float,
    flops: Flops,
) -> Piece:
    """A wave's prompts with their candidates behind them, and the vocabulary where a token is predicted."""
    (n_rows, n_tokens), (_, n, c) = tokens.ids.shape, candidates.ids.shape
    packed = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n_rows, n_tokens + n * c), x.dtype), tokens)
    projected = 2 + n * (c - 1)

    def read(params: Any, packed: Tokens, past: Any, adapters: Any) -> Any:
        def one(tokens: Tokens, past: Any, adapter: Any) -> Any:
            hidden, cache = forward(config, params, tokens, past, adapter, scale)
            return jax.nn.logsumexp(logits(config, params, hidden[:projected]), axis=-1), cache

        return jax.vmap(one)(packed, past, adapters)

    work = flops.read(n_tokens + n * c, _n_past(past), projected, adapters is not None)
    return Piece(read, (params, packed, past, adapters), 1, n_rows * work)


def _decoding(config: DecoderConfig, params: Any, lanes: Any, arrivals: Any, scale: float, flops: Flops) -> Piece:
    """One step of all lanes."""
    n_rows, n_steps = lanes.own.positions.shape

    def step(params: Any, *rest: Any) -> Any:
        return read_tokens(config, params, *rest, scale=scale)

    ids = fed = jax.ShapeDtypeStruct((n_rows,), jnp.int32)
    past = _n_past((*arrivals.rows.past, arrivals.rows.prompts.cache, lanes.own))
    work = flops.read(1, past, 1, arrivals.rows.adapters is not None)
    return Piece(step, (params, arrivals.rows, lanes.own, ids, fed), n_steps, n_rows * work, divided=True)


def _training(
    config: DecoderConfig, params: Any, rule_step: Any, loss: Any, own: tuple, options: dict, flops: Flops, parts: int
) -> Piece:
    """One step of a chunk's examples: forward, backward, and the rule's update."""
    chunk, remat = options["chunk"] * parts, options["remat"]  # each part trains its own chunk
    adapters, states, batches, keys, past = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((chunk, *x.shape[1:]), x.dtype), own
    )
    batches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((chunk, *x.shape[2:]), x.dtype), batches)  # one pair

    def step(params: Any, *own: Any) -> Any:
        def one(adapter: Any, state: Any, batch: Any, key: Any, past: Any) -> Any:
            run = bind_forward(config, params, past, None, options["scale"], remat)
            return rule_step(LossFn(loss, run), adapter, state, batch, key)

        return jax.vmap(one)(*own)

    times = options["max_steps"] * (own[3].shape[0] // chunk)
    n_tokens, n_trained = batches.tokens.ids.shape[1], batches.predict.shape[1]
    work = flops.train(n_tokens, _n_past(past), n_trained, remat)
    return Piece(step, (params, adapters, states, batches, keys, past), times, chunk * work, passes=2 + remat)


def _n_past(past: Any) -> int:
    return sum(cache.positions.shape[-1] for cache in past)


class Flops:
    """Floating-point operations of one row, counted by hand: every matrix product that the library asks for."""

    def __init__(self, config: DecoderConfig, rank: int):
        shapes = projection_shapes(config).values()
        self.weights = config.n_layers * sum(n_in * n_out for n_in, n_out in shapes)
        self.down = config.n_layers * config.mlp_size * config.hidden_size
        self.adapter = config.n_layers * rank * sum(map(sum, shapes))
        self.head = config.vocab_size * config.hidden_size
        self.products = 2 * config.n_layers * config.n_heads * config.head_dim  # of a query and a key, one product

    def read(self, n_tokens: int, n_past: int, projected: int, adapted: bool = False) -> float:
        """A forward pass, with the vocabulary at `projected` tokens."""
        linear = 2 * n_tokens * (self.weights + adapted * self.adapter) + 2 * projected * self.head
        return linear + 2 * self.products * (n_tokens * n_past + _seen(n_tokens))

    def train(self, n_tokens: int, n_past: int, projected: int, remat: bool) -> float:
        """A training step. Attention takes 2 products forward; backward the weights again, and 4 gradients, of which
        those of the past's keys and values are not needed. Of a layer that is computed again the last product is not
        needed either."""
        passes = 2 + remat  # forward, gradients of activations
        linear = 2 * n_tokens * (passes * self.weights - remat * self.down) + 2 * (passes + 1) * n_tokens * self.adapter
        attention = (7 + 2 * remat) * _seen(n_tokens) + (5 + 2 * remat) * n_tokens * n_past
        return linear + 4 * projected * self.head + self.products * attention


def _seen(n_tokens: int) -> int:
    """Pairs of queries and keys that attention multiplies in a sequence: parts of the queries, keys up to their end. A
    single token's own key is no matrix product."""
    if n_tokens == 1:
        return 0
    ends = [min(start + QUERIES, n_tokens) for start in range(0, n_tokens, QUERIES)]
    return sum((end - start) * end for start, end in zip(range(0, n_tokens, QUERIES), ends, strict=True))
