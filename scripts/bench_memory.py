"""The formula of `--memory` against the compiler, and against what a process really takes.

- programs: the intermediate values of each compiled program, for this machine's compiler, beside those of the
  formula (`ttsi_jax.scaling.budget.temporaries`). No weights are needed; `--layers` cuts the decoder, as compiling
  30 of them takes long.
- runs: whole runs with `--memory`, each twice in a process of its own, so that the second finds its programs compiled:
  its largest resident memory, less what it had before the model was loaded. That also holds what the runtime keeps
  beside arrays: compiled programs, the tokenizer, freed pieces of memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarking import Line, Options, choose_platform, console, show, told, write_json
from tpu_pieces import first_layers
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.batching.waves import Shape
from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.errors import InputError
from ttsi_jax.model.decoder import abstract_params
from ttsi_jax.rules import adamw, answer_cross_entropy
from ttsi_jax.scaling.budget import GIB, base_of, state_bytes, temporaries
from ttsi_jax.scaling.mesh import Layout
from ttsi_jax.scaling.programs import SCOPES, Sizes, run_programs
from workload import SHAPES

RUN = """
import json, resource, sys
from pathlib import Path
from ttsi_jax.cli import main
import jax.numpy as jnp
jnp.zeros(1).block_until_ready()
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
code = main(sys.argv[1:])
print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before]))
"""


@dataclass(frozen=True, kw_only=True)
class Memory(Options):
    """Hold the formula for memory against measurements.

    Attributes:
        parts: what to measure.
        shape: of the programs' model, see `workload.SHAPES`.
        layers: of that model, in the place of its own.
        waves: of the programs.
        chunks: examples that train at a time.
        budgets: of the runs, in GiB.
        limit: inputs of a run.
        scope: of a run's adapters.
    """

    parts: tuple[Literal["programs", "runs"], ...] = ("programs", "runs")
    shape: str = "smollm2-135m"
    layers: int = 6
    waves: tuple[int, ...] = (1, 4, 16)
    chunks: tuple[int, ...] = (1, 4)
    budgets: tuple[float, ...] = (3.0, 6.0)
    limit: int = 16
    scope: str = "suffix"


def programs(options: Memory) -> Iterator[tuple[str, float, float]]:
    """Each program's name, the formula's bytes and the compiler's."""
    if options.shape not in SHAPES:
        raise InputError(f"no shape is called '{options.shape}'; known: {', '.join(SHAPES)}")
    config = first_layers(from_hf(SHAPES[options.shape] | {"rms_norm_eps": 1e-5}), options.layers)
    rule, params = adamw(1e-4), abstract_params(config, options.dtype or "float32")
    base = base_of(params, Layout(config))
    for wave in options.waves:
        sizes = Sizes(wave, Shape(640, 112, 5, 6), 224, 64, 96)
        every = run_programs(config, options.dtype or "float32", sizes, AdaptConfig(), rule, answer_cross_entropy)
        for scope in SCOPES:
            how = AdaptConfig(scope=scope)
            of = temporaries(base, how, state_bytes(config, how, rule), sizes, remat=False)
            for name in ("prefill", "score", "decode") if scope == SCOPES[0] else ():
                yield f"wave {wave}: {name}", getattr(of, name) + base.converted, _compiled(every[name])
            for chunk in sorted({chunk for chunk in options.chunks if wave % chunk == 0}):
                program = every[f"adapt, {scope}"]
                program = program._replace(options=program.options | {"chunk": chunk, "remat": False})
                yield f"wave {wave}: adapt, {scope}, {chunk} at a time", of.adapt(chunk), _compiled(program)


def _compiled(program: Any) -> int:
    return program.trace().lower().compile().memory_analysis().temp_size_in_bytes


def runs(options: Memory) -> Iterator[tuple[str, float, float]]:
    """Each run's wave, the formula's bytes and those that its process took."""
    for budget in options.budgets:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *("run", "--model", options.model, "--task", options.task, "--limit", str(options.limit)),
                *("--answer.form", "keys", "--adapt.scope", options.scope, "--memory", str(budget)),
                *("--compile-cache", f"{folder}/programs", "--out"),
            ]
            for turn in ("first", "second"):
                told = subprocess.run(
                    [sys.executable, "-c", RUN, *command, f"{folder}/{turn}"], stdout=subprocess.PIPE, text=True
                )
            code, taken = json.loads(told.stdout.splitlines()[-1])
            if code:
                raise InputError(f"the run with --memory {budget:g} ended with {code}")
            config, environment = (
                json.loads(Path(folder, "second", name).read_text()) for name in ("config.json", "environment.json")
            )
            formula = sum(value for key, value in environment["memory"].items() if key != "budget")
            yield f"--memory {budget:g}: wave {config['wave']}", formula, taken


@told
def main() -> int:
    options = tyro.cli(Memory, description=__doc__)
    options = replace(options, waves=options.waves[:1], budgets=options.budgets[:1]) if options.quick else options
    found: dict[str, dict[str, list[float]]] = {}
    choose_platform(options.platform)
    for part in options.parts:
        own = found.setdefault(part, {})
        for name, formula, taken in {"programs": programs, "runs": runs}[part](options):
            own[name] = [formula, taken]
            console.print(f"{name}: {formula / GIB:.3f} by the formula, {taken / GIB:.3f} GiB")
        lines = [
            Line(name, (f"{a / GIB:.3f}", f"{b / GIB:.3f}", f"{b / a:.2f}"), "1.10") for name, (a, b) in own.items()
        ]
        show(part, ("", "formula, GiB", "measured, GiB", "ratio"), lines)
    if options.json:
        write_json(options.json, {"parts": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
