# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Low-rank adapters: a second pytree beside the read-only base.

An adapter holds, for some layers and some of their projections, a pair of factors; a projection with one computes
``x @ W + (x @ a) @ b * (alpha / rank)`` and is never merged (Hu et al., arXiv 2106.09685). A missing entry is the base.
Everything here is for one adapter; many of them are the same pytree with a leading axis E, under `jax.vmap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.errors import InputError
from ttsi_jax.model.config import DecoderConfig

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


class LowRank(NamedTuple):
    """The two factors of one projection's update, float32."""

    a: Array  # [in, rank]
    b: Array  # [rank, out]


Adapter = dict[int, dict[str, LowRank]]  # layer -> projection -> factors; keys as in the base's params["layers"]


@dataclass(frozen=True)
class LoraConfig:
    """Shape and strength of the adapters (paper: rank 8, alpha 16, all linear layers).

    Attributes:
        rank: inner size r of each pair of factors.
        alpha: the update is multiplied by alpha / rank.
        targets: the projections that get one.
        layers: the layers that get one, counted from the end where negative; none named are all of them.
        scaling: `rslora` multiplies by alpha / sqrt(rank), which keeps the update's size when the rank grows
          (Kalajdzievski, arXiv 2312.03732).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    layers: tuple[int, ...] = ()
    scaling: Literal["lora", "rslora"] = "lora"

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank if self.scaling == "lora" else self.rank**0.5)

    def chosen(self, config: DecoderConfig) -> tuple[int, ...]:
        """The layers that get an adapter, rising.

        Raises:
            InputError: the model has no such layer, or no such projection.
        """
        n = config.n_layers
        if wrong := [layer for layer in self.layers if not -n <= layer < n]:
            known = f"the model's are 0 to {n - 1}, or -{n} to -1 from the end"
            raise InputError(f"--adapt.layers: there is no layer {wrong[0]}: {known}")
        if wrong := [name for name in self.targets if name not in TARGETS]:
            raise InputError(f"there is no projection '{wrong[0]}'; the targets are {', '.join(TARGETS)}")
        return tuple(sorted({layer % n for layer in self.layers} or range(n)))


def projection_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """The (in, out) sizes of one layer's projections."""
    d, f = config.hidden_size, config.mlp_size
    heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes = ((d, heads), (d, kv_heads), (d, kv_heads), (heads, d), (d, f), (d, f), (f, d))
    return dict(zip(TARGETS, shapes, strict=True))


def init_adapter(key: Array, config: DecoderConfig, lora: LoraConfig) -> Adapter:
    """A fresh adapter as PEFT makes it: `a` uniform within 1 / sqrt(in), `b` zero, so that it changes nothing yet."""
    shapes, layers = projection_shapes(config), lora.chosen(config)
    layer_keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(layers))

    def init(name: str) -> LowRank:
        """The factors of one projection in all layers (leading axis)."""
        n_in, n_out = shapes[name]
        bound = n_in**-0.5
        keys = jax.vmap(jax.random.fold_in, (0, None))(layer_keys, TARGETS.index(name))
        draw = lambda own: jax.random.uniform(own, (n_in, lora.rank), jnp.float32, -bound, bound)  # noqa: E731
        return LowRank(jax.vmap(draw)(keys), jnp.zeros((len(layers), lora.rank, n_out), jnp.float32))

    drawn = {name: init(name) for name in lora.targets}
    return {layer: jax.tree.map(lambda x, i=index: x[i], drawn) for index, layer in enumerate(layers)}
