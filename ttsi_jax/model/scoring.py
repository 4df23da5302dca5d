"""H's arithmetic: log-likelihoods of many candidates after one shared prompt, in one forward pass.

The candidates are packed behind the prompt as segments that see the prompt and themselves, not each other, and all
start at the same position. The prompt is computed once and its keys are never copied per candidate.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.cache import PADDING, SHARED, Cache
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Past, Tokens, forward, logits, tokens_after
from ttsi_jax.model.lora import Adapter


class Candidates(NamedTuple):
    """Continuations of one prompt, right-padded; a row of length 0 is no candidate."""

    ids: Array  # [N, C] int32
    lengths: Array  # [N] int32


def candidate_log_likelihoods(
    config: DecoderConfig,
    params: Params,
    prompt: Tokens,
    candidates: Candidates,
    past: Past = (),
    adapter: Adapter | None = None,
    scale: float = 1.0,
) -> Array:
    """log P(candidate | past, prompt) for each candidate, [N] float32 nats; 0 for a row of length 0.

    Args:
        prompt: right-padded [T], with at least one token.
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
    hidden, _ = forward(config, params, packed, past, adapter, scale)

    def log_probs(hidden: Array, ids: Array) -> Array:
        scores = logits(config, params, hidden)
        return jnp.take_along_axis(scores, ids[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(scores, axis=-1)

    # All first tokens are predicted from the prompt's end, each later one from the token before it; one candidate at a
    # time, since logits of all of them together would be large.
    scores = logits(config, params, hidden[last])
    first = scores[candidates.ids[:, 0]] - jax.nn.logsumexp(scores)
    own_hidden = hidden[prompt.ids.shape[0] :].reshape(n, c, -1)
    later = jax.lax.map(lambda own: log_probs(*own), (own_hidden[:, :-1], candidates.ids[:, 1:]))
    return jnp.sum(jnp.where(real, jnp.concatenate([first[:, None], later], axis=1), 0.0), axis=1)


@partial(jax.jit, static_argnames=("config", "scale"))
def score_wave(
    config: DecoderConfig,
    params: Params,
    prompts: Tokens,
    candidates: Candidates,
    past: tuple[Cache, ...] = (),
    adapters: Adapter | None = None,
    *,
    scale: float = 1.0,
) -> Array:
    """`candidate_log_likelihoods` for E inputs at once, [E, N]; every argument but `params` has a leading axis E."""

    with jax.named_scope("score"):
        one = partial(candidate_log_likelihoods, config, params, scale=scale)
        return jax.vmap(one)(prompts, candidates, past, adapters)


@partial(jax.jit, static_argnames=("config",))
def prefill_wave(config: DecoderConfig, params: Params, ids: Array, lengths: Array) -> Cache:
    """Caches of B prefixes under the base: ids [B, P] right-padded, lengths [B]; every array gains a leading axis B."""
    with jax.named_scope("prefill"):
        return jax.vmap(lambda i, n: forward(config, params, tokens_after(i, n))[1])(ids, lengths)
