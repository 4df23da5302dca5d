"""From files to params: values, dtypes, memory, and every way in which a model is refused."""

import json
import re
import shutil
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints.tiny_models import (
    FAMILIES,
    TOKENS,
    as_bfloat16,
    gguf_tensors,
    hf_settings,
    hf_tensors,
    shard,
    write_gguf,
    write_hf,
)
from ttsi_jax.checkpoints import load, load_model
from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.checkpoints.names import gguf_slots, hf_slots
from ttsi_jax.errors import InputError, ModelFileError
from ttsi_jax.model.decoder import abstract_params


def assert_same_params(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


@pytest.fixture(params=FAMILIES)
def model(request, tmp_path):
    settings = hf_settings(request.param)
    tensors = hf_tensors(settings)
    return write_hf(tmp_path / "model", settings, tensors), settings, tensors


@pytest.fixture
def llama(tmp_path):
    settings = hf_settings("llama")
    tensors = hf_tensors(settings)
    return write_hf(tmp_path / "model", settings, tensors), settings, tensors


def test_values_land_where_they_belong(model):
    directory, settings, tensors = model
    loaded = load_model(directory, dtype="float32")
    layer = loaded.params["layers"][1]
    np.testing.assert_array_equal(loaded.params["embed"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(layer["q"]["kernel"], tensors["model.layers.1.self_attn.q_proj.weight"].T)
    np.testing.assert_array_equal(layer["down"]["kernel"], tensors["model.layers.1.mlp.down_proj.weight"].T)
    gemma = settings["model_type"] == "gemma3_text"
    norm = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
    np.testing.assert_array_equal(layer["mlp_norm"]["scale"], tensors[f"model.layers.1.{norm}.weight"] + gemma)
    np.testing.assert_array_equal(loaded.params["final_norm"]["scale"], tensors["model.norm.weight"] + gemma)
    if settings["model_type"] == "qwen2":
        np.testing.assert_array_equal(layer["k"]["bias"], tensors["model.layers.1.self_attn.k_proj.bias"])
        np.testing.assert_array_equal(loaded.params["head"]["kernel"], tensors["lm_head.weight"].T)
    assert loaded.name == "model"


def test_gguf_and_safetensors_hold_the_same_model(model, tmp_path):
    directory, settings, tensors = model
    file = write_gguf(tmp_path / "model.gguf", settings, gguf_tensors(settings, tensors))
    from_safetensors, from_file = load_model(directory, dtype="float32"), load_model(file, dtype="float32")
    assert_same_params(from_safetensors.params, from_file.params)
    ours, theirs = from_file.config, from_safetensors.config
    for name in ("hidden_size", "n_heads", "n_kv_heads", "head_dim", "tied_head", "query_scale", "sliding_window"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_tables_name_every_parameter_once(model):
    config = from_hf(model[1])
    leaves, _ = jax.tree_util.tree_flatten_with_path(abstract_params(config))
    paths = {tuple(key.key for key in path) for path, _ in leaves}
    for slots in (hf_slots(config), gguf_slots(config)):
        assert {slot.path for slot in slots.values()} == paths
        assert len(slots) == len(paths)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layout_and_dtypes_are_the_decoders(model, dtype):
    loaded = load_model(model[0], dtype=dtype)
    expected = abstract_params(loaded.config, dtype)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} {b}"), loaded.params, expected
    )
    assert loaded.params["final_norm"]["scale"].dtype == jnp.float32
    assert loaded.params["embed"].dtype == dtype


def test_small_blocks_give_the_same_params(model, tmp_path, monkeypatch):
    directory, settings, tensors = model
    file = write_gguf(tmp_path / "model.gguf", settings, gguf_tensors(settings, tensors))
    whole = load_model(directory, dtype="float32").params
    for module in ("safetensors", "gguf"):
        monkeypatch.setattr(f"ttsi_jax.checkpoints.{module}.BLOCK_BYTES", 7 * 4 * 64)
    assert_same_params(whole, load_model(directory, dtype="float32").params)
    assert_same_params(whole, load_model(file, dtype="float32").params)


def test_shards_and_mixed_dtypes(llama):
    directory, _, tensors = llama
    mixed = {
        name: (value.astype(np.float16), as_bfloat16(value), value, value.astype(np.float64))[index % 4]
        for index, (name, value) in enumerate(tensors.items())
    }
    save_file({name: value.astype(np.float32) for name, value in mixed.items()}, directory / "model.safetensors")
    expected = load_model(directory, dtype="float32").params
    shard(directory, mixed)
    assert_same_params(load_model(directory, dtype="float32").params, expected)


def test_bfloat16_weights_are_loaded_bit_for_bit(llama):
    directory, _, tensors = llama
    stored = {name: as_bfloat16(value) for name, value in tensors.items()}
    save_file(stored, directory / "model.safetensors")
    embed = np.asarray(load_model(directory, dtype="bfloat16").params["embed"])
    np.testing.assert_array_equal(embed.view(np.uint16), stored["model.embed_tokens.weight"].view(np.uint16))


def test_redundant_tensors_are_left_out(llama):
    directory, _, tensors = llama
    expected = load_model(directory).params
    extra = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(tensors | extra, directory / "model.safetensors")
    assert_same_params(load_model(directory).params, expected)


@pytest.mark.parametrize("old", [True, False])
def test_the_text_part_of_a_multimodal_gemma(tmp_path, old):
    settings = hf_settings("gemma3")
    tensors = hf_tensors(settings)
    expected = load_model(write_hf(tmp_path / "text", settings, tensors)).params
    rename = (lambda name: f"language_model.{name}") if old else (
        lambda name: name.replace("model.", "model.language_model.", 1)
    )  # fmt: skip
    vision = {f"{'' if old else 'model.'}vision_tower.patch.weight": np.ones(3, np.float32)}
    outer = {"model_type": "gemma3", "text_config": settings, "eos_token_id": 2}
    both = write_hf(tmp_path / "both", outer, {rename(name): value for name, value in tensors.items()} | vision)
    assert_same_params(load_model(both).params, expected)


def test_tensors_under_both_prefixes_are_duplicates(tmp_path):
    settings = hf_settings("gemma3")
    tensors = hf_tensors(settings)
    twice = tensors | {"language_model.model.norm.weight": tensors["model.norm.weight"]}
    with pytest.raises(ModelFileError, match="model.norm.weight is there twice"):
        load_model(write_hf(tmp_path / "model", settings, twice))


def test_all_problems_in_one_message(llama):
    directory, _, tensors = llama
    tensors["model.surprise.weight"] = np.ones(2, np.float32)
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((3, 64), np.float32)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((96, 64), np.int8)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ModelFileError) as error:
        load_model(directory)
    message = str(error.value)
    assert "unknown tensor model.surprise.weight" in message
    assert "missing tensor model.norm.weight [64]" in message
    assert "model.layers.1.mlp.up_proj.weight has shape [3, 64], expected [96, 64]" in message
    assert "model.layers.0.mlp.up_proj.weight is I8" in message
    assert str(directory) in message


def test_many_problems_are_counted(llama):
    directory, _, tensors = llama
    save_file({f"x{index}": np.ones(1, np.float32) for index in range(30)}, directory / "model.safetensors")
    with pytest.raises(ModelFileError, match=rf"and {30 + len(tensors) - 20} more"):
        load_model(directory)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_values_that_are_not_finite(llama, value):
    directory, _, tensors = llama
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    wide["model.layers.1.self_attn.v_proj.weight"][3, 5] = value
    save_file(wide, directory / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"layers\.1\.self_attn\.v_proj\.weight .* not finite"):
        load_model(directory)


def test_contradictions_between_shards_and_index(llama):
    directory, _, tensors = llama
    shard(directory, tensors)
    second = directory / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"]}, second)
    with pytest.raises(ModelFileError, match="model.embed_tokens.weight is in both .*00001.* and .*00002"):
        load_model(directory)
    second.unlink()
    with pytest.raises(ModelFileError, match="lacks model-00002-of-00002.safetensors"):
        load_model(directory)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_cannot_point_outside(llama, file):
    directory, _, _ = llama
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ModelFileError, match=re.escape(file)):
        load_model(directory)


def test_pickle_is_refused(llama):
    directory, _, _ = llama
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match="pickle.*convert them to safetensors"):
        load_model(directory)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files_are_named(llama, missing):
    (llama[0] / missing).unlink()
    with pytest.raises(ModelFileError, match=re.escape(missing)):
        load_model(llama[0])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"a": 1}', "\xff"])
def test_damaged_side_files(llama, name, text):
    (llama[0] / name).write_bytes(text.encode("latin-1"))
    if name == "generation_config.json" and text == '{"a": 1}':
        load_model(llama[0])
    else:
        with pytest.raises(ModelFileError):
            load_model(llama[0])


def test_unsupported_architecture(llama):
    (llama[0] / "config.json").write_text(json.dumps(hf_settings("llama", model_type="mamba")))
    with pytest.raises(ModelFileError, match=r"config.json.*'mamba' is not supported; supported: llama"):
        load_model(llama[0])


def test_a_model_without_chat_template(llama):
    (llama[0] / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="no chat template"):
        load_model(llama[0])


@pytest.mark.parametrize("template", ["{% for", "{{ 1 / 0 }}", "{{ raise_exception('no') }}", "nothing"])
def test_chat_templates_that_do_not_work(llama, template):
    (llama[0] / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ModelFileError, match="chat template"):
        load_model(llama[0])


def test_chat_template_in_its_own_file(llama):
    (llama[0] / "tokenizer_config.json").write_text("{}")
    (llama[0] / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}<|im_end|>")
    assert load_model(llama[0]).tokenizer.chat_template.endswith("<|im_end|>")


def test_a_tokenizer_of_another_model(tmp_path):
    settings = hf_settings("llama", vocab_size=100)
    with pytest.raises(ModelFileError, match="embedding only 100"):
        load_model(write_hf(tmp_path / "model", settings, hf_tensors(settings)))


def test_stop_ids_come_from_every_place(llama):
    directory, _, _ = llama  # config.json and the template: <|im_end|>; tokenizer_config.json: <|endoftext|>
    end = {TOKENS.index("<|endoftext|>"), TOKENS.index("<|im_end|>")}
    assert set(load_model(directory).stop_ids) == end
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert set(load_model(directory).stop_ids) == end | {1, 2}
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [{}, 5000]}))
    with pytest.raises(ModelFileError, match="5000"):
        load_model(directory)


def test_end_of_turn_is_read_from_the_template(llama):
    directory, settings, _ = llama
    (directory / "config.json").write_text(json.dumps(settings | {"eos_token_id": None}))
    assert TOKENS.index("<|im_end|>") in load_model(directory).stop_ids


def test_nothing_is_fetched_for_a_directory(llama, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(llama[0])


def test_code_named_by_a_model_is_not_run(llama):
    directory, settings, _ = llama
    (directory / "evil.py").write_text("raise SystemExit('executed')\nclass Evil: pass\n")
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
    (directory / "config.json").write_text(json.dumps(settings | {"auto_map": auto_map}))
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"auto_map": auto_map}))
    load_model(directory)


def test_the_checksum_follows_the_contents_not_the_place(llama, tmp_path):
    directory, _, tensors = llama
    original = load_model(directory).checksum
    copy = shutil.copytree(directory, tmp_path / "elsewhere")
    assert load_model(copy).checksum == original
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, copy / "model.safetensors")
    assert load_model(copy).checksum != original


def test_the_checksum_of_large_files_samples_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("ttsi_jax.checkpoints.files.HASHED_IN_FULL", 1)
    file = tmp_path / "large"
    file.write_bytes(bytes(1 << 20))
    before = load.checksum([file])
    for position in (0, 1 << 19, (1 << 20) - 1):
        contents = bytearray(1 << 20)
        contents[position] = 1
        file.write_bytes(contents)
        assert load.checksum([file]) != before


def test_unknown_dtype(llama):
    with pytest.raises(InputError, match="float16"):
        load_model(llama[0], dtype="float16")


@pytest.mark.torch
def test_names_are_those_transformers_writes(model, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    directory, settings, _ = model
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in reference.parameters():  # norms and biases start out constant
            parameter.add_(0.1 * torch.randn_like(parameter))
    (directory / "model.safetensors").unlink()
    reference.save_pretrained(directory, max_shard_size="100KB")
    assert (directory / "model.safetensors.index.json").exists()
    loaded = load_model(directory, dtype="bfloat16")
    assert loaded.config == from_hf(settings)
    state = {name: value.float().numpy() for name, value in reference.state_dict().items()}
    for name, slot in hf_slots(loaded.config).items():
        value = loaded.params
        for key in slot.path:
            value = value[key]
        expected = state[name].T if slot.transposed else state[name] + slot.offset
        np.testing.assert_array_equal(np.asarray(value, np.float32), expected)


@pytest.mark.torch
def test_rows_of_llama_gguf_files_are_put_back_as_transformers_does(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    settings = hf_settings("llama", vocab_size=len(TOKENS))
    file = write_gguf(tmp_path / "model.gguf", settings, gguf_tensors(settings, hf_tensors(settings)))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    state = reference.state_dict()
    params = load_model(file, dtype="float32").params
    for name in "qkv":
        expected = state[f"model.layers.1.self_attn.{name}_proj.weight"].numpy().T
        np.testing.assert_array_equal(params["layers"][1][name]["kernel"], expected)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's memory figures")
def test_loading_holds_little_more_than_the_params(tmp_path, monkeypatch):
    def held() -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) * 1024

    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "head_dim": 128}
    settings = hf_settings("llama", **sizes)
    tensors = {name: as_bfloat16(value) for name, value in hf_tensors(settings).items()}
    directory = write_hf(tmp_path / "model", settings, tensors)
    del tensors
    load_model(directory)  # what is made once, is made
    seen = []
    put_weight = load.put_weight

    def watched(param, where):
        array = jax.block_until_ready(put_weight(param, where))
        seen.append(held())
        return array

    monkeypatch.setattr(load, "put_weight", watched)
    before = held()
    params = load_model(directory, dtype="float32").params
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert size > 100 << 20
    assert max(seen) - before < 1.3 * size + largest
