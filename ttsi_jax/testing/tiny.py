# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Tiny random models, built in memory: for checks, for trying things out, for benchmarks of everything but quality."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.model.config import DecoderConfig, Rope
from ttsi_jax.model.decoder import Params, abstract_params

_START, _END = "<|im_start|>", "<|im_end|>"
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache
def tiny_model(vocab_size: int = 16, hidden_size: int = 8, n_layers: int = 1) -> tuple[DecoderConfig, Params]:
    """A decoder of the Llama architecture with two heads of half the hidden size, and random float32 parameters."""
    config = DecoderConfig(
        family="llama", vocab_size=vocab_size, hidden_size=hidden_size, mlp_size=3 * hidden_size // 2,
        n_layers=n_layers, n_heads=2, n_kv_heads=1, head_dim=hidden_size // 2, context_length=8192, norm_eps=1e-5,
        rope=Rope(10_000.0), tied_head=False, local_layers=(False,) * n_layers, query_scale=(hidden_size / 2) ** -0.5,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) == 1:  # the factors of a norm
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) * leaf.shape[0] ** -0.5, leaf.dtype)

    params = jax.tree.map(fill, abstract_params(config))
    return config, params | {"embed": params["embed"] * vocab_size**0.5}  # unit variance


@lru_cache
def tiny_language_model() -> LanguageModel:
    """A random model with a tokenizer of bytes and a chat template: it says nonsense, through every stage of a run."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_START), AddedToken(_END)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_END,
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    config, params = tiny_model(vocab_size=len(alphabet) + 2, hidden_size=32, n_layers=2)
    return LanguageModel(config, params, fast, (len(alphabet) + 1,), "tiny", "tiny")
