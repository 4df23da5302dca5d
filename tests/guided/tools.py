"""Tools of every kind, for hypothesis, and tokenizers to guide."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from checkpoints.tiny_models import TOKENS, VOCABULARY, write_tokenizer
from ttsi_jax.checkpoints.tokenizer import tokenizer_from_directory, tokenizer_from_gguf
from ttsi_jax.tasks import Tool, normalise_parameters

STOP = (TOKENS.index("<|im_end|>"),)
SIZE = VOCABULARY

names = st.text('abz_.é 9"\\{', min_size=1, max_size=6)
scalars = st.sampled_from(("string", "integer", "number", "boolean", "float", "any")).map(lambda kind: {"type": kind})
enums = st.lists(st.text('ab}"é ', max_size=5) | st.integers(-5, 10**6) | st.booleans(), min_size=1, max_size=3)
either = st.lists(st.sampled_from(("string", "integer", "null")), min_size=1, max_size=2, unique=True)


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(names, inner, max_size=3)
    return properties.flatmap(
        lambda own: st.sampled_from([list(own)[:k] for k in range(len(own) + 1)]).map(
            lambda required: {"type": "object", "properties": own, "required": required}
        )
    )


schemas = st.recursive(
    scalars
    | enums.map(lambda values: {"enum": values})
    | either.map(lambda kinds: {"type": kinds})
    | st.just({"type": "object"})
    | st.just({"type": "array"}),
    lambda inner: (
        inner.map(lambda items: {"type": "array", "items": items})
        | st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options})
        | objects(inner)
    ),
    max_leaves=4,
)
tools = st.builds(
    lambda name, parameters: Tool(name, "", normalise_parameters(parameters)), names.filter(str.strip), objects(schemas)
)
tool_lists = st.lists(tools, min_size=1, max_size=3, unique_by=lambda tool: tool.name)


@lru_cache
def byte_level() -> PreTrainedTokenizerFast:
    with TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        return tokenizer_from_directory(Path(directory))


@lru_cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """A SentencePiece tokenizer with byte fallback, as Llama 2 and Gemma have one."""
    pieces = [*map(chr, range(33, 127)), "▁", '{"', '":', '▁"', "na", "me"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *raw, *pieces],
            "tokenizer.ggml.scores": [0.0] * (3 + 256 + len(pieces)),
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.chat_template": "{{ messages }}",
        }
    )
