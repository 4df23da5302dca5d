"""The model on waves: from lists of rows to padded arrays of few shapes, through the compiled programs, and back.

A wave always has E rows of equal shapes; rows beyond the inputs at hand are dummies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.adaptation import (
    AdaptConfig,
    Batch,
    Extra,
    Loss,
    UpdateRule,
    adapt_wave,
    init_wave,
    needed,
    training_chunk,
)
from ttsi_jax.answering import Slot, free_texts, script_arrays, slot_tables, special_ids
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.model.cache import PADDING, SHARED, Cache
from ttsi_jax.model.decoder import Tokens
from ttsi_jax.model.generation import FORCED, Sampling, Script, decode_wave
from ttsi_jax.model.lora import Adapter
from ttsi_jax.model.scoring import Candidates, Prompted, prefill_wave, score_wave

Ids = tuple[int, ...]
ANSWER_SIZES = 64  # smallest bucket of the trained tokens
GREEDY = Sampling(0.0, 1.0)
PREFILL_ROWS = 4  # prefixes that are computed at a time


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
    rejected: Ids = ()  # a wrong answer, for losses that need one
    samples: tuple[Ids, ...] = ()  # sampled answers, likewise
    rewards: tuple[float, ...] = ()  # of each


class Adapted(NamedTuple):
    """Adapters of a wave's rows (leading axis E), and what they act on."""

    adapters: Adapter | None
    scale: float
    scope: str  # "all": the whole prompt; "suffix": what follows the prefix


BASE = Adapted(None, 1.0, "suffix")


class Said(NamedTuple):
    """What one row decoded."""

    texts: list[str]  # of each free slot in its script, in order
    cut: bool  # whether a slot ended at its limit, or had no room, and not where the model ended it


class Waves:
    """A loaded model, run on E inputs at a time."""

    def __init__(self, model: LanguageModel, size: int, n_steps: int, prefix_memory: float = 1.5):
        """Prepares waves of `size` rows.

        Args:
            model: the base, its tokenizer and stop tokens.
            size: rows of a wave, E.
            n_steps: most tokens that a row decodes.
            prefix_memory: GiB of prefix caches that are kept; the least recently used go first.
        """
        self.model = model
        self.size = size
        self.n_steps = n_steps
        self._prefix_memory = prefix_memory
        self._prefixes: OrderedDict[Ids, Cache] = OrderedDict()
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
        return Tokens(jnp.asarray(ids), jnp.asarray(first[:, None] + index), jnp.asarray(segments))

    def _prefix_caches(self, rows: Sequence[Row]) -> Cache:
        """The base's caches of E prefixes, or the one that all rows have in common, without a leading axis.

        Each distinct prefix is computed once while it stays in memory.
        """
        known, shape, prefixes = self._prefixes, rows[0].shape, [row.prefix for row in rows]
        missing = [prefix for prefix in dict.fromkeys(prefixes) if prefix not in known]
        for start in range(0, len(missing), PREFILL_ROWS):
            group = missing[start : start + PREFILL_ROWS]
            ids, lengths = pad(group, (PREFILL_ROWS, shape.prefix))
            caches = prefill_wave(self.model.config, self.model.params, jnp.asarray(ids), jnp.asarray(lengths))
            for index, prefix in enumerate(group):
                known[prefix] = jax.tree.map(lambda x, i=index: x[i], caches)
        for prefix in prefixes:
            known.move_to_end(prefix)
        caches = [known[prefix] for prefix in prefixes]
        caches += caches[:1] * (self.size - len(caches))
        found = caches[0] if shape.common else jax.tree.map(lambda *x: jnp.stack(x), *caches)
        while len(known) > 1 and sum(leaf.nbytes for leaf in jax.tree.leaves(known)) > self._prefix_memory * 2**30:
            known.popitem(last=False)
        return found

    def _keys(self, rows: Sequence[Row]) -> Array:
        return jnp.stack([row.key for row in rows] + [rows[0].key] * (self.size - len(rows)))

    # The four programs of a wave

    def score(
        self, rows: Sequence[Row], candidates: Sequence[Sequence[Ids]], adapted: Adapted = BASE
    ) -> tuple[list[np.ndarray], Prompted]:
        """Reads each row's prompt: log-likelihoods of its candidates after it, a float32 array [N_i] per row, and
        what decoding the same rows goes on from."""
        n, c = rows[0].shape.candidates, rows[0].shape.name
        ids, lengths = np.zeros((self.size, n, c), np.int32), np.zeros((self.size, n), np.int32)
        for row, own in enumerate(candidates):
            ids[row], lengths[row] = pad(own, (n, c))
        tokens, past = self._place(rows, adapted.scope)
        starts = np.ones(self.size, np.int32)
        starts[: len(rows)] = [row.start + len(row.prefix) * (adapted.scope == "all") for row in rows]
        scored = score_wave(
            self.model.config, self.model.params, tokens, jnp.asarray(starts),
            Candidates(jnp.asarray(ids), jnp.asarray(lengths)), past, adapted.adapters, scale=adapted.scale,
        )  # fmt: skip
        scores = np.asarray(scored.log_likelihoods)
        return [own[: len(names)] for own, names in zip(scores, candidates, strict=False)], scored.prompted

    def decode(
        self,
        rows: Sequence[Row],
        prompts: Prompted,
        scripts: Sequence[Sequence[Slot]],
        sampling: Sampling = GREEDY,
        adapted: Adapted = BASE,
    ) -> list[Said]:
        """What each row says in the free slots of its script, after the prompt that `score` read."""
        arrays = script_arrays([*scripts, *[()] * (self.size - len(scripts))], self.n_steps)
        past = () if adapted.scope == "all" else (self._prefix_caches(rows),)
        said = decode_wave(
            self.model.config, self.model.params, prompts, Script(*map(jnp.asarray, arrays)), self._tables,
            self._keys(rows), Sampling(jnp.float32(sampling.temperature), jnp.float32(sampling.top_p)), past,
            adapted.adapters, n_steps=self.n_steps, scale=adapted.scale,
        )  # fmt: skip
        ids, slots, closing = map(np.asarray, said)
        kinds, free_slots = arrays[0], [sum(slot.kind != FORCED for slot in script) for script in scripts]

        def read(row: int) -> Said:
            own = slots[row], ids[row], closing[row], kinds[row]
            texts = free_texts(self.model.tokenizer, self._special, *own)
            ended = closing[row][kinds[row] != FORCED] >= 0
            return Said(texts, len(texts) < free_slots[row] or not ended.all())

        return [read(row) for row in range(len(rows))]

    def adapt(
        self,
        rows: Sequence[Row],
        pairs: Sequence[Sequence[Pair]],
        max_pairs: int,
        rule: UpdateRule,
        loss: Loss,
        config: AdaptConfig,
        theta_0: Adapter | None = None,
        start: Adapter | None = None,
    ) -> tuple[Adapted, np.ndarray]:
        """Trains an adapter per row on its pairs (at most `max_pairs`), for `config.epochs` passes over them.

        `theta_0` is the adapter that the model has before any adaptation, `start` the one that every row starts as (by
        default theta_0, or a fresh one); neither has a leading axis.

        Returns the adapters, and the loss before each step [rows, epochs * max_pairs], NaN where no step was taken.
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
        past = () if whole else (self._prefix_caches(rows),)
        sizes = batches[0].tokens.ids.shape[1], 0 if whole else n_prefix, n_answer
        n_sequences = 1 + ("rejected" in extras) + config.samples * ("samples" in extras)
        chunk, remat = training_chunk(self.model.config, config, self.size, *sizes, n_sequences)
        init_keys, keys = jnp.moveaxis(jax.vmap(jax.random.split)(self._keys(rows)), 1, 0)
        start = theta_0 if start is None else start
        adapters, states = init_wave(init_keys, self.model.config, config.lora, rule, jnp.asarray(n_steps), start)
        adapters, losses = adapt_wave(
            self.model.config, self.model.params, rule.step, loss, adapters, states,
            jax.tree.map(lambda *x: jnp.stack(x, axis=1), *batches), jnp.asarray(n_pairs), jnp.asarray(n_steps), keys,
            past, theta_0, max_steps=config.epochs * max_pairs, scale=config.lora.scale, chunk=chunk, remat=remat,
        )  # fmt: skip
        return Adapted(adapters, config.lora.scale, config.scope), np.asarray(losses)[: len(rows)]

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
        of = lambda answers: self._batch(prefixes, [p._replace(answer=a) for p, a in answers], *shape, whole)  # noqa: E731
        batch = of((pair, pair.answer) for pair in pairs)
        if "rejected" in extras:
            batch = batch._replace(rejected=of((pair, pair.rejected) for pair in pairs))
        if "samples" in extras:
            sampled = [of((pair, (*pair.samples, *[()] * n_samples)[m]) for pair in pairs) for m in range(n_samples)]
            rewards = np.zeros((self.size, n_samples), np.float32)
            for row, pair in enumerate(pairs):
                rewards[row, : len(pair.rewards)] = pair.rewards
            samples = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *sampled)
            batch = batch._replace(samples=samples, rewards=jnp.asarray(rewards))
        return batch

    def _batch(self, prefixes: Sequence[Ids], pairs: Sequence[Pair], length: int, n_answer: int, whole: bool) -> Batch:
        """One training sequence per row: [E, length] tokens, of which up to n_answer are trained on."""
        prompts = [prefix * whole + pair.prompt for prefix, pair in zip(prefixes, pairs, strict=True)]
        sequences = [prompt + pair.answer for prompt, pair in zip(prompts, pairs, strict=True)]
        tokens = self._tokens(sequences, length, None if whole else [len(prefix) for prefix in prefixes])
        labels, counts = pad([pair.answer for pair in pairs], (self.size, n_answer))
        index = np.arange(n_answer, dtype=np.int32)
        starts = np.ones(self.size, np.int32)
        starts[: len(prompts)] = [len(prompt) for prompt in prompts]
        predict = np.minimum(starts[:, None] - 1 + index, length - 1)
        weights = (index < counts[:, None]).astype(np.float32)
        return Batch(tokens, jnp.asarray(predict), jnp.asarray(labels), jnp.asarray(weights))


def training_shape(shape: Shape, pairs: Sequence[Sequence[Pair]]) -> tuple[int, int]:
    """The buckets of a training wave: sequence after the prefix, trained tokens."""
    flat = [pair for own in pairs for pair in own]
    longest = [max(map(len, (pair.answer, pair.rejected, *pair.samples))) for pair in flat]
    return (
        bucket(max(len(pair.prompt) + length for pair, length in zip(flat, longest, strict=True)), shape.suffix),
        bucket(max(longest), ANSWER_SIZES),
    )


def pad(rows: Sequence[Ids], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads rows of ids with 0 to `shape`; returns ids and lengths, int32."""
    ids, lengths = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)], lengths[index] = row, len(row)
    return ids, lengths
