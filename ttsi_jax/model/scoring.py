"""H's arithmetic: log-likelihoods of many candidates after one shared prompt, in one forward pass.

The candidates are packed behind the prompt as segments that see the prompt and themselves, not each other, and all
start at the same position. The prompt is computed once, its keys are never copied per candidate, and decoding goes on
from them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.cache import PADDING, SHARED, Cache, first, wave_axis
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Past, Tokens, forward, logits, tokens_after
from ttsi_jax.model.lora import Adapter
from ttsi_jax.model.sharding import map_rows


class Candidates(NamedTuple):
    """Continuations of one prompt, right-padded; a row of length 0 is no candidate."""

    ids: Array  # [N, C] int32
    lengths: Array  # [N] int32


class Prompted(NamedTuple):
    """A prompt that has been read, as decoding goes on from it."""

    logits: Array  # [V] float32, of the next token
    cache: Cache  # [T] the prompt's tokens; those that do not count are hidden
    position: Array  # int32, of the next token


class Scored(NamedTuple):
    """What one reading of a prompt gives."""

    log_likelihoods: Array  # [N] float32 nats: log P(candidate | past, prompt); 0 for a row of length 0
    token_log_likelihoods: Array  # [N, C] float32 nats: of each token after those before it; 0 after a row's end
    prompted: Prompted


def score(
    config: DecoderConfig,
    params: Params,
    prompt: Tokens,
    start: Array,
    candidates: Candidates,
    past: Past = (),
    adapter: Adapter | None = None,
    scale: float = 1.0,
) -> Scored:
    """Reads one prompt: its candidates' log-likelihoods, and what decoding goes on from.

    Args:
        prompt: right-padded [T], with at least one token.
        start: int32, how many of the prompt's tokens come before what is decoded (candidates follow all of them).
        candidates: N continuations of up to C tokens.
    """
    n, c = candidates.ids.shape
    last = jnp.sum(prompt.segments == SHARED) - 1
    real = jnp.arange(c) < candidates.lengths[:, None]  # [N, C]
    own_segment = jnp.where(real, 1 + jnp.arange(n)[:, None], PADDING)
    own_position = jnp.broadcast_to(prompt.positions[last] + 1 + jnp.arange(c), (n, c))
    packed = Tokens(
        jnp.concatenate([prompt.ids, candidates.ids.reshape(-1)]),
        jnp.concatenate([prompt.positions, own_position.reshape(-1)]),
        jnp.concatenate([prompt.segments, own_segment.reshape(-1)]),
    )
    hidden, cache = forward(config, params, packed, past, adapter, scale)

    def log_probs(hidden: Array, ids: Array) -> Array:
        scores = logits(config, params, hidden)
        return jnp.take_along_axis(scores, ids[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(scores, axis=-1)

    # All first tokens are predicted from the prompt's end, each later one from the token before it; one candidate at a
    # time, since logits of all of them together would be large.
    scores, next_scores = logits(config, params, hidden[jnp.stack([last, start - 1])])
    opening = scores[candidates.ids[:, 0]] - jax.nn.logsumexp(scores)
    own_hidden = hidden[prompt.ids.shape[0] :].reshape(n, c, -1)
    later = jax.lax.map(lambda own: log_probs(*own), (own_hidden[:, :-1], candidates.ids[:, 1:]))
    by_token = jnp.where(real, jnp.concatenate([opening[:, None], later], axis=1), 0.0)
    own_cache = first(cache, prompt.ids.shape[0], start)
    return Scored(
        jnp.sum(by_token, axis=1), by_token, Prompted(next_scores, own_cache, prompt.positions[start - 1] + 1)
    )


@partial(jax.jit, static_argnames=("config", "scale"))
def score_wave(
    config: DecoderConfig,
    params: Params,
    prompts: Tokens,
    starts: Array,
    candidates: Candidates,
    past: tuple[Cache, ...] = (),
    adapters: Adapter | None = None,
    *,
    scale: float = 1.0,
) -> Scored:
    """`score` for E inputs at once: every array has a leading axis E, but `params` and a `past` that all rows share."""

    with jax.named_scope("score"):
        axis = wave_axis(past)
        own, common = (past, ()) if axis == 0 else ((), past)

        def read(params: Params, common: tuple[Cache, ...], own: tuple[Cache, ...], *rows: Any) -> Scored:
            def one(past: Past, prompt: Tokens, start: Array, names: Candidates, adapter: Adapter | None) -> Scored:
                return score(config, params, prompt, start, names, past, adapter, scale)

            return jax.vmap(one, (axis, 0, 0, 0, 0))(own or common, *rows)

        return map_rows(read, (params, common), (own, prompts, starts, candidates, adapters))


@partial(jax.jit, static_argnames=("config",))
def prefill_wave(config: DecoderConfig, params: Params, ids: Array, lengths: Array) -> Cache:
    """Caches of B prefixes under the base: ids [B, P] right-padded, lengths [B]; every array gains a leading axis B."""
    with jax.named_scope("prefill"):

        def read(params: Params, ids: Array, lengths: Array) -> Cache:
            return jax.vmap(lambda i, n: forward(config, params, tokens_after(i, n))[1])(ids, lengths)

        return map_rows(read, (params,), (ids, lengths))
