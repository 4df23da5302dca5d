"""Waves: prefixes computed once, rows that are what they would be alone, and arrays of few shapes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tiny import random_adapter
from tiny_runs import EXAMPLES, settings, tiny_model
from ttsi_jax.answering import LINE, STRING, TEXT, Slot
from ttsi_jax.batching import waves as module
from ttsi_jax.batching.inputs import assign_shapes, prepare
from ttsi_jax.batching.lanes import Work
from ttsi_jax.batching.waves import BASE, Adapted, Pair, Shape, Waves, bucket, pad, training_shape
from ttsi_jax.model.decoder import forward, logits, tokens_after
from ttsi_jax.model.generation import FORCED, Sampling
from ttsi_jax.model.lora import LoraConfig
from ttsi_jax.rules import adamw, answer_cross_entropy
from ttsi_jax.scaling.mesh import Layout
from ttsi_jax.synthesis import REQUEST
from ttsi_jax.tasks.prompts import PromptEncoder

E, N_STEPS = 4, 24  # as in the loop's tests, which then find these programs compiled
MODEL = tiny_model()
ENCODER = PromptEncoder(MODEL.tokenizer)
DRAFTS = [
    prepare(one, "tiny", ENCODER, settings(), 4096, REQUEST) for one in EXAMPLES[:4]
]  # inputs 0 and 1 share their prefix
assign_shapes(DRAFTS, E)
ROWS = [draft.row(draft.opened) for draft in DRAFTS]
NAMES = [draft.names for draft in DRAFTS]
LORA = LoraConfig(rank=2)


def waves(**more) -> Waves:
    return Waves(MODEL, E, N_STEPS, **more)


@pytest.mark.parametrize(("length", "size"), [(0, 16), (1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (1000, 1024)])
def test_buckets_double(length, size):
    assert bucket(length, 16) == size


@given(st.integers(0, 10**6), st.sampled_from([4, 16, 64, 512]))
def test_a_bucket_is_the_smallest_that_holds_the_length(length, smallest):
    size = bucket(length, smallest)
    assert size >= length and size % smallest == 0 and (size == smallest or size // 2 < length)


def test_shapes():
    shape = Shape(prefix=512, suffix=112, candidates=4, name=9)
    pairs = [[Pair((1,) * 100, (1,) * 13)], [Pair((1,), (1,) * 65), Pair((1,), (1,))]]
    assert training_shape(shape, pairs) == (224, 128)
    assert training_shape(shape, [[Pair((1,) * 100, (1,) * 12)]]) == (112, 64)


def test_padding():
    ids, lengths = pad([(5, 6), (7,)], (3, 4))
    assert ids.tolist() == [[5, 6, 0, 0], [7, 0, 0, 0], [0, 0, 0, 0]] and lengths.tolist() == [2, 1, 0]


# Scores are those of one plain forward pass over the whole prompt.


@partial(jax.jit, static_argnames="n_base")
def _next(ids, length, adapter, n_base):
    """Log-probabilities after every token; the adapter acts from token `n_base` on."""
    config, params = MODEL.config, MODEL.params
    past = ()
    if n_base:
        _, past = forward(config, params, tokens_after(ids[:n_base], jnp.int32(n_base)))
        past = (past,)
    tokens = tokens_after(ids[n_base:], length - n_base, n_base)
    hidden, _ = forward(config, params, tokens, past, adapter, LORA.scale)
    return jax.nn.log_softmax(logits(config, params, hidden))


def scores(rows, names, adapted=BASE, kept=None):
    return (kept or waves()).score(rows, names, adapted)[0]


def decode(rows, scripts, sampling, kept=None):
    kept = kept or waves()
    _, prompts = kept.score(rows, NAMES[: len(rows)])
    return kept.decode([Work(*each, sampling) for each in zip(prompts, scripts, strict=True)])


def plain_scores(row, names, adapter=None, scope="all"):
    n_base = len(row.prefix) if scope == "suffix" else 0
    prompt, scores = row.prefix + row.suffix, []
    for name in names:
        ids = prompt + name
        padded = jnp.zeros(320, jnp.int32).at[: len(ids)].set(jnp.asarray(ids))
        after = _next(padded, jnp.int32(len(ids)), adapter, n_base)
        scores.append(sum(float(after[len(prompt) - n_base + i - 1, t]) for i, t in enumerate(name)))
    return scores


def test_scores_are_those_of_the_whole_prompt():
    for row, names, own in zip(ROWS, NAMES, scores(ROWS, NAMES), strict=True):
        np.testing.assert_allclose(own, plain_scores(row, names), atol=1e-4)


@pytest.mark.parametrize("scope", ["all", "suffix"])
def test_adapted_scores_are_those_of_each_rows_own_adapter_in_its_scope(scope):
    own_adapters = [random_adapter(MODEL.config, seed, LORA) for seed in range(E)]
    adapters = jax.tree.map(lambda *x: jnp.stack(x), *own_adapters)
    found = scores(ROWS, NAMES, Adapted(adapters, LORA.scale, scope))
    expected = [plain_scores(*each, scope) for each in zip(ROWS, NAMES, own_adapters, strict=True)]
    for own, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-4)
    assert min(np.abs(a - b).max() for a, b in zip(found, scores(ROWS, NAMES), strict=True)) > 1e-2


# Who shares a wave does not matter.


@pytest.mark.parametrize("index", range(4))
def test_a_row_scores_alone_as_among_others(index):
    [alone] = scores(ROWS[index : index + 1], NAMES[index : index + 1])
    np.testing.assert_array_equal(alone, scores(ROWS, NAMES)[index])
    np.testing.assert_array_equal(alone, scores(ROWS[::-1], NAMES[::-1])[3 - index])


def test_a_row_scores_with_a_prefix_that_all_have_in_common_as_with_its_own():
    rows = [row._replace(shape=row.shape._replace(common=row.prefix)) for row in ROWS[:2]]
    for own, theirs in zip(scores(rows, NAMES[:2]), scores(ROWS[:2], NAMES[:2]), strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-5)


def test_the_host_waits_once_for_all_tokens_of_a_wave(monkeypatch):
    """It asks the device for what was said when all rows have ended, and for nothing between."""
    kept, asked = waves(), []
    _, prompts = kept.score(ROWS, NAMES)
    read = Layout.read
    monkeypatch.setattr(Layout, "read", lambda self, tree: asked.append(tree) or read(self, tree))
    said = kept.decode([Work(prompt, [Slot(TEXT, limit=20)]) for prompt in prompts])
    assert max(one.n_tokens for one in said) > 5 and len(asked) == 1


def test_a_row_decodes_alone_as_among_others():
    quote = ENCODER.fragment('"')
    scripts = [
        [Slot(TEXT, limit=N_STEPS)],
        [Slot(FORCED, quote), Slot(STRING, limit=5), Slot(FORCED, quote), Slot(LINE, limit=3)],
        [],
        [Slot(LINE, limit=9)],
    ]
    warm = Sampling(0.9, 0.95)
    together = decode(ROWS, scripts, warm)
    assert [len(said.texts) for said in together] == [1, 2, 0, 1]
    for index in range(4):
        assert decode([ROWS[index]], [scripts[index]], warm) == [together[index]]
    again = [row._replace(key=jax.random.fold_in(row.key, 1)) for row in ROWS]
    assert decode(again, scripts, warm) != together, "another key writes something else"


def test_a_row_trains_alone_as_among_others():
    pairs = [[Pair(draft.opened, ENCODER.fragment("hello world"[: 5 + i]))] for i, draft in enumerate(DRAFTS)]
    how = {"max_pairs": 1, "rule": adamw(3e-2), "loss": answer_cross_entropy, "config": settings().adapt}

    def train(which):
        return waves().adapt(ROWS[which], pairs[which], NAMES[which], **how)

    losses, scored, prompts = train(slice(0, 4))
    losses = np.stack(losses)
    assert losses.shape == (4, 3) and np.isfinite(losses).all() and (losses[:, 2] < losses[:, 0]).all()
    assert prompts[0].read.scale == LORA.scale == 8.0
    adapters = prompts[0].read.rows.adapters
    for index in (0, 3):
        [own_losses], [own_scores], [alone] = train(slice(index, index + 1))
        np.testing.assert_array_equal(own_losses, losses[index])
        np.testing.assert_array_equal(own_scores, scored[index])
        own = alone.read.rows.adapters
        jax.tree.map(lambda a, b, i=index: np.testing.assert_array_equal(a[0], b[i]), own, adapters)
    for own, theirs in zip(scored, scores(ROWS, NAMES, Adapted(adapters, LORA.scale, "suffix")), strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-5)


def test_only_a_pairs_own_answer_is_learned_in_part():
    """A wrong answer and sampled ones have tokens of their own, so all of those count."""
    prompt, own = ROWS[0].suffix, ENCODER.fragment("hello")
    learned = tuple(index % 2 == 0 for index in range(len(own)))
    pair = Pair(prompt, own, learned, rejected=own[:3], samples=(own[:2],), rewards=(1.0,))
    length = len(prompt) + len(own)
    batch = waves()._full_batch([ROWS[0].prefix], [pair], (length, len(own)), False, ("rejected", "samples"), 1)
    assert 0 < sum(learned) < len(own)
    np.testing.assert_array_equal(batch.weights[0], learned)
    np.testing.assert_array_equal(batch.rejected.weights[0], np.arange(len(own)) < 3)
    np.testing.assert_array_equal(batch.samples.weights[0, 0], np.arange(len(own)) < 2)


def test_the_loss_on_a_pair_is_that_of_its_learned_tokens():
    """Where those are the first ones, it is the loss on an answer that ends there."""
    answers = [ENCODER.fragment(text) for text in ("hello world", "hello")]
    pairs = [Pair(row.suffix, answer) for row, answer in zip(ROWS, answers, strict=False)]
    learned = [pair._replace(learned=tuple(index < 3 for index in range(len(pair.answer)))) for pair in pairs]
    begun = [pair._replace(answer=pair.answer[:3]) for pair in pairs]
    whole, own, expected = (waves().losses(ROWS[:2], some) for some in (pairs, learned, begun))
    np.testing.assert_allclose(own, expected, rtol=1e-5)
    assert np.abs(np.subtract(own, whole)).min() > 1e-3


def test_more_rows_than_lanes_say_what_each_says_alone():
    """Short and long ones of two waves, through lanes that are refilled."""
    kept = waves()
    _, prompts = kept.score(ROWS, NAMES)
    works = [Work(prompts[i % 4], [Slot(TEXT, limit=1 + 3 * (i % 3))], owner=i) for i in range(10)]
    alone = [kept.decode([work])[0] for work in works]
    lanes, found = kept.lanes()[0], {}
    lanes.waiting.extend(works)
    while lanes.load:
        took_part, said = lanes.advance(to_the_end=False)
        assert len(took_part) <= E and said
        found |= {work.owner: own for work, own in said}
    assert [found[i] for i in range(10)] == alone and lanes._state is None


# Prefixes.


@pytest.fixture
def prefills(monkeypatch):
    """The lengths of the prefixes that are computed, per call."""
    calls, prefill = [], module.prefill_wave

    def counted(config, params, ids, lengths):
        calls.append([length for length in lengths.tolist() if length])
        return prefill(config, params, ids, lengths)

    monkeypatch.setattr(module, "prefill_wave", counted)
    return calls


def test_each_distinct_prefix_is_computed_once(prefills):
    kept = waves()
    lengths = [len(DRAFTS[i].prefix) for i in (0, 2, 3)]
    assert DRAFTS[0].prefix == DRAFTS[1].prefix
    kept.score(ROWS, NAMES)
    assert prefills == [lengths]
    decode(ROWS, [[Slot(LINE, limit=2)]] * 4, Sampling(), kept)
    kept.score(ROWS[::-1], NAMES[::-1])
    assert prefills == [lengths]


def test_no_more_prefixes_are_computed_at_a_time_than_there_are_rows(monkeypatch):
    found, prefill = [], module.prefill_wave

    def noted(config, params, ids, lengths):
        found.append(len(ids))
        return prefill(config, params, ids, lengths)

    monkeypatch.setattr(module, "prefill_wave", noted)
    common = [row._replace(shape=row.shape._replace(common=row.prefix)) for row in ROWS[:2]]
    for size, rows in ((1, ROWS[:1]), (2, ROWS[:1]), (8, ROWS[:1]), (8, common)):
        Waves(MODEL, size, 4).score(rows, NAMES[: len(rows)])
    assert found == [1, 2, module.PREFILL_ROWS, 1]


def test_a_prefix_in_another_bucket_is_another_one():
    """As a rotation of one input's functions may be the prefix of another."""
    kept, other = waves(), ROWS[2].shape
    longer = [row._replace(shape=other._replace(prefix=other.prefix + 32)) for row in ROWS[1:3]]
    expected = scores(longer, NAMES[1:3])
    kept.score(ROWS[:1], NAMES[:1])
    for own, theirs in zip(scores(longer, NAMES[1:3], kept=kept), expected, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_prefixes_are_kept_within_their_memory_and_the_least_recently_used_go_first(prefills):
    one, two, three = (ROWS[i : i + 1] for i in (0, 2, 3))
    kept = waves()
    kept.score(one, NAMES[:1])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(kept._prefixes[one[0].shape.prefix, one[0].prefix]))
    kept = waves(prefix_memory=2.5 * size / 2**30)
    prefills.clear()
    for row in (one, two, one, three, one):  # the third pushes out the second, which was used before the first
        kept.score(row, NAMES[:1])
    assert [length for call in prefills for length in call] == [len(row[0].prefix) for row in (one, two, three)]
    kept.score(two, NAMES[:1])
    assert len(prefills) == 4 and len(kept._prefixes) == 2


def test_a_wave_takes_no_longer_for_all_the_prefixes_that_are_kept(monkeypatch):
    """Counted again for every wave, thousands of them made a long run's inputs slower than a short one's."""
    counted, kept = [], waves()
    count = module.cache_bytes
    monkeypatch.setattr(module, "cache_bytes", lambda cache: counted.append(1) or count(cache))
    for row in (0, 2, 3, 0, 2, 3):
        kept.score(ROWS[row : row + 1], NAMES[:1])
    assert len(counted) == len(kept._prefixes) == 3


def test_a_wave_may_have_more_prefixes_than_memory_keeps(prefills):
    small = waves(prefix_memory=1e-9)
    for own, theirs in zip(scores(ROWS, NAMES, kept=small), scores(ROWS, NAMES), strict=True):
        np.testing.assert_array_equal(own, theirs)
    assert len(small._prefixes) == 1
