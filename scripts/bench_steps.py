"""From the paper's sequential pseudocode to the batched program: what each step of docs/how-it-works.md is worth.

    python scripts/bench_steps.py --json steps.json

The same inputs with the same random tokens go through every variant; each is compiled and run once before it is timed,
then the variants alternate, and the median is reported. Compile seconds stand beside.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import ttsi_jax as ttsi
from benchmarking import choose_platform, told
from ttsi_jax.adaptation import adapt_wave, bind_forward, init_wave
from ttsi_jax.model.decoder import forward, logits, tokens_after
from ttsi_jax.model.scoring import Candidates, prefill_wave, score_wave
from ttsi_jax.rules.interface import Batch, LossFn
from ttsi_jax.runs.environment import environment
from ttsi_jax.runs.record import strict_json


@dataclass(frozen=True)
class Settings:
    """Time the steps from the sequential to the batched program.

    Attributes:
        model: as for `ttsi-jax run`, or `tiny`.
        inputs: inputs, which all have the same lengths.
        prefix: tokens of the instructions and the tool list.
        suffix: tokens after it, answer included.
        answer: tokens that are trained on.
        candidates: functions to choose from.
        steps: training steps per input.
        repeats: timed runs of each variant.
        platform: cpu, gpu or tpu; by default what JAX finds.
        json: file for the results.
    """

    model: str = "smollm2-135m-instruct"
    inputs: int = 4
    prefix: int = 192
    suffix: int = 64
    answer: int = 32
    candidates: int = 4
    steps: int = 2
    repeats: int = 2
    platform: str | None = None
    json: Path | None = None


def variants(model: ttsi.LanguageModel, s: Settings) -> dict[str, Callable[[], Any]]:
    """What is timed, by name: functions without arguments that do the work for all inputs."""
    config, params = model.config, model.params
    rng, n = np.random.default_rng(0), s.prefix + s.suffix
    ids = jnp.asarray(rng.integers(3, config.vocab_size, (s.inputs, n)), jnp.int32)
    rule, lora, keys = ttsi.adamw(), ttsi.LoraConfig(), jax.random.split(jax.random.key(0), s.inputs)
    n_steps = jnp.full(s.inputs, s.steps)

    def batch_of(ids: jax.Array, start: int) -> Batch:
        length = ids.shape[-1]
        index = length - s.answer - 1 + jnp.arange(s.answer)
        tokens = tokens_after(ids, jnp.int32(length), start)
        return Batch(tokens, index, ids[index + 1], jnp.ones(s.answer))

    whole = jax.vmap(partial(batch_of, start=0))(ids)
    short = jax.vmap(partial(batch_of, start=s.prefix))(ids[:, s.prefix :])
    every_token = whole._replace(
        predict=jnp.tile(jnp.arange(n), (s.inputs, 1)),
        labels=jnp.roll(ids, -1, axis=1),
        weights=jnp.tile(jnp.arange(n) >= n - s.answer, (s.inputs, 1)).astype(jnp.float32),
    )

    @jax.jit
    def one_step(params: Any, adapter: Any, state: Any, batch: Batch, key: jax.Array) -> Any:
        loss_fn = LossFn(ttsi.answer_cross_entropy, bind_forward(config, params, (), None, lora.scale))
        return rule.step(loss_fn, adapter, state, batch, key)

    def sequential(batches: Batch) -> None:
        for row in range(s.inputs):
            wave = init_wave(keys[row : row + 1], config, lora, rule, n_steps[:1])
            adapter, state = jax.tree.map(lambda x: x[0], wave)
            for _ in range(s.steps):
                batch = jax.tree.map(lambda x, row=row: x[row], batches)
                adapter, state, _ = one_step(params, adapter, state, batch, keys[row])
            jax.block_until_ready(adapter)

    def waves(batches: Batch, size: int, cached: bool) -> None:
        for start in range(0, s.inputs, size):
            rows = slice(start, start + size)
            past: Any = ()
            if cached:
                past = (prefill_wave(config, params, ids[rows, : s.prefix], jnp.full(size, s.prefix)),)
            adapters, states = init_wave(keys[rows], config, lora, rule, n_steps[rows])
            pairs = jax.tree.map(lambda x, rows=rows: x[rows, None], batches)
            jax.block_until_ready(
                adapt_wave(
                    config, params, rule.step, ttsi.answer_cross_entropy, adapters, states, pairs, jnp.ones(size, int),
                    n_steps[rows], keys[rows], past, max_steps=s.steps, scale=lora.scale, chunk=size,
                )
            )  # fmt: skip

    names = jnp.asarray(rng.integers(3, config.vocab_size, (s.inputs, s.candidates, 6)), jnp.int32)
    lengths = jnp.full((s.inputs, s.candidates), 6)

    @jax.jit
    def likelihood(params: Any, ids: jax.Array) -> jax.Array:
        hidden, _ = forward(config, params, tokens_after(ids, jnp.int32(ids.shape[0])))
        log_p = jax.nn.log_softmax(logits(config, params, hidden[-7:-1]))
        return jnp.sum(jnp.take_along_axis(log_p, ids[-6:, None], axis=-1))

    def apart() -> None:
        for row in range(s.inputs):
            for own in names[row]:
                jax.block_until_ready(likelihood(params, jnp.concatenate([ids[row], own])))

    def packed() -> None:
        prompts = jax.vmap(lambda x: tokens_after(x, jnp.int32(n)))(ids)
        jax.block_until_ready(score_wave(config, params, prompts, jnp.full(s.inputs, n), Candidates(names, lengths)))

    return {
        "train: one input, one step, all logits": partial(sequential, every_token),
        "train: logits of the answer alone": partial(sequential, whole),
        "train: scan over the steps": partial(waves, whole, 1, False),
        "train: vmap over the inputs": partial(waves, whole, s.inputs, False),
        "train: the base's cache of the prefix": partial(waves, short, s.inputs, True),
        "score: one candidate at a time": apart,
        "score: packed behind one prompt": packed,
    }


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@told
def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings = tyro.cli(Settings, args=arguments)
    choose_platform(settings.platform)
    model = ttsi.tiny_language_model() if settings.model == "tiny" else ttsi.load_model(settings.model)
    runs = variants(model, settings)
    first = {name: seconds(run) for name, run in runs.items()}  # with compiling
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(settings.repeats)]
    times = {name: [own[name] / settings.inputs for own in rounds] for name in runs}
    medians = {name: statistics.median(own) for name, own in times.items()}

    shown = Table(title=f"{model.name}, {settings.prefix} + {settings.suffix} tokens, {settings.steps} training steps")
    for column in ("variant", "s/input", "least to most", "× the one before", "compiling s"):
        shown.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    before, ratios = None, {}
    for name, median in medians.items():
        stage = name.split(":")[0]
        if before is not None and before[0] == stage:
            ratios[name] = before[1] / median
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f}"
        ratio = f"{ratios[name]:.2f}" if name in ratios else ""
        shown.add_row(name, f"{median:.3f}", spread, ratio, f"{first[name] - median * settings.inputs:.0f}")
        before = stage, median
    Console(width=110).print(shown)
    if settings.json:
        content = {
            "command": ["scripts/bench_steps.py", *arguments],
            "environment": environment(),
            "seconds": times,
            "ratios": ratios,
            "seconds_with_compiling": first,
        }
        settings.json.write_text(strict_json(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
