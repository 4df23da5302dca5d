"""Supervised fine-tuning: ONE adapter for all labelled examples, by the rules and losses of test-time training.

A step takes a wave of examples at once: the loss is the mean of theirs, and the rule sees it as one example's. What
comes out is a PEFT adapter, which a run starts from (`--adapt.start`), and a list of what it was trained on, by which a
run knows the inputs whose labels it has seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.adaptation import AdaptConfig, apart, bind_forward
from ttsi_jax.answering import call_ids
from ttsi_jax.batching.memory import training_chunk
from ttsi_jax.batching.waves import Ids, Pair, Row, Shape, Waves, bucket, training_shape
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.checkpoints.int8 import storage
from ttsi_jax.checkpoints.peft import CONFIG, save_peft
from ttsi_jax.config import RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.model.cache import Cache
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params
from ttsi_jax.model.lora import Adapter, init_adapter
from ttsi_jax.rules.interface import Batch, Forward, Loss, LossFn, Outputs, RuleStep, State, UpdateRule, needed
from ttsi_jax.runs.directory import read_object
from ttsi_jax.runs.scores import first_values
from ttsi_jax.scaling.mesh import mesh_of
from ttsi_jax.synthesis.training import SEEN
from ttsi_jax.tasks import Call, Example, Task
from ttsi_jax.tasks.faults import fingerprint
from ttsi_jax.tasks.prompts import PromptEncoder, answer_messages

SMALLEST = 64  # bucket of training sequences
FOR_RUNS = (  # settings of `AdaptConfig` that are about one input of a run
    "start", "reset", "accept", "measure", "stop_below", "stop_rising",
    "samples", "adapters", "divide", "combine", "save",
)  # fmt: skip


class Trained(NamedTuple):
    """One adapter, and how it came about."""

    adapter: Adapter
    losses: list[float]  # before each step, the mean of its examples'
    used: list[Example]  # that it was trained on


def fine_tune(
    model: LanguageModel,
    examples: Sequence[Example],
    config: AdaptConfig,
    rule: UpdateRule,
    loss: Loss,
    *,
    wave: int,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda stage, done, known: None,
) -> Trained:
    """Trains one adapter on the examples with one right call that fit the model's context.

    `config.epochs` passes over all of them in random order, `wave` examples a step.

    Raises:
        InputError: there is no such example, the loss needs more than a label, the rule asks the model itself, the
          model lies on a mesh, or a loss is not finite.
    """
    if mesh_of(model.params) is not None:
        raise InputError("fine-tuning one adapter runs on one device: load the model without a mesh")
    if needed(loss):
        raise InputError(f"--adapt.loss {config.loss} needs {', '.join(needed(loss))}, which labels do not give")
    encoder, lora = PromptEncoder(model.tokenizer), config.lora
    found = [(one, own) for one in examples if (own := _sequence(one, encoder, model)) is not None]
    if not found:
        raise InputError("no example with one right call fits the model's context: there is nothing to train on")
    waves, whole = _Waves(model, wave, 1), config.scope == "all"
    n_prefix = bucket(max(len(prefix) for _, (prefix, _) in found), SMALLEST)
    n_batches = -(-len(found) // wave)
    init_key, step_key = jax.random.split(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    adapter = init_adapter(init_key, model.config, lora)
    state = apart(rule.init(adapter, jnp.int32(config.epochs * n_batches)), adapter)
    losses = list[float]()
    for epoch in range(config.epochs):
        order = rng.permutation(len(found))
        for number in range(n_batches):
            chosen = [found[index][1] for index in order[number * wave : (number + 1) * wave]]
            batch, past, sizes = waves.training(chosen, n_prefix, whole)
            chunk, remat = training_chunk(model.config, config, wave, *sizes)
            adapter, state, own = _step(
                model.config, model.params, rule.step, loss, adapter, state, batch, jnp.arange(wave) < len(chosen),
                jax.random.fold_in(step_key, len(losses)), past, scale=lora.scale, chunk=chunk, remat=remat,
            )  # fmt: skip
            losses.append(float(own))
            if not math.isfinite(losses[-1]):
                raise InputError(
                    f"the loss before step {len(losses)} of {config.epochs * n_batches} is {losses[-1]}: training "
                    "diverged, and nothing of it is saved; try a lower --adapt.lr"
                )
            progress(f"epoch {epoch + 1}", number + 1, n_batches)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(adapter))):
        raise InputError(f"the last step, of {len(losses)}, diverged, and nothing is saved; try a lower --adapt.lr")
    return Trained(adapter, losses, [one for one, _ in found])


def settings_of(model: LanguageModel, task: Task, config: RunConfig) -> dict[str, Any]:
    """All that decides an adapter, as JSON values."""
    weights = {"model": model.name, "checksum": model.checksum, "dtype": storage(model.params)}
    own = {name: value for name, value in config.to_dict().items() if name in ("adapt", "wave", "seed")}
    return weights | {"task": task.name, "inputs": task.fingerprint} | own


def settings_there(out: Path) -> dict[str, Any] | None:
    """The settings of the adapter that a directory holds; None where there is no directory, or an empty one.

    Raises:
        InputError: it holds something else, or what was written of an adapter before its process was killed.
    """
    if not (out.exists() and any(out.iterdir())):
        return None
    seen = read_object(out / SEEN, missing=f"{out}: is not empty; choose another directory")
    read_object(out / CONFIG, missing=f"{out}: holds an unfinished adapter; delete it, or choose another directory")
    return seen.get("settings", {})


def make_directory(out: Path) -> None:
    """Makes the directory of an adapter, and tries to write there: before what is written took its hours.

    Raises:
        InputError: it cannot be made, or not be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{out}: no adapter can be written there: {why}; choose another directory") from None


def save(trained: Trained, out: Path, model: LanguageModel, config: AdaptConfig, settings: Mapping[str, Any]) -> None:
    """Writes what `--adapt.start` takes, with the losses, what it was trained on and its settings."""
    lora = config.lora
    prints = sorted({fingerprint(one) for one in trained.used})
    seen = {"examples": len(trained.used), "fingerprints": prints, "losses": trained.losses, "settings": settings}
    out.mkdir(parents=True, exist_ok=True)
    (out / SEEN).write_text(json.dumps(seen) + "\n", encoding="utf-8")  # first: no adapter is ever without it
    save_peft(out, trained.adapter, model.config, rank=lora.rank, alpha=lora.scale * lora.rank, base=model.name)


def _sequence(example: Example, encoder: PromptEncoder, model: LanguageModel) -> tuple[Ids, Pair] | None:
    """Prefix and pair of an example with one right call; None where it cannot be trained on."""
    if example.problem is not None or example.gold is None or len(example.gold) != 1 or not example.tools:
        return None
    gold = example.gold[0]
    try:
        prefix = encoder.prefix(example)
        prompt = encoder.suffix(example, answer_messages(example), prefix)
        answer = call_ids(encoder, Call(gold.name, first_values(gold))) + model.stop_ids[:1]
    except InputError:
        return None
    ids = prefix + prompt + answer
    fits = len(ids) <= model.config.context_length and max(ids) < model.config.vocab_size
    return (prefix, Pair(prompt, answer)) if fits else None


class _Waves(Waves):
    def training(
        self, chosen: Sequence[tuple[Ids, Pair]], n_prefix: int, whole: bool
    ) -> tuple[Batch, tuple[Cache, ...], tuple[int, int, int]]:
        """A wave's batch, the caches before it, and its sizes: tokens, cached tokens, trained tokens."""
        prefixes, pairs = [prefix for prefix, _ in chosen], [pair for _, pair in chosen]
        shape = Shape(n_prefix, SMALLEST, 1, 1)
        n_tokens, n_answer = training_shape(shape, [[pair] for pair in pairs])
        batch = self._batch(prefixes, pairs, n_tokens + n_prefix * whole, n_answer, whole)
        rows = [Row(prefix, (), 0, jax.random.key(0), shape) for prefix in prefixes]
        past = () if whole else (self._prefix_caches(rows),)
        return batch, past, (n_tokens + n_prefix * whole, n_prefix * (not whole), n_answer)


@partial(
    jax.jit, static_argnames=("config", "rule_step", "loss", "scale", "chunk", "remat"), donate_argnames=("adapter",)
)
def _step(
    config: DecoderConfig,
    params: Params,
    rule_step: RuleStep,
    loss: Loss,
    adapter: Adapter,
    state: State,
    batch: Batch,
    present: Array,
    key: Array,
    past: tuple[Cache, ...],
    *,
    scale: float,
    chunk: int,
    remat: bool,
) -> tuple[Adapter, State, Array]:
    """One step on the rows of a batch (leading axis E) that are `present` [E]; the loss is their mean."""

    def mean(forward: Forward, adapter: Adapter, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        @jax.checkpoint
        def one(row: tuple[Any, ...]) -> Array:
            own, own_past, own_key = row
            return loss(bind_forward(config, params, own_past, None, scale, remat), adapter, own, own_key)[0]

        rows = (batch, past, jax.random.split(key, present.shape[0]))
        losses = jax.lax.map(one, rows, batch_size=chunk)
        return jnp.sum(jnp.where(present, losses, 0.0)) / jnp.sum(present), {}

    with jax.named_scope("adapt"), jax.named_scope("step"):
        adapter, state, metrics = rule_step(LossFn(mean, _no_forward), adapter, state, batch, key)
    return adapter, state, metrics["loss"]


def _no_forward(*_: Any, **__: Any) -> Outputs:
    raise InputError(
        "the update rule asks the model itself about one sequence, and a step of sft takes a wave of them: "
        "choose another --adapt.rule"
    )
