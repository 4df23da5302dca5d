"""What a run would take on a mesh of accelerators, by formulas: memory, seconds, inputs per hour, and cost.

Nothing is compiled or run. Memory is `ttsi-jax run --memory`'s formula. Seconds are those of a wave of uncertain
inputs: each stage takes the longest of its arithmetic at the chip's peak, its reading at the chip's bandwidth, and what
it sends at that of the chip's connections, each divided by the share of it that is assumed to be reached (`--reached`).
The formulas are held against compiled programs in docs/scaling.md.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import tyro

from benchmarking import Line, console, show, told, write_json
from bounds import Costs
from chips import CHIPS, GIB, Chip
from tpu_pieces import Flops
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.batching.memory import adapter_size, training_bytes, training_chunk
from ttsi_jax.batching.waves import Shape, bucket
from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.config import RunConfig, find_parts
from ttsi_jax.errors import InputError
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.lora import LoraConfig
from ttsi_jax.model.quantized import Int8
from ttsi_jax.scaling.budget import Takes, base_on, moments
from ttsi_jax.scaling.mesh import check_wave, mesh_shape, share_of, undivided
from ttsi_jax.synthesis import SynthesisConfig
from workload import SHAPES, Work

DTYPES = {"bfloat16": jnp.bfloat16, "int8": Int8(jnp.bfloat16)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan a run on a mesh of accelerators.

    Attributes:
        shape: the model, such as qwen2.5-7b.
        chip: of the mesh.
        mesh: data=D,fsdp=F,model=M, as `ttsi-jax run --mesh`.
        wave: inputs of a wave; by default the largest power of two that fits, at most 64 on each part of the mesh.
        scope: of the adapters.
        adapt_memory: as `ttsi-jax run --adapt.memory`: GiB for the intermediate values of training.
        dtype: of the base.
        reached: the shares of the chip's peak, bandwidth and connections that are assumed to be reached.
        price: US dollars for a chip's hour; by default an assumed one.
        work: what each input asks for.
        json: the file to write the results to.
    """

    shape: str = "qwen2.5-1.5b"
    chip: Literal["v4", "v5e", "v5p", "v6e", "h200"] = "v5e"
    mesh: str = "data=1"
    wave: int | None = None
    scope: Literal["all", "suffix"] = "all"
    adapt_memory: float = 2.0
    dtype: Literal["bfloat16", "int8"] = "bfloat16"
    reached: tuple[float, float, float] = (0.4, 0.6, 0.6)
    price: float | None = None
    work: Work = field(default_factory=lambda: Work(prefix=896, suffix=128, answer=128))
    json: Path | None = None


class Load(NamedTuple):
    """What a stage asks of each chip."""

    flops: float
    bytes: float
    sent: float  # bytes to other chips

    def __add__(self, other: Load) -> Load:  # type: ignore[override]
        return Load(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, times: float) -> Load:  # type: ignore[override]
        return Load(*(times * value for value in self))

    def seconds(self, chip: Chip, reached: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> tuple[float, str]:
        """The longest of the three, and which it is."""
        speeds = (chip.flops, chip.bandwidth, chip.connections)
        each = [amount / (speed * share) for amount, speed, share in zip(self, speeds, reached, strict=True)]
        return max(zip(each, ("arithmetic", "memory", "connections"), strict=True))


class Loads:
    """The loads of a wave's passes through a decoder on a mesh, with `rows` inputs on each part of it."""

    def __init__(self, config: DecoderConfig, mesh: tuple[int, int, int], rows: int, rank: int, weight: float = 2.0):
        _, self.fsdp, self.model = mesh
        self.config, self.rows = share_of(config, self.model), rows
        self.flops, self.costs = Flops(self.config, rank), Costs(self.config, 2, weight=weight)
        self.adapter = 4 * adapter_size(self.config, LoraConfig(rank))  # bytes on a chip
        whole = undivided(config, self.model)
        products = {"attention": 1 if "keys and values" in whole else 3, "MLP": 2}  # that begin from the stream
        found = [n for part, n in products.items() if part not in whole]
        self.n_parts, self.n_products = config.n_layers * len(found), config.n_layers * sum(found)
        self.n_sums = self.n_parts + ("vocabulary" not in whole)

    def read(self, rows: int, tokens: int, past: float, projected: int, adapted: bool = False) -> Load:
        """One pass forward over `tokens` of each row after `past` ones."""
        flops = rows * self.flops.read(tokens, int(past), projected, adapted)
        n_bytes = self.costs.read(rows, tokens, past, projected).bytes + adapted * rows * self.adapter
        return Load(flops, n_bytes, self.sums(rows * tokens) + self.gathered())

    def decode(self, steps: int, past: int, adapted: bool = False) -> Load:
        """Steps of one token for each row."""
        return self.read(self.rows, 1, past + steps / 2, 1, adapted) * steps

    def train(
        self, tokens: int, past: int, trained: int, steps: int, chunk: int, remat: bool, settings: AdaptConfig
    ) -> Load:
        """Training of all rows, a chunk at a time, with `remat` a pass more; what it computes is written and read."""
        passes, costs = 2 + remat, self.costs
        flops = self.flops.train(tokens, past, trained, remat) * chunk
        kept = training_bytes(self.config, settings, tokens, past, trained)  # twice, since they are counted as float32
        n_bytes = passes * costs.base + chunk * (past * costs.cache + kept + 4 * self.adapter)
        sent = self.trained(chunk * tokens, passes) + passes * self.gathered()
        return Load(flops, n_bytes, sent) * (steps * self.rows / chunk)

    def sums(self, tokens: int) -> float:
        """Bytes that a chip sends for the sums of the stream over `model`: two in a layer and one of embeddings, where
        what they sum over is divided."""
        return 2 * self.n_sums * self.stream(tokens)

    def trained(self, tokens: int, passes: int) -> float:
        """The same for a training step, of which the backward pass is the last. As a TPU's compiler does it, a device
        normalises its share of the sums, which is gathered for the products; and what comes back from each product is
        summed apart."""
        gathers, backward = passes * self.n_parts, 2 * self.n_products
        return (passes - 1) * self.sums(tokens) + (gathers + backward) * self.stream(tokens)

    def stream(self, tokens: int) -> float:
        """Bytes that a chip sends to gather the stream of so many tokens over `model`; half of what a sum takes."""
        return 2 * tokens * self.config.hidden_size * (self.model - 1) / self.model

    def gathered(self) -> float:
        """Bytes that a chip sends for a pass whose layers are gathered over `fsdp`."""
        return self.costs.base * (self.fsdp - 1) / self.fsdp


def stages(options: Plan, config: DecoderConfig) -> dict[str, Load]:
    """The loads of a wave's stages."""
    mesh, work, whole = mesh_shape(options.mesh), options.work, options.scope == "all"
    rows, settings = rows_of(options), AdaptConfig(scope=options.scope, memory=options.adapt_memory)
    of = Loads(config, mesh, rows, settings.rank, 1.0 if options.dtype == "int8" else 2.0)
    prompt, packed = work.prefix + work.suffix, work.packed
    past = 0 if whole else work.prefix
    tokens, trained = prompt - past, bucket(work.trained, 64)
    chunk, remat = training_chunk(of.config, settings, rows, tokens, past, trained, recomputes=True)
    return {
        "prefix": of.read(rows, work.prefix, 0, 0),
        "score": of.read(rows, work.suffix + packed, work.prefix, work.projected),
        "write": of.read(rows, work.suffix, work.prefix, 1) + of.decode(work.synthesis, prompt),
        "train": of.train(tokens, past, trained, work.steps, chunk, remat, settings),
        "read adapted": of.read(rows, tokens + packed, past, work.projected, adapted=True),
        "answer": of.decode(work.answer, prompt, adapted=True),
    }


def with_wave(options: Plan, config: DecoderConfig) -> Plan:
    """With the largest wave that fits, where none is given.

    Raises:
        InputError: none fits, or the one that is given is empty, or the mesh does not divide it.
    """
    parts = prod(mesh_shape(options.mesh)[:2])
    if options.wave is not None:
        if options.wave < 1:
            raise InputError(f"--wave is {options.wave}; it must be at least 1")
        check_wave(options.wave, parts)
        return options
    every = [replace(options, wave=parts * rows) for rows in (64, 32, 16, 8, 4, 2, 1)]
    fits = (plan for plan in every if memory(plan, config).total <= CHIPS[options.chip].memory)
    if (found := next(fits, None)) is None:
        raise InputError(
            f"a wave of {parts} takes {memory(every[-1], config)} of each {options.chip}: give it more in --mesh"
        )
    return found


def rows_of(options: Plan) -> int:
    """Inputs on each part of the mesh."""
    assert options.wave is not None
    return options.wave // prod(mesh_shape(options.mesh)[:2])


def memory(options: Plan, config: DecoderConfig) -> Takes:
    """Bytes on each chip, with the chunk of training that `options.adapt_memory` allows."""
    work, rows = options.work, rows_of(options)
    settings = AdaptConfig(scope=options.scope, memory=options.adapt_memory, epochs=work.steps)
    answer, synthesis = AnswerConfig(max_tokens=work.answer), SynthesisConfig(max_tokens=work.synthesis)
    run = RunConfig(adapt=settings, answer=answer, synthesis=synthesis)
    base = base_on(config, DTYPES[options.dtype], mesh_shape(options.mesh))
    shape = Shape(work.prefix, work.suffix, work.candidates, work.name)
    return moments(base, run, find_parts(run, {}), shape, rows).with_training(options.adapt_memory * GIB)


def report(options: Plan, config: DecoderConfig) -> dict[str, float]:
    assert options.wave is not None
    chip, loads, takes = CHIPS[options.chip], stages(options, config), memory(options, config)
    n_chips, lines, total = prod(mesh_shape(options.mesh)), [], 0.0
    for name, load in loads.items():
        seconds, limit = load.seconds(chip, options.reached)
        total += seconds
        figures = (f"{load.flops / 1e12:,.2f}", f"{load.bytes / 1e9:,.1f}", f"{load.sent / 1e9:,.1f}")
        lines.append(Line(name, (*figures, f"{seconds:.2f}", limit), f"{load.seconds(chip)[0]:.2f} s"))
    title = f"{options.shape} in {options.dtype} on {n_chips} {options.chip} ({options.mesh}), waves of {options.wave}"
    show(title, ("of each chip", "TFLOP", "GB read", "GB sent", "seconds", "limited by"), lines)
    for part, size in undivided(config, mesh_shape(options.mesh)[-1]).items():
        console.print(f"{size} cannot be divided, so every chip has the {part} whole", markup=False)
    hourly = 3600 * options.wave / total
    price = chip.price if options.price is None else options.price
    found = {
        "memory": takes.total, "share": takes.total / chip.memory, "seconds": total, "inputs_per_hour": hourly,
        "dollars_per_thousand": 1000 * n_chips * price / hourly,
    }  # fmt: skip
    fits = "" if found["share"] <= 1 else ": it does not fit; without --wave the largest that does is taken"
    console.print(f"memory of each chip: {takes}, {found['share']:.0%} of it{fits}", style="red" if fits else None)
    console.print(
        f"{total / options.wave:.3f} s for an uncertain input, {hourly:,.0f} an hour, "
        f"${found['dollars_per_thousand']:.2f} for 1,000 at ${price:.2f} for a chip's hour"
    )
    return found


@told
def main() -> int:
    options = tyro.cli(Plan, description=__doc__)
    if not all(0 < share <= 1 for share in options.reached):
        raise InputError(f"--reached is {' '.join(map(str, options.reached))}; shares are above 0 and at most 1")
    if options.shape not in SHAPES:
        raise InputError(f"no shape is called '{options.shape}'; known: {', '.join(SHAPES)}")
    config = from_hf(SHAPES[options.shape] | {"rms_norm_eps": 1e-5})
    options = with_wave(options, config)
    found = report(options, config)
    if options.json:
        write_json(options.json, {"options": asdict(options), "found": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
