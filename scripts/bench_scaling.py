"""How the seconds per input change with the wave, the candidates, the prompt's length and the number of inputs.

- waves: decoding gains by sharing the weights' way through memory, training less. Gives what an uncertain input costs
  against a plain one (scope `suffix`; the base's answer to an uncertain input is a measurement and left out).
- candidates: scoring twelve of them against one prefill of the same prompt.
- prompts: scoring and a base answer, by the length of the prefix.
- inputs: whole runs of a tiny random model, where all but the model's arithmetic shows: seconds per input should not
  grow with their number.
Devices are not measured; the JSON says how many there were.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from benchmarking import (
    Line,
    MachineLoad,
    Options,
    Seconds,
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
from bounds import Costs, Machine, measure_machine
from ttsi_jax import AdaptConfig, AnswerConfig, Example, RunConfig, SynthesisConfig, Task, Tool, run
from ttsi_jax.batching.waves import PREFILL_ROWS, pad
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.model.scoring import prefill_wave
from ttsi_jax.runs.clock import CompileClock
from ttsi_jax.uncertainty import GateConfig
from workload import Clock, Input, JaxSide, Work, load, make_inputs, random_model

PLAIN = ("score", "base answer")
UNCERTAIN = ("score", "synthesize", "train suffix", "decode suffix")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True, kw_only=True)
class Scaling(Options):
    """Measure seconds per input against sizes.

    Attributes:
        parts: what to measure.
        waves: sizes of waves.
        prompts: lengths of prefixes, in tokens.
        inputs: numbers of inputs of a run.
        wave: inputs of a wave where the wave is not what varies.
        rounds: how often a thing is timed.
        work: what each input asks for.
    """

    parts: tuple[Literal["waves", "candidates", "prompts", "inputs"], ...] = (
        "waves",
        "candidates",
        "prompts",
        "inputs",
    )
    waves: tuple[int, ...] = (1, 4, 8, 16)
    prompts: tuple[int, ...] = (256, 512, 1024, 2048)
    inputs: tuple[int, ...] = (64, 500, 2000)
    wave: int = 8
    rounds: int = 3
    work: Work = field(default_factory=Work)

    def quickly(self) -> Scaling:
        return replace(self, waves=(self.waves[0], self.waves[-1]), prompts=self.prompts[:3:2], rounds=1)


class Measurements:
    """A model and the machine, and what was measured so far."""

    def __init__(self, options: Scaling):
        self.options = options
        self.real, self.model = load(options.model, options.random_weights, options.dtype)
        self.machine = measure_machine(self.model.params["embed"].dtype)
        self.costs = Costs(self.model.config, self.model.params["embed"].dtype.itemsize)
        self.seconds: dict[str, dict[str, Any]] = {}
        self.ratios: dict[str, float] = {}

    def inputs(self, work: Work, start: int, n: int) -> list[Input]:
        return make_inputs(work, self.real, self.options.source(), start, n)

    def bound(self, work: Work, rows: int, stages: Sequence[str]) -> float:
        """Seconds per input that the useful work of these stages takes at the machine's rates."""
        costs = self.costs.stages(work, rows)
        costs["base answer"] = self.costs.decode(rows, work.answer - 1, work.prefix + work.suffix)
        return sum(costs[stage].seconds(self.machine) for stage in stages) / rows

    def waves(self) -> None:
        work, lines = self.options.work, []
        own = self.seconds.setdefault("waves", {})
        for size in self.options.waves:
            side = JaxSide(self.model, work, size)
            [first, *others] = self.inputs(work, 0, 1 + size * self.options.rounds)
            side.improve([first], Clock(), ["suffix"])  # compiles
            side.answer([first])
            rounds = [_one_wave(side, others[i * size : (i + 1) * size]) for i in range(self.options.rounds)]
            stages = {name: Seconds.of([one[name] for one in rounds]) for name in rounds[0]}
            own[str(size)] = stages
            totals = [sum(stages[name].median for name in names) for names in (PLAIN, UNCERTAIN)]
            rate = work.answer / stages["decode suffix"].median
            bounds = [self.bound(work, size, names) for names in (PLAIN, UNCERTAIN)]
            figures = (*(f"{x:.2f}" for x in totals), f"{totals[1] / totals[0]:.2f}", f"{rate:.0f}")
            lines.append(Line(str(size), figures, f"{bounds[0]:.2f}, {bounds[1]:.2f} s"))
            self.ratios[f"uncertain_to_plain_{size}"] = totals[1] / totals[0]
            self.ratios[f"decode_{size}_to_{self.options.waves[0]}"] = (
                own[str(self.options.waves[0])]["decode suffix"].median / stages["decode suffix"].median
            )
        headings = ("wave", "plain, s per input", "uncertain, s per input", "ratio (goal ≤ 4)", "tokens/s, adapted")
        show("waves: decoding should be ≥ 5 times as fast at 16 as at 1 (CPU)", headings, lines)

    def candidates(self) -> None:
        """Both take PREFILL_ROWS inputs whose prompts have not been seen, each with its whole prompt."""
        work = replace(self.options.work, candidates=12)
        side, count = JaxSide(self.model, work, PREFILL_ROWS), 0
        length = side.shape().prefix + side.shape().suffix

        def fresh() -> list[Input]:
            nonlocal count
            count += PREFILL_ROWS
            return self.inputs(work, count, PREFILL_ROWS)

        def score() -> None:
            inputs = fresh()
            side.read(side.rows(inputs), inputs)

        def prefill() -> None:
            prompts = [one.prefix + one.request for one in fresh()]
            ids, lengths = map(jnp.asarray, pad(prompts, (PREFILL_ROWS, length)))
            jax.block_until_ready(prefill_wave(self.model.config, self.model.params, ids, lengths))

        seconds = alternate({"score": score, "prefill": prefill}, max(3, self.options.rounds))
        self.seconds["candidates"] = seconds
        ratio = self.ratios["score_12_to_prefill"] = seconds["score"].median / seconds["prefill"].median
        prompt = work.prefix + work.suffix
        costs = {
            "score": self.costs.stages(work, PREFILL_ROWS)["score"],
            "prefill": self.costs.read(PREFILL_ROWS, prompt, projected=0),
        }
        lines = [
            Line(
                name,
                (str(own), f"{ratio:.2f}" if name == "score" else ""),
                f"{costs[name].seconds(self.machine):.2f} s",
            )
            for name, own in seconds.items()
        ]
        title = f"candidates: 12 scored, against one prefill, {PREFILL_ROWS} prompts of {prompt} tokens"
        show(title, ("", "seconds", "ratio (goal ≤ 1.3)"), lines)

    def prompts(self) -> None:
        own, lines = self.seconds.setdefault("prompts", {}), []
        for length in self.options.prompts:
            work = replace(self.options.work, prefix=length, synthesis=1)
            side = JaxSide(self.model, work, self.options.wave)
            [first, *others] = self.inputs(work, 0, 1 + self.options.wave * self.options.rounds)
            side.answer([first])
            rounds = []
            for turn in range(self.options.rounds):
                wave = others[turn * self.options.wave : (turn + 1) * self.options.wave]
                rounds.append(_plain(side, wave))
            stages = {name: Seconds.of([one[name] for one in rounds]) for name in PLAIN}
            own[str(length)] = stages
            figures = tuple(str(stages[name]) for name in PLAIN)
            bounds = [f"{self.bound(work, self.options.wave, [name]):.3f}" for name in PLAIN]
            lines.append(Line(str(length), figures, ", ".join(bounds) + " s"))
        title = f"prompts: by tokens of the prefix, waves of {self.options.wave}"
        show(title, ("prefix", "score, s per input", f"decode {self.options.work.answer}, s per input"), lines)

    def number_of_inputs(self) -> None:
        model, own, lines = byte_model(), self.seconds.setdefault("inputs", {}), []
        config = RunConfig(
            gate=GateConfig(tau=1.1), answer=AnswerConfig(form="keys", max_tokens=48), wave=16,
            synthesis=SynthesisConfig(max_tokens=32), adapt=AdaptConfig(scope="suffix"),
        )  # fmt: skip
        run(model, byte_task(min(self.options.inputs)), config)  # compiles
        for n in self.options.inputs:
            start = time.perf_counter()
            result = run(model, byte_task(n), config)
            seconds = (time.perf_counter() - start - result.summary["compile_seconds"]) / n
            own[str(n)] = {"per input": seconds, "adapted": result.summary["adapted"] / n}
            first = own[str(self.options.inputs[0])]["per input"]
            figures = (f"{1e3 * seconds:.2f}", f"{seconds / first:.2f}", f"{result.summary['adapted'] / n:.0%}")
            lines.append(Line(str(n), figures, "first ± 10 %"))
            self.ratios[f"seconds_{n}_to_{self.options.inputs[0]}_inputs"] = seconds / first
        headings = ("inputs", "ms per input", "against the first", "adapted")
        show("inputs: whole runs of a tiny random model, waves of 16", headings, lines)


def _plain(side: JaxSide, wave: Sequence[Input]) -> dict[str, float]:
    """Seconds per input of scoring and the base's answer."""
    clock, rows = Clock(), side.rows(wave)
    with clock("score"):
        _, prompts = side.read(rows, wave)
    with clock("base answer"):
        side.decode(prompts, side.work.answer)
    return {name: seconds / len(wave) for name, seconds in clock.seconds.items()}


def _one_wave(side: JaxSide, wave: Sequence[Input]) -> dict[str, float]:
    """Seconds per input of all stages; the base's answer reads prompts whose prefixes are there."""
    clock = Clock()
    side.improve(wave, clock, ["suffix"])
    own = {name: seconds / len(wave) for name, seconds in clock.seconds.items()}
    return own | {"base answer": _plain(side, wave)["base answer"]}


def byte_model() -> LanguageModel:
    """A tiny random model of bytes, with a chat template, which ends its lines often enough to write requests."""
    special = ["<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHAT)
    model = random_model("tiny", "float32")
    [newline] = wrapped.encode("\n", add_special_tokens=False)
    params = model.params | {"embed": model.params["embed"].at[newline].multiply(4.0)}
    return model._replace(params=params, tokenizer=wrapped, stop_ids=(1,))


def byte_task(n: int) -> Task:
    """Inputs with a tool list of their own each; the functions take no arguments, so that pairs are easily valid."""
    nothing = {"type": "object", "properties": {}, "required": []}
    names = ("ping", "stop", "list")

    def example(index: int) -> Example:
        tools = tuple(Tool(f"{name}_{index}", f"To {name} number {index}.", nothing) for name in names)
        return Example(str(index), ({"role": "user", "content": f"Please {names[index % 3]} {index}"},), tools, None)

    return Task("bytes", tuple(map(example, range(n))))


def measure(options: Scaling) -> dict[str, Any]:
    load_, compiling = MachineLoad(), CompileClock()
    with compiling:
        found = Measurements(options)
        parts = {
            "waves": found.waves,
            "candidates": found.candidates,
            "prompts": found.prompts,
            "inputs": found.number_of_inputs,
        }
        for part in options.parts:
            parts[part]()
    return {
        "ratios": found.ratios, "seconds": found.seconds, "machine": found.machine, "work": asdict(options.work),
        "environment": surroundings(
            found.model, compile_seconds=compiling.seconds, load=load_.read(), peak_bytes=peak_memory(), devices_used=1
        ),
    }  # fmt: skip


def draw(path: Path, seconds: Mapping[str, Mapping[str, Any]]) -> None:
    """Seconds per input by size, one line for each thing that was measured, relative to its smallest size."""
    lines = {
        "wave: uncertain": ("waves", lambda own: sum(own[name].median for name in UNCERTAIN)),
        "wave: decode": ("waves", lambda own: own["decode suffix"].median),
        "prefix: score": ("prompts", lambda own: own["score"].median),
        "prefix: decode": ("prompts", lambda own: own["base answer"].median),
        "inputs of a run": ("inputs", lambda own: own["per input"]),
    }
    with figure(path, figsize=(7, 4)) as axes:
        for label, (part, read) in lines.items():
            if part in seconds:
                sizes, values = list(map(int, seconds[part])), list(map(read, seconds[part].values()))
                axes.loglog([n / sizes[0] for n in sizes], [x / values[0] for x in values], "o-", label=label)
        axes.set_xlabel("size, relative to the smallest")
        axes.set_ylabel("seconds per input, relative")
        axes.legend(fontsize="small")


@told
def main() -> int:
    options = tyro.cli(Scaling, description=__doc__)
    choose_platform(options.platform)
    results = measure(options.quickly() if options.quick else options)
    machine: Machine = results["machine"]
    describe(results["environment"])
    console.print(f"compiling took {results['environment']['compile_seconds']:.0f} s, outside the figures; {machine}")
    console.print(f"work per input: {results['work']}")
    if options.json:
        write_json(options.json, results)
    if options.plot:
        draw(options.plot, results["seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
