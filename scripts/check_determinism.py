"""Takes the same inputs through the loop again: in other orders, processes and waves, and beside more devices.

With a small random model in float32 at the highest matmul precision. Records must be equal bit for bit, their seconds
aside, where the order or the process changes. In waves of another size, and beside more devices (a run computes on the
first one, but XLA cuts work for the CPU by their number), floats may differ by 1e-4, and anything else only where a
recorded decision, the pick or the gate, was within 1e-3 of going the other way; these near-ties are counted. Some
inputs must adapt and another seed must change something, or the comparison would see nothing. Exits with 1 otherwise.

    python scripts/check_determinism.py            # 56 inputs
    python scripts/check_determinism.py --quick    # 14
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import ttsi_jax as ttsi  # noqa: E402
from tiny_runs import numbered, settings, task_of, tiny_model, untimed  # noqa: E402
from ttsi_jax.runs.directory import read_records  # noqa: E402

TOLERANCE, NEAR_TIE = 1e-4, 1e-3
FLOATS = {"log_likelihoods", "probabilities", "uncertainty", "losses", "evidence"}
FORMS = {  # of answers -> what the adapter acts on, which inputs adapt: all, or those that are certain
    "keys": ("suffix", ttsi.GateConfig(tau=1.1)),
    "free": ("all", ttsi.GateConfig(tau=0.95, select="certain")),
}
Records = dict[str, ttsi.Record]


class Difference(NamedTuple):
    """What two runs of the same inputs differ in."""

    identical: int  # records
    largest: float  # difference of two floats
    discrete: int  # records with another pick, text, pair or call
    near_ties: int  # of those, the ones in which a recorded decision was within NEAR_TIE of going the other way


def records(form: str, inputs: list[ttsi.Example], out: str | None = None, **changes: Any) -> Records:
    scope, gate = FORMS[form]
    config = settings(form, scope, gate=gate, **changes)
    return untimed(ttsi.run(tiny_model(), task_of(*inputs), config, out=out).records)


def in_another_process(form: str, n: int, devices: int = 1) -> Records:
    """The records of a process with another seed of Python's hashes, that sees so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", form, "--inputs", str(n), "--out", folder]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7", "XLA_FLAGS": flags}, check=True)
        seen = json.loads((Path(folder) / "environment.json").read_text())["jax"]["devices"]
        if sum(seen.values()) != devices:
            sys.exit(f"the process saw the devices {seen}, not {devices}")
        return untimed(read_records(Path(folder) / "records.jsonl")[0].values())


def difference(found: Records, expected: Records, tau: float) -> Difference:
    identical = discrete = near_ties = 0
    largest = 0.0
    for id, theirs in expected.items():
        own = found[id]
        identical += own == theirs
        other = False
        for name in (field.name for field in fields(own)):
            a, b = (list(x.values()) if name == "evidence" else x for x in (getattr(own, name), getattr(theirs, name)))
            if name in FLOATS and np.shape(a) == np.shape(b):
                distance = np.abs(np.array(a, float) - np.array(b, float))
                largest = max(largest, float(np.max(distance, initial=0, where=np.isfinite(distance))))
                other |= not np.array_equal(np.isnan(np.array(a, float)), np.isnan(np.array(b, float)))
            else:
                other |= a != b
        discrete += other
        near_ties += other and min(nearness(own, tau), nearness(theirs, tau)) < NEAR_TIE
    return Difference(identical, largest, discrete, near_ties)


def nearness(record: ttsi.Record, tau: float) -> float:
    """How far the nearest recorded decision was from going the other way."""
    best = sorted((score for score in record.log_likelihoods if score is not None), reverse=True)
    gate = abs((record.uncertainty or 0.0) - tau)
    return min(gate, best[0] - best[1] if len(best) > 1 else float("inf"))


def check(form: str, n: int, waves: tuple[int, ...]) -> int:
    """Compares all runs of one form; returns how many are wrong."""
    inputs, (scope, gate) = numbered(n), FORMS[form]
    expected = records(form, inputs)
    adapted = sum(record.adapted for record in expected.values())
    print(f"\n{n} inputs in waves of 4, answers '{form}', scope '{scope}', {adapted} adapted; against them:")
    wrong = int(not adapted)

    def compare(name: str, found: Records, exact: bool) -> None:
        nonlocal wrong
        differs = difference(found, expected, float(gate.tau))
        good = differs.identical == n if exact else differs.largest <= TOLERANCE
        good &= differs.discrete == differs.near_ties and found.keys() == expected.keys()
        wrong += not good
        print(
            f"  {name:26} {differs.identical:3} records identical, floats within {differs.largest:.1e}, "
            f"{differs.discrete} other decisions, {differs.near_ties} of them near-ties{'' if good else '  WRONG'}",
            flush=True,
        )

    compare("again", records(form, inputs), exact=True)
    compare("reversed", records(form, inputs[::-1]), exact=True)
    compare("shuffled", records(form, random.Random(0).sample(inputs, n)), exact=True)
    for devices in (1, 2, 4):
        name = f"another process, {devices} device{'s' * (devices > 1)}"
        compare(name, in_another_process(form, n, devices), exact=devices == 1)
    for wave in waves:
        compare(f"waves of {wave}", records(form, inputs, wave=wave), exact=False)
    other = difference(records(form, inputs, seed=1), expected, float(gate.tau))
    wrong += not other.discrete
    print(f"  {'another seed':26} {other.identical:3} records identical, {other.discrete} other decisions")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=56)
    parser.add_argument("--quick", action="store_true", help="14 inputs")
    parser.add_argument("--worker", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    n = 14 if options.quick else options.inputs
    if options.worker:
        records(options.worker, numbered(n), options.out)
        return 0
    started = time.perf_counter()
    wrong = sum(check(form, n, (2,) if options.quick else (1, 2, 8, 16)) for form in FORMS)
    print(f"\nwrong: {wrong}; {time.perf_counter() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
