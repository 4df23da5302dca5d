"""Takes thousands of small inputs through a small random model, and checks that nothing grows and nothing is lost.

The run goes through the library into a directory. After every wave the resident memory and the number of compiled
programs are noted. Exits with 1 if the median memory of the last tenth of the run is more than 2 % above that of the
second tenth, a program is compiled in the run's second half, a record is missing, or the base's weights have changed.

    python scripts/soak.py             # 5,000 inputs
    python scripts/soak.py --quick     # 400
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

GROWTH = 0.02


def resident() -> int:
    """The memory that this process holds, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--wave", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="400 inputs")
    options = parser.parse_args()
    n = 400 if options.quick else options.inputs

    from tiny_runs import EXAMPLES, settings, task_of, tiny_model
    from ttsi_jax import adaptation
    from ttsi_jax.loop import run
    from ttsi_jax.model.generation import decode_wave
    from ttsi_jax.model.scoring import prefill_wave, score_wave
    from ttsi_jax.runs.directory import read_records

    def asked(index: int) -> tuple[dict[str, str], ...]:
        one = EXAMPLES[index % len(EXAMPLES)]
        return ({"role": "user", "content": f"{one.query} ({index})"},)

    examples = [replace(EXAMPLES[i % len(EXAMPLES)], id=f"input {i}", messages=asked(i)) for i in range(n)]
    model, started = tiny_model(), time.perf_counter()
    before = jax.tree.map(lambda leaf: np.array(leaf), model.params)
    jitted: tuple[Any, ...] = (score_wave, decode_wave, prefill_wave, adaptation.adapt_wave)
    noted: list[tuple[int, int, int]] = []  # inputs scored, resident bytes, compiled programs

    def progress(stage: str, done: int, known: int) -> None:
        if stage == "score":
            noted.append((done, resident(), sum(program._cache_size() for program in jitted)))

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = run(model, task_of(*examples), settings(wave=options.wave), out=out, progress=progress)
        kept, _ = read_records(out / "records.jsonl")

    def memory(tenth: int) -> float:
        return median(bytes for done, bytes, _ in noted if tenth * n / 10 < done <= (tenth + 1) * n / 10)

    tenths = [memory(tenth) for tenth in range(10)]
    growth = tenths[9] / tenths[5 if options.quick else 1] - 1  # in a short run programs are compiled until then
    programs = {done: count for done, _, count in noted}
    late = programs[n] - programs[min(done for done in programs if done >= n / 2)]
    lost = n - sum(kept[one.id].error is None for one in examples if one.id in kept)
    changed = sum(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, model.params)), strict=True))
    print(f"{n} inputs in {time.perf_counter() - started:.0f} s; adapted: {result.summary['adapted']}")
    print("resident memory by tenths, MiB:", *(f"{bytes / 2**20:.0f}" for bytes in tenths))
    print(f"last tenth against the {'sixth' if options.quick else 'second'}: {growth:+.2%} (limit +{GROWTH:.0%})")
    print(f"compiled programs: {programs[n]}; of them in the second half: {late}")
    print(f"records lost or failed: {lost}; arrays of the base that changed: {changed}")
    return 1 if growth > GROWTH or late or lost or changed else 0


if __name__ == "__main__":
    sys.exit(main())
