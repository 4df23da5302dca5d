"""A lab for update rules: every rule and loss on the same inputs, with the same synthetic pairs.

    python scripts/bench_rules.py --rules adamw lora_plus muon --limit 8
    python scripts/bench_rules.py --model tiny --rules sgd my.module:rule --losses answer_cross_entropy dpo

A first run scores the inputs, answers with the base and writes the pairs; it is thrown away but for these. Then every
combination runs with the recorded pairs. Seconds are those of the stage `adapt`, per input of a full wave, without
compiling. FLOPs and memory are what XLA's compiled program of ONE training step of ONE input says of itself
(cost_analysis, memory_analysis), for a suffix of --tokens after a cached prefix of --prefix tokens, or for the sum of
both in scope `all`: XLA counts a loop's body once, so a step is measured and not the scan over steps. `gain` and
`broke` count calls against their labels; with a random model they mean nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import ttsi_jax as ttsi
from benchmarking import choose_platform, told
from ttsi_jax.adaptation import bind_forward
from ttsi_jax.config import check, find_parts
from ttsi_jax.model.cache import Cache
from ttsi_jax.model.decoder import Tokens
from ttsi_jax.model.lora import init_adapter
from ttsi_jax.rules import RULES
from ttsi_jax.rules.interface import Batch, LossFn, needed
from ttsi_jax.runs.environment import environment
from ttsi_jax.runs.record import strict_json
from ttsi_jax.testing import tiny_language_model


@dataclass(frozen=True)
class Lab:
    """Compare update rules and losses.

    Attributes:
        rules: names, or `package.module:object`.
        losses: names, or `package.module:object`; every rule runs with every loss.
        model: as for `ttsi-jax run`, or `tiny`, a random model that needs no file.
        task: as for `ttsi-jax run`.
        limit: inputs.
        wave: inputs at a time.
        epochs: training steps per pair.
        lr: one rate for all rules; by default each rule's own.
        scope: what adapters act on.
        select: which inputs adapt.
        tokens: length of the sequence whose step is measured.
        prefix: cached tokens before it.
        seed: of the run.
        platform: cpu, gpu or tpu; by default what JAX finds.
        json: file for the results.
        plot: file for the loss curves (.png; needs the extra `report`).
    """

    rules: tuple[str, ...] = tuple(RULES)
    losses: tuple[str, ...] = ("answer_cross_entropy",)
    model: str = "smollm2-135m-instruct"
    task: str = "bfcl:multiple"
    limit: int = 8
    wave: int = 8
    epochs: int = 5
    lr: float | None = None
    scope: Literal["all", "suffix"] = "suffix"
    select: Literal["uncertain", "certain", "all"] = "all"
    tokens: int = 96
    prefix: int = 256
    seed: int = 0
    platform: str | None = None
    json: Path | None = None
    plot: Path | None = None


class Measured(NamedTuple):
    """One combination's results."""

    rule: str
    loss: str
    curve: list[float]  # mean loss before each step, over the inputs that adapted
    gain: int  # calls right after less before, of `n` inputs
    broke: int  # calls that were right before and are wrong after
    adapted: int
    seconds: float  # training one input
    compile_seconds: float
    flops: float  # one step of one input
    memory: float  # bytes of one step of one input, beside the base and the adapter


def configuration(lab: Lab, rule: str, loss: str) -> ttsi.RunConfig:
    adapt = ttsi.AdaptConfig(scope=lab.scope, rule=rule, loss=loss, epochs=lab.epochs, lr=lab.lr)
    answer = ttsi.AnswerConfig(form="keys")
    gate = ttsi.GateConfig(select=lab.select)
    return ttsi.RunConfig(gate=gate, adapt=adapt, answer=answer, wave=lab.wave, seed=lab.seed)


def plain_pair(example: ttsi.Example, attempt: int) -> ttsi.Synthetic:
    """A pair for a model that cannot write one: the request in other words, and the simplest call of its first tool."""
    values = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    tool = example.tools[0]
    arguments = {name: values.get(tool.properties[name].get("type", ""), "some") for name in tool.required}
    return ttsi.Synthetic(f"Please ({attempt}): {example.query}", (ttsi.Call(tool.name, arguments),))


def step_cost(lab: Lab, model: ttsi.LanguageModel, config: ttsi.RunConfig) -> tuple[float, float]:
    """FLOPs and bytes of temporaries of one training step of one input, as its compiled program states them."""
    parts, lora = find_parts(config, {}), config.adapt.lora
    n_past = lab.prefix if lab.scope == "suffix" else 0
    n, a = lab.tokens + lab.prefix - n_past, lab.tokens // 2
    c, index = model.config, jnp.arange
    dtype = model.params["embed"].dtype
    shape = (c.n_kv_heads, n_past, c.head_dim)
    heads: Any = tuple(jax.ShapeDtypeStruct(shape, dtype) for _ in range(c.n_layers))
    slots: Any = jax.ShapeDtypeStruct((n_past,), jnp.int32)
    past = (Cache(heads, heads, slots, slots),) if n_past else ()
    batch = Batch(Tokens(index(n), n_past + index(n), 0 * index(n)), index(a), index(a), jnp.ones(a))
    if "rejected" in needed(parts.loss):
        batch = batch._replace(rejected=batch)
    if "samples" in needed(parts.loss):
        m = config.adapt.samples
        several = jax.tree.map(lambda x: jnp.repeat(x[None], m, axis=0), batch)
        batch = batch._replace(samples=several, rewards=jnp.zeros(m))
    key = jax.random.key(0)
    adapter = init_adapter(key, c, lora)
    state = parts.rule.init(adapter, jnp.int32(lab.epochs))

    def step(params: Any, past: Any, adapter: Any, state: Any, batch: Batch) -> Any:
        loss_fn = LossFn(parts.loss, bind_forward(c, params, past, None, lora.scale))
        return parts.rule.step(loss_fn, adapter, state, batch, key)

    compiled = jax.jit(step).lower(model.params, past, adapter, state, batch).compile()
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return float((analysis or {}).get("flops", float("nan"))), float(
        getattr(memory, "temp_size_in_bytes", float("nan"))
    )


def measure(lab: Lab, model: ttsi.LanguageModel, task: ttsi.Task, rule: str, loss: str, source: Any) -> Measured:
    config = configuration(lab, rule, loss)
    result = ttsi.run(model, task, config, synthesizer=source)
    adapted = [record for record in result.records if record.adapted]
    losses = [np.array(record.losses, float)[: lab.epochs] for record in adapted]
    curve = np.mean(losses, axis=0).tolist() if losses else []
    rights = [(bool(record.call_correct_base), bool(record.call_correct)) for record in result.records]
    seconds = float(np.mean([record.seconds["adapt"] for record in adapted])) if adapted else float("nan")
    flops, memory = step_cost(lab, model, config)
    return Measured(
        rule,
        loss,
        curve,
        sum(after for _, after in rights) - sum(before for before, _ in rights),
        sum(before and not after for before, after in rights),
        len(adapted),
        seconds,
        result.summary["compile_seconds"],
        flops,
        memory,
    )


def tables(results: Sequence[Measured], n: int) -> list[Table]:
    """What training did, and what it cost; each fits 80 columns."""
    learned = _table(f"{n} inputs; mean loss before the first and the last step", "loss", "adapted", "gain", "broke")
    cost = _table("Cost of an input, of one step of it, and compiling", "s/input", "GFLOP", "MiB", "compile s")
    for own in results:
        name = f"{own.rule}, {own.loss}"
        curve = f"{own.curve[0]:.3f} → {own.curve[-1]:.3f}" if own.curve else "–"
        learned.add_row(name, curve, str(own.adapted), f"{own.gain:+d}", str(own.broke))
        sizes = f"{own.flops / 1e9:.1f}", f"{own.memory / 2**20:.0f}"
        cost.add_row(name, f"{own.seconds:.2f}", *sizes, f"{own.compile_seconds:.0f}")
    return [learned, cost]


def _table(title: str, *figures: str) -> Table:
    shown = Table(title=title)
    shown.add_column("rule, loss", overflow="fold")
    for name in figures:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def plot(results: Sequence[Measured], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    losses = list(dict.fromkeys(own.loss for own in results))
    figure, axes = plt.subplots(1, len(losses), figsize=(5 * len(losses), 3.6), squeeze=False)
    for axis, loss in zip(axes[0], losses, strict=True):
        for own in results:
            if own.loss == loss:
                axis.plot(range(len(own.curve)), own.curve, marker="o", label=own.rule)
        axis.set(title=loss, xlabel="steps taken", ylabel="loss (mean over inputs)")
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def write(path: Path, arguments: Sequence[str], results: Sequence[Measured], n: int) -> None:
    """Writes what there is so far, so that an interruption costs one combination."""
    base = results[0]
    named = {f"{own.rule} / {own.loss}": own for own in results}
    content = {
        "command": ["scripts/bench_rules.py", *arguments],
        "environment": environment(),
        "n": n,
        "seconds": {name: own.seconds for name, own in named.items()},
        "ratios": {name: own.seconds / base.seconds for name, own in named.items()},  # to the first combination
        "results": [own._asdict() for own in results],
    }
    path.write_text(strict_json(content, indent=2) + "\n", encoding="utf-8")


@told
def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.path.append(os.getcwd())  # where a user's own rules and losses lie, as for `ttsi-jax`
    lab = tyro.cli(Lab, args=arguments)
    choose_platform(lab.platform)
    console = Console()
    combinations = [(rule, loss) for loss in lab.losses for rule in lab.rules]
    for rule, loss in combinations:  # a wrong name ends it before anything is loaded
        check(configuration(lab, rule, loss))
        find_parts(configuration(lab, rule, loss), {})
    model = tiny_language_model() if lab.model == "tiny" else ttsi.load_model(lab.model)
    task = ttsi.load_task(lab.task, limit=lab.limit)
    first = configuration(lab, "sgd", "answer_cross_entropy")
    first = replace(first, adapt=replace(first.adapt, epochs=1, lr=None))
    parts: dict[str, Any] = {"synthesizer": plain_pair} if lab.model == "tiny" else {}
    source = ttsi.recorded(ttsi.run(model, task, first, **parts).records)
    results: list[Measured] = []
    for rule, loss in combinations:
        own = measure(lab, model, task, rule, loss, source)
        results.append(own)
        told = f"{own.seconds:.2f} s per input, compiled in {own.compile_seconds:.0f} s"
        console.print(f"{rule} with {loss}: {told}; {len(results)} of {len(combinations)}", highlight=False)
        if lab.json:
            write(lab.json, arguments, results, len(task.examples))
    for shown in tables(results, len(task.examples)):
        console.print(shown)
    if lab.plot:
        plot(results, lab.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
