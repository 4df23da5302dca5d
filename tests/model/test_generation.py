"""Decoding: greedy as transformers', scripts of forced and free slots, sampling, independence of rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.tiny import (
    FAMILIES,
    VOCABULARY,
    in_bfloat16,
    padded,
    prompted,
    random_adapter,
    random_ids,
    row,
    run_lanes,
    script,
    sequence,
    stack,
    tiny_model,
)
from ttsi_jax.model.decoder import forward, logits
from ttsi_jax.model.generation import (
    Arrivals,
    Rows,
    Sampling,
    SlotTables,
    decode_wave,
    nothing_decoding,
    nucleus,
    sample,
)
from ttsi_jax.model.scoring import prefill_wave

PROMPTS = [random_ids(seed, length) for seed, length in enumerate((12, 5, 9))]
SIZE = 12
KEYS = jax.random.split(jax.random.key(0), 3)
GREEDY = Sampling(0.0, 1.0)


def tables(depth_changes: np.ndarray) -> SlotTables:
    """Kinds of slots that may hold any token."""
    anything = jnp.ones(depth_changes.shape, bool)
    return SlotTables(jnp.asarray(depth_changes, jnp.int8), anything, anything)


def closing(*tokens: int, opening: tuple[int, ...] = ()) -> SlotTables:
    """Two kinds of slot: these tokens close the first, none the second."""
    changes = np.zeros((2, VOCABULARY))
    changes[0, list(tokens)], changes[0, list(opening)] = -1, 1
    return tables(changes)


NEVER = closing()


def wave(prompts: list[list[int]], size: int = SIZE, start: int = 0):
    return stack([sequence(ids, size, start) for ids in prompts])


def decode(
    slots, table=NEVER, n_steps=8, prompts=PROMPTS, keys=KEYS, sampling=GREEDY, adapters=None, scale=1.0, base=None
):
    """Runs one script per prompt and returns `Generated`."""
    config, params = base or tiny_model()
    scripts = stack([script(own, 6) for own in slots])
    read = prompted(config, params, wave(prompts), (), adapters, scale)
    return run_lanes(config, params, Rows(read, (), adapters), scripts, table, keys, sampling, n_steps, scale)


def greedy(ids: list[int], n: int, adapter=None) -> list[int]:
    """The naive loop: a full forward pass for every token."""
    config, params = tiny_model()
    ids = list(ids)
    for _ in range(n):
        tokens = sequence(ids, 40)
        hidden, _ = _forward(config, params, tokens, (), adapter, 2.0)
        ids.append(int(jnp.argmax(logits(config, params, hidden[len(ids) - 1]))))
    return ids[-n:]


_forward = jax.jit(forward, static_argnums=0)


@pytest.mark.torch
@pytest.mark.parametrize("variant", FAMILIES)
def test_greedy_decoding_is_transformers(references, variant):
    torch = pytest.importorskip("torch")
    theirs, ours = references(variant)
    n_new = 16
    left = [[0] * (SIZE - len(ids)) + ids for ids in PROMPTS]
    mask = [[0] * (SIZE - len(ids)) + [1] * len(ids) for ids in PROMPTS]
    inputs = {"input_ids": torch.tensor(left), "attention_mask": torch.tensor(mask)}
    generate = partial(theirs.generate, **inputs, do_sample=False, max_new_tokens=n_new)
    free = generate(eos_token_id=None)[:, SIZE:].tolist()
    stop = free[0][n_new // 2]  # a token that is sure to come
    expected = generate(eos_token_id=stop, pad_token_id=0)[:, SIZE:].tolist()

    scripts = stack([script([(1, n_new)], 1)] * 3)
    base = (ours.config, ours.params)
    rows = Rows(prompted(*base, wave(PROMPTS)))
    found = run_lanes(*base, rows, scripts, closing(stop), KEYS, GREEDY, n_new)
    for index, theirs_row in enumerate(expected):
        stopped = stop in theirs_row
        own = theirs_row[: theirs_row.index(stop)] if stopped else theirs_row
        assert found.ids[index].tolist() == own + [-1] * (n_new - len(own))
        assert found.slots[index].tolist() == [0] * len(own) + [-1] * (n_new - len(own))
        assert found.closing[index, 0] == (stop if stopped else -1)


def test_free_text_is_the_naive_loop():
    found = decode([[(1, 8)]] * 3)
    assert found.ids.tolist() == [greedy(ids, 8) for ids in PROMPTS]


def test_in_bfloat16_every_token_is_about_the_best_in_float32():
    config, params = tiny_model()
    found = decode([[(1, 8)]] * 3, base=(config, in_bfloat16(config, params)))
    for ids, said in zip(PROMPTS, found.ids.tolist(), strict=True):
        hidden, _ = _forward(config, params, sequence(ids + said, 40))
        scores = np.asarray(logits(config, params, hidden[len(ids) - 1 : len(ids) + 7]))
        assert (scores.max(axis=-1) - scores[range(8), said]).max() < 0.1 < scores.std()


def test_forced_tokens_steer_what_follows():
    slots = [[40, 41, (1, 2), 42, (1, 3), 43], [(1, 1), 44], [45]]
    found = decode(slots)
    first = greedy([*PROMPTS[0], 40, 41], 2)
    second = greedy([*PROMPTS[0], 40, 41, *first, 42], 3)
    assert found.ids[0].tolist() == [40, 41, *first, 42, *second]
    assert found.slots[0].tolist() == [0, 1, 2, 2, 3, 4, 4, 4]
    assert found.ids[1].tolist() == [*greedy(PROMPTS[1], 1), 44] + [-1] * 6
    assert found.ids[2].tolist() == [45] + [-1] * 7
    assert (found.closing == -1).all()


def test_the_forced_token_after_the_last_free_slot_is_fed():
    found = decode([[40, (1, 2), 43, 44]] * 3)
    assert found.ids[:, 3:].tolist() == [[43, 44, -1, -1, -1]] * 3
    assert found.slots[:, 3:].tolist() == [[2, 3, -1, -1, -1]] * 3


def test_a_closing_token_is_reported_and_not_fed():
    text = greedy(PROMPTS[0], 8)
    stop = next(index for index in range(1, 8) if text[index] not in text[:index])
    found = decode([[(1, 8), 50, 51]] * 3, closing(text[stop]))
    assert found.ids[0].tolist() == [*text[:stop], 50, 51, *[-1] * 8][:8]
    assert found.closing[0].tolist() == [text[stop], -1, -1, -1, -1, -1]


def test_a_free_slot_may_stay_empty():
    first = greedy([*PROMPTS[0], 40], 1)[0]
    found = decode([[40, (1, 5), 41, (1, 2)]] * 3, closing(first))
    assert found.ids[0, :2].tolist() == [40, 41]
    assert found.slots[0, :2].tolist() == [0, 2]
    assert found.closing[0, 1] == first
    none_allowed = decode([[40, (1, 0), 41]] * 3)
    assert none_allowed.ids.tolist() == [[40, 41] + [-1] * 6] * 3


def test_brackets_nest():
    text = greedy(PROMPTS[0], 8)
    distinct = list(dict.fromkeys(text))
    assert len(distinct) >= 3, "the prompt needs a continuation of several tokens"
    opening, close = distinct[0], distinct[1]
    depth, expected = 1, []
    for token in text:
        depth += (token == opening) - (token == close)
        if depth == 0:
            break
        expected.append(token)
    found = decode([[(1, 8)]] * 3, closing(close, opening=(opening,)))
    assert close in expected or depth > 0
    assert found.ids[0].tolist() == expected + [-1] * (8 - len(expected))
    # The opening bracket came first, so the first closing one cannot end the slot.
    assert text.index(close) < len(expected)


def test_each_kind_of_slot_has_its_own_table():
    text = greedy(PROMPTS[0], 3)
    found = decode([[(1, 3)], [(2, 3)], [(2, 3)]], closing(text[0]), prompts=[PROMPTS[0]] * 3)
    assert found.ids[:, :3].tolist() == [[-1, -1, -1], text, text]
    assert found.closing[:, 0].tolist() == [text[0], -1, -1]


@pytest.mark.parametrize("sampling", [Sampling(0.0, 1.0), Sampling(2.0, 0.9)], ids=["greedy", "sampled"])
def test_a_slot_holds_only_what_its_kind_allows(sampling):
    first, later = np.zeros((2, 2, VOCABULARY), bool)
    first[0, 60:65], later[0, 70:75] = True, True
    first[1], later[1] = True, True
    own = SlotTables(NEVER.depth_changes, jnp.asarray(first), jnp.asarray(later))
    found = decode([[(1, 3), 40, (1, 3)], [(2, 3), 40, (1, 3)], [(2, 7)]], own, sampling=sampling)
    for start in (0, 4):
        assert 60 <= found.ids[0, start] < 65
    assert ((found.ids[0, 1:3] >= 70) & (found.ids[0, 1:3] < 75)).all()
    assert ((found.ids[1, 5:7] >= 70) & (found.ids[1, 5:7] < 75)).all()
    assert found.ids[:2, 3].tolist() == [40, 40]
    free = decode([[], [(2, 3)], [(2, 7)]], sampling=sampling)
    assert found.ids[2].tolist() == free.ids[2].tolist()
    assert found.ids[1, :3].tolist() == free.ids[1, :3].tolist()


def test_depth_starts_anew_in_each_free_slot():
    first = greedy(PROMPTS[0], 1)[0]
    second = greedy([*PROMPTS[0], first, 40], 1)[0]
    assert first != second, "the prompt needs two different tokens"
    found = decode([[(1, 1), 40, (1, 4)]] * 3, closing(second, opening=(first,)))
    assert found.ids[0].tolist() == [first, 40] + [-1] * 6
    assert found.closing[0].tolist()[:3] == [-1, -1, second]


def test_rows_of_length_zero_and_the_limit_of_steps():
    found = decode([[], [40, (1, 9)], [40, 41, (1, 4), 42, 43, 44]])
    assert found.ids[0].tolist() == [-1] * 8
    assert (found.ids[1] >= 0).all()
    assert found.ids[2, 6:].tolist() == [42, 43]
    assert (found.closing == -1).all()
    assert (decode([[], [], []]).ids == -1).all()


def test_rows_do_not_depend_on_mates_or_their_place():
    slots = [[40, (1, 6)], [(1, 3), 41, (1, 3)], [(1, 7)]]
    hot = Sampling(1.0, 0.95)
    one = decode(slots, sampling=hot)
    assert one.ids.tolist() != decode(slots).ids.tolist()
    order = jnp.asarray([2, 0, 1])
    moved = decode([slots[i] for i in order], prompts=[PROMPTS[i] for i in order], keys=KEYS[order], sampling=hot)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), one, moved)
    keys = jax.random.split(jax.random.key(7), 3).at[1].set(KEYS[1])
    mates = decode([[], slots[1], [42]], prompts=[[9], PROMPTS[1], [8] * 12], keys=keys, sampling=hot)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), one, mates)


def test_each_row_has_its_own_adapter_and_prefix():
    config, params = tiny_model()
    adapters = [random_adapter(config, seed) for seed in range(3)]
    prefixes = [random_ids(20 + seed, 7 - seed) for seed in range(3)]
    caches = prefill_wave(config, params, jnp.stack([padded(ids, 8) for ids in prefixes]), jnp.asarray([7, 6, 5]))
    prompts = stack([sequence(own, SIZE, len(pre)) for pre, own in zip(prefixes, PROMPTS, strict=True)])
    scripts = stack([script([40, (1, 5)], 2)] * 3)

    def run(select):
        past, own = (select(caches),), select(stack(adapters))
        rows = Rows(prompted(config, params, select(prompts), past, own, 2.0), past, own)
        return run_lanes(config, params, rows, select(scripts), NEVER, select(KEYS), GREEDY, 6, scale=2.0)

    together = run(lambda x: x)
    for index in range(3):
        alone = run(partial(row, index=index))
        np.testing.assert_array_equal(together.ids[index], alone.ids[0])
    whole = [pre + own for pre, own in zip(prefixes, PROMPTS, strict=True)]
    base = [greedy([*ids, 40], 5) for ids in whole]
    assert together.ids[:, 1:].tolist() != base


def test_an_adapter_on_every_token_is_the_naive_loop():
    config, params = tiny_model()
    adapters = [random_adapter(config, seed) for seed in range(3)]
    found = decode([[(1, 6)]] * 3, adapters=stack(adapters), scale=2.0)
    expected = [greedy(ids, 6, adapter) for ids, adapter in zip(PROMPTS, adapters, strict=True)]
    assert found.ids[:, :6].tolist() == expected


def smallest_nucleus(scores: np.ndarray, top_p: float) -> np.ndarray:
    """By sorting: the tokens that are needed, together with those as likely as the last of them."""
    p = np.exp(scores.astype(np.float64) - scores.max())
    p /= p.sum()
    falling = np.sort(p)[::-1]
    needed = np.searchsorted(np.cumsum(falling), top_p)
    return p >= falling[needed]


@settings(max_examples=200)
@given(scores=st.lists(st.integers(-120, 120), min_size=2, max_size=40), top_p=st.floats(0.01, 0.999))
def test_the_nucleus_is_the_smallest_set_with_enough_mass(scores, top_p):
    scores = np.asarray(scores, np.float32) / 10
    assume((smallest_nucleus(scores, top_p - 1e-5) == smallest_nucleus(scores, top_p + 1e-5)).all())
    padding = np.full(40 - len(scores), -np.inf, np.float32)
    kept = np.asarray(_nucleus(jnp.asarray(np.concatenate([scores, padding])), top_p))[: len(scores)]
    expected = smallest_nucleus(scores, top_p)
    np.testing.assert_array_equal(kept, np.where(expected, scores, -np.inf))


_nucleus = jax.jit(nucleus)


def test_top_p_of_one_keeps_everything():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=1000) * 5, jnp.float32)
    assert np.isfinite(nucleus(scores, 1.0)).all()
    assert np.isfinite(nucleus(scores, 1e-6)).sum() == 1


def each(n: int, temperature: float, top_p: float) -> Sampling:
    """The same for n rows."""
    return Sampling(jnp.full(n, temperature, jnp.float32), jnp.full(n, top_p, jnp.float32))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_tempered_distribution(temperature):
    scores = jnp.asarray([2.0, 1.0, 0.5, -1.0, -8.0])
    keys = jax.random.split(jax.random.key(3), 20_000)
    drawn = sample(keys, jnp.broadcast_to(scores, (len(keys), 5)), each(len(keys), temperature, 1.0))
    found = np.bincount(drawn, minlength=5) / len(keys)
    np.testing.assert_allclose(found, jax.nn.softmax(scores / temperature), atol=0.015)
    cut = sample(keys, jnp.broadcast_to(scores, (len(keys), 5)), each(len(keys), temperature, 0.5))
    assert set(np.unique(cut)) == set(np.flatnonzero(smallest_nucleus(np.asarray(scores / temperature), 0.5)))


def test_temperature_zero_is_greedy_whatever_the_key():
    scores = jnp.asarray([[0.0, 3.0, 2.9], [5.0, 1.0, 4.9]])
    for seed in range(5):
        keys = jax.random.split(jax.random.key(seed), 2)
        assert sample(keys, scores, each(2, 0.0, 0.1)).tolist() == [1, 0]


def test_greedy_is_the_first_of_equals_and_a_token_whatever_the_logits():
    scores = jnp.asarray([[2.0, 5.0, 5.0], [-jnp.inf] * 3, [1.0, jnp.nan, 2.0], [1.0, jnp.inf, jnp.inf]])
    keys = jax.random.split(jax.random.key(0), 4)
    assert sample(keys, scores, each(4, 0.0, 1.0)).tolist() == [1, 0, 0, 1]


def test_greedy_and_sampled_rows_stand_side_by_side():
    scores = jnp.broadcast_to(jnp.asarray([0.0, 3.0, 2.9]), (400, 3))
    keys = jax.random.split(jax.random.key(1), 400)
    warm = jnp.arange(400) % 2
    drawn = np.asarray(sample(keys, scores, Sampling(warm.astype(jnp.float32), jnp.ones(400))))
    assert set(drawn[::2]) == {1} and set(drawn[1::2]) == {0, 1, 2}


# Lanes.


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 0.95)], ids=["greedy", "sampled"])
def test_rows_that_arrive_later_say_what_they_say_at_once(sampling):
    """Six rows through three lanes: who waits takes the lane of the first that ends."""
    config, params = tiny_model()
    prompts = [random_ids(seed, 4 + seed) for seed in range(6)]
    slots = [[(1, 2)], [(1, 7)], [40, (1, 3)], [41, 42], [(1, 5)], [(1, 6), 43]]
    keys = jax.random.split(jax.random.key(5), 6)
    first, second = slice(0, 3), slice(3, 6)
    expected = [
        decode(slots[half], prompts=prompts[half], keys=keys[half], sampling=sampling) for half in (first, second)
    ]
    expected = jax.tree.map(lambda *x: np.concatenate(x), *expected)

    read = [Rows(prompted(config, params, wave(prompts[half]), (), None, 1.0)) for half in (first, second)]
    each_row = each(3, *sampling)
    state, lanes, waiting, found = nothing_decoding(read[0], 8, 6), [None] * 3, list(range(6)), {}
    none = jnp.zeros(3, jnp.int32)
    while waiting or any(owner is not None for owner in lanes):
        arrivals = Arrivals(read[0], none - 1, none)
        if waiting and None in lanes:  # one at a time
            number, lane = waiting.pop(0), lanes.index(None)
            lanes[lane] = number
            arrivals = Arrivals(read[number // 3], (none - 1).at[0].set(number % 3), none.at[0].set(lane))
        scripts = stack([script(slots[owner] if owner is not None else [], 6) for owner in lanes])
        own_keys = jnp.stack([keys[owner or 0] for owner in lanes])
        more = 0 if waiting and None in lanes else 1
        state = decode_wave(config, params, state, arrivals, scripts, NEVER, own_keys, each_row, jnp.int32(more))
        for lane, owner in enumerate(lanes):
            if owner is not None and state.ended[lane]:
                found[owner] = jax.tree.map(lambda x, i=lane: np.asarray(x[i]), state.generated)
                lanes[lane] = None
    for number in range(6):
        jax.tree.map(lambda a, b, i=number: np.testing.assert_array_equal(a, b[i]), found[number], expected)


def test_a_lane_holds_nothing_of_the_row_before():
    """Not even what is not a number: a weight of zero times NaN would be NaN."""
    config, params = tiny_model()
    read = Rows(prompted(config, params, wave(PROMPTS), (), None, 1.0))
    scripts, order = stack([script([(1, 5)], 6)] * 3), jnp.arange(3)
    state = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        nothing_decoding(read, 8, 6),
    )
    arrivals = Arrivals(read, order, order)
    found = decode_wave(config, params, state, arrivals, scripts, NEVER, KEYS, each(3, 0.0, 1.0), jnp.int32(3))
    np.testing.assert_array_equal(found.generated.ids, decode([[(1, 5)]] * 3).ids)


def test_nothing_but_shapes_compiles_anew():
    slots: list[list] = [[40, (1, 6)]] * 3
    decode(slots)
    before = decode_wave._cache_size()
    for temperature, top_p in ((0.7, 0.95), (1.3, 0.5), (0.0, 1.0)):
        decode(
            [[(1, 2), 41], [], [42]], closing(5), keys=KEYS[::-1], sampling=Sampling(temperature, top_p),
            prompts=[[1], [2, 3], [4]],
        )  # fmt: skip
    assert decode_wave._cache_size() == before
