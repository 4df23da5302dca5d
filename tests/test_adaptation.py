"""Per-example training: PEFT's curve, waves that are the sum of their parts, and a base that nothing changes."""

import math
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from model.tiny import in_bfloat16, padded, pair, random_ids, row, sequence, stack, tiny_model
from tiny_runs import proximal
from ttsi_jax.adaptation import AdaptConfig, adapt_wave, init_wave
from ttsi_jax.model.decoder import forward, logits
from ttsi_jax.model.lora import LoraConfig
from ttsi_jax.model.scoring import prefill_wave
from ttsi_jax.rules import adamw, answer_cross_entropy

E, K, N_TOKENS, N_ANSWER, MAX_STEPS = 4, 2, 16, 6, 5
LORA = LoraConfig()
KEYS = jax.random.split(jax.random.key(0), E)
N_PAIRS, N_STEPS = jnp.asarray([2, 1, 2, 1]), jnp.asarray([5, 3, 0, 5])
PAIRS = [  # prompt and answer of each input's two pairs
    [(random_ids(10 * e + k, 9 - e - k), random_ids(10 * e + k + 5, 6 - e)) for k in range(K)] for e in range(E)
]


def batches(start: int = 0):
    return stack([stack([pair(*own, N_TOKENS, N_ANSWER, start) for own in row]) for row in PAIRS])


def adapt(
    lr=1e-2, data=None, n_pairs=N_PAIRS, n_steps=N_STEPS, keys=KEYS, select=lambda x: x,
    adapters=None, past=(), **how,
):  # fmt: skip
    """Trains a wave of fresh adapters, or uses up those given; `select` takes some of its rows. Adapters and losses."""
    return train(lr, data, n_pairs, n_steps, keys, select, adapters, past, **how)[:2]


def train(
    lr=1e-2, data=None, n_pairs=N_PAIRS, n_steps=N_STEPS, keys=KEYS, select=lambda x: x,
    adapters=None, past=(), held_out=None, make=adamw, narrow=False, **how,
):  # fmt: skip
    config, base = tiny_model()
    base, rule = in_bfloat16(config, base) if narrow else base, make(lr)
    fresh, states = init_wave(select(keys), config, LORA, rule, select(n_steps))
    wave = (adapters or fresh, states, *map(select, (data or batches(), n_pairs, n_steps, keys, past)))
    how = {"chunk": len(select(n_steps))} | how
    return adapt_wave(
        config,
        base,
        rule.step,
        answer_cross_entropy,
        *wave,
        held_out=held_out,
        max_steps=MAX_STEPS,
        scale=LORA.scale,
        **how,
    )


@pytest.fixture(scope="module")
def trained():
    return adapt()


@pytest.fixture(scope="module")
def trained_gently():
    """At the default rate: AdamW makes steps of the size of lr even of gradients that are rounding errors."""
    return adapt(lr=1e-4)


def assert_same(one, two, atol=0.0):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=atol), one, two)


def change(adapters, index):
    """Largest change of one row's adapters from how they began."""
    config, _ = tiny_model()
    fresh, _ = init_wave(KEYS, config, LORA, adamw(), N_STEPS)
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a[index] - b[index]).max()), adapters, fresh)))


@pytest.mark.torch
@pytest.mark.parametrize("lr", [1e-4, 1e-2])
@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_losses_and_adapters_are_those_of_peft(references, variant, lr):
    torch = pytest.importorskip("torch")
    from transformers import get_cosine_schedule_with_warmup

    from model.reference import peft_modules, with_peft

    theirs, ours = references(variant)
    rule, n_steps = adamw(lr), jnp.asarray([5])
    adapters, states = init_wave(KEYS[:1], ours.config, LORA, rule, n_steps)
    peft = with_peft(theirs, jax.tree.map(lambda x: x[0], adapters), LORA)
    weights = [weight for weight in peft.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.03 * 5), 5)
    # AdamW divides each gradient by its own size, so where that is nearly zero rounding decides: other keys
    # leave single elements over the bound at the higher rate, this one leaves none.
    pairs = [(random_ids(k, 44), random_ids(k + 5, 40)) for k in range(K)]
    expected = []
    for step in range(5):
        prompt, answer = pairs[step % K]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = peft(torch.tensor([prompt + answer]), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        expected.append(loss.item())

    found, losses, _ = adapt_wave(
        ours.config, ours.params, rule.step, answer_cross_entropy, adapters, states,
        stack([stack([pair(*own, 96, 48) for own in pairs])]), N_PAIRS[:1], n_steps, KEYS[:1],
        max_steps=5, scale=LORA.scale, chunk=1,
    )  # fmt: skip
    np.testing.assert_allclose(losses[0], expected, rtol=0, atol=1e-4)
    for layer, name, module in peft_modules(peft):
        for factor, linear in zip(found[layer][name], (module.lora_A, module.lora_B), strict=True):
            distance = np.abs(factor[0] - linear["default"].weight.detach().numpy().T)
            assert distance.max() < 1e-4
    if lr > 1e-3:
        assert expected[-1] < expected[0] - 0.1


def test_the_base_is_untouched_and_alive():
    _, base = tiny_model()
    before = jax.tree.map(np.array, base)
    adapt()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(base))
    assert_same(base, before)


def test_each_input_trains_as_if_alone(trained_gently):
    adapters, losses = trained_gently
    for index in range(E):
        alone, own_losses = adapt(lr=1e-4, select=partial(row, index=index))
        assert_same(row(adapters, index), alone, atol=1e-6)
        assert_same(losses[index : index + 1], own_losses, atol=1e-5)


def test_batch_mates_change_no_bit(trained):
    adapters, losses = trained
    other = jax.tree.map(lambda x: x.at[1:].set(x[1:][::-1]), batches())
    mates = adapt(
        data=other, n_pairs=jnp.asarray([2, 2, 1, 1]), n_steps=jnp.asarray([5, 4, 5, 0]), keys=KEYS.at[1:].set(KEYS[0])
    )
    assert_same(row(adapters, 0), row(mates[0], 0))
    assert_same(losses[0], mates[1][0])
    order = jnp.asarray([3, 0, 2, 1])
    moved = adapt(select=lambda x: jax.tree.map(lambda leaf: leaf[order], x))
    assert_same(jax.tree.map(lambda x: x[order], trained), moved)


def test_a_broken_neighbour_changes_no_bit(trained):
    data = batches()
    broken = data._replace(weights=data.weights.at[1].set(jnp.nan))
    adapters, losses = adapt(data=broken)
    assert np.isnan(losses[1]).all()
    keep = jnp.asarray([0, 2, 3])
    assert_same(*(jax.tree.map(lambda x: x[keep], wave) for wave in ((adapters, losses), trained)))


def test_pairs_come_in_turn(trained):
    _, losses = trained
    _, one = adapt(lr=0.0)
    np.testing.assert_array_equal(one[0], jnp.asarray([one[0, 0], one[0, 1]] * 3)[:5])
    assert abs(one[0, 0] - one[0, 1]) > 1e-2
    np.testing.assert_array_equal(one[1, :3], [one[1, 0]] * 3)
    np.testing.assert_array_equal(losses[:, 0], one[:, 0])  # before the first step, and rate 0 in it
    assert losses[0, 4] < one[0, 4]


def test_steps_beyond_an_inputs_own_do_nothing(trained_gently):
    adapters, losses = trained_gently
    np.testing.assert_array_equal(np.isfinite(losses), np.arange(MAX_STEPS) < N_STEPS[:, None])
    assert change(adapters, 2) == 0.0
    assert all(change(adapters, index) > 1e-4 for index in (0, 1, 3))


@pytest.mark.parametrize("how", [{"chunk": 2}, {"chunk": 2, "remat": True}])
def test_chunks_and_recomputed_layers_change_nothing(trained_gently, how):
    adapters, losses = adapt(lr=1e-4, **how)
    assert_same(adapters, trained_gently[0], atol=1e-6)
    assert_same(losses, trained_gently[1], atol=1e-5)


def test_on_a_base_in_bfloat16_an_adapter_learns_what_it_learns_in_float32(trained):
    adapters, losses = adapt(narrow=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(losses, trained[1], rtol=0, atol=0.05)
    fresh, _ = init_wave(KEYS, tiny_model()[0], LORA, adamw(), N_STEPS)
    moved = [jax.flatten_util.ravel_pytree(jax.tree.map(jnp.subtract, x, fresh))[0] for x in (adapters, trained[0])]
    assert np.corrcoef(*moved)[0, 1] > 0.95


def test_scope_suffix_starts_from_the_base():
    config, params = tiny_model()
    prefixes = [random_ids(50 + e, 7 - e) for e in range(E)]
    caches = prefill_wave(
        config, params, jnp.stack([padded(ids, 8) for ids in prefixes]), jnp.asarray([len(ids) for ids in prefixes])
    )
    data = stack(
        [
            stack([pair(*own, N_TOKENS, N_ANSWER, start=len(prefix)) for own in row])
            for prefix, row in zip(prefixes, PAIRS, strict=True)
        ]
    )
    adapters, losses = adapt(data=data, past=(caches,), n_steps=jnp.full(E, 5))
    score = jax.jit(lambda tokens: jax.nn.log_softmax(logits(config, params, forward(config, params, tokens)[0])))
    for e, prefix in enumerate(prefixes):
        for k, (prompt, answer) in enumerate(PAIRS[e][: int(N_PAIRS[e])]):
            log_p = score(sequence(prefix + prompt + answer, 24))
            start = len(prefix + prompt) - 1
            base = -np.mean([log_p[start + index, token] for index, token in enumerate(answer)])
            np.testing.assert_allclose(losses[e, k], base, rtol=0, atol=1e-4)  # before the first step; rate 0 in it
        assert losses[e, 4] < losses[e, 0] - 0.1
    assert all(change(adapters, e) > 1e-3 for e in range(E))


def test_training_stops_when_all_pairs_are_learned():
    """Each input by itself, with the adapter that it had then, and a new threshold compiles nothing."""
    adapters, losses, n = train(stop_below=-np.inf)
    np.testing.assert_array_equal(n, N_STEPS)
    compiled = adapt_wave._cache_size()
    # The second input has one pair: it stops where its own loss is low enough for the first time.
    threshold = float(losses[1, 1:3].mean())
    stopped, own_losses, own_n = train(stop_below=threshold)
    at = int(np.argmax(np.asarray(losses[1]) < threshold))
    assert 0 < at < 3 and own_n[1] == at + 1
    np.testing.assert_array_equal(own_losses[1, : at + 1], losses[1, : at + 1])
    assert np.isnan(own_losses[1, at + 1 :]).all()
    assert change(stopped, 1) < change(adapters, 1)
    everything, _, taken = train(stop_below=1e9)  # the first input has two pairs, and both must be read
    np.testing.assert_array_equal(taken, [2, 1, 0, 1])
    assert change(everything, 1) == change(everything, 3) == 0
    assert adapt_wave._cache_size() == compiled


def test_a_step_that_makes_the_held_out_loss_rise_is_not_taken():
    """Held out is what is trained on, so nothing stops; or a sequence with other answers, whose loss rises at once."""
    same = jax.tree.map(lambda x: x[:, 0], batches())
    _, losses, _ = train(n_pairs=jnp.ones(E, int))
    _, own, n = train(n_pairs=jnp.ones(E, int), held_out=same)
    np.testing.assert_array_equal(n, N_STEPS)
    np.testing.assert_allclose(own, losses, atol=1e-5)
    config, base = tiny_model()
    other = same._replace(labels=(same.labels + 7) % 50)
    adapters, _, n = train(n_pairs=jnp.ones(E, int), held_out=other, lr=1e-1)
    full, _, _ = train(n_pairs=jnp.ones(E, int), lr=1e-1)
    assert (np.asarray(n) < N_STEPS).any() and n[2] == 0
    early = int(np.argmax(np.asarray(n) < N_STEPS))
    assert change(adapters, early) < change(full, early)


def test_nothing_but_shapes_compiles_anew(trained):
    before = adapt_wave._cache_size()
    other = jax.tree.map(lambda x: x[::-1], batches())
    adapt(lr=3e-3, data=other, n_pairs=jnp.asarray([1, 1, 1, 2]), n_steps=jnp.asarray([1, 2, 3, 4]), keys=KEYS[::-1])
    assert adapt_wave._cache_size() == before


def test_the_last_of_many_cycles_is_the_first_and_nothing_piles_up(trained):
    data = batches()
    first = jax.tree.map(np.array, adapt(data=data))
    alive = len(jax.live_arrays())
    for _ in range(200):
        last = adapt(data=data)
    assert_same(first, last)
    del last
    assert len(jax.live_arrays()) <= alive


def test_adapters_are_donated():
    config, _ = tiny_model()
    adapters, _ = init_wave(KEYS, config, LORA, adamw(), N_STEPS)
    adapt(adapters=adapters)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(adapters))


def test_a_rule_may_keep_the_adapter_that_it_starts_from():
    """The adapters are donated, and its state is not."""
    _, losses = adapt(lr=0.1, make=proximal)
    assert losses[0, 4] < losses[0, 0] - 0.1


def test_init_depends_on_each_key_alone():
    config, _ = tiny_model()
    wave, states = init_wave(KEYS, config, LORA, adamw(1e-3), N_STEPS)
    moved, _ = init_wave(KEYS[::-1], config, LORA, adamw(1e-3), N_STEPS)
    assert_same(jax.tree.map(lambda x: x[::-1], wave), moved)
    assert (wave[0]["q"].a[0] != wave[0]["q"].a[1]).any()
    np.testing.assert_array_equal(states.n_steps, N_STEPS)
    np.testing.assert_array_equal(states.step, [0] * E)


def test_defaults_are_the_papers():
    settings = AdaptConfig()
    assert (settings.epochs, settings.lora, settings.scope) == (5, LoraConfig(8, 16.0), "all")
