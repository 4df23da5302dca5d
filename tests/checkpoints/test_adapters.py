"""Adapters that outlive their run: whole or not there, one input's at a time, and the same arithmetic in PEFT."""

import os
import subprocess
import sys
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints.tiny_models import hf_settings, hf_tensors, write_hf
from model.tiny import VOCABULARY, random_adapter, sequence, stack, tiny_model
from tiny_runs import EXAMPLES, settings, task_of, write_model
from ttsi_jax.checkpoints import LanguageModel, load_model
from ttsi_jax.checkpoints.adapters import ADAPTERS, export_adapter, load_adapter, save_adapters, saved_ids
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.model.decoder import forward, logits
from ttsi_jax.model.lora import LoraConfig

CONFIG, _ = tiny_model()
LORA = LoraConfig(rank=4, alpha=6.0)
WAVE = stack([random_adapter(CONFIG, seed, LORA) for seed in range(3)])


def test_one_inputs_adapter_comes_back(tmp_path):
    save_adapters(tmp_path, ["a", "ü/.."], WAVE, LORA, CONFIG, "base")
    save_adapters(tmp_path, ["c"], WAVE, LORA, CONFIG, "base")
    assert sorted(saved_ids(tmp_path)) == ["a", "c", "ü/.."]
    adapter, lora = load_adapter(tmp_path, "ü/..")
    assert lora == LORA
    chex.assert_trees_all_equal(adapter, jax.tree.map(lambda x: x[1], WAVE))
    chex.assert_shape(adapter[0]["q"].a, (CONFIG.hidden_size, 4))


def test_what_was_not_finished_is_not_there_and_is_written_again(tmp_path):
    save_adapters(tmp_path, ["a"], WAVE, LORA, CONFIG, "base")
    [whole] = (tmp_path / ADAPTERS).iterdir()
    half = whole.with_name(f"{whole.name}.orbax-checkpoint-tmp")  # as a killed process leaves it
    whole.rename(half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    with pytest.raises(InputError, match="keeps no adapter of input 'a'; none is kept"):
        load_adapter(tmp_path, "a")
    save_adapters(tmp_path, ["a"], WAVE, LORA, CONFIG, "base")
    assert saved_ids(tmp_path) == ["a"]
    save_adapters(tmp_path, ["a"], jax.tree.map(jnp.zeros_like, WAVE), LORA, CONFIG, "base")
    assert not np.any(load_adapter(tmp_path, "a")[0][0]["q"].a)


def test_a_directory_that_is_not_empty_is_left_as_it_is(tmp_path):
    save_adapters(tmp_path / "run", ["a"], WAVE, LORA, CONFIG, "base")
    export_adapter(tmp_path / "run", "a", tmp_path / "out")
    before = (tmp_path / "out/adapter_model.safetensors").read_bytes()
    save_adapters(tmp_path / "run", ["b"], jax.tree.map(jnp.ones_like, WAVE), LORA, CONFIG, "base")
    with pytest.raises(InputError, match="out: is not empty"):
        export_adapter(tmp_path / "run", "b", tmp_path / "out")
    assert (tmp_path / "out/adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("part", ["about/metadata", "tree/*"])
def test_a_damaged_checkpoint_is_named(tmp_path, part):
    save_adapters(tmp_path, ["a"], WAVE, LORA, CONFIG, "base")
    for file in (tmp_path / ADAPTERS).glob(f"*/{part}"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(InputError, match=f"{ADAPTERS}/.*: these adapters cannot be read"):
        load_adapter(tmp_path, "a")


FULL = """
import resource
from pathlib import Path
from checkpoints.test_adapters import CONFIG, LORA, WAVE
from model.tiny import random_adapter
from ttsi_jax.checkpoints.adapters import save_adapters
from ttsi_jax.checkpoints.peft import save_peft

save_adapters(Path("run"), ["a"], WAVE, LORA, CONFIG, "base")
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, -1))
try:
    save_adapters(Path("run"), ["b"], WAVE, LORA, CONFIG, "base")
except OSError as error:
    print(error.filename)
try:
    save_peft("peft", random_adapter(CONFIG, 0, LORA), CONFIG, rank=4, alpha=6.0)
except OSError as error:
    print(error.filename)
"""


def test_a_disk_that_takes_no_more_is_an_error_of_the_system(tmp_path):
    """It keeps what is there. The child's files may have 2000 bytes."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", FULL]
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert process.stdout.split() == ["run/adapters", "peft/adapter_model.safetensors"], process.stderr
    assert saved_ids(tmp_path / "run") == ["a"]


def ours(model: LanguageModel, adapter, lora: LoraConfig, ids: list[int]) -> np.ndarray:
    hidden, _ = forward(model.config, model.params, sequence(ids), (), adapter, lora.scale)
    return np.asarray(logits(model.config, model.params, hidden))


def theirs(base, adapter, ids: list[int]) -> np.ndarray:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, adapter)(torch.tensor([ids])).logits[0].numpy()


peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@peft_warns
@pytest.mark.torch
def test_a_runs_adapter_gives_the_same_logits_in_peft(tmp_path):
    base = write_model(tmp_path / "base")
    model, adapt = load_model(base, dtype="float32"), replace(settings().adapt, save=True)
    run(model, task_of(*EXAMPLES[1:3]), settings(adapt=adapt), out=tmp_path / "run")
    export_adapter(tmp_path / "run", "two", tmp_path / "peft")
    adapter, lora = load_adapter(tmp_path / "run", "two")
    ids = np.random.default_rng(0).integers(3, 500, 40).tolist()
    found = ours(model, adapter, lora, ids)
    np.testing.assert_allclose(found, theirs(base, tmp_path / "peft", ids), rtol=0, atol=1e-4)
    assert np.abs(found - ours(model, None, lora, ids)).max() > 1e-2


@peft_warns
@pytest.mark.torch
def test_some_layers_with_another_scaling_in_peft(tmp_path):
    described = hf_settings("llama")
    tensors = {name: 0.5 * value for name, value in hf_tensors(described).items()}  # else rounding reaches 1e-4
    base = write_hf(tmp_path / "base", described, tensors)
    model = load_model(base, dtype="float32")
    lora = LoraConfig(rank=4, alpha=2.0, targets=("q", "down"), layers=(-1,), scaling="rslora")
    full = random_adapter(model.config, 0, lora)
    assert list(full) == [model.config.n_layers - 1]
    save_adapters(tmp_path, ["a"], stack([full]), lora, model.config, str(base))
    export_adapter(tmp_path, "a", tmp_path / "peft")
    ids = np.random.default_rng(0).integers(3, min(VOCABULARY, model.config.vocab_size), 20).tolist()
    found = ours(model, full, lora, ids)
    np.testing.assert_allclose(found, theirs(base, tmp_path / "peft", ids), rtol=0, atol=1e-4)
    assert np.abs(found - ours(model, None, lora, ids)).max() > 1e-2
