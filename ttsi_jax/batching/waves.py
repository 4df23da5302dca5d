"""The model on waves: from lists of rows to padded arrays of few shapes, through the compiled programs, and back.

A wave always has E rows of equal shapes; rows beyond the inputs at hand are dummies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.adaptation import AdaptConfig, adapt_wave, init_wave
from ttsi_jax.batching.divergence import prompt_kl_wave
from ttsi_jax.batching.guided import GuidedLanes
from ttsi_jax.batching.lanes import Lanes, Prompt, Read, Said, Work
from ttsi_jax.batching.memory import training_chunk, within_memory
from ttsi_jax.batching.slots import slot_tables, special_ids
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.model.cache import PADDING, SHARED, Cache, wave_axis
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Tokens
from ttsi_jax.model.generation import Rows
from ttsi_jax.model.lora import Adapter
from ttsi_jax.model.scoring import Candidates, Scored, prefill_wave, score_wave
from ttsi_jax.rules.interface import Batch, Extra, Loss, RuleStep, State, UpdateRule, needed
from ttsi_jax.scaling.mesh import Layout, device_bytes, mesh_of

Ids = tuple[int, ...]
ANSWER_SIZES = 64  # smallest bucket of the trained tokens
PREFILL_ROWS = 4  # most prefixes that a part of the devices computes at a time
PREFIX_MEMORY = 1.5  # GiB, most that the kept caches of prefixes take


def bucket(length: int, smallest: int) -> int:
    """The first of smallest, 2 * smallest, 4 * smallest, … that is at least `length`."""
    size = smallest
    while size < length:
        size *= 2
    return size


class Shape(NamedTuple):
    """What the inputs of one length bucket are padded to: they share programs and waves."""

    prefix: int
    suffix: int
    candidates: int
    name: int
    common: Ids = ()  # the prefix, where so many inputs have the same that they form waves of their own


class Row(NamedTuple):
    """One input's place in a wave: its prompt, and the key of its random numbers."""

    prefix: Ids
    suffix: Ids
    start: int  # tokens of the suffix before what is decoded
    key: Array  # a scalar key
    shape: Shape  # equal in all rows of a wave


class Pair(NamedTuple):
    """One training sequence of an input, after its prefix."""

    prompt: Ids
    answer: Ids
    learned: tuple[bool, ...] = ()  # which of the answer's tokens; empty: all
    rejected: Ids = ()  # a wrong answer, for losses that need one
    samples: tuple[Ids, ...] = ()  # sampled answers, likewise
    rewards: tuple[float, ...] = ()  # of each
    prefix: Ids | None = None  # where it is not the input's, in the scope `all`
    copies: tuple[Pair, ...] = ()  # to train on too


class Adapted(NamedTuple):
    """An adapter, or those of a wave's rows (leading axis E), and what they act on."""

    adapters: Adapter | None
    scale: float
    scope: str  # "all": the whole prompt; "suffix": what follows the prefix


BASE = Adapted(None, 1.0, "suffix")


class Waves:
    """A loaded model, run on E inputs at a time: where the model lies on a mesh, on the whole of it."""

    def __init__(
        self,
        model: LanguageModel,
        size: int,
        n_steps: int,
        theta_0: Adapted = BASE,
        prefix_memory: float = PREFIX_MEMORY,
    ):
        """Prepares waves of `size` rows.

        Args:
            model: the base, its tokenizer and stop tokens.
            size: rows of a wave, E; on a mesh a multiple of the parts that it is divided into.
            n_steps: most tokens that a row decodes.
            theta_0: what reads where no other adapter is given, without a leading axis.
            prefix_memory: GiB of prefix caches that are kept; the least recently used go first.
        """
        self.model = model
        self.size = size
        self.n_steps = n_steps
        self.theta_0 = theta_0
        self.layout = Layout(model.config, mesh_of(model.params))
        self._part = self._most_trained = size // self.layout.parts  # rows at a time; less, once memory ran out
        self._base = theta_0
        if theta_0.adapters is not None:
            repeat = lambda x: np.broadcast_to(x, (size, *x.shape))  # noqa: E731  (a view: no device gets all rows)
            copies = jax.tree.map(repeat, jax.device_get(theta_0.adapters))
            self._base = theta_0._replace(adapters=self.layout.rows(copies))
        self._prefix_memory = prefix_memory
        self._prefixes: OrderedDict[tuple[int, Ids], Cache] = OrderedDict()  # by what a prefix is padded to, and itself
        self._prefix_bytes = 0  # of all of these: a run has thousands, too many to count again for every wave
        self._special = special_ids(model.tokenizer, model.stop_ids)
        self._tables = slot_tables(model.tokenizer, model.config.vocab_size, model.stop_ids)

    # From inputs to arrays

    def _place(self, rows: Sequence[Row], scope: str = "suffix") -> tuple[Tokens, tuple[Cache, ...]]:
        """Tokens [E, T] and caches [E, …]: the base's prefix cache and the suffix, or (scope `all`) whole prompts."""
        shape = rows[0].shape
        if scope == "all":
            return self._tokens([row.prefix + row.suffix for row in rows], shape.prefix + shape.suffix), ()
        tokens = self._tokens([row.suffix for row in rows], shape.suffix, [len(row.prefix) for row in rows])
        return tokens, (self._prefix_caches(rows),)

    def _tokens(self, rows: Sequence[Ids], length: int, starts: Sequence[int] | None = None) -> Tokens:
        """Right-padded [E, length]; a dummy row has one token."""
        ids, lengths = pad(rows, (self.size, length))
        lengths = np.maximum(lengths, 1)
        first = np.zeros(self.size, np.int32)
        first[: len(rows)] = starts or 0
        index = np.arange(length, dtype=np.int32)
        segments = np.where(index < lengths[:, None], SHARED, PADDING).astype(np.int32)
        return Tokens(*self.layout.rows((ids, first[:, None] + index, segments)))

    def _prefix_caches(self, rows: Sequence[Row]) -> Cache:
        """The base's caches of E prefixes, or the one that all rows have in common, without a leading axis.

        Each distinct prefix is computed once while it stays in memory. The parts of a mesh compute different ones, and
        all of them keep what each has computed: an input may come back in any of them.
        """
        own_rows = 1 if rows[0].shape.common else prefill_rows(self.size // self.layout.parts)
        n_rows = own_rows * self.layout.parts
        known, shape = self._prefixes, rows[0].shape
        keys = [(shape.prefix, row.prefix) for row in rows]
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        for start in range(0, len(missing), n_rows):
            group = missing[start : start + n_rows]
            ids, lengths = self.layout.rows(pad([prefix for _, prefix in group], (n_rows, shape.prefix)))
            caches = self.layout.everywhere(prefill_wave(self.model.config, self.model.params, ids, lengths))
            for index, key in enumerate(group):
                known[key] = jax.tree.map(lambda x, i=index: x[i], caches)
                self._prefix_bytes += cache_bytes(known[key])
            self._forget({*keys})
        for key in keys:
            known.move_to_end(key)
        caches = [known[key] for key in keys]
        caches += caches[:1] * (self.size - len(caches))
        found = caches[0] if shape.common else self.layout.stack(caches)
        self._forget({keys[-1]})
        return found

    def _forget(self, needed: set[tuple[int, Ids]]) -> None:
        """Drops the least recently used prefixes, but for those that are needed, until the others fit their memory."""
        while self._prefix_bytes > self._prefix_memory * 2**30:
            oldest = next((key for key in self._prefixes if key not in needed), None)
            if oldest is None:
                break
            self._prefix_bytes -= cache_bytes(self._prefixes.pop(oldest))

    def _keys(self, rows: Sequence[Row]) -> Array:
        return self.layout.rows(jnp.stack([row.key for row in rows] + [rows[0].key] * (self.size - len(rows))))

    # The programs of a wave

    def score(
        self, rows: Sequence[Row], candidates: Sequence[Sequence[Ids]], adapted: Adapted | None = None
    ) -> tuple[list[np.ndarray], list[Prompt]]:
        """Reads each row's prompt: log-likelihoods of its candidates after it, a float32 array [N_i] per row, and
        what decoding goes on from."""
        adapted = adapted or self._base
        prompts = self._prompts(rows, candidates, adapted.scope)
        scored = score_wave(self.model.config, self.model.params, *prompts, adapted.adapters, scale=adapted.scale)
        return self._read(rows, candidates, scored, prompts[-1], adapted)

    def _prompts(
        self, rows: Sequence[Row], candidates: Sequence[Sequence[Ids]], scope: str
    ) -> tuple[Tokens, Array, Candidates, tuple[Cache, ...]]:
        """What `score_wave` takes: prompts, where decoding starts in them, candidates and past."""
        n, c = rows[0].shape.candidates, rows[0].shape.name
        ids, lengths = np.zeros((self.size, n, c), np.int32), np.zeros((self.size, n), np.int32)
        for row, own in enumerate(candidates):
            ids[row], lengths[row] = pad(own, (n, c))
        tokens, past = self._place(rows, scope)
        starts = np.ones(self.size, np.int32)
        starts[: len(rows)] = [row.start + len(row.prefix) * (scope == "all") for row in rows]
        starts, ids, lengths = self.layout.rows((starts, ids, lengths))
        return tokens, starts, Candidates(ids, lengths), past

    def _read(
        self,
        rows: Sequence[Row],
        candidates: Sequence[Sequence[Ids]],
        scored: Scored,
        past: tuple[Cache, ...],
        adapted: Adapted,
    ) -> tuple[list[np.ndarray], list[Prompt]]:
        """What `score` gives, from a program's results."""
        own, common = ((), past) if wave_axis(past) is None else (past, ())
        rows_read = Rows(scored.prompted, own, adapted.adapters)
        by_token = self.layout.whole(scored.token_log_likelihoods)
        read = Read(rows_read, common, adapted.scale, by_token, rows[0].shape)
        scores = self.layout.read(scored.log_likelihoods)
        found = [own[: len(names)] for own, names in zip(scores, candidates, strict=False)]
        return found, [Prompt(read, index, row.key) for index, row in enumerate(rows)]

    def losses(self, rows: Sequence[Row], pairs: Sequence[Pair], adapted: Adapted | None = None) -> list[float]:
        """The loss on one pair of each row's input, in nats per learned token of its answer; no adapter is trained."""
        shape = pair_shape(rows[0].shape, pairs)
        places = [
            row._replace(suffix=pair.prompt, start=len(pair.prompt), shape=shape)
            for row, pair in zip(rows, pairs, strict=True)
        ]
        _, prompts = self.score(places, [[pair.answer] for pair in pairs], adapted)
        by_token = self.layout.read(prompts[0].read.token_log_likelihoods)
        found = [own[0, : len(pair.answer)] for own, pair in zip(by_token, pairs, strict=False)]
        return [-float(np.average(own, weights=pair.learned or None)) for own, pair in zip(found, pairs, strict=True)]

    def prompt_kl(self, rows: Sequence[Row], adapted: Adapted) -> list[float]:
        """How far the adapters move each row's prompt: KL(adapted || theta_0), nats per token after the prefix."""
        tokens, past = self._place(rows, adapted.scope)
        first, n = np.zeros((2, self.size), np.int32)
        first[: len(rows)] = [len(row.prefix) * (adapted.scope == "all") for row in rows]
        n[: len(rows)] = [len(row.suffix) for row in rows]
        found = prompt_kl_wave(
            self.model.config, self.model.params, tokens, *self.layout.rows((first, n)), past, adapted.adapters,
            self.theta_0.adapters, scale=adapted.scale, n_positions=rows[0].shape.suffix,
        )  # fmt: skip
        return self.layout.read(found)[: len(rows)].tolist()

    def lanes(self) -> tuple[Lanes, GuidedLanes]:
        """Idle lanes for rows that this reads, free and guided."""
        free = Lanes(self.model, self.size, self.n_steps, self._tables, self._special, self.layout)
        return free, GuidedLanes(self.model, self.size, self.n_steps, self.layout)

    def decode(self, work: Sequence[Work]) -> list[Said]:
        """What at most E rows say that have no guides, in lanes of their own."""
        lanes = self.lanes()[0]
        lanes.waiting.extend(one._replace(owner=index) for index, one in enumerate(work))
        _, said = lanes.advance(to_the_end=True)
        return [own for _, own in sorted(said, key=lambda entry: entry[0].owner)]

    def adapt(
        self,
        rows: Sequence[Row],
        pairs: Sequence[Sequence[Pair]],
        candidates: Sequence[Sequence[Ids]],
        *,
        max_pairs: int,
        rule: UpdateRule,
        loss: Loss,
        config: AdaptConfig,
        start: Adapter | None = None,
        held_out: Sequence[Pair] = (),
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[Prompt]]:
        """Trains an adapter per row on its pairs (at most `max_pairs`), for `config.epochs` passes over them, and reads
        the rows' prompts with it.

        `start` is the adapter that every row starts as, without a leading axis; by default theta_0, or a fresh one.
        `held_out`: a pair per row whose loss must not rise.

        Returns the losses before each row's steps, float32 [at most epochs * max_pairs] (see `adapt_example`), and what
        `score` gives.
        """
        n_pairs, n_steps = np.zeros(self.size, np.int32), np.zeros(self.size, np.int32)
        n_pairs[: len(pairs)] = [len(own) for own in pairs]
        n_steps[: len(pairs)] = n_pairs[: len(pairs)] * config.epochs
        dummy = Pair((0,), (0,))
        per_pair = [[own[k] if k < len(own) else dummy for own in pairs] for k in range(max_pairs)]
        n_prefix = rows[0].shape.prefix
        n_tokens, n_answer = training_shape(rows[0].shape, pairs)
        prefixes = [row.prefix for row in rows]
        whole = config.scope == "all"
        shape, extras = (n_tokens + n_prefix * whole, n_answer), needed(loss)
        batches = [self._full_batch(prefixes, own, shape, whole, extras, config.samples) for own in per_pair]
        watched = None
        if held_out:
            own_tokens, own_answer = training_shape(rows[0].shape, [held_out])
            watched = self._batch(prefixes, held_out, own_tokens + n_prefix * whole, own_answer, whole)
        prompts = self._prompts(rows, candidates, config.scope)
        sizes = batches[0].tokens.ids.shape[1], 0 if whole else n_prefix, n_answer
        n_sequences = 1 + ("rejected" in extras) + config.samples * ("samples" in extras)
        chunk, remat = training_chunk(self.layout.share, config, self._part, *sizes, n_sequences)
        keys = jax.vmap(jax.random.split)(self._keys(rows))
        init_keys, step_keys = keys[:, 0], keys[:, 1]
        theta_0 = self.theta_0.adapters
        start = theta_0 if start is None else start
        batch = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *batches)
        of_pairs, of_steps = self.layout.rows((n_pairs, n_steps))

        def train(chunk: int) -> tuple[Adapter, Array, Array, Scored]:
            fresh = init_wave(init_keys, self.model.config, config.lora, rule, of_steps, start)
            adapters, states = self.layout.rows(fresh)
            return adapt_and_score(
                self.model.config, self.model.params, rule.step, loss, adapters, states, batch, of_pairs, of_steps,
                step_keys, *prompts, theta_0, watched, max_steps=config.epochs * max_pairs, scale=config.lora.scale,
                chunk=chunk, remat=remat, stop_below=-np.inf if config.stop_below is None else config.stop_below,
            )  # fmt: skip

        chunk = min(chunk, self._most_trained)
        (adapters, losses, n_losses, scored), fitted = within_memory(train, chunk, self._part)
        self._most_trained = fitted if fitted < chunk else self._most_trained
        adapted = Adapted(adapters, config.lora.scale, config.scope)
        taken = [own[:n] for own, n in zip(*self.layout.read((losses, n_losses)), strict=True)]
        return taken[: len(rows)], *self._read(rows, candidates, scored, prompts[-1], adapted)

    def _full_batch(
        self,
        prefixes: Sequence[Ids],
        pairs: Sequence[Pair],
        shape: tuple[int, int],
        whole: bool,
        extras: Sequence[Extra],
        n_samples: int,
    ) -> Batch:
        """One training sequence per row, and what else the loss needs of it; `shape`: tokens, trained tokens."""

        def of(answers: Iterable[tuple[Pair, Ids]]) -> Batch:
            others = [pair._replace(answer=answer, learned=()) for pair, answer in answers]
            return self._batch(prefixes, others, *shape, whole)

        batch = self._batch(prefixes, pairs, *shape, whole)
        if "rejected" in extras:
            batch = batch._replace(rejected=of((pair, pair.rejected) for pair in pairs))
        if "samples" in extras:
            sampled = [of((pair, (*pair.samples, *[()] * n_samples)[m]) for pair in pairs) for m in range(n_samples)]
            rewards = np.zeros((self.size, n_samples), np.float32)
            for row, pair in enumerate(pairs):
                rewards[row, : len(pair.rewards)] = pair.rewards
            samples = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *sampled)
            batch = batch._replace(samples=samples, rewards=self.layout.rows(rewards))
        return batch

    def _batch(self, prefixes: Sequence[Ids], pairs: Sequence[Pair], length: int, n_answer: int, whole: bool) -> Batch:
        """One training sequence per row: [E, length] tokens, of which up to n_answer are trained on."""
        prompts = [(pair.prefix or prefix) * whole + pair.prompt for prefix, pair in zip(prefixes, pairs, strict=True)]
        sequences = [prompt + pair.answer for prompt, pair in zip(prompts, pairs, strict=True)]
        tokens = self._tokens(sequences, length, None if whole else [len(prefix) for prefix in prefixes])
        labels, counts = pad([pair.answer for pair in pairs], (self.size, n_answer))
        index = np.arange(n_answer, dtype=np.int32)
        starts = np.ones(self.size, np.int32)
        starts[: len(prompts)] = [len(prompt) for prompt in prompts]
        predict = np.minimum(starts[:, None] - 1 + index, length - 1)
        weights = (index < counts[:, None]).astype(np.float32)
        for row, pair in enumerate(pairs):
            weights[row, : len(pair.learned)] = pair.learned
        return Batch(tokens, *self.layout.rows((predict, labels, weights)))


@partial(
    jax.jit,
    static_argnames=("config", "rule_step", "loss", "max_steps", "scale", "chunk", "remat"),
    donate_argnames=("adapters",),
)
def adapt_and_score(
    config: DecoderConfig,
    params: Params,
    rule_step: RuleStep,
    loss: Loss,
    adapters: Adapter,
    states: State,
    batches: Batch,
    n_pairs: Array,
    n_steps: Array,
    keys: Array,
    prompts: Tokens,
    starts: Array,
    candidates: Candidates,
    past: tuple[Cache, ...],
    theta_0: Adapter | None = None,
    held_out: Batch | None = None,
    *,
    max_steps: int,
    scale: float,
    chunk: int,
    remat: bool,
    stop_below: Array | float = -jnp.inf,
) -> tuple[Adapter, Array, Array, Scored]:
    """`adapt_wave`, and `score_wave` with what it learned, in one program; the adapters are donated."""
    adapters, losses, n_losses = adapt_wave(
        config, params, rule_step, loss, adapters, states, batches, n_pairs, n_steps, keys, past, theta_0, held_out,
        max_steps=max_steps, scale=scale, chunk=chunk, remat=remat, stop_below=stop_below,
    )  # fmt: skip
    scored = score_wave(config, params, prompts, starts, candidates, past, adapters, scale=scale)
    return adapters, losses, n_losses, scored


def cache_bytes(cache: Cache) -> int:
    """What a device holds of it."""
    return sum(map(device_bytes, jax.tree.leaves(cache)))


def prefill_rows(rows: int) -> int:
    """How many prefixes a part of the devices computes at a time, where a wave has so many rows there."""
    return min(PREFILL_ROWS, rows)


def training_shape(shape: Shape, pairs: Sequence[Sequence[Pair]]) -> tuple[int, int]:
    """The buckets of a training wave: sequence after the prefix, trained tokens."""
    flat = [pair for own in pairs for pair in own]
    longest = [max(map(len, (pair.answer, pair.rejected, *pair.samples))) for pair in flat]
    beyond = [max(0, len(pair.prefix or ()) - shape.prefix) + len(pair.prompt) for pair in flat]
    return (
        bucket(max(map(sum, zip(beyond, longest, strict=True))), shape.suffix),
        bucket(max(longest), ANSWER_SIZES),
    )


def pair_shape(shape: Shape, pairs: Sequence[Pair]) -> Shape:
    """The shape of a wave that reads one pair's request per row, and then its answer as the one continuation."""
    n_tokens, n_answer = training_shape(shape, [pairs])
    return shape._replace(suffix=n_tokens, candidates=1, name=n_answer)


def pad(rows: Sequence[Ids], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads rows of ids with 0 to `shape`; returns ids and lengths, int32."""
    ids, lengths = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)], lengths[index] = row, len(row)
    return ids, lengths
