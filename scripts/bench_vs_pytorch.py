"""TT-SI here, a wave at a time, against transformers and PEFT, an input at a time: same weights, tokens and steps.

First one input goes through both, and what they computed is compared: candidates' log-likelihoods, losses, greedy
tokens. Then both are timed in turn on inputs they have not seen. PyTorch runs in the strongest form that we know
(`pytorch_baseline.py`), with the adapter on all tokens. In the scope `suffix` the work is therefore not equal: that
ratio says what this library's method saves. The base's answer to an uncertain input is only a measurement and left out.

Machines without the other side's packages: `--side jax --json A.json` here, `--side torch --json B.json` there, then
`--merge A.json B.json`.
"""

# torch and peft are an extra: the type checker also runs where they are not installed.
# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarking import (
    Line,
    Load,
    Options,
    Seconds,
    choose_platform,
    console,
    describe,
    figure,
    n_processors,
    peak_memory,
    show,
    surroundings,
    write_json,
)
from bounds import Costs, Machine, measure_machine
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.errors import InputError
from ttsi_jax.model.lora import Adapter
from ttsi_jax.runs.clock import CompileClock
from workload import Clock, Found, Input, JaxSide, Work, default_dtype, initial_adapter, load, make_inputs

STAGES = {  # names of the ratios: our stages, and PyTorch's, whose adapters act on all tokens
    "end_to_end_all": ("score", "synthesize", "train all", "read all", "decode all"),
    "end_to_end_suffix": ("score", "synthesize", "train suffix", "read suffix", "decode suffix"),
    "score": ("score",),
    "synthesize": ("synthesize",),
    "train": ("train all",),
    "train_suffix": ("train suffix",),
    "decode": ("decode all",),
    "decode_suffix": ("decode suffix",),
    "answer": ("read all", "decode all"),
    "answer_suffix": ("read suffix", "decode suffix"),
}
GOALS = {"end_to_end_all": 1.5, "end_to_end_suffix": 6.0, "shared_prefix": 20.0, "shared_prefix_cached": 2.0}


@dataclass(frozen=True, kw_only=True)
class VsPyTorch(Options):
    """Compare the library's speed with PyTorch's.

    Attributes:
        side: what to run; one side alone is for `merge`.
        merge: two JSON files, of one side each, to lay side by side.
        parts: the whole loop; and scoring and base answers of inputs that share a long prefix.
        wave: inputs of a wave on our side.
        rounds: how often both sides are timed, in turn.
        torch_inputs: inputs that PyTorch takes in each round.
        threads: of PyTorch; by default as many as there are processors.
        compiled: also PyTorch with torch.compile and static caches (always on a GPU).
        trainer: also time transformers' Trainer, as many users train.
        shared: tokens of the prefix that inputs share (NexusRaven's longest tool lists have 3,000).
        work: what each input asks for.
    """

    side: Literal["both", "jax", "torch"] = "both"
    merge: tuple[Path, Path] | None = None
    parts: tuple[Literal["loop", "shared-prefix"], ...] = ("loop", "shared-prefix")
    wave: int = 16
    rounds: int = 3
    torch_inputs: int = 2
    threads: int = field(default_factory=n_processors)
    compiled: bool = False
    trainer: bool = True
    shared: int = 3000
    work: Work = field(default_factory=Work)


Runs = dict[str, list[dict[str, float]]]  # side -> of each measurement, seconds per input by stage


class TorchSide:
    """One input after the other through the PyTorch baseline."""

    def __init__(self, model: LanguageModel, work: Work, threads: int, dtype: str, device: str, compiled: bool):
        import torch

        from pytorch_baseline import PyTorchBaseline

        torch.set_num_threads(threads)
        self.work = work
        self.baseline = PyTorchBaseline(
            model.config, model.params, device=device, dtype=getattr(torch, dtype), compiled=compiled
        )

    def improve(self, one: Input, initial: Adapter | None, clock: Clock) -> Found:
        """All stages of one input; the prefix is computed once for scoring and synthesis."""
        work, torch_ = self.work, self.baseline
        sequence = one.prefix + one.pair.prompt + one.pair.answer
        with clock("score"):
            _, prefix = torch_.prefill(one.prefix)
            scores, _, _ = torch_.score(one.request, one.names, prefix)
        with clock("synthesize"):
            next_logits, cache = torch_.prefill(one.synthesis, prefix)
            synthesis = torch_.decode(next_logits, cache, work.synthesis)
        with clock("train all"):
            losses = torch_.train(sequence, work.trained, work.steps, work.lr, initial)
        with clock("read all"):
            torch_.merge()
            adapted_scores, next_logits, cache = torch_.score(one.prefix + one.request, one.names)
        with clock("decode all"):
            answer = torch_.decode(next_logits, cache, work.answer)
        torch_.unmerge()
        return Found(scores, losses, adapted_scores, synthesis, answer)

    def train_with_trainer(self, one: Input, clock: Clock) -> None:
        sequence = one.prefix + one.pair.prompt + one.pair.answer
        with clock("train all"):
            self.baseline.train_with_trainer(sequence, self.work.trained, self.work.steps, self.work.lr)

    def answer(self, one: Input, prefix: Any) -> None:
        """Scores the candidates and answers, with the base; `prefix` is the cache of its prefix, or None."""
        ids = one.request if prefix else one.prefix + one.request
        _, next_logits, cache = self.baseline.score(ids, one.names, prefix)
        self.baseline.decode(next_logits, cache, self.work.answer)


class Comparison:
    """Both sides on the same inputs."""

    def __init__(self, options: VsPyTorch):
        self.options = options
        self.device = "cpu" if options.side == "jax" else torch_device(options.platform)
        self.dtype = options.dtype or (default_dtype() if self.device == "cpu" else "bfloat16")
        self.real, self.model = load(options.model, options.random_weights, self.dtype)
        self.runs: Runs = {}
        self.found: dict[str, Found] = {}

    def inputs(self, work: Work, start: int, n: int) -> list[Input]:
        return make_inputs(work, self.real, self.options.source(), start, n)

    def torch_sides(self, work: Work) -> dict[str, TorchSide]:
        if self.options.side == "jax":
            return {}
        kinds = {"pytorch": False} | ({"pytorch compiled": True} if self.compiled else {})
        settings = self.options.threads, self.dtype, self.device
        return {name: TorchSide(self.model, work, *settings, compiled) for name, compiled in kinds.items()}

    @property
    def compiled(self) -> bool:
        return self.options.compiled or self.device != "cpu"

    def note(self, side: str, clock: Clock, n: int) -> None:
        own = {stage: seconds / n for stage, seconds in clock.seconds.items()}
        self.runs.setdefault(side, []).append(own)
        console.print(f"  {side}: " + ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in own.items()) + " s")

    def loop(self) -> None:
        """One input through both sides to compare what they find (and to compile), then both timed in turn."""
        options, work = self.options, self.options.work
        ours = JaxSide(self.model, work, options.wave) if options.side != "torch" else None
        theirs = self.torch_sides(work)
        [first] = self.inputs(work, 0, 1)
        initial = initial_adapter(self.model.config, first.id)
        console.print("one input through each side, to compile and to compare")
        if ours:
            self.found["jax"] = ours.improve([first], Clock())
        for name, side in theirs.items():
            self.found[name] = side.improve(first, initial, Clock())
            if options.trainer and name == "pytorch":
                side.train_with_trainer(first, Clock())
        refuse_unequal(compare(self.found), self.dtype)
        for turn in range(options.rounds):
            console.print(f"round {turn + 1} of {options.rounds}, seconds per input")
            wave = self.inputs(work, 1 + turn * options.wave, options.wave)
            if ours:
                clock = Clock()
                ours.improve(wave, clock)
                self.note("jax", clock, len(wave))
            for name, side in theirs.items():
                for one in wave[: options.torch_inputs]:
                    clock = Clock()
                    side.improve(one, None, clock)
                    self.note(name, clock, 1)
            if "pytorch" in theirs and options.trainer:
                clock = Clock()
                theirs["pytorch"].train_with_trainer(wave[0], clock)
                self.note("hf trainer", clock, 1)

    def shared_prefix(self) -> None:
        """Scoring and base answers of inputs with the same long prefix, whose own computation is left out on both
        sides where it is cached: 150 inputs share it."""
        options = self.options
        work = replace(options.work, prefix=options.shared, synthesis=1)
        base, *others = self.inputs(work, 0, (1 + options.rounds) * options.wave)
        inputs = [base, *(one._replace(prefix=base.prefix) for one in others)]
        ours = JaxSide(self.model, work, options.wave, common=base.prefix) if options.side != "torch" else None
        theirs = self.torch_sides(work)
        caches = {name: side.baseline.prefill(base.prefix)[1] for name, side in theirs.items()}
        for turn in range(1 + options.rounds):  # the first one warms up
            wave = inputs[turn * options.wave : (turn + 1) * options.wave]
            clocks: dict[str, tuple[Clock, int]] = {}
            if ours:
                clocks["jax"] = Clock(), len(wave)
                with clocks["jax"][0]("shared prefix"):
                    ours.answer(wave)
            for name, side in theirs.items():
                for stage, cache in (("shared prefix", None), ("shared prefix cached", caches[name])):
                    clock, _ = clocks.setdefault(name, (Clock(), 1))
                    with clock(stage):
                        side.answer(wave[turn % len(wave)], cache)
            if turn:
                for name, (clock, n) in clocks.items():
                    self.note(name, clock, n)


def torch_device(platform: str | None) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and platform != "cpu" else "cpu"


def compare(found: Mapping[str, Found]) -> dict[str, Any]:
    """Largest differences between ours and each PyTorch side, and the share of greedy tokens before they part."""
    if "jax" not in found:
        return {}
    ours = found["jax"]

    def distance(a: Sequence[float], b: Sequence[float]) -> float:
        return float(np.abs(np.subtract(a, b)).max())

    return {
        name: {
            "scores": distance(ours.scores, theirs.scores),
            "losses": distance(ours.losses, theirs.losses),
            "adapted_scores": distance(ours.adapted_scores, theirs.adapted_scores),
            "synthesis": _same(ours.synthesis, theirs.synthesis),
            "answer": _same(ours.answer, theirs.answer),
        }
        for name, theirs in found.items()
        if name != "jax"
    }


def _same(a: Sequence[int], b: Sequence[int]) -> float:
    """The share of tokens up to the first that differs."""
    n_same = next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
    return n_same / len(a)


def refuse_unequal(agreement: Mapping[str, Any], dtype: str) -> None:
    """Shows how well the sides agree.

    Raises:
        InputError: in float32 they differ by more than rounding: then their speed is not to be compared.
    """
    for name, own in agreement.items():
        console.print(
            f"{name} against ours: log-likelihoods differ by {own['scores']:.1e} nats ({own['adapted_scores']:.1e} "
            f"adapted), losses by {own['losses']:.1e}; equal greedy tokens: {own['synthesis']:.0%} of the synthesis, "
            f"{own['answer']:.0%} of the answer"
        )
        differ = max(own["scores"], own["losses"], own["adapted_scores"]) > 1e-2
        if dtype == "float32" and (differ or min(own["synthesis"], own["answer"]) < 1):
            raise InputError("the two sides do not compute the same, so their speed is not to be compared")


# Results


def per_input(runs: Sequence[Mapping[str, float]], stages: Sequence[str]) -> Seconds | None:
    """Seconds of several stages together, over those measurements that have all of them."""
    sums = [sum(run[stage] for stage in stages) for run in runs if all(stage in run for stage in stages)]
    return Seconds.of(sums) if sums else None


def summarise(runs: Runs) -> tuple[dict[str, dict[str, Seconds]], dict[str, float]]:
    """Seconds per input by side and ratio name, and PyTorch's seconds divided by ours.

    The ratios are to the fastest PyTorch side; those to each of the others have its name in front.
    """
    names = {name: (stages, tuple(s.replace("suffix", "all") for s in stages)) for name, stages in STAGES.items()}
    names["shared_prefix"] = ("shared prefix",), ("shared prefix",)
    names["shared_prefix_cached"] = ("shared prefix",), ("shared prefix cached",)
    seconds: dict[str, dict[str, Seconds]] = {}
    for side, own in runs.items():
        for name, (ours, theirs) in names.items():
            if found := per_input(own, ours if side == "jax" else theirs):
                seconds.setdefault(side, {})[name] = found
    if "hf trainer" in seconds and "pytorch" in seconds:  # the rest of the loop is the same
        trainer, plain = seconds["hf trainer"]["train"], seconds["pytorch"]
        for scope in ("all", "suffix"):
            whole = plain[f"end_to_end_{scope}"].median - plain["train"].median + trainer.median
            seconds["hf trainer"][f"end_to_end_{scope}"] = Seconds(whole, whole, whole, trainer.n)
    ratios: dict[str, float] = {}
    for name, ours in seconds.get("jax", {}).items():
        others = {side: own[name].median for side, own in seconds.items() if side != "jax" and name in own}
        strongest = min(others.values(), default=None)
        if strongest is not None:
            ratios[name] = strongest / ours.median
        ratios |= {f"{side}: {name}": value / ours.median for side, value in others.items() if value != strongest}
    return seconds, ratios


def bounds(options: VsPyTorch, model: LanguageModel, machine: Machine) -> dict[str, float]:
    """Seconds per input that our side's useful work takes at the machine's rates."""
    costs = Costs(model.config, model.params["embed"].dtype.itemsize).stages(options.work, options.wave)
    own = {stage: cost.seconds(machine) / options.wave for stage, cost in costs.items()}
    return {name: sum(own[stage] for stage in stages) for name, stages in STAGES.items()}


def report(results: Mapping[str, Any], options: VsPyTorch) -> None:
    seconds, ratios, limits = results["seconds"], results["ratios"], results.get("bounds", {})
    sides = list(seconds)
    lines = []
    for name in dict.fromkeys(name for side in sides for name in seconds[side]):
        figures = [str(seconds[side][name]) if name in seconds[side] else "–" for side in sides]
        ratio = f"{ratios[name]:.2f} ×" if name in ratios else "–"
        goal = f"≥ {GOALS[name]:g} ×" if name in GOALS else ""
        lines.append(Line(name, (*figures, ratio, goal), f"{limits[name]:.3f}" if name in limits else ""))
    show("seconds per input, median (lowest–highest)", ("stage", *sides, "ratio", "goal"), lines)
    console.print("bound: our side's useful work at the machine's rates; `suffix` is less work than PyTorch does")
    if options.json:
        write_json(options.json, results)
    if options.plot:
        draw(options.plot, seconds)


def draw(path: Path, seconds: Mapping[str, Mapping[str, Seconds]]) -> None:
    """Where an input's time goes, a bar per side and scope."""
    stages = {"score": "score", "synthesize": "synthesize", "train": "train", "answer": "answer"}
    with figure(path, figsize=(8, 3.5)) as axes:
        bars = [(side, "") for side in seconds if "answer" in seconds[side]]
        bars += [("jax", "_suffix")] if ("jax", "") in bars else []
        for row, (side, scope) in enumerate(bars):
            left = 0.0
            for index, stage in enumerate(stages):
                own = seconds[side].get(stage + scope, seconds[side].get(stage))
                width = own.median if own else 0.0
                axes.barh(row, width, left=left, color=f"C{index}", label=stage if row == 0 else None)
                left += width
        axes.set_yticks(range(len(bars)), [side + (" (suffix)" if scope else "") for side, scope in bars])
        axes.set_xlabel("seconds per uncertain input")
        axes.legend()


def merge(paths: Sequence[Path]) -> dict[str, Any]:
    """The results of two files, of one side each, as one."""
    both = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    works = [one["work"] for one in both]
    if works[0] != works[1]:
        raise InputError(f"{paths[0]} and {paths[1]} measured different work: {works[0]} and {works[1]}")
    runs: Runs = {}
    found: dict[str, Found] = {}
    for one in both:
        runs |= one["runs"]
        found |= {side: Found(**own) for side, own in one["found"].items()}
    seconds, ratios = summarise(runs)
    return {
        "ratios": ratios, "seconds": seconds, "agreement": compare(found), "work": works[0], "runs": runs,
        "bounds": next((one["bounds"] for one in both if "jax" in one["runs"]), {}),
        "environment": {str(path): one["environment"] for path, one in zip(paths, both, strict=True)},
    }  # fmt: skip


def measure(options: VsPyTorch) -> dict[str, Any]:
    """Runs what the options ask for."""
    load_, compiling = Load(), CompileClock()
    with compiling:
        both = Comparison(options)
        machine = measure_machine(both.model.params["embed"].dtype)
        if "loop" in options.parts:
            both.loop()
        if "shared-prefix" in options.parts:
            both.shared_prefix()
    seconds, ratios = summarise(both.runs)
    found = surroundings(
        both.model, dtype=both.dtype, compile_seconds=compiling.seconds, load=load_.read(), peak_bytes=peak_memory()
    )
    found["threads"] |= {"torch": options.threads if options.side != "jax" else None}
    return {
        "ratios": ratios, "seconds": seconds, "bounds": bounds(options, both.model, machine),
        "machine": machine, "agreement": compare(both.found), "found": both.found, "runs": both.runs,
        "work": asdict(options.work), "wave": options.wave, "environment": found,
    }  # fmt: skip


def main() -> int:
    options = tyro.cli(VsPyTorch, description=__doc__)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the two sides share a GPU's memory
    try:
        choose_platform(options)
        if options.quick:
            options = replace(options, wave=min(options.wave, 8), rounds=1)
        if options.merge:
            results = merge(options.merge)
            refuse_unequal(results["agreement"], "")
        else:
            results = measure(options)
            describe(results["environment"])
            console.print(f"compiling took {results['environment']['compile_seconds']:.0f} s, outside the figures")
            console.print(f"work per input: {results['work']}; waves of {results['wave']}; {results['machine']}")
        report(results, options)
    except InputError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
