"""How much of a wave fits into memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import jax

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.lora import projection_shapes

LOG = logging.getLogger("ttsi_jax")
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

    Counts in float32 what the backward pass keeps: per layer and token the stream, the projections' inputs and outputs
    and the attention weights; three copies of the logits; and of the adapter its gradient, its new value and two
    moments. The chunk divides `n_examples`.

    Args:
        n_sequences: how many sequences a step computes.
        recomputes: whether recomputing saves memory. XLA's compiler for CPUs merges it with the first computation, so
            by default it is tried elsewhere only.
    """
    recomputes = jax.default_backend() != "cpu" if recomputes is None else recomputes
    per_token = 6 * config.hidden_size + 4 * config.mlp_size + 4 * config.n_heads * config.head_dim
    per_layer = n_sequences * n_tokens * (per_token + config.n_heads * (n_tokens + n_past))
    shapes, lora = projection_shapes(config), settings.lora
    adapter = len(lora.chosen(config)) * lora.rank * sum(sum(shapes[name]) for name in lora.targets)
    others = 3 * n_sequences * n_answer * config.vocab_size + 4 * adapter
    kept = 4 * (per_layer * config.n_layers + others)
    recomputed = 4 * (per_layer + n_sequences * n_tokens * config.hidden_size * config.n_layers + others)
    budget = settings.memory * 2**30
    remat = recomputes and kept > budget
    fits = max(1, int(budget // (recomputed if remat else kept)))
    return max(c for c in range(1, n_examples + 1) if n_examples % c == 0 and c <= fits), remat
