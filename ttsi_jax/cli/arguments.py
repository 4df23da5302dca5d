"""What each command takes; the command line is made from these classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import tyro

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.config import RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.quality.presets import PRESETS
from ttsi_jax.runs.directory import named_after


@dataclass(frozen=True, kw_only=True)
class Run(RunConfig):
    """Run a method over a task; the same command resumes a run that was interrupted.

    Attributes:
        model: a hub name, a directory, a .gguf file, or an alias (see `ttsi-jax models`).
        task: a task name (see `ttsi-jax tasks`), or a .jsonl or .json file.
        preset: settings to begin with: the `paper`'s, or `recommended` ones (see docs/quality.md); other options win.
        limit: only the first so many inputs.
        shard: i/n takes the i-th of n parts of the inputs, which cost about the same; see `ttsi-jax merge`.
        data: folder of the task files that do not come with a package.
        dtype: float32, bfloat16 or int8 (weights alone; see docs/scaling.md); by default float32 on CPU and bfloat16
          elsewhere.
        out: the run's directory; by default one under runs/ that is named after the settings.
        compile_cache: a folder that keeps compiled programs, so that the next run need not compile them.
        mesh: data=D,fsdp=F,model=M runs on D * F * M devices: the inputs of a wave are divided over D * F, the base's
          weights over F * M; an axis may be left out (see docs/scaling.md). A run may be resumed on another mesh.
        hosts: makes this process one of several whose devices the mesh takes all; the same command is started on each
          host. auto leaves it to JAX who they are (Slurm, Open MPI, TPU pods); ADDRESS:PORT,i/n says that this is the
          i-th of n, and where the first one listens (see docs/scaling.md).
        memory: GiB that the run may take on each device: it decides --wave and --adapt.memory, which are then not given
          (see docs/scaling.md). A run that is resumed keeps those that it began with.
    """

    model: str
    task: str
    preset: Literal["paper", "recommended"] = "paper"
    limit: int | None = None
    shard: str | None = None
    data: Path | None = None
    dtype: str | None = None
    out: Path | None = None
    compile_cache: Path | None = None
    mesh: str | None = None
    hosts: str | None = None
    memory: float | None = None

    def config(self) -> RunConfig:
        return RunConfig(**{field.name: getattr(self, field.name) for field in fields(RunConfig)})

    def directory(self) -> Path:
        settings = [self.model, self.task, self.limit, self.dtype, self.config().to_dict()]
        settings += [self.shard] if self.shard else []
        settings += [] if self.memory is None else [self.memory]
        return self.out or named_after((self.task, self.model, self.method), settings)


@dataclass(frozen=True, kw_only=True)
class Sft:
    """Fine-tune one adapter on labelled examples, for `ttsi-jax run --method base --adapt.start OUT`; where OUT holds
    it already, nothing is done.

    Attributes:
        model: a hub name, a directory, a .gguf file, or an alias (see `ttsi-jax models`).
        task: a task name, or a .jsonl or .json file; examples with one right call are trained on.
        out: the directory to write, which PEFT loads too.
        adapt: how the adapter is trained, as in a run.
        wave: examples a step.
        seed: of the adapter and the examples' order.
        limit: only the first so many examples.
        data: folder of the task files that do not come with a package.
        dtype: float32, bfloat16 or int8 (weights alone; see docs/scaling.md); by default float32 on CPU and bfloat16
          elsewhere.
    """

    model: str
    task: str
    out: Path
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    wave: int = 16
    seed: int = 0
    limit: int | None = None
    data: Path | None = None
    dtype: str | None = None


def run_of(argv: Sequence[str]) -> type[Run]:
    """`Run` with the defaults of the preset that is named in the arguments.

    Raises:
        InputError: an option is given that another one decides.
    """
    given = {word.partition("=")[0] for word in argv}
    if "--memory" in given and (decided := {"--wave", "--adapt.memory"} & given):
        raise InputError(f"--memory decides {min(decided)}: give one of them")
    named = [value for option, value in zip(argv, argv[1:], strict=False) if option == "--preset"]
    named += [option.removeprefix("--preset=") for option in argv if option.startswith("--preset=")]
    preset = PRESETS.get(named[-1] if named else "paper")
    if preset is None:
        return Run  # which refuses it
    hints = get_type_hints(RunConfig)
    values = [(f.name, hints[f.name], getattr(preset, f.name)) for f in fields(RunConfig)]
    defaults = [(name, hint, field(default_factory=lambda value=value: value)) for name, hint, value in values]
    return make_dataclass("Run", defaults, bases=(Run,), frozen=True, kw_only=True, namespace={"__doc__": Run.__doc__})


@dataclass(frozen=True)
class Merge:
    """Join the runs of shards into one, as a single run of all inputs would have written it.

    Unfinished and missing shards cost their unfinished inputs alone: `ttsi-jax run` with the same settings, without
    --shard and with this directory as --out, does what is left.

    Attributes:
        runs: directories of runs with --shard.
        out: the directory to write; where it is there already, what is new is added.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path


@dataclass(frozen=True)
class Compare:
    """Compare runs: accuracies, what was fixed and broken and why, costs, and how good the gate is.

    Runs that differ in --seed alone are taken together. Each is held against its own base, the later ones also against
    the first.

    Attributes:
        runs: run directories.
        json: a file to write all figures into.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    json: Path | None = None


@dataclass(frozen=True)
class Report:
    """Write runs as one HTML file that needs no network.

    Attributes:
        runs: run directories.
        out: the file to write.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path


@dataclass(frozen=True)
class Export:
    """Write the adapter of one input as a directory that PEFT loads; the run must have been made with --adapt.save.

    Attributes:
        run: the run's directory.
        id: the input's id.
        out: the directory to write.
    """

    run: Annotated[Path, tyro.conf.Positional]
    id: Annotated[str, tyro.conf.Positional]
    out: Path


@dataclass(frozen=True)
class Models:
    """List the models that have a short name, and the families that can be loaded."""


@dataclass(frozen=True)
class Tasks:
    """List the tasks with what is known to be wrong in them, or `fetch` the files of some.

    Attributes:
        action: list, or fetch.
        names: the tasks to fetch.
        data: folder of the files.
    """

    action: Annotated[Literal["list", "fetch"], tyro.conf.Positional] = "list"
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    data: Path | None = None
