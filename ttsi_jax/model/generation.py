"""Batched decoding, with an adapter per row and a script that says what is forced and what is free.

A row's script is a list of slots. A forced slot feeds its token; a free slot feeds what the model says until the
model's token closes it. Free text is a script of one free slot; a function call whose keys are given is forced text
with a free slot for each value. What may stand in a slot and what closes it are tables over the vocabulary, so that
one compiled loop decodes requests, whole answers and single values alike, without a wait for the host.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.cache import PADDING, SHARED, Cache, empty, write
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Tokens, forward, logits
from ttsi_jax.model.lora import Adapter
from ttsi_jax.model.scoring import Prompted
from ttsi_jax.model.sharding import in_any_part, map_rows

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
    """One row's; temperature 0 is greedy, else the smallest set of tokens with mass `top_p` is sampled from."""

    temperature: Any = 0.0  # float32
    top_p: Any = 1.0  # float32


class Rows(NamedTuple):
    """What rows decode from, as they were read; every array has a leading axis E."""

    prompts: Prompted
    past: tuple[Cache, ...] = ()  # caches of a row's own before its prompt
    adapters: Adapter | None = None  # None: the base


class Generated(NamedTuple):
    """What a row was fed, in order; -1 marks tokens after its end."""

    ids: Array  # [M] int32
    slots: Array  # [M] int32: the script's slot that the token belongs to
    closing: Array  # [S] int32: the token that closed a free slot (not fed), or -1 where the limit or M did
    finite: Array  # bool: all logits were, until the row had ended


class _Progress(NamedTuple):
    """Where one row stands in its script."""

    slot: Array  # int32
    depth: Array  # int32, open brackets or quotes of the current free slot
    used: Array  # int32, tokens in the current free slot


class Decoding(NamedTuple):
    """E lanes, each with a row that decodes or has ended; every array has a leading axis E."""

    rows: Rows  # `prompts.logits` and `prompts.position` are those of the next token
    own: Cache  # [M] what the row has been fed
    n_fed: Array  # int32
    ended: Array  # bool
    progress: _Progress
    generated: Generated


class Arrivals(NamedTuple):
    """Rows that take the lanes of ended ones: row sources[i] goes into lanes[i].

    On a mesh both count within a part of the devices, whose rows and lanes stay there.
    """

    rows: Rows
    sources: Array  # [E] int32; -1 from the first entry on that stands for no row
    lanes: Array  # [E] int32


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


def _first_of_largest(scores: Array) -> Array:
    """`jnp.argmax` over the last axis [E, V], int32, but 0 for a row with a NaN; a CPU reduces values far faster than
    pairs of a value and its place."""
    n = scores.shape[-1]
    smaller = scores < jnp.max(scores, axis=-1, keepdims=True)
    return jnp.min(jnp.where(smaller, n, jnp.arange(n, dtype=jnp.int32)), axis=-1)


def sample(keys: Array, scores: Array, sampling: Sampling) -> Array:
    """One token per row from logits [E, V] with a key and a `sampling` per row [E]; [E] int32."""
    greedy = _first_of_largest(scores)
    warm = sampling.temperature > 0

    def draw(key: Array, row: Array, temperature: Array, top_p: Array) -> Array:
        return jax.random.categorical(key, nucleus(row / temperature, top_p))

    def drawn() -> Array:
        temperatures = jnp.where(warm, sampling.temperature, 1.0)
        return jnp.where(warm, jax.vmap(draw)(keys, scores, temperatures, sampling.top_p), greedy)

    return jax.lax.cond(jnp.any(warm), drawn, lambda: greedy)


def _allowed(script: Script, tables: SlotTables, row: _Progress, scores: Array) -> Array:
    """One row's logits [V] without the tokens that its slot may not hold."""
    kind = script.kinds[row.slot]
    allowed = jnp.where(row.used == 0, tables.first[kind - 1], tables.later[kind - 1])
    return jnp.where(allowed | (kind == FORCED), scores, -jnp.inf)


def _advance(
    script: Script, depth_changes: Array, row: _Progress, closing: Array, proposal: Array
) -> tuple[_Progress, Array, Array, Array]:
    """Takes one row's proposed token; returns its progress and `closing`, the token to feed and that token's slot (-1:
    ended)."""
    kind = script.kinds[row.slot]
    free = kind != FORCED
    depth = row.depth + depth_changes[kind - 1, proposal]
    closed_by_model = free & (depth <= 0)
    closes = closed_by_model | (free & (row.used >= script.limits[row.slot]))
    closing = closing.at[row.slot].set(jnp.where(closed_by_model, proposal, closing[row.slot]))

    slot = row.slot + closes
    ended = slot >= script.length
    feeds_own = (script.kinds[slot] != FORCED) & ~ended
    fed = jnp.where(feeds_own, proposal, script.tokens[slot])
    after = _Progress(
        slot=jnp.where(feeds_own | ended, slot, slot + 1),
        depth=jnp.where(feeds_own, depth, 1),
        used=jnp.where(feeds_own, row.used + 1, 0),
    )
    return after, closing, fed, jnp.where(ended, -1, slot)


@partial(jax.jit, static_argnames=("n_steps", "n_slots"))
def nothing_decoding(like: Rows, n_steps: int, n_slots: int) -> Decoding:
    """E lanes without rows, for rows of these shapes that take up to `n_steps` tokens (M) of scripts of `n_slots`."""
    return map_rows(partial(_nothing_decoding, n_steps=n_steps, n_slots=n_slots), (), (like,))


def _nothing_decoding(like: Rows, n_steps: int, n_slots: int) -> Decoding:
    n_rows = like.prompts.position.shape[0]
    zeros = jnp.zeros(n_rows, jnp.int32)
    none = lambda n: jnp.full((n_rows, n), -1, jnp.int32)  # noqa: E731
    return Decoding(
        rows=jax.tree.map(jnp.zeros_like, like),
        own=jax.vmap(partial(empty, n_slots=n_steps))(like.prompts.cache),
        n_fed=zeros,
        ended=zeros == 0,
        progress=_Progress(zeros, zeros, zeros),
        generated=Generated(none(n_steps), none(n_steps), none(n_slots), zeros == 0),
    )


def _admit(wave: Decoding, arrivals: Arrivals, lengths: Array) -> Decoding:
    """Puts each arriving row into its lane, where nothing is left of the row before; one row is copied at a time."""
    n_steps, n_slots = wave.own.positions.shape[1], wave.generated.closing.shape[1]
    one = jax.tree.map(lambda x: x[:1], arrivals.rows)
    blank = jax.tree.map(lambda x: x[0], _nothing_decoding(one, n_steps, n_slots))._replace(rows=None)

    def put(index: Array, wave: Decoding) -> Decoding:
        source, lane = arrivals.sources[index], arrivals.lanes[index]
        row = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, source, keepdims=False), arrivals.rows)
        begins = blank._replace(rows=row, ended=lengths[lane] <= 0, progress=blank.progress._replace(depth=1))
        return jax.tree.map(lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, lane, 0), wave, begins)

    return jax.lax.fori_loop(0, jnp.sum(arrivals.sources >= 0), put, wave)


@partial(jax.jit, static_argnames=("config", "scale"), donate_argnames=("wave",))
def decode_wave(
    config: DecoderConfig,
    params: Params,
    wave: Decoding,
    arrivals: Arrivals,
    scripts: Script,
    tables: SlotTables,
    keys: Array,
    sampling: Sampling,
    more: Array,
    common: tuple[Cache, ...] = (),
    *,
    scale: float = 1.0,
) -> Decoding:
    """Lets rows take the lanes of ended ones, and decodes all rows at once until so many `more` have ended.

    One device loop; on a mesh one for each part of the devices, which ends when its own rows have, or with `fsdp` when
    those of all its parts have. A row's result does not depend on when it arrives, which its lane is, or who else
    decodes.

    Args:
        wave: E lanes (donated).
        arrivals: rows as `score_wave` read them, with the past and the adapters that they were read with.
        scripts: of the rows in each lane; every array with a leading axis E. A row of length 0 decodes nothing.
        tables: what each kind of free slot may hold and what closes it.
        keys: [E] one random key per lane; a row folds the number of its tokens so far into its own.
        sampling: of the rows in each lane, arrays [E] float32.
        more: int32, of those that are there after the arrivals; E decodes all rows to their ends, 0 only lets rows
            arrive. On a mesh of each part of the devices.
        common: read-only caches before all rows' own, without a leading axis.

    Returns:
        The lanes, with what their rows have been fed. A row also ends when it has been fed M tokens.
    """
    decode = partial(_decode, config, scale)
    with jax.named_scope("decode"):
        return map_rows(decode, (params, tables, more, common), (wave, arrivals, scripts, keys, sampling))


def _decode(
    config: DecoderConfig,
    scale: float,
    params: Params,
    tables: SlotTables,
    more: Array,
    common: tuple[Cache, ...],
    wave: Decoding,
    arrivals: Arrivals,
    scripts: Script,
    keys: Array,
    sampling: Sampling,
) -> Decoding:
    """`decode_wave` of one part of the devices."""
    n_steps = wave.own.positions.shape[1]
    everyone = jnp.arange(wave.ended.shape[0])

    def read(token: Tokens, row: Rows, own: Cache) -> tuple[Array, Cache]:
        return forward(config, params, token, (*common, *row.past, row.prompts.cache, own), row.adapters, scale)

    def step(wave: Decoding, new: Cache, slots_of_new: Array) -> tuple[Decoding, Cache]:
        """Writes what the step before has fed into `own`, and feeds the next token, whose keys and values [1] it
        returns: written after `own` is read, they would make the loop copy all of it at every step."""
        own = jax.vmap(write)(wave.own, new, slots_of_new)
        prompts, (ids, slots, closing, finite) = wave.rows.prompts, wave.generated
        finite = finite & (wave.ended | jnp.all(jnp.isfinite(prompts.logits), axis=-1))
        scores = jax.vmap(_allowed, (0, None, 0, 0))(scripts, tables, wave.progress, prompts.logits)
        proposal = sample(jax.vmap(jax.random.fold_in)(keys, wave.n_fed), scores, sampling)
        advance = jax.vmap(_advance, (0, None, 0, 0, 0))
        moved, closed, fed, slot = advance(scripts, tables.depth_changes, wave.progress, closing, proposal)
        keep = jax.vmap(lambda end, old, new: jax.tree.map(lambda a, b: jnp.where(end, a, b), old, new))
        progress, closing = keep(wave.ended, (wave.progress, closing), (moved, closed))
        ended = wave.ended | (slot < 0)
        at = jnp.where(ended, n_steps, wave.n_fed)  # beyond the end: not written
        ids, slots = (x.at[everyone, at].set(new, mode="drop") for x, new in ((ids, fed), (slots, slot)))

        segments = jnp.where(ended, PADDING, SHARED)
        tokens = Tokens(jnp.where(ended, 0, fed)[:, None], prompts.position[:, None], segments[:, None])
        hidden, new = jax.vmap(read)(tokens, wave.rows, own)
        following = Prompted(logits(config, params, hidden[:, 0]), prompts.cache, prompts.position + 1)
        n_fed = wave.n_fed + ~ended
        after = Decoding(
            rows=wave.rows._replace(prompts=following),
            own=own,
            n_fed=n_fed,
            ended=ended | (n_fed >= n_steps),
            progress=progress,
            generated=Generated(ids, slots, closing, finite),
        )
        return after, new

    wave = _admit(wave, arrivals, scripts.length)
    enough = jnp.sum(wave.ended) + more

    def unfinished(wave: Decoding) -> Array:
        return in_any_part((jnp.sum(wave.ended) < enough) & ~jnp.all(wave.ended))

    def body(carry: tuple[Decoding, Cache, Array, Array]) -> tuple[Decoding, Cache, Array, Array]:
        before, new, at, _ = carry
        wave, new = step(before, new, at)
        return wave, new, before.n_fed, unfinished(wave)

    nothing = jax.vmap(partial(empty, n_slots=1))(wave.own)
    start = wave, nothing, wave.n_fed, unfinished(wave)
    wave, new, at, _ = jax.lax.while_loop(lambda carry: carry[-1], body, start)
    return wave._replace(own=jax.vmap(write)(wave.own, new, at))
