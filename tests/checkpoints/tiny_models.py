"""Small random models as files: Hugging Face directories without torch, and GGUF files, with a byte-level tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "Ġ Ġ", "o r")
TOKENS = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES))
VOCABULARY = 288  # a few rows more than there are tokens, as real models have


def hf_settings(family: str, **changes: Any) -> dict[str, Any]:
    """A config.json. The head size of Qwen 3 and Gemma 3 is not hidden_size / heads."""
    wide_heads = family in ("qwen3", "gemma3")
    settings = {
        "model_type": "gemma3_text" if family == "gemma3" else family,
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32 if wide_heads else 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": family != "qwen2",
        "eos_token_id": TOKENS.index("<|im_end|>"),
    }
    if family == "gemma3":
        settings |= {"sliding_window": 64, "query_pre_attn_scalar": 32, "hidden_activation": "gelu_pytorch_tanh"}
        settings |= {"layer_types": ["sliding_attention", "full_attention"]}
    return settings | changes


def hf_tensors(settings: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights under the names that transformers gives them."""
    rng = np.random.default_rng(seed)
    family = settings["model_type"]
    d, f, h = settings["hidden_size"], settings["intermediate_size"], settings["head_dim"]
    q, kv = settings["num_attention_heads"] * h, settings["num_key_value_heads"] * h
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (settings["vocab_size"], d)}
    for layer in range(settings["num_hidden_layers"]):
        own: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (q, d),
            "self_attn.k_proj.weight": (kv, d),
            "self_attn.v_proj.weight": (kv, d),
            "self_attn.o_proj.weight": (d, q),
            "mlp.gate_proj.weight": (f, d),
            "mlp.up_proj.weight": (f, d),
            "mlp.down_proj.weight": (d, f),
            "input_layernorm.weight": (d,),
            "post_attention_layernorm.weight": (d,),
        }
        if family == "qwen2":
            own |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", q), ("k", kv), ("v", kv))}
        if family in ("qwen3", "gemma3_text"):
            own |= {"self_attn.q_norm.weight": (h,), "self_attn.k_norm.weight": (h,)}
        if family == "gemma3_text":
            own |= {"pre_feedforward_layernorm.weight": (d,), "post_feedforward_layernorm.weight": (d,)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    shapes["model.norm.weight"] = (d,)
    if not settings["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (settings["vocab_size"], d)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_tokenizer(directory: Path) -> None:
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(TOKENS)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_hf(directory: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A model directory with a single safetensors file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(settings))
    write_tokenizer(directory)
    save_file(tensors, directory / "model.safetensors")
    return directory


def shard(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    """Replaces model.safetensors by two shards and an index."""
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, directory / file)
    homes = {name: files[index % 2] for index, name in enumerate(names)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_tensors(settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same model under GGUF's names and conventions: Llama's rows interleaved, Gemma's norms plus 1."""
    gemma = settings["model_type"] == "gemma3_text"
    names = _GGUF_NAMES | {"post_attention_layernorm": "post_attention_norm" if gemma else "ffn_norm"}
    converted = {}
    for name, value in tensors.items():
        stem, _, suffix = name.rpartition(".")
        prefix = ""
        if stem.startswith("model.layers."):
            _, _, layer, stem = stem.split(".", 3)
            prefix = f"blk.{layer}."
        if gemma and value.ndim == 1:
            value = value + 1
        if settings["model_type"] == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = settings["num_attention_heads" if "q_proj" in stem else "num_key_value_heads"]
            size = len(value) // heads
            value = np.stack([value[i * size + s * size // 2 + j] for i in range(heads) for j in range(size // 2)
                              for s in range(2)])  # fmt: skip
        converted[f"{prefix}{names[stem]}.{suffix}"] = value
    return converted


def write_gguf(
    path: Path,
    settings: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A GGUF file of already converted tensors; matrices are stored as `kind`.

    `changes` replaces, or with None removes, tokenizer entries by their key.
    """
    family = settings["model_type"].removesuffix("_text")
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_key_length(settings["head_dim"])
    writer.add_value_length(settings["head_dim"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_rope_freq_base(settings["rope_theta"])
    if family == "gemma3":
        writer.add_sliding_window(settings["sliding_window"])
    for key, value in (tokenizer_metadata() | (changes or {})).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_string(key, value)
    for name, value in tensors.items():
        if value.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_metadata() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def as_bfloat16(value: np.ndarray) -> np.ndarray:
    return value.astype(ml_dtypes.bfloat16)
