"""The command line: `ttsi-jax run | merge | sft | compare | report | export | models | tasks`.

Exit codes: see `ttsi_jax.cli.codes`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import tyro
from jax.errors import JaxRuntimeError
from rich.console import Console

from ttsi_jax.cli.arguments import Compare, Export, Merge, Models, Report, Run, Sft, Tasks, run_of
from ttsi_jax.cli.codes import BAD_INPUT, BAD_MODEL, DONE, HOST_LOST, INTERRUPTED, SOME_FAILED
from ttsi_jax.cli.watched import watch
from ttsi_jax.errors import InputError, ModelFileError
from ttsi_jax.runs.signals import Interrupts
from ttsi_jax.runs.table import shown
from ttsi_jax.tasks import Task

output, messages = Console(), Console(stderr=True)


def run(args: Run) -> int:
    from ttsi_jax.checkpoints import load_model
    from ttsi_jax.config import automatic, check, find_parts
    from ttsi_jax.loop import run as run_task
    from ttsi_jax.runs.clock import keep_programs
    from ttsi_jax.runs.progress import progress_bars
    from ttsi_jax.runs.shards import parse_shard, part_of
    from ttsi_jax.runs.table import examples_table, summary_table
    from ttsi_jax.scaling.hosts import is_first, join
    from ttsi_jax.scaling.mesh import make_mesh, undivided
    from ttsi_jax.tasks import load_task

    config, directory = automatic(args.config()), args.directory()
    check(config)
    find_parts(config, {}, args.data)  # a wrong name ends it before anything is loaded
    shard = None if args.shard is None else parse_shard(args.shard)
    if args.hosts is not None:
        join(args.hosts)
        output.quiet = messages.quiet = not is_first()  # but for errors
    mesh = None if args.mesh is None else make_mesh(args.mesh, config.wave if args.memory is None else None)
    if args.answer.form == "auto":
        _say(f"--answer.form auto: {config.answer.form}")
    if args.compile_cache is not None:
        keep_programs(args.compile_cache)
    task = load_task(args.task, data_dir=args.data, limit=args.limit)
    _name_problems(task)
    n_own = f"{len(part_of(task, shard).examples)} of " if shard else ""
    _say(f"{n_own}{len(task.examples)} inputs of {task.name}; loading {args.model}")
    model = load_model(args.model, dtype=args.dtype, mesh=mesh)
    if mesh is not None:
        for part, size in undivided(model.config, mesh.shape["model"]).items():
            _say(f"--mesh {args.mesh}: {size} cannot be divided, so every device holds the {part}'s weights whole")
    _say(f"the run is kept in {directory}")
    resume = f"finished inputs are in {directory}, and the same command resumes the run"
    try:
        with Interrupts() as interrupts, progress_bars(messages) as show:

            def progress(stage: str, done: int, known: int) -> None:
                interrupts.check()
                show(stage, done, known)

            how = {"shard": shard, "memory": args.memory, "data": args.data, "progress": progress, "tell": _say}
            result = run_task(model, task, config, out=directory, **how)
    except KeyboardInterrupt:
        _say(f"interrupted; {resume}")
        return INTERRUPTED
    except OSError as error:
        raise InputError(f"{_told(error)}; {resume}") from None
    if any(record.adapted for record in result.records):
        output.print(examples_table(result.records))
    output.print(summary_table(result.summary, f"{task.name} · {model.name} · {config.method}", result.records))
    if "tau" in result.summary:  # it was chosen
        _say(f"--gate.tau auto: {result.summary['tau']:.4g}, by {result.summary['tau_by']}")
    _say(f"compiling took {result.summary['compile_seconds']:.0f} s, and is not in the stages' seconds")
    failed = [record for record in result.records if record.error is not None]
    for record in failed:
        _say(f"failed: input '{record.id}': {record.error}")
    output.print(shown(f"run: {directory}"), soft_wrap=True)
    return SOME_FAILED if failed else DONE


def _run_watched(args: Run, argv: list[str]) -> int:
    from ttsi_jax.scaling.hosts import parse_hosts

    parse_hosts(args.hosts or "")
    if args.mesh is None:
        raise InputError("--hosts needs --mesh, which says how the devices of all hosts are used")
    code, message = watch(argv)
    return code if message is None else _fail(code, message)


def merge(args: Merge) -> int:
    from ttsi_jax.runs.groups import load_run
    from ttsi_jax.runs.shards import merge as join
    from ttsi_jax.runs.table import summary_table

    merged = join(args.runs, args.out)
    for record in merged.failed:
        _say(f"failed: input '{record.id}': {record.error}")
    for number, count in merged.missing.items():
        there = "unfinished" if number in {shard.number for shard in merged.given} else "not given"
        _say(f"shard {number}/{merged.given[0].of} is {there}: inputs that are missing: {count}")
    run = load_run(args.out)
    if merged.missing:
        _say(f"to do the rest: the same `ttsi-jax run` without --shard and with --out {args.out}")
    elif run.summary is not None:
        title = f"{run.config['task']} · {run.config['model']} · {run.config['method']}"
        output.print(summary_table(run.summary, title, run.records))
    output.print(shown(f"run: {args.out}, {len(run.records)} of {merged.n} inputs"), soft_wrap=True)
    return SOME_FAILED if merged.failed or merged.missing else DONE


def sft(args: Sft) -> int:
    from ttsi_jax.batching.supervised import FOR_RUNS, fine_tune, make_directory, save, settings_of, settings_there
    from ttsi_jax.checkpoints import load_model, load_peft
    from ttsi_jax.config import RunConfig, check, find_parts
    from ttsi_jax.runs.directory import refuse_other
    from ttsi_jax.runs.progress import progress_bars
    from ttsi_jax.tasks import load_task

    for name in FOR_RUNS:
        if getattr(args.adapt, name) != getattr(RunConfig().adapt, name):
            option = name.replace("_", "-")
            raise InputError(
                f"--adapt.{option} is for runs; fine-tuning trains one fresh adapter on all examples: leave it out"
            )
    config = RunConfig(method="base", adapt=args.adapt, wave=args.wave, seed=args.seed).with_parts({})
    check(config)
    parts = find_parts(config, {})
    there = settings_there(args.out)
    task = load_task(args.task, data_dir=args.data, limit=args.limit)
    _name_problems(task)
    if there is None:
        make_directory(args.out)
    model = load_model(args.model, dtype=args.dtype)
    settings = settings_of(model, task, config)
    if there is not None:
        refuse_other(args.out, "an adapter", there, settings)
        load_peft(args.out, model.config)  # which says whether it is whole
        _say(f"{args.out} is complete: nothing is left to train")
    else:
        with progress_bars(messages) as show:
            how = {"wave": args.wave, "seed": args.seed, "progress": show}
            trained = fine_tune(model, task.usable, args.adapt, parts.rule, parts.loss, **how)
        save(trained, args.out, model, args.adapt, settings)
        _say(f"trained on {len(trained.used)} of {len(task.examples)} examples: those with one right call that fit")
        _say(f"loss {trained.losses[0]:.3f} before the first step, {trained.losses[-1]:.3f} before the last")
    output.print(shown(f"adapter: {args.out}"), soft_wrap=True)
    return SOME_FAILED if task.problems else DONE


def compare(args: Compare) -> int:
    from ttsi_jax.runs import compare, comparison_tables, groups, table

    comparison = compare.compare(groups.load_runs(args.runs))
    for note in comparison.notes:
        _say(f"note: {note}")
    for rows in comparison_tables.comparison_tables(comparison):
        output.print(table.rendered(rows), "")
    if args.json is not None:
        _write(args.json, compare.to_json(comparison))
    return DONE


def report(args: Report) -> int:
    from ttsi_jax.runs.groups import load_runs
    from ttsi_jax.runs.report import render_report

    _write(args.out, render_report(load_runs(args.runs)))
    _say(f"report: {args.out}")
    return DONE


def export(args: Export) -> int:
    from ttsi_jax.checkpoints.adapters import export_adapter

    export_adapter(args.run, args.id, args.out)
    _say(f"adapter of input '{args.id}': {args.out}")
    return DONE


def models(args: Models) -> int:
    from ttsi_jax.checkpoints import describe_models
    from ttsi_jax.runs.table import plain_table

    output.print(plain_table(("name", "family", "present", "how to get it"), describe_models()))
    return DONE


def tasks(args: Tasks) -> int:
    from ttsi_jax.runs.table import plain_table
    from ttsi_jax.tasks import describe_tasks

    if args.action == "fetch":
        if not args.names:
            raise InputError("name the tasks to fetch: ttsi-jax tasks fetch sealtools")
        return max([_fetched(name, args.data) for name in args.names])
    if args.names:
        raise InputError(f"`tasks list` lists all tasks and takes no names; given {' '.join(args.names)}")
    rows = [(t.name, t.present, t.n_inputs, t.licence, t.source, t.known()) for t in describe_tasks(args.data)]
    output.print(plain_table(("name", "here", "inputs", "licence", "how to get it", "known of it"), rows))
    return DONE


def _fetched(name: str, data: Path | None) -> int:
    """Fetches one task, and tells of it; one that cannot be had keeps none of the others."""
    from ttsi_jax.tasks import fetch

    try:
        _say(fetch(name, data))
    except InputError as error:
        return _fail(BAD_INPUT, str(error))
    except OSError as error:
        return _fail(BAD_INPUT, _told(error))
    return DONE


def entry() -> NoReturn:
    """The command. An interrupted one ends without Python's own end, which waits for XLA's threads: where one of them
    was compiling, it would find Python gone and crash."""
    code = main()
    if code == INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: list[str] | None = None, watched: bool = False) -> int:
    """Runs a command; returns its exit code. A run with --hosts needs to be `watched`, see `ttsi_jax.cli.watched`."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may know fewer characters than models write
    sys.path.append(os.getcwd())  # where a user's own rules, losses and estimators lie
    try:
        commands = {run_of(argv): run, Merge: merge, Sft: sft, Compare: compare, Report: report}
        commands |= {Export: export, Models: models, Tasks: tasks}
        with Interrupts():
            args = tyro.extras.subcommand_cli_from_dict(
                {command.__name__.lower(): command for command in commands},
                prog="ttsi-jax",
                description="Test-time self-improvement for tool-calling language models.",
                args=argv,
            )
            if isinstance(args, Run) and args.hosts is not None and not watched:
                return _run_watched(args, argv)
            return commands[type(args)](args)
    except (InputError, ModelFileError) as error:
        return _fail(BAD_MODEL if isinstance(error, ModelFileError) else BAD_INPUT, str(error))
    except OSError as error:
        return _fail(BAD_INPUT, _told(error))
    except JaxRuntimeError as error:
        if watched and "RESOURCE_EXHAUSTED" not in str(error):
            os.write(2, f"{error}\n".encode())
            return HOST_LOST
        why = str(error).splitlines()[0]
        return _fail(BAD_INPUT, f"{why}\nOut of memory? A smaller --memory or --wave needs less.")
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED


def _name_problems(task: Task) -> None:
    """Names the lines or entries of a task's file that cannot be used."""
    for problem in task.problems:
        _say(f"cannot be used: {problem}")


def _write(path: Path, text: str) -> None:
    """Replaces a file, or what a link leads to, when all of the new one is written."""
    from ttsi_jax.runs.directory import replace_file

    try:
        if path.exists() and not path.is_file():  # such as /dev/stdout
            path.write_text(text, encoding="utf-8")
        else:
            replace_file(path.resolve(), text.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _told(error: OSError) -> str:
    return f"{error.filename or 'a file'}: {error.strerror or error}"


def _fail(code: int, text: str) -> int:
    messages.quiet = False
    _say(f"error: {text}")
    return code


def _say(text: str) -> None:
    messages.print(shown(text), soft_wrap=True)
