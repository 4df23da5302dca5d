"""Batched decoding, with an adapter per row and a script that says what is forced and what is free.

A row's script is a list of slots. A forced slot feeds its token; a free slot feeds what the model says until the
model's token closes it. Free text is a script of one free slot; a function call whose keys are given is forced text
with a free slot for each value. What may stand in a slot and what closes it are tables over the vocabulary, so that
one compiled loop decodes requests, whole answers and single values alike, without a wait for the host.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.cache import PADDING, SHARED, Cache, empty, wave_axis, write
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Past, Tokens, forward, logits
from ttsi_jax.model.lora import Adapter
from ttsi_jax.model.scoring import Prompted

FORCED = 0  # the kind of a forced slot; free slots have kinds 1, 2, … = rows 0, 1, … of the tables


class Script(NamedTuple):
    """What one row decodes; a free slot must not follow another one directly."""

    kinds: Array  # [S] int32: FORCED or the kind of free slot
    tokens: Array  # [S] int32: the token of a forced slot
    limits: Array  # [S] int32: most tokens in a free slot
    length: Array  # int32: slots in use


class SlotTables(NamedTuple):
    """The rules of each kind of free slot. It starts at depth 1, and the token that takes it to 0 closes it."""

    depth_changes: Array  # [kinds, V] int8
    first: Array  # [kinds, V] bool: tokens that a slot may begin with
    later: Array  # [kinds, V] bool: tokens that may come after that


class Sampling(NamedTuple):
    """temperature 0 is greedy; otherwise the smallest set of tokens with mass `top_p` is sampled from."""

    temperature: Array | float = 0.0  # float32
    top_p: Array | float = 1.0  # float32


class Generated(NamedTuple):
    """What was fed, in order; -1 marks steps after the row had ended."""

    ids: Array  # [M] int32
    slots: Array  # [M] int32: the script's slot that the token belongs to
    closing: Array  # [S] int32: the token that closed a free slot (not fed), or -1 where the limit or M did
    finite: Array  # bool: all logits were, until the row had ended


class _Progress(NamedTuple):
    """Where one row stands."""

    slot: Array  # int32
    depth: Array  # int32, open brackets or quotes of the current free slot
    used: Array  # int32, tokens in the current free slot
    closing: Array  # [S] int32


def nucleus(scores: Array, top_p: Array | float) -> Array:
    """Masks logits [V] outside the smallest set of tokens with probability `top_p` (Holtzman et al., arXiv 1904.09751).

    The cut-off probability is found by bisection, which needs no sort of the vocabulary.
    """
    probabilities = jax.nn.softmax(scores)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(jnp.where(probabilities >= middle, probabilities, 0.0)) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    cut, _ = jax.lax.fori_loop(0, 30, halve, (jnp.zeros(()), jnp.max(probabilities)))
    return jnp.where(probabilities >= cut, scores, -jnp.inf)


def sample(keys: Array, scores: Array, sampling: Sampling) -> Array:
    """One token per row from logits [E, V] with a key per row [E]; [E] int32."""

    def draw(key: Array, row: Array) -> Array:
        return jax.random.categorical(key, nucleus(row / sampling.temperature, sampling.top_p))

    drawn = lambda: jax.vmap(draw)(keys, scores).astype(jnp.int32)  # noqa: E731
    greedy = lambda: jnp.argmax(scores, axis=-1).astype(jnp.int32)  # noqa: E731
    return jax.lax.cond(jnp.asarray(sampling.temperature) > 0, drawn, greedy)


def _allowed(script: Script, tables: SlotTables, row: _Progress, scores: Array) -> Array:
    """One row's logits [V] without the tokens that its slot may not hold."""
    kind = script.kinds[row.slot]
    allowed = jnp.where(row.used == 0, tables.first[kind - 1], tables.later[kind - 1])
    return jnp.where(allowed | (kind == FORCED), scores, -jnp.inf)


def _advance(script: Script, depth_changes: Array, row: _Progress, proposal: Array) -> tuple[_Progress, Array, Array]:
    """Takes one row's proposed token; returns its progress, the token to feed and that token's slot (-1: ended)."""
    kind = script.kinds[row.slot]
    free = kind != FORCED
    depth = row.depth + depth_changes[kind - 1, proposal]
    closed_by_model = free & (depth <= 0)
    closes = closed_by_model | (free & (row.used >= script.limits[row.slot]))
    closing = row.closing.at[row.slot].set(jnp.where(closed_by_model, proposal, row.closing[row.slot]))

    slot = row.slot + closes
    ended = slot >= script.length
    feeds_own = (script.kinds[slot] != FORCED) & ~ended
    fed = jnp.where(feeds_own, proposal, script.tokens[slot])
    after = _Progress(
        slot=jnp.where(feeds_own | ended, slot, slot + 1),
        depth=jnp.where(feeds_own, depth, 1),
        used=jnp.where(feeds_own, row.used + 1, 0),
        closing=closing,
    )
    return after, fed, jnp.where(ended, -1, slot)


@partial(jax.jit, static_argnames=("config", "n_steps", "scale"))
def decode_wave(
    config: DecoderConfig,
    params: Params,
    prompts: Prompted,
    scripts: Script,
    tables: SlotTables,
    keys: Array,
    sampling: Sampling,
    past: tuple[Cache, ...] = (),
    adapters: Adapter | None = None,
    *,
    n_steps: int,
    scale: float = 1.0,
) -> Generated:
    """Decodes E rows at once until all have ended, in one device loop.

    Args:
        prompts: E prompts as `score_wave` read them, with the same adapters and past.
        scripts: every array with a leading axis E; a row of length 0 decodes nothing.
        tables: what each kind of free slot may hold and what closes it.
        keys: [E] one random key per row; results do not depend on other rows.
        past: read-only caches before the prompts, with a leading axis E or without (then all rows share them).
        adapters: leading axis E, or None for the base.
        n_steps: most tokens a row may take, forced ones included (M).

    Returns:
        `Generated`, every array with a leading axis E.
    """
    n_rows, n_slots = scripts.kinds.shape
    own = jax.vmap(partial(empty, n_slots=n_steps))(prompts.cache)

    def read(token: Tokens, past: Past, prompt: Cache, own: Cache, adapter: Adapter | None) -> tuple[Array, Cache]:
        return forward(config, params, token, (*past, prompt, own), adapter, scale)

    def step(carry: tuple) -> tuple:
        index, rows, ended, scores, own, out, finite = carry
        finite = finite & (ended | jnp.all(jnp.isfinite(scores), axis=-1))
        scores = jax.vmap(_allowed, (0, None, 0, 0))(scripts, tables, rows, scores)
        proposal = sample(jax.vmap(jax.random.fold_in, (0, None))(keys, index), scores, sampling)
        moved, fed, slot = jax.vmap(_advance, (0, None, 0, 0))(scripts, tables.depth_changes, rows, proposal)
        keep = jax.vmap(lambda end, old, new: jax.tree.map(lambda a, b: jnp.where(end, a, b), old, new))
        rows = keep(ended, rows, moved)
        ended = ended | (slot < 0)
        ids, slots = jnp.where(ended, -1, fed), jnp.where(ended, -1, slot)
        out = (out[0].at[:, index].set(ids), out[1].at[:, index].set(slots))

        tokens = Tokens(
            jnp.maximum(ids, 0)[:, None],
            (prompts.position + index)[:, None],
            jnp.where(ended, PADDING, SHARED)[:, None],
        )
        hidden, new = jax.vmap(read, (0, wave_axis(past), 0, 0, 0))(tokens, past, prompts.cache, own, adapters)
        own = jax.vmap(write, (0, 0, None))(own, new, index)
        return index + 1, rows, ended, logits(config, params, hidden[:, 0]), own, out, finite

    zeros = jnp.zeros((n_rows,), jnp.int32)
    rows = _Progress(zeros, zeros + 1, zeros, jnp.full((n_rows, n_slots), -1, jnp.int32))
    unfed = jnp.full((n_rows, n_steps), -1, jnp.int32)
    carry = (jnp.zeros((), jnp.int32), rows, scripts.length <= 0, prompts.logits, own, (unfed, unfed), zeros == 0)
    with jax.named_scope("decode"):
        carry = jax.lax.while_loop(lambda c: (c[0] < n_steps) & ~jnp.all(c[2]), step, carry)
    return Generated(*carry[5], carry[1].closing, carry[6])
