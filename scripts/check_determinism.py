"""Runs the same inputs again, in other orders, waves, processes and with more devices, and counts what differs.

With a small random model in float32 at the highest matmul precision. Records must be equal but for their seconds where
nothing but the order, the process or the devices changes; in waves of another size floats may differ by 1e-4, and
picks, calls and texts only where a decision was nearer than 1e-3 to going the other way. Exits with 1 otherwise.

    python scripts/check_determinism.py            # 56 inputs
    python scripts/check_determinism.py --quick    # 14
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

TOLERANCE, NEAR_TIE = 1e-4, 1e-3
TAU = 0.5  # some inputs are certain


class Difference(NamedTuple):
    """What two runs of the same inputs differ in."""

    identical: int  # records
    largest: float  # difference of two floats
    discrete: int  # records with another pick, text, pair or call
    near_ties: int  # of those, the ones in which a decision was within NEAR_TIE of another one


def examples(n: int) -> list[Any]:
    from tiny_runs import EXAMPLES

    found = []
    for index in range(n):
        one = EXAMPLES[index % len(EXAMPLES)]
        messages = ({"role": "user", "content": f"{one.query} ({index})"},)
        found.append(replace(one, id=f"input {index}", messages=messages))
    return found


def records(inputs: list[Any], wave: int = 4, out: Path | None = None) -> dict[str, Any]:
    from tiny_runs import settings, task_of, tiny_model, untimed
    from ttsi_jax.loop import run
    from ttsi_jax.uncertainty import GateConfig

    jax.config.update("jax_default_matmul_precision", "highest")
    return untimed(run(tiny_model(), task_of(*inputs), settings(wave=wave, gate=GateConfig(tau=TAU)), out=out).records)


def in_another_process(n: int, **env: str) -> dict[str, Any]:
    from tiny_runs import untimed
    from ttsi_jax.runs.directory import read_records

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--inputs", str(n), "--out", folder]
        subprocess.run(command, env=os.environ | env, check=True)
        return untimed(read_records(Path(folder) / "records.jsonl")[0].values())


def difference(found: dict[str, Any], expected: dict[str, Any]) -> Difference:
    identical = discrete = near_ties = 0
    largest = 0.0
    for id, own in found.items():
        theirs = expected[id]
        identical += own == theirs
        other = False
        for name in (field.name for field in fields(own)):
            a, b = getattr(own, name), getattr(theirs, name)
            floats = name in ("log_likelihoods", "probabilities", "losses") and len(a) == len(b)
            if floats or (name == "uncertainty" and None not in (a, b)):
                pairs = zip(a, b, strict=True) if floats else [(a, b)]
                largest = max([largest, *(abs(x - y) for x, y in pairs)])
            else:
                other |= a != b
        discrete += other
        near_ties += other and min(nearness(own), nearness(theirs)) < NEAR_TIE
    return Difference(identical, largest, discrete, near_ties)


def nearness(record: Any) -> float:
    """How far the nearest recorded decision, the pick or the gate, was from going the other way."""
    best = sorted(record.log_likelihoods, reverse=True)
    return min(abs(record.uncertainty - TAU), best[0] - best[1] if len(best) > 1 else float("inf"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=56)
    parser.add_argument("--quick", action="store_true", help="14 inputs")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    n = 14 if options.quick else options.inputs
    inputs = examples(n)
    if options.out:
        records(inputs, out=options.out)
        return 0
    expected = records(inputs)
    shuffled = random.Random(0).sample(inputs, n)
    same = {
        "again": records(inputs),
        "reversed": records(inputs[::-1]),
        "shuffled": records(shuffled),
        "another process, other hashes": in_another_process(n, PYTHONHASHSEED="7"),
        "2 devices": in_another_process(n, XLA_FLAGS="--xla_force_host_platform_device_count=2"),
        "4 devices": in_another_process(n, XLA_FLAGS="--xla_force_host_platform_device_count=4"),
    }
    close = {f"waves of {wave}": records(inputs, wave) for wave in ((2,) if options.quick else (1, 2, 8, 16))}
    wrong = 0
    adapted = sum(record.adapted for record in expected.values())
    print(f"{n} inputs, {adapted} adapted, waves of 4; against them:")
    for name, found in (same | close).items():
        differs = difference(found, expected)
        print(
            f"  {name}: {differs.identical} records identical, floats within {differs.largest:.1e}, "
            f"{differs.discrete} other decisions, {differs.near_ties} of them near-ties"
        )
        wrong += name in same and differs.identical != n
        wrong += differs.largest > TOLERANCE or differs.discrete > differs.near_ties
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
