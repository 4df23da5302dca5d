# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""The shape of a decoder: one frozen, hashable description for every supported family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: a geometric series of frequencies, each perhaps slowed down for a longer context.

    Attributes:
        theta: base of the series.
        divisors: what each of the head_dim / 2 frequencies is divided by; empty leaves them as they are.
    """

    theta: float
    divisors: tuple[float, ...] = ()


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that fixes a decoder's arithmetic and its parameters' shapes.

    Attributes:
        head_dim: size of one head; not always hidden_size / n_heads (Qwen3, Gemma 3).
        local_layers: per layer, whether it attends within `sliding_window` and uses `local_rope`.
        sandwich_norms: norms after attention and MLP as well (Gemma 3).
        embed_scale: factor on the embeddings (Gemma: sqrt(hidden_size)).
        query_scale: factor on the queries before the dot product.
        context_length: longest sequence the model was made for, in tokens.
    """

    family: str
    vocab_size: int
    hidden_size: int
    mlp_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    rope: Rope
    tied_head: bool
    local_layers: tuple[bool, ...]
    query_scale: float
    local_rope: Rope | None = None
    sliding_window: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    embed_scale: float = 1.0
    activation: str = "silu"
