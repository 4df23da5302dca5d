"""Bases in int8 from files: a scale per channel from floats, a Q8_0 file's own values and scales."""

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

from checkpoints.tiny_models import FAMILIES, gguf_tensors, hf_settings, hf_tensors, write_gguf, write_hf
from ttsi_jax.checkpoints import load_model
from ttsi_jax.checkpoints.int8 import storage
from ttsi_jax.errors import ModelFileError
from ttsi_jax.model.decoder import abstract_params
from ttsi_jax.model.quantized import Int8, Quantized

PER_CHANNEL = "int8 with a scale per channel, computed in float32"
PER_32 = "int8 with a scale per 32 inputs, computed in float32"


def is_quantized(x):
    return isinstance(x, Quantized)


def described(params):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_per_channel_from_floats(tmp_path, monkeypatch, family):
    settings = hf_settings(family)
    directory = write_hf(tmp_path / "model", settings, hf_tensors(settings))
    loaded, plain = load_model(directory, dtype="int8"), load_model(directory, dtype="float32")
    assert described(loaded.params) == abstract_params(loaded.config, Int8("float32"))
    assert loaded.checksum == plain.checksum and storage(loaded.params) == PER_CHANNEL

    def check(found, expected):
        if is_quantized(found):
            assert (np.abs(found.dense() - expected) <= found.scales * 0.501).all()
        else:  # norms and biases
            np.testing.assert_array_equal(found, expected)

    jax.tree.map(check, loaded.params, plain.params, is_leaf=is_quantized)
    monkeypatch.setattr("ttsi_jax.checkpoints.safetensors.BLOCK_BYTES", 7 * 4 * 64)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, load_model(directory, dtype="int8").params)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_q8_0_files_own_values_and_scales(tmp_path, monkeypatch, family):
    """In a Llama file the rows of queries and keys are in another order than in the params."""
    settings = hf_settings(family)
    tensors = hf_tensors(settings)
    path = write_gguf(tmp_path / "model.gguf", settings, gguf_tensors(settings, tensors), Kind.Q8_0)
    loaded, plain = load_model(path, dtype="int8"), load_model(path, dtype="float32")
    assert described(loaded.params) == abstract_params(loaded.config, Int8("float32", group=32))
    assert storage(loaded.params) == PER_32

    for weight, name in (
        (loaded.params["embed"], "model.embed_tokens"),
        (loaded.params["layers"][1]["q"]["kernel"], "model.layers.1.self_attn.q_proj"),
        (loaded.params["layers"][0]["down"]["kernel"], "model.layers.0.mlp.down_proj"),
    ):
        raw = gguf.quants.quantize(tensors[f"{name}.weight"], Kind.Q8_0)  # row by row, so whatever their order is
        blocks = raw.reshape(len(raw), -1, 34)
        scales, values = blocks[..., :2].copy().view(np.float16)[..., 0], blocks[..., 2:].view(np.int8)
        back = (lambda x: np.asarray(x)) if "embed" in name else (lambda x: np.asarray(x).T)
        np.testing.assert_array_equal(back(weight.values), values.reshape(len(raw), -1))
        np.testing.assert_array_equal(back(weight.scales), scales)
        assert (weight.values.dtype, weight.scales.dtype) == (np.int8, np.float16)
    stands_for = jax.tree.map(lambda x: x.dense() if is_quantized(x) else x, loaded.params, is_leaf=is_quantized)
    jax.tree.map(np.testing.assert_array_equal, stands_for, plain.params)
    monkeypatch.setattr("ttsi_jax.checkpoints.gguf.BLOCK_BYTES", 7 * 4 * 64)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, load_model(path, dtype="int8").params)


def test_other_kinds_of_a_file_get_a_scale_per_channel(tmp_path):
    settings = hf_settings("llama")
    tensors = gguf_tensors(settings, hf_tensors(settings))
    path = write_gguf(tmp_path / "model.gguf", settings, tensors, Kind.Q4_0)
    loaded, plain = load_model(path, dtype="int8").params, load_model(path, dtype="float32").params
    assert storage(loaded) == PER_CHANNEL
    kernel = loaded["layers"][0]["k"]["kernel"]
    assert (np.abs(kernel.dense() - plain["layers"][0]["k"]["kernel"]) <= kernel.scales * 0.501).all()


def test_values_that_are_not_finite_are_refused(tmp_path):
    settings = hf_settings("llama")
    tensors = hf_tensors(settings)
    directory = write_hf(tmp_path / "model", settings, tensors)
    name = "model.layers.1.mlp.up_proj.weight"
    for value in (np.nan, np.inf):
        tensors[name][3, 5] = value
        save_file(tensors, directory / "model.safetensors")
        with pytest.raises(ModelFileError, match=f"{name} has values that are not finite"):
            load_model(directory, dtype="int8")


def test_a_damaged_scale_is_refused(tmp_path):
    settings = hf_settings("llama")
    path = write_gguf(tmp_path / "model.gguf", settings, gguf_tensors(settings, hf_tensors(settings)), Kind.Q8_0)
    data = bytearray(path.read_bytes())
    stored = gguf.quants.quantize(hf_tensors(settings)["model.layers.1.mlp.up_proj.weight"], Kind.Q8_0).tobytes()
    start = bytes(data).index(stored)
    data[start : start + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="blk.1.ffn_up.weight has values that are not finite"):
        load_model(path, dtype="int8")
