"""Kills a run again and again, and checks that it ends as if nothing had happened.

A small random model runs through the command line in processes of their own. They are ended by SIGKILL at random
moments and in the middle of writes, by a disk that is full (a limit on the size of files), by SIGINT and by SIGTERM;
the same command resumes each. When a run is done its records are compared with those of an uninterrupted run, and the
next one begins. Exits with 1 if anything differs.

    python scripts/check_crashes.py            # 50 kills, 10 full disks, 20 signals
    python scripts/check_crashes.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

BEGUN = "the run is kept in"
SETTINGS = (
    "--answer.form keys --answer.max-tokens 24 --answer.value-tokens 4 --wave 4 --synthesis.form request "
    "--synthesis.max-tokens 8 --gate.tau 1.1 --adapt.scope suffix --adapt.epochs 3 --adapt.lr 3e-2 --adapt.rank 2"
).split()


def worker(options: argparse.Namespace, argv: list[str]) -> int:
    """The command line, in a process that may end itself in the middle of a write, or has a full disk."""
    from ttsi_jax.cli import main
    from ttsi_jax.runs import directory

    write, steps = directory._write, iter(range(10**9))

    def cut_short(file, content):  # noqa: ANN001, ANN202
        if next(steps) == options.kill_at_write:
            file.write(content[: int(options.share * len(content))])
            os.kill(os.getpid(), signal.SIGKILL)
        write(file, content)

    directory._write = cut_short
    if options.file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_limit, resource.RLIM_INFINITY))
    return main(argv)


class Runs:
    """Processes that take the same task through the same model, each into a directory of its own or an earlier one."""

    def __init__(self, folder: Path, inputs: int):
        from tiny_runs import EXAMPLES, write_model

        self.folder = folder
        self.model = write_model(folder / "tiny")
        self.task = folder / "task.jsonl"
        lines = []
        for index in range(inputs):
            one = EXAMPLES[index % len(EXAMPLES)]
            tools = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in one.tools]
            lines.append(json.dumps({"id": f"input {index}", "query": f"{one.query} ({index})", "tools": tools}))
        self.task.write_text("\n".join(lines))
        # Compiled programs are kept between the processes, so that most of the time is the run's own.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.env = os.environ | cache | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def start(self, out: Path, *options: object) -> subprocess.Popen[str]:
        run = ["run", "--model", self.model, "--task", self.task, *SETTINGS, "--out", out]
        command = [sys.executable, __file__, "--worker", *options, "--", *run]
        return subprocess.Popen(
            list(map(str, command)), env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )


def begin(process: subprocess.Popen[str]) -> str:
    """Waits until the run itself begins; what was said until then."""
    said = ""
    while BEGUN not in said:
        line = process.stderr.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit(f"a run did not begin:\n{said}")
        said += line
    return said


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = process.communicate()[1]
    return process.returncode, said


def records(out: Path) -> list[bytes]:
    """The lines of a run's records without their seconds."""
    lines = (out / "records.jsonl").read_bytes().splitlines()
    return [re.sub(rb'"seconds": \{[^}]*\}', b"", line) for line in lines]


def whole_lines(out: Path) -> int:
    file = out / "records.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


class Check:
    """The counts of what was done, and of what went wrong."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            self.wrong.append(what)
            print(f"WRONG: {what}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--full-disks", type=int, default=10)
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--inputs", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 kills, 1 full disk, 1 signal")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kill-at-write", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=0.5, help=argparse.SUPPRESS)
    parser.add_argument("--file-limit", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("argv", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options, options.argv)
    if options.quick:
        options.kills, options.full_disks, options.signals = 2, 1, 1
    with tempfile.TemporaryDirectory() as folder:
        return check(Runs(Path(folder), options.inputs), options)


def check(runs: Runs, options: argparse.Namespace) -> int:
    started, chance, found = time.perf_counter(), random.Random(options.seed), Check()
    for name in ("uninterrupted", "again"):  # the first one compiles, the second one is timed
        process = runs.start(runs.folder / name)
        begin(process)
        begun = time.perf_counter()
        code, said = end(process)
        found.expect(code == 0, f"the run that nobody interrupts ends with {code}: {said}")
    seconds = time.perf_counter() - begun
    expected = records(runs.folder / "uninterrupted")
    found.expect(records(runs.folder / "again") == expected, "two uninterrupted runs differ")
    size = (runs.folder / "uninterrupted/records.jsonl").stat().st_size
    n_writes = 3 + len(expected) + 2  # config, environment; the records; the records in order, the summary
    print(f"{len(expected)} inputs; a run takes {seconds:.1f} s after loading, {n_writes} writes", flush=True)

    ways = ["moment", "write"] * (options.kills // 2) + ["moment"] * (options.kills % 2)
    ways += ["disk"] * options.full_disks + ["SIGINT", "SIGTERM"] * (options.signals // 2)
    ways += ["SIGTERM"] * (options.signals % 2)
    chance.shuffle(ways)
    out, kept = runs.folder / "run 0", 0

    def finished() -> None:
        """A process reached its end: compares what it left, and begins the next run."""
        nonlocal out, kept
        found.done["runs compared"] += 1
        found.expect(records(out) == expected, f"{out.name} differs from the uninterrupted run")
        out, kept = runs.folder / f"run {found.done['runs compared']}", 0

    while ways:
        way = ways.pop()
        if way == "write":
            left = max(1, n_writes - kept)
            process = runs.start(out, "--kill-at-write", chance.randrange(left), "--share", chance.random())
        elif way == "disk":
            process = runs.start(out, "--file-limit", chance.randrange(2000, size))
        else:
            process = runs.start(out)
        said = begin(process)
        if way in ("moment", "SIGINT", "SIGTERM"):
            time.sleep(chance.uniform(0, seconds * (1 - kept / len(expected))))
            process.send_signal(signal.SIGKILL if way == "moment" else getattr(signal, way))
        code, more = end(process)
        said += more
        if code == 0 or (out / "summary.json").exists():  # it was faster: another one has to be stopped
            ways.insert(0, way)
            finished()
            continue
        found.done[way] += 1
        before, kept = kept, whole_lines(out)
        found.expect(kept >= before, f"{way}: {before} finished inputs, then {kept}")
        found.expect("Traceback" not in said, f"{way}: a traceback: {said}")
        if way == "disk":
            told = "File too large" in said and "the same command resumes the run" in said
            found.expect(code == 2 and told, f"a full disk ends with {code}: {said}")
        elif way.startswith("SIG"):
            found.expect(code == 130 and "the same command resumes the run" in said, f"{way} ends with {code}: {said}")
        else:
            found.expect(code == -signal.SIGKILL, f"a killed process ends with {code}: {said}")
    out = runs.folder / "shared"
    first = runs.start(out)
    begin(first)
    while not (out / "config.json").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    code, said = end(runs.start(out))
    first.send_signal(signal.SIGCONT)
    found.done["second processes refused"] += code == 2 and "another process is writing to this run" in said
    found.expect(found.done["second processes refused"] == 1, f"a second process ends with {code}: {said}")
    code, said = end(first)
    found.expect(code == 0, f"the last run ends with {code}: {said}")
    finished()

    print(f"SIGKILL: {found.done['moment']} at a random moment, {found.done['write']} in the middle of a write")
    print(f"full disk: {found.done['disk']}; SIGINT: {found.done['SIGINT']}; SIGTERM: {found.done['SIGTERM']}")
    print(f"second processes refused: {found.done['second processes refused']}")
    print(f"runs compared with the uninterrupted one: {found.done['runs compared']}; wrong: {len(found.wrong)}")
    print(f"{time.perf_counter() - started:.0f} s")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
