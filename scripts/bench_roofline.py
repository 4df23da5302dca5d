"""How close each stage comes to this machine: its useful work per second, as a share of the measured rates.

The matrix rate and the bandwidth are what XLA itself reaches here, on a large matrix product and on a long sum; see
`bounds.py` for what counts as useful. Training in the scope `all` runs on a part of the wave: it takes longest, and it
goes through the wave a few inputs at a time in any case.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarking import (
    Line,
    MachineLoad,
    Options,
    alternate,
    choose_platform,
    console,
    describe,
    figure,
    peak_memory,
    show,
    surroundings,
    told,
    write_json,
)
from bounds import Cost, Costs, Machine, measure_machine
from ttsi_jax.batching.memory import training_chunk
from ttsi_jax.batching.waves import training_shape
from ttsi_jax.runs.clock import CompileClock
from workload import JaxSide, Work, load, make_inputs

GOALS = {"train": 0.4, "decode": 0.6}  # shares, on a GPU


@dataclass(frozen=True, kw_only=True)
class Roofline(Options):
    """Measure each stage as a share of what the machine can do.

    Attributes:
        wave: inputs of a wave.
        rounds: how often each stage is timed, in turn with the others.
        work: what each input asks for.
    """

    wave: int = 16
    rounds: int = 3
    work: Work = field(default_factory=Work)


def stages(side: JaxSide, whole: JaxSide, inputs: list, costs: Costs) -> dict[str, tuple[Callable[[], Any], Cost]]:
    """Each stage as a call, and its cost; `whole` has waves of those inputs that train in the scope `all`."""
    work, rows, n, part = side.work, side.rows(inputs), len(inputs), whole.waves.size
    prompt, packed = work.prefix + work.suffix, work.candidates * (work.name - 1)
    _, prompts = side.read(rows, inputs)  # keeps the prefixes' caches
    *_, adapted = side.train(rows, inputs, "suffix")
    own, past = work.suffix, work.prefix
    again = {  # training ends with a reading of the prompt
        "suffix": costs.read(n, own + packed, past, packed + 1, adapted=True),
        "all": costs.read(part, prompt + packed, 0, packed + 1, adapted=True),
    }
    return {
        "score after the prefix": (
            lambda: side.read(rows, inputs),
            costs.read(n, own + packed, past, packed + 1),
        ),
        "decode": (
            lambda: side.decode(prompts, work.answer),
            costs.decode(n, work.answer, prompt),
        ),
        "decode, adapted": (
            lambda: side.decode(adapted, work.answer),
            costs.decode(n, work.answer, prompt, adapted=True),
        ),
        "train, suffix": (
            lambda: side.train(rows, inputs, "suffix"),
            costs.train(n, own, past, work.trained, work.steps) + again["suffix"],
        ),
        "train, all": (
            lambda: whole.train(whole.rows(inputs[:part]), inputs[:part], "all"),
            costs.train(part, prompt, 0, work.trained, work.steps) + again["all"],
        ),
    }


def measure(options: Roofline) -> dict[str, Any]:
    load_, compiling = MachineLoad(), CompileClock()
    real, model = load(options.model, options.random_weights, options.dtype)
    inputs = make_inputs(options.work, real, options.source(), 0, options.wave)
    side = JaxSide(model, options.work, options.wave)
    settings = side.config("all")
    n_tokens, n_answer = training_shape(side.shape(), [[one.pair] for one in inputs])
    chunk, _ = training_chunk(model.config, settings, options.wave, n_tokens + side.shape().prefix, 0, n_answer)
    with compiling:
        machine = measure_machine(model.params["embed"].dtype)
        bounds = Costs(model.config, model.params["embed"].dtype.itemsize)
        all_stages = stages(side, JaxSide(model, options.work, chunk), inputs, bounds)
        seconds = alternate({name: call for name, (call, _) in all_stages.items()}, options.rounds)
    costs = {name: cost for name, (_, cost) in all_stages.items()}
    return {
        "ratios": {name: costs[name].seconds(machine) / own.median for name, own in seconds.items()},
        "seconds": seconds, "costs": costs, "machine": machine,
        "wave": options.wave, "train_all_inputs": chunk, "work": asdict(options.work),
        "environment": surroundings(
            model, compile_seconds=compiling.seconds, load=load_.read(), peak_bytes=peak_memory()
        ),
    }  # fmt: skip


def report(results: Mapping[str, Any], options: Roofline) -> None:
    machine: Machine = results["machine"]
    lines = []
    for name, seconds in results["seconds"].items():
        cost: Cost = results["costs"][name]
        goal = next((f"≥ {share:.0%} on a GPU" for stage, share in GOALS.items() if name.startswith(stage)), "")
        limit = "arithmetic" if cost.flops / machine.flops > cost.bytes / machine.bandwidth else "reading"
        figures = (
            str(seconds),
            f"{cost.flops / seconds.median / 1e9:,.1f}",
            f"{cost.bytes / seconds.median / 1e9:,.1f}",
            f"{results['ratios'][name]:.0%}",
            goal,
        )
        lines.append(Line(name, figures, f"{cost.seconds(machine):.3f} s, {limit}"))
    headings = ("stage", "seconds per wave", "GFLOP/s", "GB/s", "share of the bound", "goal")
    show(f"the machine: {machine}", headings, lines)
    if options.json:
        write_json(options.json, results)
    if options.plot:
        draw(options.plot, results)


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """The roofline: FLOPs per byte against FLOPs per second, and where each stage is."""
    machine: Machine = results["machine"]
    with figure(path, figsize=(7, 4)) as axes:
        intensities = [cost.flops / cost.bytes for cost in results["costs"].values()]
        knee = machine.flops / machine.bandwidth
        ends = sorted([min(intensities) / 2, knee, max(*intensities, knee) * 2])
        axes.loglog(ends, [min(machine.flops, x * machine.bandwidth) for x in ends], color="black")
        for index, (name, seconds) in enumerate(results["seconds"].items()):
            axes.plot(intensities[index], results["costs"][name].flops / seconds.median, "o", label=name)
        axes.set_xlabel("FLOPs per byte")
        axes.set_ylabel("FLOP/s")
        axes.legend(fontsize="small")


@told
def main() -> int:
    options = tyro.cli(Roofline, description=__doc__)
    choose_platform(options.platform)
    if options.quick:
        options = replace(options, wave=min(options.wave, 8), rounds=1)
    results = measure(options)
    describe(results["environment"])
    console.print(f"compiling took {results['environment']['compile_seconds']:.0f} s, outside the figures")
    console.print(f"work per input: {results['work']}; waves of {results['wave']}")
    report(results, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
