"""Candidates' log-likelihoods against scoring each candidate with its whole prompt."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.tiny import candidates, padded, random_adapter, random_ids, row, sequence, stack, tiny_model
from ttsi_jax.model.cache import SHARED
from ttsi_jax.model.decoder import forward, logits
from ttsi_jax.model.scoring import prefill_wave, score_wave

PREFIXES = [random_ids(10 + seed, length) for seed, length in enumerate((8, 3, 6))]
PROMPTS = [random_ids(seed, length) for seed, length in enumerate((9, 4, 1))]
ROWS = [  # ragged, of length 0, with a common opening, and one alone
    [[7, 8, 9], [7, 8], [11], []],
    [[20, 21, 22, 23], [], [24], [20, 21, 22, 24]],
    [[30, 31], [], [], []],
]
PREFIX_SIZE, SIZE, CANDIDATE_SIZE = 8, 10, 4

_forward = jax.jit(forward, static_argnums=0)


def naive(variant, context, candidate, adapter=None):
    """log P(candidate | context) from a forward pass over all of it."""
    config, params = tiny_model(variant)
    hidden, _ = _forward(config, params, sequence(context + candidate, 24), (), adapter, 2.0)
    log_probs = jax.nn.log_softmax(logits(config, params, hidden))
    return float(sum(log_probs[len(context) - 1 + index, token] for index, token in enumerate(candidate)))


def prompts(start=(0, 0, 0)):
    return stack([sequence(ids, SIZE, first) for ids, first in zip(PROMPTS, start, strict=True)])


def score(variant="llama", prompts_=None, candidates_=None, past=(), adapters=None, scale=1.0):
    """[E, N], after whole prompts."""
    prompts_ = prompts() if prompts_ is None else prompts_
    lengths = jnp.sum(prompts_.segments == SHARED, axis=1)
    candidates_ = wave() if candidates_ is None else candidates_
    return score_wave(*tiny_model(variant), prompts_, lengths, candidates_, past, adapters, scale=scale).log_likelihoods


def wave():
    return stack([candidates(rows, CANDIDATE_SIZE) for rows in ROWS])


def prefix_cache(variant):
    config, params = tiny_model(variant)
    lengths = jnp.asarray([len(ids) for ids in PREFIXES])
    return prefill_wave(config, params, jnp.stack([padded(ids, PREFIX_SIZE) for ids in PREFIXES]), lengths)


@pytest.mark.parametrize(("variant", "adapted"), [("llama-3", False), ("qwen3", True), ("gemma3", False)])
def test_scores_are_those_of_whole_prompts(variant, adapted):
    config, params = tiny_model(variant)
    adapters = [random_adapter(config, seed) if adapted else None for seed in range(3)]
    found = score(variant, adapters=stack(adapters) if adapted else None, scale=2.0)
    expected = [
        [naive(variant, prompt, candidate, adapter) for candidate in rows]
        for prompt, rows, adapter in zip(PROMPTS, ROWS, adapters, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert (np.asarray(found) == 0).tolist() == [[not candidate for candidate in rows] for rows in ROWS]


def test_a_shared_prefix_is_the_prefix_recomputed():
    variant = "gemma3"
    config, params = tiny_model(variant)
    start = [len(ids) for ids in PREFIXES]
    found = score(variant, prompts(start), past=(prefix_cache(variant),))
    expected = [
        [naive(variant, prefix + prompt, candidate) for candidate in rows]
        for prefix, prompt, rows in zip(PREFIXES, PROMPTS, ROWS, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_prefix_that_all_rows_have_in_common_needs_no_copies():
    caches = prefix_cache("llama")
    one = jax.tree.map(lambda x: x[0], caches)
    copies = jax.tree.map(lambda x: jnp.stack([x] * 3), one)
    start = [len(PREFIXES[0])] * 3
    found = score("llama", prompts(start), past=(one,))
    np.testing.assert_allclose(found, score("llama", prompts(start), past=(copies,)), rtol=0, atol=1e-5)


def test_decoding_may_start_before_the_prompts_end():
    config, params = tiny_model()
    lengths = jnp.asarray([4, 4, 1])
    found = score_wave(config, params, prompts(), lengths, wave()).prompted
    assert found.position.tolist() == lengths.tolist()
    assert jnp.sum(found.cache.segments == SHARED, axis=1).tolist() == lengths.tolist()
    for index, ids in enumerate(PROMPTS):
        hidden, _ = _forward(config, params, sequence(ids, SIZE), (), None, 1.0)
        expected = logits(config, params, hidden[lengths[index] - 1])
        np.testing.assert_allclose(found.logits[index], expected, rtol=0, atol=1e-4)


def test_a_candidate_does_not_depend_on_the_others():
    config, params = tiny_model()
    together = score()
    for index in range(3):
        own = stack([candidates([rows[index]], CANDIDATE_SIZE) for rows in ROWS])  # N = 1
        alone = score(candidates_=own)
        np.testing.assert_allclose(together[:, index : index + 1], alone, rtol=0, atol=1e-5)
    others = stack([candidates([rows[0], *[[5, 6, 7, 9]] * 3], CANDIDATE_SIZE) for rows in ROWS])
    np.testing.assert_array_equal(score(candidates_=others)[:, 0], together[:, 0])


def test_rows_of_a_wave_are_independent():
    config, params = tiny_model()
    adapters, caches = stack([random_adapter(config, seed) for seed in range(3)]), prefix_cache("llama")
    arguments = (prompts([len(ids) for ids in PREFIXES]), wave(), (caches,), adapters)
    together = score("llama", *arguments, scale=2.0)
    for index in range(3):
        alone = score("llama", *map(partial(row, index=index), arguments), scale=2.0)
        np.testing.assert_allclose(together[index], alone[0], rtol=0, atol=1e-5)
    mates = jax.tree.map(lambda x: x.at[1:].set(x[1:] * 0 + 1), arguments)
    np.testing.assert_array_equal(score("llama", *mates, scale=2.0)[0], together[0])


def test_likelihoods_of_all_single_tokens_sum_to_one():
    config, params = tiny_model("qwen3")
    every = candidates([[token] for token in range(config.vocab_size)], 1)
    found = score("qwen3", stack([sequence(PROMPTS[0], SIZE)]), stack([every]))
    np.testing.assert_allclose(jnp.sum(jnp.exp(found)), 1, atol=1e-5)


def test_prefill_keeps_the_prefix_and_hides_its_padding():
    caches = prefix_cache("llama")
    assert [int(n) for n in jnp.sum(caches.segments == 0, axis=1)] == [len(ids) for ids in PREFIXES]
    np.testing.assert_array_equal(caches.positions, [list(range(PREFIX_SIZE))] * 3)
    config, params = tiny_model()
    _, alone = _forward(config, params, sequence(PREFIXES[1]), (), None, 1.0)
    n = len(PREFIXES[1])
    for ours, expected in zip(caches.keys, alone.keys, strict=True):
        np.testing.assert_allclose(ours[1, ..., :n], expected, rtol=0, atol=1e-5)
    for ours, expected in zip(caches.values, alone.values, strict=True):
        np.testing.assert_allclose(ours[1, :, :n], expected, rtol=0, atol=1e-5)


def test_nothing_but_shapes_compiles_anew():
    config, params = tiny_model()
    score()
    prefix_cache("llama")
    before = score_wave._cache_size(), prefill_wave._cache_size()
    other = stack([sequence([3 + index], SIZE, index) for index in range(3)])
    score("llama", other, stack([candidates([[9]] * 4, CANDIDATE_SIZE)] * 3))
    prefill_wave(config, params, jnp.ones((3, PREFIX_SIZE), jnp.int32), jnp.asarray([0, 1, 2]))
    assert (score_wave._cache_size(), prefill_wave._cache_size()) == before
