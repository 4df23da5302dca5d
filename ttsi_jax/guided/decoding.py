"""Batched decoding under masks: choosing a token and reading it are two programs, with the host between them.

Unguided decoding stays one device loop (`ttsi_jax.model.generation.decode_wave`). Here the host sees every token; it
makes the next masks while the device reads the tokens that were fed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.guided.masks import Guide
from ttsi_jax.model.cache import PADDING, SHARED, Cache, empty, write
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Tokens, forward, logits
from ttsi_jax.model.generation import Arrivals, Rows, Sampling, sample
from ttsi_jax.model.sharding import map_rows


class Guided(NamedTuple):
    """E lanes, each with a row that decodes or has ended; every array has a leading axis E."""

    rows: Rows  # as they were read
    own: Cache  # [M] what each row has been fed
    scores: Array  # [V] float32, logits of the next token


@dataclass(eq=False)
class Seat:
    """One row on its way through its grammar."""

    guide: Guide
    key: Array  # a scalar key, into which the number of the tokens so far is folded
    sampling: Sampling
    ids: list[int] = field(default_factory=list)  # what it wrote
    finite: bool = True  # whether all logits were

    @property
    def cut(self) -> bool:
        """Whether it had to be closed before the model would have."""
        return self.guide.cut


def unpack(masks: Array, size: int) -> Array:
    """Masks [E, W] uint32 as [E, size] bool: bit i of word w is token 32 w + i."""
    bits = masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
    return bits.reshape(masks.shape[0], -1)[:, :size] == 1


@jax.jit
def mask_and_sample(scores: Array, masks: Array, keys: Array, n_fed: Array, sampling: Sampling) -> tuple[Array, Array]:
    """A token per row from those that its mask allows.

    Args:
        scores: [E, V] float32 logits.
        masks: [E, ceil(V / 32)] uint32, see `unpack`.
        keys: [E] one random key per row; results do not depend on other rows.
        n_fed: [E] int32, folded into the keys.
        sampling: of each row, arrays [E] float32.

    Returns:
        The tokens [E] int32, and whether each row's logits were finite [E] bool.
    """

    def choose(scores: Array, masks: Array, keys: Array, n_fed: Array, sampling: Sampling) -> tuple[Array, Array]:
        finite = jnp.all(jnp.isfinite(scores), axis=-1)
        allowed = jnp.where(unpack(masks, scores.shape[-1]), scores, -jnp.inf)
        return sample(jax.vmap(jax.random.fold_in)(keys, n_fed), allowed, sampling), finite

    with jax.named_scope("decode"):
        return map_rows(choose, (), (scores, masks, keys, n_fed, sampling))


@partial(jax.jit, static_argnames=("config", "scale"))
def read_tokens(
    config: DecoderConfig,
    params: Params,
    rows: Rows,
    own: Cache,
    ids: Array,
    n_fed: Array,
    common: tuple[Cache, ...] = (),
    *,
    scale: float = 1.0,
) -> tuple[Array, Cache]:
    """One forward step of E rows.

    Args:
        rows: as `score_wave` read them, with the past and the adapters that they were read with.
        own: [E, M] the rows' own caches, with the tokens of the steps before.
        ids: [E] int32 the tokens fed; -1 in rows that have ended.
        n_fed: [E] int32, tokens fed to each row before this one.
        common: read-only caches before all rows' own, without a leading axis.

    Returns:
        The next tokens' logits [E, V], and the caches [E, 1] of the tokens fed, for `append`.
    """

    def of_rows(
        params: Params, common: tuple[Cache, ...], rows: Rows, own: Cache, ids: Array, n_fed: Array
    ) -> tuple[Array, Cache]:
        tokens = Tokens(
            jnp.maximum(ids, 0)[:, None],
            (rows.prompts.position + n_fed)[:, None],
            jnp.where(ids < 0, PADDING, SHARED)[:, None],
        )

        def read(token: Tokens, row: Rows, own: Cache) -> tuple[Array, Cache]:
            return forward(config, params, token, (*common, *row.past, row.prompts.cache, own), row.adapters, scale)

        hidden, new = jax.vmap(read)(tokens, rows, own)
        return logits(config, params, hidden[:, 0]), new

    with jax.named_scope("decode"):
        return map_rows(of_rows, (params, common), (rows, own, ids, n_fed))


@partial(jax.jit, donate_argnames=("own",))
def append(own: Cache, new: Cache, n_fed: Array) -> Cache:
    """The rows' caches with the tokens of a step; a program of its own, since in that of the forward step, which reads
    these caches, XLA would copy them first."""
    with jax.named_scope("decode"):
        return map_rows(jax.vmap(write), (), (own, new, n_fed))


@partial(jax.jit, static_argnames=("n_steps",))
def no_lanes(like: Rows, n_steps: int) -> Guided:
    """E lanes without rows, for rows of these shapes that write up to `n_steps` tokens (M)."""

    def idle(like: Rows) -> Guided:
        own = jax.vmap(partial(empty, n_slots=n_steps))(like.prompts.cache)
        return Guided(jax.tree.map(jnp.zeros_like, like), own, jnp.zeros_like(like.prompts.logits))

    return map_rows(idle, (), (like,))


@partial(jax.jit, donate_argnames=("lanes",))
def admit(lanes: Guided, arrivals: Arrivals) -> Guided:
    """Lets rows into lanes, where nothing is left of the row before."""

    def put(arrivals: Arrivals, index: Array, lanes: Guided) -> Guided:
        source, lane = arrivals.sources[index], arrivals.lanes[index]
        row = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, source, keepdims=False), arrivals.rows)
        begins = Guided(row, empty(row.prompts.cache, lanes.own.positions.shape[1]), row.prompts.logits)
        return jax.tree.map(lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, lane, 0), lanes, begins)

    def put_all(lanes: Guided, arrivals: Arrivals) -> Guided:
        return jax.lax.fori_loop(0, jnp.sum(arrivals.sources >= 0), partial(put, arrivals), lanes)

    with jax.named_scope("decode"):
        return map_rows(put_all, (), (lanes, arrivals))


def decode_guided(
    config: DecoderConfig,
    params: Params,
    lanes: Guided,
    seats: Sequence[Seat | None],
    enough: int,
    common: tuple[Cache, ...] = (),
    *,
    scale: float = 1.0,
    read: Callable[[Any], Any] = jax.device_get,
) -> Guided:
    """Decodes the rows in their lanes until `enough` lanes are idle; a row's result does not depend on the others.

    Args:
        lanes: E lanes, whose own caches are used up.
        seats: of each lane, and changed; None, or one whose guide is done, is idle. A guide's room is at most M.
        common: see `read_tokens`.
        read: what the host sees of arrays, see `ttsi_jax.scaling.mesh.Layout.read`.
    """
    under_way = [(lane, seat) for lane, seat in enumerate(seats) if seat is not None and not seat.guide.done]
    if not under_way:
        return lanes
    some, grammars = under_way[0][1], under_way[0][1].guide.grammars
    guides = [seat and seat.guide for seat in seats]
    keys = jnp.stack([(seat or some).key for seat in seats])
    sampling = Sampling(*map(jnp.asarray, np.array([(seat or some).sampling for seat in seats], np.float32).T))
    masks = grammars.masks(guides)
    while True:
        n_fed = jnp.asarray([len(seat.ids) if seat else 0 for seat in seats], jnp.int32)
        proposals, finite = read(mask_and_sample(lanes.scores, jnp.asarray(masks), keys, n_fed, sampling))
        fed = np.full(len(seats), -1, np.int32)
        for lane, seat in under_way:
            seat.finite &= bool(finite[lane])
            fed[lane] = seat.guide.take(int(proposals[lane]))
            seat.ids.append(int(fed[lane]))
        under_way = [(lane, seat) for lane, seat in under_way if not seat.guide.done]
        if not under_way:
            return lanes
        scores, new = read_tokens(config, params, lanes.rows, lanes.own, jnp.asarray(fed), n_fed, common, scale=scale)
        lanes = lanes._replace(own=append(lanes.own, new, n_fed), scores=scores)
        if len(seats) - len(under_way) >= enough:
            return lanes
        masks = grammars.masks(guides)  # while the device reads the tokens
