"""What the benchmarks share: fair timing, the surroundings of a figure, and its table, plot and JSON file."""

from __future__ import annotations

import json
import os
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

from rich.console import Console
from rich.table import Table

from ttsi_jax.errors import InputError, ModelFileError

P = ParamSpec("P")
console = Console(width=None if sys.stdout.isatty() else 150)  # tables keep their columns in a file


def told(main: Callable[P, int]) -> Callable[P, int]:
    """A script's `main` that tells errors in a line: exit code 2 for bad arguments, 3 for a model it cannot use."""

    @wraps(main)
    def telling(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (InputError, ModelFileError) as error:
            console.print(f"error: {error}", style="red", markup=False)
            return 2 if isinstance(error, InputError) else 3

    return telling


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark takes.

    Attributes:
        model: a hub name, a directory, a .gguf file, or an alias (see `ttsi-jax models`).
        random_weights: a model of this shape with random weights instead, such as qwen2.5-1.5b.
        task: where prompts come from, as `ttsi-jax run --task`; `random` is random token ids, as random weights have.
        dtype: float32 or bfloat16; by default float32 on CPU and bfloat16 elsewhere.
        platform: cpu, gpu or tpu; by default what JAX finds.
        quick: less of everything.
        json: the file to write the results to.
        plot: the image to draw (needs matplotlib).
    """

    model: str = "smollm2-135m-instruct"
    random_weights: str | None = None
    task: str = "bfcl:multiple"
    dtype: str | None = None
    platform: str | None = None
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None

    def source(self) -> str:
        return "random" if self.random_weights else self.task


def choose_platform(platform: str | None) -> None:
    """Has to come before the first array. Raises InputError for a device that is not there."""
    import jax

    if platform:
        jax.config.update("jax_platforms", "cuda" if platform == "gpu" else platform)
        try:
            jax.devices()
        except (RuntimeError, AssertionError):  # JAX asserts that it found a backend
            raise InputError(f"--platform {platform}: JAX finds no such device") from None


# Timing


class Seconds(NamedTuple):
    """Several measurements of the same thing, in seconds (per input, where the table says so)."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Seconds:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        digits = 3 if self.median < 10 else 1
        spread = f" ({self.low:.{digits}f}–{self.high:.{digits}f})" if self.n > 1 else ""
        return f"{self.median:.{digits}f}{spread}"


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call, which must wait for its results itself."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int, warm_up: bool = True) -> dict[str, Seconds]:
    """Times several calls in turn, `rounds` times, so that a machine that slows down slows all of them down."""
    if warm_up:
        for call in sides.values():
            call()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            taken[name].append(timed(call))
    return {name: Seconds.of(values) for name, values in taken.items()}


class MachineLoad:
    """How busy the machine's processors were, and how much of that was other processes: figures of a busy machine
    are no figures."""

    def __init__(self) -> None:
        self._start = _processor_seconds()

    def read(self) -> dict[str, float | None]:
        """Processors in use on average since the start: by this process, and by others (None where it is unknown)."""
        (wall, own, busy), (wall_now, own_now, busy_now) = self._start, _processor_seconds()
        wall, own = wall_now - wall, own_now - own
        others = None if busy is None or busy_now is None else max(0.0, busy_now - busy - own) / wall
        return {"own": round(own / wall, 2), "others": None if others is None else round(others, 2)}


def _processor_seconds() -> tuple[float, float, float | None]:
    """Wall-clock seconds; processor seconds of this process; of the whole machine (Linux only)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        busy = None
    return time.perf_counter(), usage.ru_utime + usage.ru_stime, busy


def peak_memory() -> int:
    """Most bytes this process has held in the host's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# Results


def surroundings(model: Any = None, **more: Any) -> dict[str, Any]:
    """Machine, versions, threads, model, dtype, and whatever else a reader needs to judge a figure."""
    from ttsi_jax.runs.environment import environment

    found = environment()
    for package in ("torch", "peft", "accelerate"):
        try:
            found["versions"][package] = version(package)
        except PackageNotFoundError:
            found["versions"][package] = None
    found["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    found["threads"] = {"processors": n_processors()}
    if model is not None:
        found |= {"model": model.name, "checksum": model.checksum, "dtype": str(model.params["embed"].dtype)}
    return found | more


def n_processors() -> int:
    """Processors that this process may use; XLA's CPU client starts as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Line(NamedTuple):
    """A row of a table: what was measured, the figures, and the bound beside them."""

    name: str
    figures: tuple[str, ...]
    bound: str


def show(title: str, headings: Sequence[str], lines: Sequence[Line]) -> None:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate((*headings, "bound")):
        table.add_column(heading, justify="right" if index else "left")
    for line in lines:
        table.add_row(line.name, *line.figures, line.bound)
    console.print(table)


def describe(found: Mapping[str, Any]) -> None:
    """What stands above the tables: machine, threads, versions, model, dtype."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number)
    devices = ", ".join(f"{n} × {kind}" for kind, n in found["jax"]["devices"].items())
    console.print(f"{found['cpu']['model']}, {found['threads']['processors']} processors; JAX on {devices}")
    console.print(f"threads {found['threads']}; {found.get('model', '')} in {found.get('dtype', '')}; {versions}")


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """`results` with the command; named tuples become objects."""
    text = json.dumps(plain({"command": shlex.join([Path(sys.executable).name, *sys.argv]), **results}), indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    console.print(f"wrote {path}")


def plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return {str(key): plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value


@contextmanager
def figure(path: Path, **size: Any):  # noqa: ANN201
    """Axes to draw on, in a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(layout="constrained", **size)
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=120)
    pyplot.close(drawing)
    console.print(f"drew {path}")
