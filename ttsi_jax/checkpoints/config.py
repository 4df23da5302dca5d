"""The shape of a decoder as files describe it: a Hugging Face ``config.json``, or the metadata of a GGUF file.

Both readers refuse, by name, what the decoder does not compute, so that a model either matches its reference or does
not load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ttsi_jax.errors import ModelFileError
from ttsi_jax.model.config import DecoderConfig, Rope

FAMILIES = {  # family -> the names it goes by: config.json's model_type, GGUF's general.architecture
    "llama": ("llama",),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
    "gemma3": ("gemma3_text", "gemma3"),
}

UNSUPPORTED = (  # settings that change the arithmetic and are not implemented
    "attention_bias",
    "mlp_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
)


GEMMA3_DEFAULTS = {  # published multimodal checkpoints leave these out of their text_config
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def _family(name: str) -> str:
    for family, names in FAMILIES.items():
        if name in names:
            return family
    raise ModelFileError(f"architecture '{name}' is not supported; supported: {', '.join(FAMILIES)}")


def _rope_from_hf(spec: Mapping[str, Any], theta: float, head_dim: int) -> Rope:
    """Reads `rope_parameters` (transformers 5) or `rope_scaling` (before)."""
    kind = spec.get("rope_type", spec.get("type", "default"))
    theta = _positive_real(spec.get("rope_theta", theta), "rope_theta")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, (_positive_real(spec["factor"], "rope factor"),) * (head_dim // 2))
    if kind == "llama3":
        return Rope(theta, _llama3_divisors(spec, theta, head_dim))
    raise ModelFileError(f"rope scaling '{kind}' is not supported; supported: default, linear, llama3")


def _llama3_divisors(spec: Mapping[str, Any], theta: float, head_dim: int) -> tuple[float, ...]:
    """Llama 3.1: slow frequencies are divided by `factor`, fast ones kept, those between blended (arXiv 2407.21783)."""
    names = ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor")
    context, low, high, factor = (_positive_real(spec[name], name) for name in names)
    if low >= high:
        raise ModelFileError(f"low_freq_factor {low} is not below high_freq_factor {high}")
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    kept = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    return tuple((1 / (kept + (1 - kept) / factor)).tolist())


def _local_layers(config: Mapping[str, Any], family: str, n_layers: int) -> tuple[bool, ...]:
    if types := config.get("layer_types"):
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown or len(types) != n_layers:
            raise ModelFileError(f"layer_types must name full_attention or sliding_attention for {n_layers} layers")
        return tuple(kind == "sliding_attention" for kind in types)
    if family == "gemma3":
        period = int(config.get("sliding_window_pattern", 6))
        return tuple((layer + 1) % period != 0 for layer in range(n_layers))
    if config.get("use_sliding_window"):
        return tuple(layer >= int(config.get("max_window_layers", n_layers)) for layer in range(n_layers))
    return (False,) * n_layers


def _positive(value: Any, name: str, limit: int = 1 << 22) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
        raise ModelFileError(f"the model's {name} is {value!r}, not a whole number from 1 to {limit}")
    return value


def _positive_real(value: Any, name: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ModelFileError(f"the model's {name} is {value!r}, not a positive number")
    return number


def from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """Makes a `DecoderConfig` from the contents of a ``config.json``.

    Both spellings of rope settings are read: `rope_parameters`, and `rope_theta` with `rope_scaling`. The text part
    of a multimodal Gemma 3 (`text_config`) is taken by itself.

    Raises:
        ModelFileError: for an unsupported architecture, activation or rope scaling, or a missing or absurd size.
    """
    if isinstance(text := config.get("text_config"), Mapping):
        config = {"model_type": "gemma3_text", **text}
    family = _family(str(config.get("model_type")))
    if family == "gemma3":
        config = {**GEMMA3_DEFAULTS, **config}
    try:
        return _from_hf(config, family)
    except KeyError as missing:
        raise ModelFileError(f"config.json of this {family} model lacks {missing}") from None
    except (ArithmeticError, AttributeError, TypeError, ValueError) as wrong:
        if isinstance(wrong, ModelFileError):
            raise
        raise ModelFileError(f"config.json of this {family} model has a value of the wrong kind: {wrong}") from None


def _from_hf(config: Mapping[str, Any], family: str) -> DecoderConfig:
    gemma = family == "gemma3"
    activation = config.get("hidden_activation" if gemma else "hidden_act", "gelu_pytorch_tanh" if gemma else "silu")
    if activation != ("gelu_pytorch_tanh" if gemma else "silu"):
        raise ModelFileError(f"activation '{activation}' is not supported for {family}")
    for unsupported in UNSUPPORTED:
        if config.get(unsupported):
            raise ModelFileError(f"{unsupported} = {config[unsupported]!r} is not supported for {family}")

    n_layers = _positive(config["num_hidden_layers"], "num_hidden_layers", 1000)
    n_heads = _positive(config["num_attention_heads"], "num_attention_heads")
    hidden_size = _positive(config["hidden_size"], "hidden_size")
    head_dim = _positive(config.get("head_dim") or hidden_size // n_heads, "head_dim")
    n_kv_heads = _positive(config.get("num_key_value_heads") or n_heads, "num_key_value_heads")
    if head_dim % 2 or float(config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelFileError("rotary embedding of a part of a head, or of an odd head_dim, is not supported")
    if n_heads % n_kv_heads:
        raise ModelFileError(f"{n_heads} attention heads cannot be shared by {n_kv_heads} key-value heads")

    local_layers = _local_layers(config, family, n_layers)
    spec = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(config.get("rope_theta") or (1_000_000.0 if gemma else 10_000.0))
    local_theta = _positive_real(config.get("rope_local_base_freq", 10_000.0), "rope_local_base_freq")
    local_rope = None
    if "full_attention" in spec:  # transformers 5 keeps one set per kind of layer
        rope = _rope_from_hf(spec["full_attention"], theta, head_dim)
        if "sliding_attention" in spec:
            local_rope = _rope_from_hf(spec["sliding_attention"], local_theta, head_dim)
    else:
        rope = _rope_from_hf(spec, theta, head_dim)
        if gemma:
            local_rope = Rope(local_theta)
    return DecoderConfig(
        family=family,
        vocab_size=_positive(config["vocab_size"], "vocab_size"),
        hidden_size=hidden_size,
        mlp_size=_positive(config["intermediate_size"], "intermediate_size"),
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        context_length=_positive(config["max_position_embeddings"], "max_position_embeddings", 1 << 31),
        norm_eps=_positive_real(config.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
        rope=rope,
        tied_head=bool(config.get("tie_word_embeddings", gemma)),
        local_layers=local_layers,
        query_scale=_positive_real(config.get("query_pre_attn_scalar") or head_dim, "query_pre_attn_scalar") ** -0.5,
        local_rope=local_rope,
        sliding_window=_positive(config["sliding_window"], "sliding_window", 1 << 31) if any(local_layers) else None,
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3"),
        sandwich_norms=gemma,
        embed_scale=hidden_size**0.5 if gemma else 1.0,
        activation="gelu_tanh" if gemma else "silu",
    )


def from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], rope_divisors: tuple[float, ...] = ()
) -> DecoderConfig:
    """Makes a `DecoderConfig` from GGUF metadata and the shapes of its tensors.

    Args:
        metadata: key -> value, as ``llama.block_count`` -> 30.
        tensors: name -> shape in row-major order (the reverse of the order in the file).
        rope_divisors: the values of ``rope_freqs.weight`` where the file has it (Llama 3's scaling).

    Raises:
        ModelFileError: for an unsupported architecture or scaling, or a missing or absurd value.
    """
    name = str(metadata.get("general.architecture"))
    family = _family(name)

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{name}.{key}", default)

    embed = tensors.get("token_embd.weight", ())
    if len(embed) != 2:
        raise ModelFileError("the GGUF file has no two-dimensional token_embd.weight")
    n_heads = _positive(get("attention.head_count"), "attention.head_count")
    hidden_size = _positive(get("embedding_length"), "embedding_length")
    n_layers = _positive(get("block_count"), "block_count", 1000)
    head_dim = get("attention.key_length", hidden_size // n_heads)
    if get("rope.dimension_count", head_dim) != head_dim:
        raise ModelFileError("rotary embedding of a part of a head is not supported")
    rope = {"rope_theta": get("rope.freq_base", 1_000_000.0 if family == "gemma3" else 10_000.0)}
    if get("rope.scaling.type", "none") != "none":
        rope |= {"rope_type": get("rope.scaling.type"), "factor": get("rope.scaling.factor", 1.0)}
    config = from_hf(
        {
            "model_type": FAMILIES[family][0],
            "vocab_size": embed[0],
            "hidden_size": hidden_size,
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": n_layers,
            "num_attention_heads": n_heads,
            "num_key_value_heads": get("attention.head_count_kv", n_heads),
            "head_dim": head_dim,
            "max_position_embeddings": get("context_length"),
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon", 1e-6),
            "rope_parameters": rope,
            "tie_word_embeddings": "output.weight" not in tensors,
            "sliding_window": get("attention.sliding_window"),
            # The format does not hold Gemma 3's query scale; its 27B model (62 layers) alone departs from head_dim.
            "query_pre_attn_scalar": hidden_size // n_heads if family == "gemma3" and n_layers == 62 else head_dim,
        }
    )
    return replace(config, rope=replace(config.rope, divisors=rope_divisors)) if rope_divisors else config
