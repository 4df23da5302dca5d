"""Takes thousands of small inputs through a small random model, and checks that nothing grows and nothing is lost.

The run goes through the library into a directory. As it goes on, the resident memory, the live arrays and the number of
compiled programs are noted. A run takes its inputs bucket by bucket and compiles a bucket's programs when it comes to
it, so the inputs are of one bucket. Exits with 1 if the median memory of the last tenth of the inputs is more than 2 %
above that of the second tenth, a program is compiled in the run's second half, a record is missing, or the base's
weights have changed. Needs Linux, and a thousand inputs or more.

    python scripts/soak.py    # 5,000 inputs
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import numpy as np
from jax import monitoring

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import ttsi_jax as ttsi  # noqa: E402
from tiny_runs import EXAMPLES, numbered, settings, task_of, tiny_model  # noqa: E402
from ttsi_jax.runs.directory import read_records  # noqa: E402

GROWTH = 0.02
COMPILED = "/jax/core/compile/backend_compile_duration"


class State(NamedTuple):
    """The process, when so many inputs were scored."""

    scored: int
    resident: int  # bytes
    arrays: int  # live, on the device
    programs: int  # compiled so far


def resident() -> int:
    """The memory that this process holds, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--wave", type=int, default=16)
    options = parser.parse_args()
    n, started = options.inputs, time.perf_counter()
    functions = sorted(tool.name for tool in EXAMPLES[0].tools)
    alike = [one for one in numbered(3 * n) if sorted(tool.name for tool in one.tools) == functions]
    inputs, model = alike[:n], tiny_model()
    before = jax.tree.map(lambda leaf: np.array(leaf), model.params)
    programs, noted = 0, []

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal programs
        programs += event == COMPILED

    def note(stage: str, done: int, known: int) -> None:
        if stage == "score" and (not noted or done > noted[-1].scored):
            noted.append(State(done, resident(), len(jax.live_arrays()), programs))

    monitoring.register_event_duration_secs_listener(count)
    with tempfile.TemporaryDirectory() as folder:
        result = ttsi.run(model, task_of(*inputs), settings(wave=options.wave), out=folder, progress=note)
        kept, _ = read_records(Path(folder) / "records.jsonl")

    tenths = [[one for one in noted if i * n < 10 * one.scored <= (i + 1) * n] for i in range(10)]
    memory = [median(one.resident for one in tenth) for tenth in tenths]
    arrays = [median(one.arrays for one in tenth) for tenth in tenths]
    compiled = [tenth[-1].programs for tenth in tenths]
    growth, late = memory[9] / memory[1] - 1, compiled[9] - compiled[4]
    lost = n - sum(one.id in kept and kept[one.id].error is None for one in inputs)
    changed = sum(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, model.params)), strict=True))
    print(f"{n} inputs in {time.perf_counter() - started:.0f} s; adapted: {result.summary['adapted']}")
    print("by tenths of the inputs:")
    print("  resident memory, MiB:", *(f"{bytes / 2**20:.0f}" for bytes in memory))
    print("  live arrays:", *(f"{number:.0f}" for number in arrays))
    print("  compiled programs:", *compiled)
    print(f"memory in the last tenth against the second: {growth:+.2%} (limit +{GROWTH:.0%})")
    print(f"programs compiled in the second half: {late}")
    print(f"records lost or failed: {lost}; arrays of the base that changed: {changed}")
    return 1 if growth > GROWTH or late or lost or changed else 0


if __name__ == "__main__":
    sys.exit(main())
