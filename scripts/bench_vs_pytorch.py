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

import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarking import (
    MachineLoad,
    Options,
    choose_platform,
    console,
    describe,
    n_processors,
    peak_memory,
    surroundings,
    told,
)
from bounds import Costs, Machine, measure_machine
from comparison import STAGES, Runs, compare, merge, refuse_unequal, report, summarise
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.errors import InputError
from ttsi_jax.model.lora import Adapter
from ttsi_jax.runs.clock import CompileClock
from workload import Clock, Found, Input, JaxSide, Work, default_dtype, initial_adapter, load, make_inputs


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
        self.device = "cpu" if options.side == "jax" else torch_device(options)
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


def torch_device(options: VsPyTorch) -> str:
    import jax
    import torch

    device = "cuda" if torch.cuda.is_available() and options.platform != "cpu" else "cpu"
    ours = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if options.side == "both" and ours != device:
        raise InputError(f"JAX runs on {ours}, PyTorch on {device}: time each with --side, and --merge the files")
    return device


def bounds(options: VsPyTorch, model: LanguageModel, machine: Machine) -> dict[str, float]:
    """Seconds per input that our side's useful work takes at the machine's rates."""
    costs = Costs(model.config, model.params["embed"].dtype.itemsize).stages(options.work, options.wave)
    own = {stage: cost.seconds(machine) / options.wave for stage, cost in costs.items()}
    return {name: sum(own[stage] for stage in stages) for name, stages in STAGES.items()}


def measure(options: VsPyTorch) -> dict[str, Any]:
    """Runs what the options ask for."""
    load_, compiling = MachineLoad(), CompileClock()
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


@told
def main() -> int:
    options = tyro.cli(VsPyTorch, description=__doc__)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the two sides share a GPU's memory
    choose_platform(options.platform)
    if options.quick:
        options = replace(options, wave=min(options.wave, 8), rounds=1)
    if options.merge:
        results = merge(options.merge)
        dtypes = {one["dtype"] for one in results["environment"].values()}
        refuse_unequal(results["agreement"], dtypes.pop() if len(dtypes) == 1 else "mixed")
    else:
        results = measure(options)
        describe(results["environment"])
        console.print(f"compiling took {results['environment']['compile_seconds']:.0f} s, outside the figures")
        console.print(f"work per input: {results['work']}; waves of {results['wave']}; {results['machine']}")
    report(results, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
