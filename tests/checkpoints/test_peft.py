"""Adapters as PEFT's files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints.tiny_models import hf_settings, hf_tensors, write_hf
from ttsi_jax.checkpoints import load_peft, save_peft
from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.errors import ModelFileError
from ttsi_jax.model.lora import TARGETS, LowRank, projection_shapes

CONFIG = from_hf(hf_settings("qwen3"))


def random_adapter(config=CONFIG, targets=TARGETS, rank=4):
    rng, shapes = np.random.default_rng(0), projection_shapes(config)

    def random(*shape):
        return jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32)

    return {
        layer: {name: LowRank(random(shapes[name][0], rank), random(rank, shapes[name][1])) for name in targets}
        for layer in range(config.n_layers)
    }


@pytest.mark.parametrize("targets", [TARGETS, ("q", "v")])
def test_round_trip(tmp_path, targets):
    adapter = random_adapter(targets=targets)
    save_peft(tmp_path / "new" / "adapter", adapter, CONFIG, rank=4, alpha=8.0)
    loaded, rank, alpha = load_peft(tmp_path / "new" / "adapter", CONFIG)
    assert (rank, alpha) == (4, 8.0)
    assert jax.tree.structure(loaded) == jax.tree.structure(adapter)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)


def test_layers_may_differ(tmp_path):
    adapter = random_adapter()
    partial = {1: {"down": adapter[1]["down"]}}
    save_peft(tmp_path, partial, CONFIG, rank=4, alpha=8.0)
    loaded, _, _ = load_peft(tmp_path, CONFIG)
    assert jax.tree.structure(loaded) == jax.tree.structure(partial)


def test_an_adapter_that_does_not_fit_is_not_written(tmp_path):
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), random_adapter())
    for adapter, rank in ((random_adapter(), 5), (stacked, 4), ({7: random_adapter()[0]}, 4)):
        with pytest.raises(ModelFileError, match="q has factors"):
            save_peft(tmp_path / "adapter", adapter, CONFIG, rank=rank, alpha=8.0)
    assert not (tmp_path / "adapter").exists()


def test_wrong_tensors_are_all_named(tmp_path):
    save_peft(tmp_path, random_adapter(), CONFIG, rank=4, alpha=8.0)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    q, k, v = (f"base_model.model.model.layers.0.self_attn.{name}_proj.lora_A.weight" for name in "qkv")
    tensors[q] = tensors[q][:, :3].copy()
    del tensors[k]
    tensors["base_model.model.lm_head.lora_A.weight"] = np.ones((4, 64), np.float32)
    save_file(tensors, file)
    with pytest.raises(ModelFileError) as error:
        load_peft(tmp_path, CONFIG)
    message = str(error.value)
    assert f"{q} has shape [4, 3], expected [4, 64]" in message
    assert f"{k.replace('lora_A', 'lora_B')} has no counterpart" in message
    assert "unknown tensor base_model.model.lm_head.lora_A.weight" in message


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"use_dora": True}, "use_dora"),
        *[({"init_lora_weights": name}, name) for name in ("pissa", "pissa_niter_4", "olora", "corda", "loftq")],
        ({"init_lora_weights": {}}, "init_lora_weights = {}"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"r": 0}, "r = 0"),
        ({"r": True}, "r = True"),
        ({"lora_alpha": "8"}, "lora_alpha = '8'"),
        *[({"lora_alpha": alpha}, f"lora_alpha = {alpha}") for alpha in (0, True, float("nan"), float("inf"))],
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path, changes, match):
    save_peft(tmp_path, random_adapter(), CONFIG, rank=4, alpha=8.0)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelFileError, match=match):
        load_peft(tmp_path, CONFIG)


@pytest.mark.parametrize("name", [None, True, False, "gaussian", "eva", "orthogonal"])
def test_a_beginning_that_keeps_the_base_is_read(tmp_path, name):
    save_peft(tmp_path, random_adapter(), CONFIG, rank=4, alpha=8.0)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": name}))
    assert load_peft(tmp_path, CONFIG)[1:] == (4, 8.0)


def test_missing_files(tmp_path):
    with pytest.raises(ModelFileError, match="adapter_config.json cannot be read"):
        load_peft(tmp_path, CONFIG)
    save_peft(tmp_path, random_adapter(), CONFIG, rank=4, alpha=8.0)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="adapter_model.safetensors"):
        load_peft(tmp_path, CONFIG)


def test_values_that_are_not_finite(tmp_path):
    adapter = random_adapter()
    adapter[1]["up"] = LowRank(adapter[1]["up"].a, adapter[1]["up"].b * jnp.nan)
    save_peft(tmp_path, adapter, CONFIG, rank=4, alpha=8.0)
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.up_proj\.lora_B\.weight .* not finite"):
        load_peft(tmp_path, CONFIG)


theirs = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own


@theirs
@pytest.mark.torch
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_peft_computes_the_same_update(tmp_path, family):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    settings = hf_settings(family)
    config = from_hf(settings)
    base = write_hf(tmp_path / "base", settings, hf_tensors(settings))
    adapter = random_adapter(config)
    save_peft(tmp_path / "adapter", adapter, config, rank=4, alpha=8.0, base=str(base))

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    merged = adapted.merge_and_unload().state_dict()
    down = np.asarray(adapter[1]["down"].a @ adapter[1]["down"].b * 2.0).T
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_allclose((merged[name] - before[name]).numpy(), down, atol=1e-5)
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert len(changed) == config.n_layers * len(TARGETS)


@theirs
@pytest.mark.torch
def test_what_peft_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    settings = hf_settings("llama")
    base = write_hf(tmp_path / "base", settings, hf_tensors(settings))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    chosen = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, chosen)
    adapted.save_pretrained(tmp_path / "adapter")
    adapter, rank, alpha = load_peft(tmp_path / "adapter", from_hf(settings))
    assert (rank, alpha, set(adapter[0])) == (3, 6.0, {"q", "down"})
    stored = adapted.base_model.model.model.layers[1].mlp.down_proj.lora_A["default"].weight
    np.testing.assert_array_equal(adapter[1]["down"].a, stored.detach().numpy().T)
