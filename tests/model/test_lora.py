"""Adapters: how they start, and that they compute what PEFT's do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.tiny import FAMILIES, random_adapter, random_ids, sequence, tiny_model
from ttsi_jax.model.decoder import forward, logits
from ttsi_jax.model.lora import TARGETS, LoraConfig, init_adapter, projection_shapes

IDS = random_ids(0, 15)


@partial(jax.jit, static_argnums=(0, 3))
def scores(config, params, adapter, scale=1.0):
    return logits(config, params, forward(config, params, sequence(IDS), (), adapter, scale)[0])


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_a_fresh_adapter_is_the_base_to_the_bit(variant):
    config, params = tiny_model(variant)
    fresh = init_adapter(jax.random.key(0), config, LoraConfig())
    np.testing.assert_array_equal(scores(config, params, fresh, 2.0), scores(config, params, None))


@pytest.mark.torch
@pytest.mark.parametrize("variant", FAMILIES)
def test_logits_are_those_of_peft(references, variant):
    torch = pytest.importorskip("torch")
    from model.reference import with_peft

    theirs, ours = references(variant)
    lora = LoraConfig()
    adapter = random_adapter(ours.config, 0, lora)
    with torch.no_grad():
        expected = with_peft(theirs, adapter, lora)(torch.tensor([IDS])).logits[0].numpy()
        base = theirs(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(expected - base).max() > 0.5
    found = scores(ours.config, ours.params, adapter, lora.scale)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_update_is_alpha_over_rank_times_a_times_b():
    config, params = tiny_model("qwen2")
    lora = LoraConfig(rank=4, alpha=12.0)
    adapter = random_adapter(config, 0, lora)
    merged = jax.tree.map(lambda x: x, params)
    for layer, own in adapter.items():
        for name, x in own.items():
            merged["layers"][layer][name]["kernel"] += x.a @ x.b * 3.0
    found = scores(config, params, adapter, lora.scale)
    np.testing.assert_allclose(found, scores(config, merged, None), rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_missing_entries_are_the_base(target):
    config, params = tiny_model()
    full = random_adapter(config, 0)
    only = {1: {target: full[1][target]}}
    others_zero = jax.tree.map(jnp.zeros_like, full)
    others_zero[1][target] = full[1][target]
    found = scores(config, params, only, 2.0)
    np.testing.assert_allclose(found, scores(config, params, others_zero, 2.0), rtol=0, atol=1e-5)
    assert np.abs(found - scores(config, params, None)).max() > 1e-2


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_shapes_follow_the_projections(variant):
    config, params = tiny_model(variant)
    lora = LoraConfig(rank=3, targets=("q", "down"))
    adapter = init_adapter(jax.random.key(0), config, lora)
    assert sorted(adapter) == list(range(config.n_layers))
    for own in adapter.values():
        assert set(own) == {"q", "down"}
    for name, shape in projection_shapes(config).items():
        assert params["layers"][0][name]["kernel"].shape == shape
    a, b = adapter[0]["down"]
    assert (a.shape, b.shape) == ((config.mlp_size, 3), (3, config.hidden_size))


def test_a_is_uniform_as_in_peft_and_differs_everywhere():
    config, _ = tiny_model("gemma3")
    adapter = init_adapter(jax.random.key(0), config, LoraConfig(rank=64))
    shapes = projection_shapes(config)
    for own in adapter.values():
        for name, (a, b) in own.items():
            bound = shapes[name][0] ** -0.5
            assert a.dtype == b.dtype == jnp.float32
            assert not b.any()
            assert 0.98 * bound < np.abs(a).max() <= bound
            np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.05)
    firsts = [float(x.a[0, 0]) / shapes[name][0] ** -0.5 for own in adapter.values() for name, x in own.items()]
    assert len(set(np.round(firsts, 5))) == len(firsts)
    again = init_adapter(jax.random.key(0), config, LoraConfig(rank=64))
    jax.tree.map(np.testing.assert_array_equal, adapter, again)
    other = init_adapter(jax.random.key(1), config, LoraConfig(rank=64))
    assert (other[0]["q"].a != adapter[0]["q"].a).mean() > 0.99


def test_defaults_are_the_paper_s():
    assert (LoraConfig().rank, LoraConfig().scale, LoraConfig().targets) == (8, 2.0, TARGETS)
