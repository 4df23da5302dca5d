"""What config.json and GGUF metadata say, in both spellings, and what is refused by name."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tiny import VARIANTS
from ttsi_jax.checkpoints.config import FAMILIES, from_gguf, from_hf
from ttsi_jax.errors import ModelFileError
from ttsi_jax.model.config import Rope

LLAMA = VARIANTS["llama"]


def older(settings: dict) -> dict:
    """The same in the spelling before transformers 5."""
    settings = dict(settings)
    rope = dict(settings.pop("rope_parameters"))
    if "full_attention" in rope:
        settings["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    settings["rope_theta"] = rope.pop("rope_theta")
    settings["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return settings


@pytest.mark.parametrize("variant", [name for name, own in VARIANTS.items() if "rope_parameters" in own])
def test_both_spellings_of_rope_are_one_model(variant):
    assert from_hf(older(VARIANTS[variant])) == from_hf(VARIANTS[variant])


def test_the_oldest_spelling_of_the_kind_of_scaling():
    settings = older(VARIANTS["llama-linear"])
    settings["rope_scaling"] = {"type": "linear", "factor": 3.0}
    assert from_hf(settings).rope == Rope(1000.0, (3.0,) * 6)


@pytest.mark.torch
def test_llama_3_scaling_is_transformers():
    pytest.importorskip("torch")
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = from_hf(VARIANTS["llama-3"])
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.for_model(**VARIANTS["llama-3"]), "cpu")
    frequencies = config.rope.theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    np.testing.assert_allclose(frequencies / config.rope.divisors, expected, rtol=1e-5)
    assert len(set(config.rope.divisors)) > 2 and min(config.rope.divisors) == 1 and max(config.rope.divisors) == 8


def test_configurations_are_hashable_and_equal_by_value():
    for settings in VARIANTS.values():
        assert hash(from_hf(settings)) == hash(from_hf(json.loads(json.dumps(settings))))


def test_what_each_family_switches_on():
    found = {name: from_hf(VARIANTS[name]) for name in ("llama", "qwen2", "qwen2-tied", "qwen3", "gemma3")}
    assert [c.qkv_bias for c in found.values()] == [False, True, True, False, False]
    assert [c.qk_norm for c in found.values()] == [False, False, False, True, True]
    assert [c.tied_head for c in found.values()] == [False, False, True, False, True]
    assert [c.head_dim for c in found.values()] == [12, 12, 12, 20, 20]
    assert [c.sliding_window for c in found.values()] == [None, None, 5, None, 6]
    gemma = found["gemma3"]
    assert gemma.local_layers == (True, False, True)
    assert (gemma.rope, gemma.local_rope) == (Rope(5000.0, (4.0,) * 10), Rope(100.0))
    assert (gemma.embed_scale, gemma.query_scale) == (48**0.5, 15**-0.5)
    assert gemma.sandwich_norms and gemma.activation == "gelu_tanh"


def test_gemma_without_layer_types_has_a_global_layer_in_six():
    settings = {name: value for name, value in VARIANTS["gemma3"].items() if name != "layer_types"}
    assert from_hf(settings | {"num_hidden_layers": 8}).local_layers == (*[True] * 5, False, True, True)


def test_the_text_part_of_a_multimodal_model():
    whole = {"model_type": "gemma3", "vision_config": {}, "text_config": VARIANTS["gemma3"]}
    assert from_hf(whole) == from_hf(VARIANTS["gemma3"])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported; supported: llama, qwen2, qwen3, gemma3"),
        ({"model_type": None}, "not supported"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported; supported: default"),
        ({"rope_parameters": {"rope_type": "linear"}}, "lacks 'factor'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'original_max_position_embeddings'"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": -48}, "hidden_size is -48"),
        ({"hidden_size": 48.5}, "hidden_size is 48.5"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_hidden_layers": 100_000}, "num_hidden_layers"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 attention heads cannot be shared by 3"),
        ({"head_dim": None, "num_attention_heads": 96, "num_key_value_heads": 96}, "head_dim is 0"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["linear_attention"] * 2}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 2}, "lacks 'sliding_window'"),
        ({"rms_norm_eps": "small"}, "wrong kind"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"query_pre_attn_scalar": -4}, "query_pre_attn_scalar is -4"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "rope factor is 0"),
        ({"rope_parameters": VARIANTS["llama-3"]["rope_parameters"] | {"low_freq_factor": 4.0}}, "is not below"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "wrong kind"),
        ({"text_config": None, "head_dim": 0.5}, "head_dim is 0.5"),
        ({"rope_parameters": [1]}, "wrong kind"),
    ],
)
def test_refusals_say_what_and_why(changes, match):
    with pytest.raises(ModelFileError, match=match):
        from_hf(LLAMA | changes)


@pytest.mark.parametrize(
    "missing", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"]
)
def test_a_missing_key_is_named(missing):
    with pytest.raises(ModelFileError, match=f"lacks '{missing}'"):
        from_hf({name: value for name, value in LLAMA.items() if name != missing})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted({key for own in VARIANTS.values() for key in own} | {"sliding_window_pattern", "text_config"})
ROPE_KEYS = ["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "original_max_position_embeddings"]


@given(st.sampled_from(sorted(VARIANTS)), st.sampled_from(KEYS), st.sampled_from([None, *ROPE_KEYS]), values)
def test_any_value_is_read_or_refused(variant, key, rope_key, value):
    settings = json.loads(json.dumps(VARIANTS[variant]))
    if rope_key:
        rope = settings.get("rope_parameters", {})
        rope.get("full_attention", rope)[rope_key] = value
    else:
        settings[key] = value
        settings.pop("layer_types", None)
    try:
        config = from_hf(settings)
    except ModelFileError:
        return
    hash(config)
    ropes = [rope for rope in (config.rope, config.local_rope) if rope]
    reals = [config.norm_eps, config.query_scale, *(x for rope in ropes for x in (rope.theta, *rope.divisors))]
    assert all(isinstance(real, float) and 0 < real < float("inf") for real in reals)


def gguf_of(settings: dict, **changes) -> tuple[dict, dict]:
    """The metadata and tensor shapes that a GGUF file of this model has."""
    name = settings["model_type"].removesuffix("_text")
    rope = settings.get("rope_parameters", {"rope_theta": 10000.0})
    rope = rope.get("full_attention", rope)
    metadata = {
        "context_length": settings["max_position_embeddings"],
        "embedding_length": settings["hidden_size"],
        "block_count": settings["num_hidden_layers"],
        "feed_forward_length": settings["intermediate_size"],
        "attention.head_count": settings["num_attention_heads"],
        "attention.head_count_kv": settings["num_key_value_heads"],
        "attention.key_length": settings["head_dim"],
        "attention.layer_norm_rms_epsilon": settings["rms_norm_eps"],
        "rope.freq_base": rope["rope_theta"],
    }
    if rope.get("rope_type") == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if name == "gemma3":
        metadata["attention.sliding_window"] = settings["sliding_window"]
    metadata = {f"{name}.{key}": value for key, value in (metadata | changes).items() if value is not None}
    tensors = {"token_embd.weight": (settings["vocab_size"], settings["hidden_size"])}
    if not settings["tie_word_embeddings"]:
        tensors["output.weight"] = tensors["token_embd.weight"]
    return metadata | {"general.architecture": name}, tensors


GEMMA = VARIANTS["gemma3"] | {  # as every published one: six layers to a period, local base 10,000
    "num_hidden_layers": 7,
    "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 20,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize(
    "settings", [LLAMA, VARIANTS["llama-linear"], VARIANTS["qwen2"], VARIANTS["qwen3"], GEMMA],
    ids=["llama", "llama-linear", "qwen2", "qwen3", "gemma3"],
)  # fmt: skip
def test_gguf_metadata_gives_the_same_configuration(settings):
    assert from_gguf(*gguf_of(settings)) == from_hf(settings)


def test_gguf_rope_divisors_are_llama_3_scaling():
    expected = from_hf(VARIANTS["llama-3"])
    assert from_gguf(*gguf_of(VARIANTS["llama-3"]), expected.rope.divisors) == expected


def test_the_query_scale_of_the_largest_gemma_is_its_own():
    metadata, tensors = gguf_of(GEMMA, block_count=62)
    assert from_gguf(metadata, tensors).query_scale == (48 // 4) ** -0.5


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"block_count": None}, "block_count is None"),
        ({"attention.head_count": 0}, "attention.head_count is 0"),
        ({"context_length": None}, "max_position_embeddings is None"),
        ({"rope.scaling.type": "yarn"}, "'yarn' is not supported"),
        ({"embedding_length": 1 << 40}, "embedding_length"),
        ({"rope.freq_base": "high"}, "wrong kind"),
    ],
)
def test_gguf_refusals(changes, match):
    with pytest.raises(ModelFileError, match=match):
        from_gguf(*gguf_of(LLAMA, **changes))


def test_gguf_of_another_architecture_or_without_embedding():
    metadata, tensors = gguf_of(LLAMA)
    with pytest.raises(ModelFileError, match="'falcon' is not supported; supported: " + ", ".join(FAMILIES)):
        from_gguf(metadata | {"general.architecture": "falcon"}, tensors)
    with pytest.raises(ModelFileError, match="token_embd.weight"):
        from_gguf(metadata, {})
