"""Grids of runs in one directory: every option of `ttsi-jax run` may have several values.

    python scripts/sweep.py OUT --model M --task sealtools apibank --seed 0 1 2 \\
        -- --method base -- --method tt-si --gate.tau 0.35 0.95 -- --method base --answer.vote --answer.samples 5

What stands before the first `--` is common; each part after one is a grid of its own. A cell is an ordinary run
directory under OUT, named after its own options, so `ttsi-jax compare OUT/*` and `report` take them, and the same
command resumes: finished cells are read, not run. An option that takes several words gets them joined by commas
(`--adapt.targets q,v q,k,v`); one without a value is a switch.

A model is loaded once. Scores, base answers, pairs and adapted answers that cells have in common are computed once
(`ttsi_jax.batching.shared`), and every cell's seconds count its whole work. The records are those of separate runs; in
the scope `all` the cells of a model and task pad their inputs as the one does that trains longest, so figures differ in
rounding. Scores, base answers and pairs also lie in OUT/.shared, for cells after an interruption or with new options;
other versions of the code or of its packages begin anew, and when all cells are done it may go. A cell that fails is
told at the end and costs the others nothing. Exit codes: 0 done; 1 a cell or an input failed; 2 bad arguments; 130
interrupted.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Hashable, Iterable, MutableMapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import is_dataclass, replace
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console

import ttsi_jax
from ttsi_jax.batching.inputs import passes
from ttsi_jax.batching.shared import Kept, Shared, from_json, to_json
from ttsi_jax.checkpoints import LanguageModel, load_model
from ttsi_jax.cli.arguments import Run, run_of
from ttsi_jax.config import automatic, check, find_parts
from ttsi_jax.errors import InputError, ModelFileError
from ttsi_jax.loop import run
from ttsi_jax.runs.clock import keep_programs
from ttsi_jax.runs.environment import environment
from ttsi_jax.runs.progress import progress_bars
from ttsi_jax.runs.signals import Interrupts
from ttsi_jax.runs.table import Rows, rendered, shown
from ttsi_jax.scaling.mesh import make_mesh
from ttsi_jax.tasks import load_task

# These do not come into a cell's name as such.
NOT_NAMED = ("model", "task", "data", "out", "compile-cache", "mesh")
NOT_FOR_SWEEPS = {
    "out": "OUT is the sweep's first argument",
    "shard": "its runs take all inputs",
    "hosts": "it is one process; give each host a sweep of its own",
}
LONGEST_NAME = 180  # characters; file systems take 255 bytes
Options = dict[str, str | None]  # without the dashes; None for a switch
messages, output = Console(stderr=True), Console()


class Cell(NamedTuple):
    """One run of a sweep."""

    name: str
    args: Run


class Done(NamedTuple):
    """What became of a cell."""

    cell: Cell
    summary: dict[str, Any] | None
    error: str | None


def grids(arguments: Sequence[str]) -> list[Options]:
    """The options of every cell, in order, each once."""
    parts: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            parts.append([])
        else:
            parts[-1].append(argument)
    common = _values(parts[0])
    found = []
    for part in parts[1:] or [[]]:
        own = common | _values(part)
        found += [dict(zip(own, values, strict=True)) for values in product(*own.values())]
    return [cell for index, cell in enumerate(found) if cell not in found[:index]]


def _values(arguments: Iterable[str]) -> dict[str, list[str | None]]:
    options: dict[str, list[str | None]] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("_", "-")
            options[name] = [value] if equals else []
        elif name is None:
            raise InputError(f"'{argument}' belongs to no option")
        else:
            options[name].append(argument)
    return {name: values or [None] for name, values in options.items()}


def cell_of(options: Options, out: Path) -> Cell:
    """The run of some options.

    Raises:
        InputError: options that no run has, or values that they cannot have.
    """
    for name in NOT_FOR_SWEEPS.keys() & options.keys():
        raise InputError(f"--{name} is not for a sweep: {NOT_FOR_SWEEPS[name]}")
    argv = []
    for name, value in options.items():
        words = [] if value is None else value.split(",") if _takes_several(name) else [value]
        argv += [f"--{name}", *words]
    told = StringIO()
    command = run_of(argv)
    try:
        with redirect_stderr(told):
            args = tyro.cli(command, args=argv, console_outputs=True)
    except SystemExit:
        raise InputError(f"a cell is refused:\n{told.getvalue()}") from None
    config = automatic(args.config())
    check(config)
    find_parts(config, {}, args.data)
    if args.mesh is not None:
        make_mesh(args.mesh, config.wave if args.memory is None else None)
    words = [args.task, args.model.rstrip("/").removesuffix(".gguf"), args.method]
    words = [re.sub(r"\W+", "-", Path(word).name.removesuffix(".jsonl")).strip("-") for word in words]
    named = {name: value for name, value in sorted(options.items()) if name not in (*NOT_NAMED, "method", "seed")}
    words += [re.sub(r"[^\w.+-]+", "-", f"{name}={value or 'on'}".replace("=", "-")) for name, value in named.items()]
    name = ".".join([*words, f"seed-{args.seed}"])
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}+.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Cell(name, replace(args, out=out / name))


def _takes_several(option: str) -> bool:
    kind: Any = Run
    for name in option.replace("-", "_").split("."):
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return any(get_origin(one) is tuple for one in (kind, *get_args(kind)))


def refuse_equal_names(cells: Sequence[Cell]) -> None:
    """Refuses cells that differ and would lie in the same directory.

    Raises:
        InputError: naming the options that the cells differ in.
    """
    first: dict[str, Run] = {}
    for name, args in cells:
        other = vars(first.setdefault(name, args))
        differ = [option for option, value in vars(args).items() if value != other[option]]
        if differ:
            values = (f"--{option.replace('_', '-')} {other[option]} and {getattr(args, option)}" for option in differ)
            raise InputError(
                f"two cells would be named '{name}', and differ in {'; '.join(values)}. A name holds the last part of "
                f"--model and --task, and nothing of --data, --mesh and --compile-cache: rename the file or folder, or "
                f"give each of these values a sweep with another OUT"
            )


def sweep(
    cells: Sequence[Cell],
    stored: MutableMapping[str, Kept],
    progress: Callable[..., None],
    done: Callable[[Done], None],
    tell: Callable[[str], None],
) -> list[Done]:
    """Runs the cells, those of a model one after another; a cell that fails leaves the others alone.

    Args:
        cells: the runs.
        stored: scores, base answers and pairs of earlier sweeps, to which those of this one are added.
        progress: called as `run` does.
        done: called with each cell that ended.
        tell: called with what is to be known of the tasks and the runs.
    """
    found: list[Done] = []
    n_passes = most_passes(cells)
    order = {key: place for place, key in enumerate(dict.fromkeys(_weights(cell) for cell in cells))}
    loaded: tuple[Any, LanguageModel | None] = None, None
    shared = Shared.between_runs(stored)
    for cell in sorted(cells, key=lambda cell: order[_weights(cell)]):
        try:
            if loaded[0] != _weights(cell):
                loaded = None, None  # the old one makes room first
                loaded, shared = (_weights(cell), _load(cell.args)), Shared.between_runs(stored)
            assert loaded[1] is not None
            task = load_task(cell.args.task, data_dir=cell.args.data, limit=cell.args.limit)
            for problem in task.problems:
                tell(f"cannot be used: {problem}")
            config, args = automatic(cell.args.config()), cell.args
            how = {"out": args.out, "memory": args.memory, "data": args.data, "progress": progress, "tell": tell}
            result = run(loaded[1], task, config, shared=shared, n_passes=n_passes[_alike(cell)], **how)
            failed = result.summary["failed"]
            ended = Done(cell, result.summary, f"{failed} inputs failed" if failed else None)
        except Exception as error:
            ended = Done(cell, None, str(error) or type(error).__name__)
        found.append(ended)
        done(ended)
    return found


class SharedFile(dict[str, Kept]):
    """Scores, base answers and pairs of the sweeps into a directory: lines of JSON, added as they come.

    Other versions of the code or of its packages have another file.
    """

    def __init__(self, out: Path):
        super().__init__()
        known = environment()
        made_by = hashlib.sha256(repr((known["python"], known["versions"], known["jax"]["backend"])).encode())
        for file in sorted(Path(ttsi_jax.__file__).parent.rglob("*.py")):
            made_by.update(file.read_bytes())
        self._path = out / ".shared" / f"{made_by.hexdigest()[:16]}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        for line in self._path.read_text(encoding="utf-8").splitlines():
            key, _, kept = line.partition(" ")
            with suppress(ValueError, TypeError):  # half a line, from a process that was killed
                super().__setitem__(key, from_json(kept))

    def __setitem__(self, key: str, kept: Kept) -> None:
        super().__setitem__(key, kept)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{key} {to_json(kept)}")  # which ends half a line, if there is one


def most_passes(cells: Iterable[Cell]) -> dict[Hashable, int]:
    """By `_alike`, how often the cell that trains longest reads a prefix: all pad their inputs as it does."""
    found: dict[Hashable, int] = {}
    for cell in cells:
        found[_alike(cell)] = max(found.get(_alike(cell), 1), passes(automatic(cell.args.config())))
    return found


def _alike(cell: Cell) -> Hashable:
    """Equal in cells that pad alike. In the scope `suffix` every run reads a prefix once."""
    return _weights(cell), cell.args.task, cell.args.data, cell.args.adapt.scope


def _load(args: Run) -> LanguageModel:
    return load_model(args.model, dtype=args.dtype, mesh=None if args.mesh is None else make_mesh(args.mesh))


def _weights(cell: Cell) -> tuple[str, str | None, str | None]:
    return cell.args.model, cell.args.dtype, cell.args.mesh


def table(done: Sequence[Done]) -> Rows:
    """A row per cell."""
    rows = []
    for cell, summary, error in done:
        if summary is None:
            rows.append((cell.name, "–", "–", "–", "–", "–", "–", error or ""))
            continue
        tool, call = (
            " → ".join(_percent(summary[f"{metric}_accuracy{side}"]) for side in ("_base", ""))
            for metric in ("tool", "call")
        )
        seconds = sum(value for stage, value in summary["seconds"].items() if stage != "base_answer")
        counts = (str(summary[key]) for key in ("adapted", "fixed", "broke"))
        rows.append((cell.name, tool, call, *counts, f"{seconds:.0f}", error or ""))
    return Rows(("cell", "tool, %", "call, %", "adapted", "fixed", "broke", "seconds", "failed"), rows)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        output.print(shown(__doc__ or ""), soft_wrap=True)
        return 0 if arguments else 2
    sys.path.append(os.getcwd())  # where a user's own rules, losses and estimators lie
    try:
        cells = [cell_of(options, Path(arguments[0])) for options in grids(arguments[1:])]
        refuse_equal_names(cells)
        if folder := cells[0].args.compile_cache:
            keep_programs(folder)
        with Interrupts() as interrupts, progress_bars(messages) as show:

            def progress(stage: str, done: int, known: int) -> None:
                interrupts.check()
                show(stage, done, known)

            finished: list[str] = []
            told: set[str] = set()

            def tell(text: str) -> None:
                if text not in told:  # cells have their tasks in common
                    told.add(text)
                    messages.print(shown(text), soft_wrap=True)

            def done(ended: Done) -> None:
                finished.append(ended.cell.name)
                why = f": {ended.error}" if ended.error else ""
                messages.print(shown(f"{len(finished)} of {len(cells)}: {ended.cell.name}{why}"), soft_wrap=True)
                show("cells", len(finished), len(cells))

            found = sweep(cells, SharedFile(Path(arguments[0])), progress, done, tell)
    except (InputError, ModelFileError, OSError) as error:
        messages.print(shown(f"error: {error}"), soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        messages.print("interrupted; the same command resumes")
        return 130
    output.print(rendered(table(found)))
    return 1 if any(ended.error for ended in found) else 0


if __name__ == "__main__":
    sys.exit(main())
