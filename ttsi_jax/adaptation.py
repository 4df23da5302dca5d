"""T: test-time fine-tuning, one low-rank adapter per input (paper, Algorithm 1, step 3).

A loss and an update rule are written for ONE example. This module does the rest: it scans over the training steps,
maps over a wave of inputs and compiles the whole into one program. Each input has its own adapter, optimizer state,
step count and random key, so that nothing passes between neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.cache import Cache, wave_axis
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Past, Tokens, forward, logits
from ttsi_jax.model.lora import Adapter, LoraConfig, init_adapter, projection_shapes

State = Any  # a pytree that belongs to the rule


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of test-time fine-tuning.

    Attributes:
        scope: `all`: the adapter acts on every token (the paper); `suffix`: only on tokens after the shared prefix, in
          training and answering alike, so that the base's prefix cache serves both.
        rule: an update rule's name, or `package.module:object` (an `UpdateRule`, or a function from lr to one).
        loss: a loss's name, or `package.module:object`.
        epochs: passes over an input's pairs; with batch size 1 that is epochs x pairs steps.
        lr: peak learning rate.
        rank: inner size of the adapters.
        alpha: adapters are scaled by alpha / rank.
        memory: GiB for intermediate values of training; a wave trains in chunks that fit.
    """

    scope: Literal["all", "suffix"] = "all"
    rule: str = "adamw"
    loss: str = "answer_cross_entropy"
    epochs: int = 5
    lr: float = 1e-4
    rank: int = 8
    alpha: float = 16.0
    memory: float = 2.0

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(self.rank, self.alpha)


class Batch(NamedTuple):
    """One training sequence; a rule sees one at a time (batch size 1, as in the paper)."""

    tokens: Tokens  # [T]
    predict: Array  # [A] int32: indices into T whose next token is trained on
    labels: Array  # [A] int32: those next tokens
    weights: Array  # [A] float32: 0 is padding


class Outputs(NamedTuple):
    """What the model says about one sequence."""

    logits: Array  # [A, V] float32, at the positions asked for


class Forward(Protocol):
    """The model with the base bound: adapter (None is the base), tokens [T], indices [A] -> `Outputs`."""

    def __call__(self, adapter: Adapter | None, tokens: Tokens, predict: Array) -> Outputs: ...


class Loss(Protocol):
    """A loss of one example: (forward, adapter, batch, key) -> (scalar float32, dict of scalars to report)."""

    def __call__(
        self, forward: Forward, adapter: Adapter, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]: ...


LossFn = Callable[[Adapter, Batch, Array], tuple[Array, dict[str, Array]]]  # a Loss with Forward bound


class UpdateRule(NamedTuple):
    """How one example's adapter changes; a pair of pure functions, as in optax.

    Attributes:
        init: (adapter, n_steps int32 scalar) -> state. Hyperparameters go into the state as arrays: another learning
            rate then compiles nothing. The number of steps is an input's own, and schedules need it.
        step: (loss_fn, adapter, state, batch, key) -> (adapter, state, metrics); metrics has at least `loss`.
    """

    init: Callable[[Adapter, Array], State]
    step: Callable[[LossFn, Adapter, State, Batch, Array], tuple[Adapter, State, dict[str, Array]]]


def adapt_example(
    config: DecoderConfig,
    params: Params,
    rule_step: Callable[..., tuple[Adapter, State, dict[str, Array]]],
    loss: Loss,
    adapter: Adapter,
    state: State,
    batches: Batch,
    n_pairs: Array,
    n_steps: Array,
    key: Array,
    past: Past,
    *,
    max_steps: int,
    scale: float,
    remat: bool,
) -> tuple[Adapter, Array]:
    """Trains one adapter for `n_steps` steps; step s takes pair s mod n_pairs.

    Args:
        batches: K sequences, every array with a leading axis K; the first n_pairs are real.
        past: the base's caches that come before the sequences (empty: the sequences are whole prompts).
        max_steps: length of the scan; steps from `n_steps` on change nothing.

    Returns:
        The adapter, and the loss before each step [max_steps] float32 (NaN where no step was taken).
    """

    def run(adapter: Adapter | None, tokens: Tokens, predict: Array) -> Outputs:
        hidden, _ = forward(config, params, tokens, past, adapter, scale, remat)
        return Outputs(logits(config, params, hidden[predict]))

    def loss_fn(adapter: Adapter, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        return loss(run, adapter, batch, key)

    def step(carry: tuple[Adapter, State], index: Array) -> tuple[tuple[Adapter, State], Array]:
        pair = jnp.mod(index, jnp.maximum(n_pairs, 1))
        batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, pair, keepdims=False), batches)
        *new, metrics = rule_step(loss_fn, *carry, batch, jax.random.fold_in(key, index))
        active = index < n_steps
        carry = jax.tree.map(lambda old, x: jnp.where(active, x, old), carry, tuple(new))
        return carry, jnp.where(active, metrics["loss"], jnp.nan)

    (adapter, _), losses = jax.lax.scan(step, (adapter, state), jnp.arange(max_steps))
    return adapter, losses


def init_wave(
    keys: Array, config: DecoderConfig, lora: LoraConfig, rule: UpdateRule, n_steps: Array
) -> tuple[Adapter, State]:
    """Fresh adapters and rule states with a leading axis E, from keys [E] and step counts [E] int32."""
    adapters = _init_adapters(keys, config, lora)
    return adapters, jax.vmap(rule.init)(adapters, n_steps)


@partial(jax.jit, static_argnums=(1, 2))
def _init_adapters(keys: Array, config: DecoderConfig, lora: LoraConfig) -> Adapter:
    return jax.vmap(partial(init_adapter, config=config, lora=lora))(keys)


@partial(
    jax.jit,
    static_argnames=("config", "rule_step", "loss", "max_steps", "scale", "chunk", "remat"),
    donate_argnames=("adapters",),
)
def adapt_wave(
    config: DecoderConfig,
    params: Params,
    rule_step: Callable[..., tuple[Adapter, State, dict[str, Array]]],
    loss: Loss,
    adapters: Adapter,
    states: State,
    batches: Batch,
    n_pairs: Array,
    n_steps: Array,
    keys: Array,
    past: tuple[Cache, ...] = (),
    *,
    max_steps: int,
    scale: float,
    chunk: int,
    remat: bool = False,
) -> tuple[Adapter, Array]:
    """`adapt_example` for E inputs in one program, `chunk` of them at a time; a chunk without steps is skipped.

    Every argument but `params` has a leading axis E (`batches` E and K), but for a `past` that all rows share; `chunk`
    divides E. The adapters are donated; the base never is.

    Returns:
        The adapters (leading axis E) and the losses [E, max_steps].
    """

    one = partial(adapt_example, config, params, rule_step, loss, max_steps=max_steps, scale=scale, remat=remat)
    axis = wave_axis(past)
    own_past = past if axis == 0 else ()

    def skip(adapters, *rest):  # noqa: ANN001, ANN002, ANN202
        return adapters, jnp.full((chunk, max_steps), jnp.nan)

    def adapt_chunk(part: tuple) -> tuple[Adapter, Array]:
        *rows, own_past = part
        train = jax.vmap(one, (0,) * len(rows) + (axis,))
        return jax.lax.cond(jnp.any(part[4] > 0), train, skip, *rows, own_past if axis == 0 else past)

    wave = (adapters, states, batches, n_pairs, n_steps, keys, own_past)
    with jax.named_scope("adapt"):
        chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), wave)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(adapt_chunk, chunks))


def training_chunk(
    config: DecoderConfig, settings: AdaptConfig, n_examples: int, n_tokens: int, n_past: int, n_answer: int
) -> tuple[int, bool]:
    """How many examples train at a time within `settings.memory`, and whether their layers must be recomputed.

    Counts in float32 what the backward pass keeps: per layer and token the stream, the projections' inputs and outputs
    and two copies of the attention weights; three copies of the logits; and of the adapter its gradient, its new value
    and two moments. The chunk divides `n_examples`.
    """
    per_token = 6 * config.hidden_size + 4 * config.mlp_size + 4 * config.n_heads * config.head_dim
    per_layer = n_tokens * (per_token + 2 * config.n_heads * (n_tokens + n_past))
    adapter = config.n_layers * settings.rank * sum(map(sum, projection_shapes(config).values()))
    others = 3 * n_answer * config.vocab_size + 4 * adapter
    kept = 4 * (per_layer * config.n_layers + others)
    recomputed = 4 * (per_layer + n_tokens * config.hidden_size * config.n_layers + others)
    budget = settings.memory * 2**30
    remat = kept > budget
    fits = max(1, int(budget // (recomputed if remat else kept)))
    return max(c for c in range(1, n_examples + 1) if n_examples % c == 0 and c <= fits), remat
