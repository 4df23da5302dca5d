"""How much of a wave fits into memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.model.attention import QUERIES
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.lora import LoraConfig, projection_shapes

LOG = logging.getLogger("ttsi_jax")
ONE_MODEL = ("answer_cross_entropy", "entropy", "reinforce")  # losses that do not ask theta_0
Result = TypeVar("Result")


def within_memory(train: Callable[[int], Result], chunk: int, size: int) -> tuple[Result, int]:
    """What `train(chunk)` gives, and the chunk: where a device's memory runs out, with half as many rows at a time.

    `chunk` and what it comes to divide `size`, the rows of a wave. Raises what `train` raises for any other reason, or
    for a chunk of one. Where several processes run the program nothing is tried again, since it may have been the
    memory of one of them alone.
    """
    while True:
        try:
            return jax.block_until_ready(train(chunk)), chunk
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or chunk == 1 or jax.process_count() > 1:
                raise
            smaller = next(c for c in range(chunk // 2, 0, -1) if size % c == 0)
            LOG.warning("out of memory with %d inputs in training at a time; going on with %d", chunk, smaller)
            chunk = smaller


def training_chunk(
    config: DecoderConfig,
    settings: AdaptConfig,
    n_examples: int,
    n_tokens: int,
    n_past: int,
    n_answer: int,
    n_sequences: int = 1,
    recomputes: bool | None = None,
) -> tuple[int, bool]:
    """How many examples train at a time within `settings.memory`, at least one, and whether layers are recomputed.

    See `training_bytes` for what is counted. The chunk divides `n_examples`.

    Args:
        n_sequences: how many sequences a step computes.
        recomputes: whether recomputing saves memory. XLA's compiler for CPUs merges it with the first computation, so
            by default it is tried elsewhere only.
    """
    recomputes = jax.default_backend() != "cpu" if recomputes is None else recomputes
    count = partial(training_bytes, config, settings, n_tokens, n_past, n_answer, n_sequences)
    budget = settings.memory * 2**30
    remat = recomputes and count() > budget
    fits = max(1, int(budget // count(remat)))
    return max(c for c in range(1, n_examples + 1) if n_examples % c == 0 and c <= fits), remat


def training_bytes(
    config: DecoderConfig,
    settings: AdaptConfig,
    n_tokens: int,
    n_past: int,
    n_answer: int,
    n_sequences: int = 1,
    remat: bool = False,
) -> int:
    """What the training of one example keeps until its backward pass, in bytes, all counted as float32.

    Per layer and token: the stream and the norms' values (6 of the hidden size), what the MLP computes (6 of its size),
    the queries, the attention's output and how they lie for its products (4 of all heads), the keys and values.
    Attention weights are not kept. With `remat` that is one layer's alone, and the stream is each layer's. Once: what
    attention computes again for one part, the sequence's own cached past, four copies of the logits, theta_0's where it
    is asked, and of the adapter its gradient, its new value and two moments.
    """
    heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    per_token = 6 * config.hidden_size + 6 * config.mlp_size + 4 * heads + 2 * kv_heads
    attended = 4 * config.n_heads * min(n_tokens, QUERIES) * (n_tokens + n_past)  # by one part, in one layer
    layer, past = n_tokens * per_token, 2 * n_past * kv_heads * config.n_layers
    layers = layer + n_tokens * config.hidden_size * config.n_layers if remat else layer * config.n_layers
    asks_theta_0 = settings.kl > 0 or settings.loss not in ONE_MODEL
    others = (4 + asks_theta_0) * n_answer * config.vocab_size
    return 4 * (n_sequences * (layers + attended + others) + past + 4 * adapter_size(config, settings.lora))


def adapter_size(config: DecoderConfig, lora: LoraConfig) -> int:
    """The numbers in one adapter."""
    shapes = projection_shapes(config)
    return len(lora.chosen(config)) * lora.rank * sum(sum(shapes[name]) for name in lora.targets)
