"""Small decoders with random weights, large enough that an error in any part shows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.checkpoints.int8 import quantise
from ttsi_jax.model.cache import SHARED
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Tokens, abstract_params, tokens_after
from ttsi_jax.model.generation import FORCED, Arrivals, Generated, Sampling, Script, decode_wave, nothing_decoding
from ttsi_jax.model.lora import Adapter, LoraConfig, init_adapter
from ttsi_jax.model.quantized import Quantized
from ttsi_jax.model.scoring import Candidates, Prompted, score_wave
from ttsi_jax.rules.interface import Batch

VOCABULARY = 288

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}
_ROPE_SETS = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
VARIANTS: dict[str, dict[str, Any]] = {  # config.json by name of the variant, as transformers 5 writes it
    "llama": _BASE | {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama-3": _BASE
    | {"model_type": "llama", "rope_parameters": _LLAMA3 | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "llama-linear": _BASE
    | {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}},
    "qwen2": _BASE | {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
    "qwen2-tied": _BASE
    | {"model_type": "qwen2", "tie_word_embeddings": True}
    | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": _BASE | {"model_type": "qwen3", "head_dim": 20},
    "gemma3": _BASE
    | {"model_type": "gemma3_text", "head_dim": 20, "num_hidden_layers": 3, "tie_word_embeddings": True}
    | {"sliding_window": 6, "query_pre_attn_scalar": 15, "hidden_activation": "gelu_pytorch_tanh"}
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    | {"rope_parameters": _ROPE_SETS},
}
FAMILIES = ("llama-3", "qwen2", "qwen3", "gemma3")  # the variant of each family with the most in it


@lru_cache
def tiny_model(variant: str = "llama") -> tuple[DecoderConfig, Params]:
    """A configuration and random float32 parameters."""
    config = from_hf(VARIANTS[variant])
    rng = np.random.default_rng(0)

    def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(0.25 * rng.normal(size=leaf.shape), leaf.dtype)

    return config, jax.tree_util.tree_map_with_path(fill, abstract_params(config))


def in_bfloat16(config: DecoderConfig, params: Params) -> Params:
    """As a base is loaded: norms and the like stay in float32."""
    return jax.tree.map(lambda x, like: x.astype(like.dtype), params, abstract_params(config, jnp.bfloat16))


def in_int8(params: Params, group: int | None = None) -> Params:
    """Float parameters with every matrix in int8; `group` inputs share a float16 scale, or all of an output's a float32
    one."""

    def convert(path: tuple, x: jax.Array) -> Any:
        if x.ndim == 1:
            return x
        rows = np.asarray(x if path[-1].key == "embed" else x.T)
        values, scales = quantise(rows if group is None else rows.reshape(-1, group))
        values, scales = values.reshape(rows.shape), scales.reshape(len(rows), -1)
        scales = scales if group is None else scales.astype(np.float16)
        pair = (values, scales) if path[-1].key == "embed" else (values.T, scales.T)
        return Quantized(*map(jnp.asarray, pair), x.dtype)

    return jax.tree_util.tree_map_with_path(convert, params)


def dense(params: Params) -> Params:
    """The float parameters that int8 ones stand for."""
    is_quantized = lambda x: isinstance(x, Quantized)  # noqa: E731
    return jax.tree.map(lambda x: x.dense() if is_quantized(x) else x, params, is_leaf=is_quantized)


def random_adapter(config: DecoderConfig, seed: int, lora: LoraConfig | None = None) -> Adapter:
    """An adapter whose `b` is not zero, as after training."""
    adapter = init_adapter(jax.random.key(seed), config, lora or LoraConfig())
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: x._replace(b=jnp.asarray(0.1 * rng.normal(size=x.b.shape), jnp.float32)) for name, x in own.items()
        }
        for layer, own in adapter.items()
    }


def stack(trees: list[Any]) -> Any:
    """A wave: the same pytree with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def row(wave: Any, index: int) -> Any:
    """One example of a wave, still with a leading axis of 1."""
    return jax.tree.map(lambda x: x[index : index + 1], wave)


def random_ids(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist()


def padded(ids: list[int], size: int) -> jax.Array:
    return jnp.asarray(ids + [0] * (size - len(ids)), jnp.int32)


def sequence(ids: list[int], size: int | None = None, start: int = 0) -> Tokens:
    """Right-padded tokens from position `start` on."""
    return tokens_after(padded(ids, size or len(ids)), jnp.int32(len(ids)), start)


def candidates(rows: list[list[int]], size: int) -> Candidates:
    return Candidates(jnp.stack([padded(ids, size) for ids in rows]), jnp.asarray([len(ids) for ids in rows]))


def script(slots: list[int | tuple[int, int]], size: int) -> Script:
    """Forced tokens as integers, free slots as (kind, limit)."""
    free = [slot if isinstance(slot, tuple) else (FORCED, 0) for slot in slots]
    tokens = [0 if isinstance(slot, tuple) else slot for slot in slots]
    kinds, limits = [kind for kind, _ in free], [limit for _, limit in free]
    return Script(padded(kinds, size), padded(tokens, size), padded(limits, size), jnp.int32(len(slots)))


def pair(prompt: list[int], answer: list[int], n_tokens: int, n_answer: int, start: int = 0) -> Batch:
    """A training sequence of which the answer is trained on."""
    predict = list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
    return Batch(
        tokens=sequence(prompt + answer, n_tokens, start),
        predict=padded(predict, n_answer),
        labels=padded(answer, n_answer),
        weights=(jnp.arange(n_answer) < len(answer)).astype(jnp.float32),
    )


def prompted(config, params, prompts, past=(), adapters=None, scale=1.0) -> Prompted:
    """Whole prompts as `score_wave` reads them for decoding, with no candidates to speak of."""
    n = prompts.ids.shape[0]
    nothing = Candidates(jnp.zeros((n, 1, 1), jnp.int32), jnp.zeros((n, 1), jnp.int32))
    lengths = jnp.sum(prompts.segments == SHARED, axis=1)
    return score_wave(config, params, prompts, lengths, nothing, past, adapters, scale=scale).prompted


def run_lanes(config, params, rows, scripts, table, keys, sampling, n_steps, scale=1.0) -> Generated:
    """All rows from their arrival, each in the lane of its own number, to their ends."""
    n = len(keys)
    order = jnp.arange(n)
    each = Sampling(*(jnp.full(n, value, jnp.float32) for value in sampling))
    lanes = nothing_decoding(rows, n_steps, scripts.kinds.shape[1])
    arrivals = Arrivals(rows, order, order)
    ended = decode_wave(config, params, lanes, arrivals, scripts, table, keys, each, jnp.int32(n), scale=scale)
    assert ended.ended.all()
    return ended.generated
