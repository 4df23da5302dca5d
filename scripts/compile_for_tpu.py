"""Compiles every program of a run for TPUs, on a machine that has none, and tells what each chip takes and does.

Memory is the compiler's own account of the real program, or its refusal. FLOPs are its counts of pieces without loops
(see `tpu_pieces.py`), times how often a program does them, with their ratio to a count by hand; bytes are the pieces'
arguments (the base for every pass through it) and results once, and their temporaries twice. Seconds are estimated
from them: each piece takes the longest of its arithmetic at the chip's peak, its bytes at the chip's bandwidth, and on
a mesh what its collectives send at that of the chip's connections. Nothing is run: this is how long a program takes
that loses no time elsewhere. The share compares them with the useful work of `bounds.py`, divided over the chips.

Needs libtpu: pip install -e ".[tpu-aot]"
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.errors import JaxRuntimeError
from jax.sharding import AbstractMesh, AxisType, Mesh

from benchmarking import Line, console, show, told, write_json
from bounds import Cost, Costs
from chips import CHIPS, GIB, Chip
from collectives import collectives
from plan import Loads
from tpu_pieces import NOTHING, Counts, Flops, Piece, first_layers, pieces
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.batching.waves import Pair, Shape, prefill_rows, training_shape
from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.errors import InputError
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.quantized import Int8
from ttsi_jax.model.sharding import ROWS, map_rows
from ttsi_jax.rules import adamw, answer_cross_entropy
from ttsi_jax.scaling.budget import base_on, state_bytes, temporaries
from ttsi_jax.scaling.mesh import AXES, Layout, check_wave, device_bytes, mesh_shape
from ttsi_jax.scaling.programs import SCOPES, Program, Sizes, placed, run_programs
from workload import SHAPES, Work

BASES = {  # how a base is kept: its dtype, and bytes of a weight
    "bfloat16": (jnp.bfloat16, 2.0),
    "float32": (jnp.float32, 4.0),
    "int8": (Int8(jnp.bfloat16), 1.0),
    "q8_0": (Int8(jnp.bfloat16, group=32), 34 / 32),
}
FLAT, DEEP = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8"}, {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"}
TOPOLOGIES = {"v4": DEEP, "v5e": FLAT, "v5p": DEEP, "v6e": FLAT}  # by their number of chips


@dataclass(frozen=True, kw_only=True)
class Compile:
    """Compile a run's programs for a TPU.

    Attributes:
        shape: the model, such as qwen2.5-1.5b.
        chip: the kind of TPU.
        mesh: data=D,fsdp=F,model=M, as `ttsi-jax run --mesh`; by default one chip.
        wave: inputs of a wave.
        scopes: of the adapters.
        adapt_memory: as `ttsi-jax run --adapt.memory`: GiB for the intermediate values of training.
        dtype: of the base; `int8` has a scale per channel, `q8_0` one per 32 inputs, as from such a GGUF file.
        programs: only these, by name; by default all.
        only: `memory` compiles the real programs alone, `work` the pieces alone.
        work: what each input asks for.
        json: the file to write the results to.
    """

    shape: str = "qwen2.5-1.5b"
    chip: Literal["v4", "v5e", "v5p", "v6e"] = "v5e"
    mesh: str = "data=1"
    wave: int = 32
    scopes: tuple[Literal["all", "suffix"], ...] = SCOPES  # type: ignore[assignment]
    adapt_memory: float = 2.0
    dtype: Literal["bfloat16", "float32", "int8", "q8_0"] = "bfloat16"
    programs: tuple[str, ...] = ()
    only: Literal["memory", "work"] | None = None
    work: Work = field(default_factory=lambda: Work(prefix=896, suffix=128, answer=128))
    json: Path | None = None


class Memory(NamedTuple):
    """Bytes of a compiled program on one chip."""

    arguments: int
    temporaries: int
    results: int  # that are not written over arguments
    code: int

    @property
    def total(self) -> int:
        return sum(self)


def make_mesh(chip: str, text: str) -> Mesh:
    """Chips of the smallest topology that has enough, none of which is here.

    Raises:
        InputError: libtpu is not installed, or the text means no mesh of so few chips.
    """
    shape = mesh_shape(text)
    name = next((name for n, name in TOPOLOGIES[chip].items() if n >= prod(shape)), None)
    if name is None:
        raise InputError(f"--mesh {text} takes {prod(shape)} chips; at most {max(TOPOLOGIES[chip])} are compiled for")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('libtpu is not installed: pip install -e ".[tpu-aot]"')
    # What libtpu would ask a TPU machine for.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken, so several processes may compile
    }
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    bounds = {"chips_per_host_bounds": (1, 1, 1)} if name == "1x1" else {}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:{name}", **bounds)
    devices = np.array(topology.devices[: prod(shape)]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def memory_of(program: Program, mesh: Mesh) -> tuple[Memory | str, float]:
    """What a program takes of each chip, or why it does not fit; and the seconds that compiling took."""
    start = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            found = program.placed(mesh).trace().lower().compile().memory_analysis()
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([0-9.]+[MGT]) of ([0-9.]+[MGT])", str(error))
        return f"needs {used[1]} of {used[2]}" if used else "does not fit", time.perf_counter() - start
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    sizes = (found.argument_size_in_bytes, found.temp_size_in_bytes, results, found.generated_code_size_in_bytes)
    return Memory(*sizes), time.perf_counter() - start


class Estimate(NamedTuple):
    """What one call of a program does on each chip, as the compiler counts it, and how long that takes at least."""

    work: Counts
    by_hand: float  # FLOPs
    seconds: float


def estimate(
    name: str, made: Mapping[int, Program], config: DecoderConfig, rank: int, chip: Chip, mesh: Mesh
) -> Estimate:
    """`made`: the program for a decoder of one layer, of two, and of all."""
    parts = prod(mesh.shape[axis] for axis in ROWS)
    of = lambda n: pieces(name, made[n], Flops(first_layers(config, n), rank), parts)  # noqa: E731
    total, by_hand, seconds = NOTHING, 0.0, 0.0
    for one, two, whole in zip(*map(of, (1, 2, config.n_layers)), strict=True):
        first, second = (_count(first_layers(config, n), piece, mesh) for n, piece in ((1, one), (2, two)))
        work = (first + (second + first * -1) * (config.n_layers - 1)) * whole.times
        total, by_hand = total + work, by_hand + whole.flops * whole.times / mesh.size
        seconds += max(work.flops / chip.flops, work.bytes / chip.bandwidth, work.sent / chip.connections)
    return Estimate(total, by_hand, seconds)


def _count(config: DecoderConfig, piece: Piece, mesh: Mesh) -> Counts:
    def on_parts(params: Any, *rows: Any) -> Any:
        return map_rows(piece.function, (params,), rows)

    function, arguments = piece.function if piece.divided else on_parts, placed(config, mesh, *piece.arguments)
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).trace(*arguments).lower().compile()
    memory: Any = compiled.memory_analysis()
    # The compiler's "bytes accessed" also count what moves within the chip: four times a decoding step's true reading.
    outside = memory.argument_size_in_bytes + memory.output_size_in_bytes + 2 * memory.temp_size_in_bytes
    outside += (piece.passes - 1) * sum(map(device_bytes, jax.tree.leaves(arguments[0])))
    traffic = collectives(compiled.as_text() or "", mesh.size)
    flops = compiled.cost_analysis()["flops"]  # pyright: ignore[reportOptionalSubscript]
    return Counts(flops, outside, *traffic)


def useful(options: Compile, config: DecoderConfig, parts: int) -> dict[str, Cost]:
    """The work that each program's call cannot avoid, all chips together."""
    itemsize = 4 if options.dtype == "float32" else 2
    costs, work, n = Costs(config, itemsize, weight=BASES[options.dtype][1]), options.work, options.wave
    prompt, packed = work.prefix + work.suffix, work.candidates * (work.name - 1)
    found = {
        "prefill": costs.read(prefill_rows(n // parts) * parts, work.prefix, projected=0),
        "score": costs.read(n, work.suffix + packed, work.prefix, packed + 1),
        "decode": costs.decode(n, work.answer, prompt),
    }
    for scope, past in (("all", 0), ("suffix", work.prefix)):
        read = costs.read(n, prompt + packed - past, past, packed + 1, adapted=True)
        found[f"adapt, {scope}"] = costs.train(n, prompt - past, past, work.trained, work.steps) + read
        found[f"decode, {scope}"] = costs.decode(n, work.answer, prompt, adapted=True)
    return found


class Run(NamedTuple):
    """A run's programs, by the number of the decoder's layers: one, two, and all."""

    config: DecoderConfig
    sizes: Sizes
    settings: AdaptConfig
    programs: dict[int, dict[str, Program]]


def run_of(options: Compile) -> Run:
    """The run that the options mean.

    Raises:
        InputError: no such model, or the mesh does not divide the wave.
    """
    if options.shape not in SHAPES:
        raise InputError(f"no shape is called '{options.shape}'; known: {', '.join(SHAPES)}")
    work, config = options.work, from_hf(SHAPES[options.shape] | {"rms_norm_eps": 1e-5})
    mesh = cast(Mesh, AbstractMesh(mesh_shape(options.mesh), AXES))
    check_wave(options.wave, Layout(config, mesh).parts)
    shape = Shape(work.prefix, work.suffix, work.candidates, work.name)
    pair = Pair((0,) * (work.suffix - work.trained), (0,) * work.trained)
    sizes = Sizes(options.wave, shape, *training_shape(shape, [[pair]]), work.answer)
    settings = AdaptConfig(epochs=work.steps, memory=options.adapt_memory)
    how = (BASES[options.dtype][0], sizes, settings, adamw(work.lr), answer_cross_entropy, options.scopes)
    layers = sorted({1, 2, config.n_layers})
    return Run(config, sizes, settings, {n: run_programs(first_layers(config, n), *how, mesh=mesh) for n in layers})


def measure(options: Compile) -> dict[str, Any]:
    mesh, chip = make_mesh(options.chip, options.mesh), CHIPS[options.chip]
    config, sizes, settings, every = run_of(options)
    parts, whole = prod(mesh.shape[axis] for axis in ROWS), every[config.n_layers]
    if unknown := set(options.programs) - whole.keys():
        raise InputError(f"no program is called '{min(unknown)}'; there are {', '.join(whole)}")
    found: dict[str, Any] = {}
    for name in options.programs or tuple(whole):
        console.print(f"compiling {name} …")
        how = whole[name].options
        own: dict[str, Any] = {"chunk": how.get("chunk"), "remat": how.get("remat")}
        if options.only != "work":
            own["memory"], own["compile_seconds"] = memory_of(whole[name], mesh)
        if options.only != "memory":
            made = {n: _with_chunk(programs[name], how) for n, programs in every.items()}
            own["estimate"] = estimate(name, made, config, settings.rank, chip, mesh)
            own["bound_seconds"] = useful(options, config, parts)[name].seconds(chip.machine) / mesh.size
        own["formula"] = by_formula(name, whole[name], options, config, sizes, mesh)
        found[name] = own
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return {
        "shape": options.shape, "chip": options.chip, "mesh": options.mesh, "wave": options.wave,
        "dtype": options.dtype, "memory": options.adapt_memory, "work": asdict(options.work), "programs": found,
        "versions": versions,
    }  # fmt: skip


class Formula(NamedTuple):
    """What `--memory` and `plan.py` count with."""

    memory: float  # bytes, code not counted
    seconds: float  # at least
    sent: float  # bytes


def by_formula(
    name: str, program: Program, options: Compile, config: DecoderConfig, sizes: Sizes, mesh: Any
) -> Formula:
    """Of a program on one chip."""
    shape, work, (_, _, scope) = mesh_shape(options.mesh), options.work, name.rpartition(", ")
    rows, rule, how = sizes.wave // (shape[0] * shape[1]), adamw(work.lr), program.options
    settings = AdaptConfig(scope="suffix" if scope == "suffix" else "all", epochs=work.steps)
    dtype, weight = BASES[options.dtype]
    base = base_on(config, dtype, shape)
    own = sizes._replace(wave=rows)
    of = temporaries(base, settings, state_bytes(base.config, settings, rule), own, remat=how.get("remat"))
    loads = Loads(config, shape, rows, settings.rank, weight)
    prompt, packed = work.prefix + work.suffix, work.packed
    if name == "prefill":
        beside, load = of.prefill, loads.read(prefill_rows(rows), work.prefix, 0, 0)
    elif name == "score":
        beside, load = of.score, loads.read(rows, work.suffix + packed, work.prefix, work.projected)
    elif name.startswith("decode"):
        beside, load = of.decode, loads.decode(work.answer, prompt, adapted=name != "decode")
    else:
        past = 0 if scope == "all" else work.prefix
        length = sizes.sequence + work.prefix - past
        load = loads.train(length, past, sizes.trained, work.steps, how["chunk"], how["remat"], settings)
        load += loads.read(rows, prompt - past + packed, past, work.projected, adapted=True)
        beside = of.adapt(how["chunk"])
    _, params, *others = program.placed(mesh).arguments
    if name == "prefill":  # of the last layer only keys and values are wanted, and of the head nothing
        last = config.n_layers - 1
        wanted = {part: params["layers"][last][part] for part in ("attention_norm", "k", "v")}
        params = {"embed": params["embed"], "layers": params["layers"] | {last: wanted}}
    held = sum(device_bytes(x) for x in jax.tree.leaves((params, others)) if isinstance(x, jax.ShapeDtypeStruct))
    held += 0 if "chunk" in how else base.gathered  # training counts it itself
    return Formula(held + beside, load.seconds(CHIPS[options.chip])[0], load.sent)


def _with_chunk(program: Program, how: Mapping[str, Any]) -> Program:
    """With as many examples at a time as the whole decoder trains."""
    return program._replace(options=program.options | {key: how[key] for key in ("chunk", "remat") if key in how})


def report(results: Mapping[str, Any]) -> None:
    chip = CHIPS[results["chip"]]
    lines = []
    for name, own in results["programs"].items():
        memory, found = own.get("memory"), own.get("estimate")
        if isinstance(memory, Memory):
            sizes = f"{memory.arguments / GIB:.2f} + {memory.temporaries / GIB:.2f}"
            ratio = own["formula"].memory / (memory.total - memory.code)
            sizes = f"{sizes} + {memory.results / GIB:.2f} ({ratio:.2f})"
            fits = f"{memory.total / chip.memory:.0%}"
        else:
            sizes, fits = memory or "", "no" if memory else ""
        figures = ("", "", "", "", "")
        if found is not None:
            figures = (
                f"{found.work.flops / 1e12:,.2f} ({found.work.flops / found.by_hand:.3f})",
                f"{found.work.bytes / 1e9:,.1f}",
                ", ".join(f"{kind} {size / 1e9:,.2f}" for kind, size in found.work.received.items() if size) or "none",
                f"{found.seconds:.3f} ({own['formula'].seconds / found.seconds:.2f})",
                f"{own['bound_seconds'] / found.seconds:.0%}",
            )
        label = name + (f" (by {own['chunk']}{', remat' * own['remat']})" if own["chunk"] else "")
        lines.append(Line(label, (sizes, fits, *figures), f"{own['bound_seconds']:.3f} s" if found else ""))
    headings = ("program", "arguments + temporaries + results, GiB (formula over it)", "of the chip",
                "TFLOP (to a count by hand)", "GB", "collectives, GB received", "seconds at least (formula over it)",
                "share of the bound")  # fmt: skip
    where = f"{results['chip']}, mesh {results['mesh']}, waves of {results['wave']}; of each chip"
    title = f"{results['shape']} in {results['dtype']} on {where}"
    show(title, headings, lines)


@told
def main() -> int:
    options = tyro.cli(Compile, description=__doc__)
    results = measure(options)
    report(results)
    if options.json:
        write_json(options.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
