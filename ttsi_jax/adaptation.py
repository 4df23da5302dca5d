# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""T: test-time fine-tuning, one low-rank adapter per input (paper, Algorithm 1, step 3).

A loss and an update rule are written for ONE example. This module does the rest: it scans over the training steps,
maps over a wave of inputs and compiles the whole into one program. Each input has its own adapter, optimizer state,
step count and random key, so that nothing passes between neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.cache import Cache, wave_axis
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Past, Tokens, logits, run_layers
from ttsi_jax.model.lora import TARGETS, Adapter, LoraConfig, init_adapter
from ttsi_jax.model.sharding import ROWS, axis_size, in_any_part, map_rows
from ttsi_jax.rules.interface import Batch, Forward, Loss, LossFn, Outputs, RuleStep, State, UpdateRule
from ttsi_jax.rules.losses import answer_cross_entropy


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of test-time fine-tuning.

    Attributes:
        scope: `all`: the adapter acts on every token (the paper); `suffix`: only on tokens after the shared prefix, in
          training and answering alike, so that the base's prefix cache serves both.
        rule: an update rule's name, or `package.module:object` (an `UpdateRule`, or a function from lr to one).
        loss: a loss's name, or `package.module:object`.
        epochs: passes over an input's pairs; with batch size 1 that is epochs x pairs steps.
        lr: the rule's rate; by default the rule's own, which for adamw is the paper's 1e-4.
        rank: inner size of the adapters.
        alpha: adapters are scaled by alpha / rank.
        scaling: `rslora` scales by alpha / sqrt(rank) instead.
        targets: the projections that get an adapter.
        layers: the layers that get one, counted from the end where negative; none named are all of them.
        start: directory of a PEFT adapter that is theta_0, the model before any adaptation: scores, pairs and the
          base's answers come from it, and every adapter starts as it.
        reset: `example`: every input starts from theta_0 (the paper). `never`: from the adapter of the input that
          adapted before it, in the task's order, which ties inputs together on purpose; needs wave 1, and `save` where
          the run is kept.
        accept: conditions that must all hold for an adapted answer to replace the base's: `sibling` (needs
          --synthesis.held-out), `repairs`, `valid`, `sound`, `margin`, `kl`, `seeds` (see docs/quality.md); by default
          every adapted answer does.
        measure: evidence to record that costs something and that no accepted condition asks for: `kl`, `seeds`.
        stop_below: an input's training stops when the loss on all its pairs was below this.
        stop_rising: it stops before a step after which the loss on the held-out pair would be higher (needs
          --synthesis.held-out).
        kl: weight of KL(adapted || theta_0) at the answer's tokens, added to the loss.
        l2: weight of the squared size of the change of the weights, |a b|^2 of each projection, added to the loss.
        samples: answers that are sampled to each pair's request, for losses that need them.
        adapters: adapters per input, M, each with its own random start; one of their answers is taken.
        divide: each of them trains on its own share of the pairs, in place of all.
        combine: `vote`: the calls that most of them make. `likelihood`: the function with the highest mean probability,
          and the answer of the adapter that is surest of it.
        save: keep every input's adapter in the run's directory.
        memory: GiB for intermediate values of training; a wave trains in chunks that fit.
    """

    scope: Literal["all", "suffix"] = "all"
    rule: str = "adamw"
    loss: str = "answer_cross_entropy"
    epochs: int = 5
    lr: float | None = None
    rank: int = 8
    alpha: float = 16.0
    scaling: Literal["lora", "rslora"] = "lora"
    targets: tuple[str, ...] = TARGETS
    layers: tuple[int, ...] = ()
    start: str | None = None
    reset: Literal["example", "never"] = "example"
    accept: tuple[str, ...] = ()
    measure: tuple[Literal["kl", "seeds"], ...] = ()
    stop_below: float | None = None
    stop_rising: bool = False
    kl: float = 0.0
    l2: float = 0.0
    samples: int = 4
    adapters: int = 1
    divide: bool = False
    combine: Literal["vote", "likelihood"] = "vote"
    save: bool = False
    memory: float = 2.0

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(self.rank, self.alpha, self.targets, self.layers, self.scaling)


def adapt_example(
    config: DecoderConfig,
    params: Params,
    rule_step: RuleStep,
    loss: Loss,
    theta_0: Adapter | None,
    adapter: Adapter,
    state: State,
    batches: Batch,
    n_pairs: Array,
    n_steps: Array,
    key: Array,
    past: Past,
    held_out: Batch | None = None,
    *,
    max_steps: int,
    scale: float,
    remat: bool,
    stop_below: Array | float = -jnp.inf,
) -> tuple[Adapter, Array, Array]:
    """Trains one adapter for `n_steps` steps; step s takes pair s mod n_pairs.

    Training stops early, by a mask and not by another program, where the latest losses on all pairs are below
    `stop_below`, or before a step after which the cross-entropy on `held_out` would be higher.

    Args:
        theta_0: the adapter that a loss's `forward(None, ...)` means; None is the base.
        batches: K sequences, every array with a leading axis K; the first n_pairs are real.
        past: the base's caches that come before the sequences (empty: the sequences are whole prompts).
        max_steps: length of the scan; steps from `n_steps` on change nothing.

    Returns:
        The adapter, the loss before each step [max_steps] float32 (NaN where there was none), and how many of these
        there are, int32: the steps taken, and the one at which training stopped.
    """
    loss_fn = LossFn(loss, bind_forward(config, params, past, theta_0, scale, remat))

    def sibling(adapter: Adapter) -> Array:
        return (
            answer_cross_entropy(loss_fn.forward, adapter, held_out, key)[0]
            if held_out is not None
            else jnp.float32(jnp.inf)
        )

    def step(carry: tuple[Any, ...], index: Array) -> tuple[tuple[Any, ...], tuple[Array, Array]]:
        adapter, state, latest, held_out_loss, stopped = carry
        pair = jnp.mod(index, jnp.maximum(n_pairs, 1))
        batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, pair, keepdims=False), batches)
        with jax.named_scope("step"):
            *new, metrics = rule_step(loss_fn, adapter, state, batch, jax.random.fold_in(key, index))
        runs = (index < n_steps) & ~stopped
        latest, after = latest.at[pair].set(metrics["loss"]), sibling(new[0])
        stopped = stopped | (jnp.max(latest) < stop_below) | (after > held_out_loss)
        active = runs & ~stopped
        keep = lambda old, x: jnp.where(active, x, old)  # noqa: E731
        carry = jax.tree.map(keep, (adapter, state, held_out_loss), (*new, after))
        return (*carry[:2], latest, carry[2], stopped), (jnp.where(runs, metrics["loss"], jnp.nan), runs)

    latest = jnp.where(jnp.arange(batches.weights.shape[0]) < n_pairs, jnp.inf, -jnp.inf)
    begin = (adapter, state, latest, sibling(adapter), jnp.bool_(False))
    (adapter, *_), (losses, ran) = jax.lax.scan(step, begin, jnp.arange(max_steps))
    return adapter, losses, jnp.sum(ran)


def bind_forward(
    config: DecoderConfig, params: Params, past: Past, theta_0: Adapter | None, scale: float, remat: bool = False
) -> Forward:
    """`Forward` of one sequence, from the model, what came before and what None stands for."""

    def run(adapter: Adapter | None, tokens: Tokens, predict: Array, inputs: bool = False) -> Outputs:
        adapter = theta_0 if adapter is None else adapter
        hidden, _, read = run_layers(config, params, tokens, past, adapter, scale, remat)
        return Outputs(logits(config, params, hidden[predict]), read if inputs else ())

    return run


def init_wave(
    keys: Array,
    config: DecoderConfig,
    lora: LoraConfig,
    rule: UpdateRule,
    n_steps: Array,
    start: Adapter | None = None,
) -> tuple[Adapter, State]:
    """Adapters and rule states with a leading axis E, from keys [E] and step counts [E] int32.

    The adapters are fresh, or all copies of `start` (no leading axis).
    """
    adapters = _init_adapters(start, keys, config, lora)
    # Only as one program does each part of a mesh make the states of its own rows alone; elsewhere another rate, which
    # rules hold, should compile nothing.
    init = jax.vmap(rule.init) if axis_size(*ROWS) == 1 else partial(_init_states, rule.init)
    return adapters, apart(init(adapters, n_steps), adapters)


def apart(state: State, adapter: Adapter) -> State:
    """The state with copies of the arrays that a rule's `init` took from the adapter, which programs use up."""
    own = {id(leaf) for leaf in jax.tree.leaves(adapter)}
    return jax.tree.map(lambda x: jnp.copy(x) if id(x) in own else x, state)


@partial(jax.jit, static_argnums=0)
def _init_states(init: Callable[[Adapter, Array], State], adapters: Adapter, n_steps: Array) -> State:
    return map_rows(jax.vmap(init), (), (adapters, n_steps))


@partial(jax.jit, static_argnums=(2, 3))
def _init_adapters(start: Adapter | None, keys: Array, config: DecoderConfig, lora: LoraConfig) -> Adapter:
    """Each part of a mesh makes those of its own rows, and no device has the wave's."""

    def one(start: Adapter | None, key: Array) -> Adapter:
        return init_adapter(key, config, lora) if start is None else start

    return map_rows(jax.vmap(one, (None, 0)), (start,), (keys,))


@partial(
    jax.jit,
    static_argnames=("config", "rule_step", "loss", "max_steps", "scale", "chunk", "remat"),
    donate_argnames=("adapters",),
)
def adapt_wave(
    config: DecoderConfig,
    params: Params,
    rule_step: RuleStep,
    loss: Loss,
    adapters: Adapter,
    states: State,
    batches: Batch,
    n_pairs: Array,
    n_steps: Array,
    keys: Array,
    past: tuple[Cache, ...] = (),
    theta_0: Adapter | None = None,
    held_out: Batch | None = None,
    *,
    max_steps: int,
    scale: float,
    chunk: int,
    remat: bool = False,
    stop_below: Array | float = -jnp.inf,
) -> tuple[Adapter, Array, Array]:
    """`adapt_example` for E inputs in one program, `chunk` of them at a time; a chunk without steps is skipped.

    Every argument but `params`, `theta_0` and `stop_below` has a leading axis E (`batches` E and K), but for a `past`
    that all rows share; `chunk` divides E, or on a mesh the rows of each part of the devices. The adapters are donated;
    the base never is.

    Returns:
        The adapters (leading axis E), the losses [E, max_steps] and how many of these there are [E].
    """

    how = {"max_steps": max_steps, "scale": scale, "remat": remat}
    axis = wave_axis(past)
    own_past, common = (past, ()) if axis == 0 else ((), past)

    def skip(adapters: Adapter, *rest: Any) -> tuple[Adapter, Array, Array]:
        return adapters, jnp.full((chunk, max_steps), jnp.nan), jnp.zeros(chunk, jnp.int32)

    def adapt_part(
        params: Params, theta_0: Adapter | None, common: tuple[Cache, ...], stop_below: Array | float, *wave: Any
    ) -> tuple[Adapter, Array, Array]:
        one = partial(adapt_example, config, params, rule_step, loss, theta_0, **how, stop_below=stop_below)

        def adapt_chunk(part: tuple[Any, ...]) -> tuple[Adapter, Array, Array]:
            *rows, own_past, held_out = part
            train = jax.vmap(one, (0,) * len(rows) + (axis, 0))
            return jax.lax.cond(in_any_part(jnp.any(part[4] > 0)), train, skip, *rows, own_past or common, held_out)

        chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), wave)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(adapt_chunk, chunks))

    shared = (params, theta_0, common, stop_below)
    with jax.named_scope("adapt"):
        rows = (adapters, states, batches, n_pairs, n_steps, keys, own_past, held_out)
        return map_rows(adapt_part, shared, rows)
