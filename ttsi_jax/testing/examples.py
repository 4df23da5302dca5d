# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""The training examples of the checks: six tokens for a tiny model, with a trained adapter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.adaptation import bind_forward
from ttsi_jax.model.cache import PADDING, SHARED
from ttsi_jax.model.decoder import Tokens
from ttsi_jax.model.lora import Adapter, LoraConfig, LowRank, init_adapter
from ttsi_jax.rules.interface import Batch, Extra, Loss, LossFn, Outputs
from ttsi_jax.testing.tiny import tiny_model

_LORA = LoraConfig(rank=2, alpha=4.0, targets=("q", "down"))


def bound(loss: Loss) -> LossFn:
    """The loss with the tiny model, as a rule gets it."""
    config, params = tiny_model()
    run = bind_forward(config, params, (), None, _LORA.scale)

    def forward(adapter: Adapter | None, tokens: Tokens, predict: Array, inputs: bool = False) -> Outputs:
        return run(adapter, tokens, predict, inputs)

    forward.__qualname__ = "forward"  # as Python names it where it is called wrongly
    return LossFn(loss, forward)


def training_example(
    number: int, extras: tuple[Extra, ...], n_padding: int = 0, filler: int = 0
) -> tuple[Adapter, Batch, Array]:
    """One of some examples with a trained adapter: six tokens, of which up to three are the answer, and padding.

    `filler` is what stands in the padding.
    """
    rng = np.random.default_rng(number)
    prompt, answers = rng.integers(1, 16, 3).tolist(), rng.integers(1, 16, (4, 3 - number % 2)).tolist()
    sequences = [_sequence(prompt, answer, n_padding, filler) for answer in answers]
    batch = sequences[0]
    if "rejected" in extras:
        batch = batch._replace(rejected=sequences[1])
    if "samples" in extras:
        batch = batch._replace(samples=stack(sequences[2:]), rewards=jnp.asarray([1.0, 0.0]))
    config, _ = tiny_model()
    key = jax.random.key(number)
    adapter = init_adapter(key, config, _LORA)
    draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    trained = {layer: {name: LowRank(x.a, draw(x.b)) for name, x in own.items()} for layer, own in adapter.items()}
    return trained, batch, key


def _sequence(prompt: list[int], answer: list[int], n_padding: int, filler: int) -> Batch:
    n, length, size = len(prompt), len(prompt) + len(answer), 6 + n_padding
    ids = np.full(size, filler)
    ids[:length] = prompt + answer
    index = np.arange(3 + n_padding)
    real = index < len(answer)
    labels = np.full(index.shape, filler)
    labels[: len(answer)] = answer
    segments = np.where(np.arange(size) < length, SHARED, PADDING)
    predict = np.where(real, n - 1 + index, min(filler, size - 1))
    arrays = (ids, np.arange(size), segments, predict, labels)
    ids, positions, segments, predict, labels = (jnp.asarray(x, jnp.int32) for x in arrays)
    return Batch(Tokens(ids, positions, segments), predict, labels, jnp.asarray(real, jnp.float32))


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)
