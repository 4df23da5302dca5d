"""How fast a stage could be: the machine's measured matrix rate and bandwidth, and the work that a stage cannot avoid.

Only useful work counts: no padding, no recomputation, causal attention at half a square, the vocabulary where a
probability is needed. A stage's bound is the longer of the two times, arithmetic and reading.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarking import Seconds, alternate
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.lora import LoraConfig, projection_shapes
from workload import Work


class Machine(NamedTuple):
    """What XLA reaches on this machine."""

    flops: float  # of a large matrix product, per second
    bandwidth: float  # bytes per second of a streaming read

    def __str__(self) -> str:
        return f"{self.flops / 1e9:,.0f} GFLOP/s, {self.bandwidth / 1e9:,.1f} GB/s"


def measure_machine(dtype: Any = jnp.float32, size: int | None = None, n_bytes: int | None = None) -> Machine:
    """The best of several matrix products [size, size] in `dtype`, and of several sums over `n_bytes`."""
    small = jax.default_backend() == "cpu"
    size, n_bytes = size or (2048 if small else 8192), n_bytes or 2 ** (29 if small else 32)
    square, long = jnp.ones((size, size), dtype), jnp.ones(n_bytes // 4, jnp.float32)
    multiply = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))  # as CPUs multiply bfloat16
    add = jax.jit(jnp.sum)
    calls = {
        "multiply": lambda: multiply(square, square).block_until_ready(),
        "add": lambda: add(long).block_until_ready(),
    }
    best: dict[str, Seconds] = alternate(calls, rounds=10)
    return Machine(2 * size**3 / best["multiply"].low, long.nbytes / best["add"].low)


class Cost(NamedTuple):
    """What a wave's stage has to compute and to read."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Cost:  # type: ignore[override]
        return Cost(self.flops * times, self.bytes * times)

    def seconds(self, machine: Machine) -> float:
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)


class Costs:
    """The costs of a wave's stages, for a decoder, the bytes of a number, and of a weight where that differs."""

    def __init__(
        self, config: DecoderConfig, itemsize: int, lora: LoraConfig | None = None, weight: float | None = None
    ):
        lora = lora or LoraConfig()
        shapes = projection_shapes(config).values()
        self.weights = config.n_layers * sum(n_in * n_out for n_in, n_out in shapes)
        self.adapter = config.n_layers * lora.rank * sum(map(sum, shapes))
        self.head = config.vocab_size * config.hidden_size
        self.attention = 4 * config.n_layers * config.n_heads * config.head_dim  # FLOPs per query and key
        self.cache = 2 * config.n_layers * config.n_kv_heads * config.head_dim * itemsize  # bytes per token
        self.base = (weight or itemsize) * (self.weights + self.head)  # bytes

    def read(self, rows: int, tokens: int, past: float = 0, projected: float = 1, adapted: bool = False) -> Cost:
        """One forward pass over `tokens` of each row after `past` ones, with the vocabulary at `projected` of them."""
        keys = tokens * (past + (tokens + 1) / 2)
        flops = 2 * tokens * (self.weights + adapted * self.adapter) + self.attention * keys + 2 * projected * self.head
        own = past * self.cache + adapted * 4 * self.adapter
        return Cost(rows * flops, self.base + rows * own)

    def decode(self, rows: int, tokens: int, past: int, adapted: bool = False) -> Cost:
        """`tokens` steps of one token per row: weights are read once a step, caches and adapters once per row."""
        return self.read(rows, 1, past + tokens / 2, 1, adapted) * tokens

    def train(self, rows: int, tokens: int, past: int, projected: int, steps: int) -> Cost:
        """Forward and backward passes: gradients of activations everywhere, of weights for the adapter alone.

        The keys and values of the past need no gradient.
        """
        own, before = self.attention * tokens * (tokens + 1) / 2, self.attention * tokens * past
        flops = 4 * tokens * self.weights + 6 * tokens * self.adapter + 3 * own + 2 * before + 4 * projected * self.head
        n_bytes = 2 * self.base + rows * (past * self.cache + 16 * self.adapter)
        return Cost(rows * flops, n_bytes) * steps

    def stages(self, work: Work, rows: int) -> dict[str, Cost]:
        """Every stage of a wave, by the names of `JaxSide.improve`'s clock."""
        prompt, packed = work.prefix + work.suffix, work.candidates * (work.name - 1)
        projected, own = packed + 1, work.suffix + packed
        prefix = self.read(rows, work.prefix, projected=0)
        written = self.read(rows, work.suffix, work.prefix) + self.decode(rows, work.synthesis - 1, prompt)
        costs = {"score": prefix + self.read(rows, own, work.prefix, projected), "synthesize": written}
        answer = self.decode(rows, work.answer - 1, prompt, adapted=True)
        for scope, past in (("all", 0), ("suffix", work.prefix)):
            read = self.read(rows, prompt + packed - past, past, projected, adapted=True)
            costs[f"train {scope}"] = self.train(rows, prompt - past, past, work.trained, work.steps) + read
            costs[f"decode {scope}"] = answer
        return costs
