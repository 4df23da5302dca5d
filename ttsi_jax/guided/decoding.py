"""Batched decoding under masks: choosing a token and reading it are two programs, with the host between them.

Unguided decoding stays one device loop (`ttsi_jax.model.generation.decode_wave`). Here the host sees every token; it
makes the next masks while the device reads the tokens that were fed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.guided.masks import Guide
from ttsi_jax.model.cache import PADDING, SHARED, Cache, empty, write
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Tokens, forward, logits
from ttsi_jax.model.generation import Rows, Sampling, sample


class GuidedText(NamedTuple):
    """What one row wrote."""

    ids: list[int]
    cut: bool  # whether it had to be closed before the model would have
    finite: bool  # whether all logits were


def unpack(masks: Array, size: int) -> Array:
    """Masks [E, W] uint32 as [E, size] bool: bit i of word w is token 32 w + i."""
    bits = masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
    return bits.reshape(masks.shape[0], -1)[:, :size] == 1


@jax.jit
def mask_and_sample(scores: Array, masks: Array, keys: Array, step: Array, sampling: Sampling) -> tuple[Array, Array]:
    """A token per row from those that its mask allows.

    Args:
        scores: [E, V] float32 logits.
        masks: [E, ceil(V / 32)] uint32, see `unpack`.
        keys: [E] one random key per row; results do not depend on other rows.
        step: int32, folded into the keys.
        sampling: of each row, arrays [E] float32.

    Returns:
        The tokens [E] int32, and whether each row's logits were finite [E] bool.
    """
    finite = jnp.all(jnp.isfinite(scores), axis=-1)
    allowed = jnp.where(unpack(masks, scores.shape[-1]), scores, -jnp.inf)
    return sample(jax.vmap(jax.random.fold_in, (0, None))(keys, step), allowed, sampling), finite


@partial(jax.jit, static_argnames=("config", "scale"))
def read_tokens(
    config: DecoderConfig,
    params: Params,
    rows: Rows,
    own: Cache,
    ids: Array,
    step: Array,
    common: tuple[Cache, ...] = (),
    *,
    scale: float = 1.0,
) -> tuple[Array, Cache]:
    """One forward step of E rows.

    Args:
        rows: as `score_wave` read them, with the past and the adapters that they were read with.
        own: [E, M] the rows' own caches, with the tokens of the steps before.
        ids: [E] int32 the tokens fed; -1 in rows that have ended.
        step: int32, tokens fed before this one.
        common: read-only caches before all rows' own, without a leading axis.

    Returns:
        The next tokens' logits [E, V], and the caches [E, 1] of the tokens fed, for `append`.
    """
    tokens = Tokens(
        jnp.maximum(ids, 0)[:, None],
        (rows.prompts.position + step)[:, None],
        jnp.where(ids < 0, PADDING, SHARED)[:, None],
    )

    def read(token: Tokens, row: Rows, own: Cache) -> tuple[Array, Cache]:
        return forward(config, params, token, (*common, *row.past, row.prompts.cache, own), row.adapters, scale)

    hidden, new = jax.vmap(read)(tokens, rows, own)
    return logits(config, params, hidden[:, 0]), new


@partial(jax.jit, donate_argnames=("own",))
def append(own: Cache, new: Cache, step: Array) -> Cache:
    """The rows' caches with the tokens of a step; a program of its own, since in that of the forward step, which reads
    these caches, XLA would copy them first."""
    return jax.vmap(write, (0, 0, None))(own, new, step)


def decode_guided(
    config: DecoderConfig,
    params: Params,
    rows: Rows,
    guides: Sequence[Guide | None],
    keys: Array,
    sampling: Sampling,
    common: tuple[Cache, ...] = (),
    *,
    n_steps: int,
    scale: float = 1.0,
) -> list[GuidedText]:
    """Decodes rows until each guide is done, or has gone `n_steps` steps.

    Args:
        rows, common: see `read_tokens`.
        guides: one per row, each with a room of at most `n_steps`; a row without one writes nothing.
        keys: [E] one random key per row; a row folds the number of its tokens so far into its own.
        sampling: of each row, arrays [E] float32.
    """
    own = jax.vmap(partial(empty, n_slots=n_steps))(rows.prompts.cache)
    under_way = [(row, guide) for row, guide in enumerate(guides) if guide is not None]
    written: list[list[int]] = [[] for _ in guides]
    scores, all_finite = rows.prompts.logits, np.ones(len(guides), bool)
    grammars = under_way[0][1].grammars
    masks = grammars.masks(guides)
    for step in range(n_steps):
        proposals, finite = mask_and_sample(scores, jnp.asarray(masks), keys, jnp.int32(step), sampling)
        proposals, finite = np.asarray(proposals), np.asarray(finite)
        fed = np.full(len(guides), -1, np.int32)
        for row, guide in under_way:
            all_finite[row] &= finite[row]
            fed[row] = guide.take(int(proposals[row]))
            written[row].append(int(fed[row]))
        under_way = [(row, guide) for row, guide in under_way if not guide.done]
        if not under_way:
            break
        scores, new = read_tokens(config, params, rows, own, jnp.asarray(fed), jnp.int32(step), common, scale=scale)
        own = append(own, new, jnp.int32(step))
        masks = grammars.masks(guides)  # while the device reads the tokens
    return [
        GuidedText(ids, guide is not None and guide.cut, bool(ok))
        for ids, guide, ok in zip(written, guides, all_finite, strict=True)
    ]
