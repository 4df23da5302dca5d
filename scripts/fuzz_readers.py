"""Feeds damaged and made-up data to everything that reads files or a model's words, and counts what goes wrong.

Each reader may accept its data or refuse it with the error it documents; anything else is a finding, which is kept as a
file for `tests/reliability/test_findings.py` to replay. Hypothesis makes data by grammar and by damaging good files;
atheris (Linux; the extra `fuzz`) follows the code's branches, each reader in a process of its own. Exits with 1 if
there is a finding.

    python scripts/fuzz_readers.py                       # 1,000,000 executions
    python scripts/fuzz_readers.py --quick               # 12,000
    python scripts/fuzz_readers.py --only calls --executions 50000
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
FINDINGS = ROOT / "tests/reliability/findings"
SHARES = {"calls": 40, "task_lines": 15, "task_array": 10, "gguf": 15, "safetensors": 8, "config": 7, "report": 5}
BY_HYPOTHESIS = 0.05  # of the executions
INSTRUMENTED = ["ttsi_jax.tasks", "ttsi_jax.checkpoints", "ttsi_jax.runs", "reliability.readers"]


def by_hypothesis(name: str, read: Callable[[bytes], object], seeds: list[bytes], executions: int) -> tuple[int, int]:
    """Executions and findings."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    words = st.sampled_from(sorted({word for seed in seeds for word in re.findall(rb"\w+|\s+|[^\w\s]", seed[:4000])}))
    counts = [0, 0]

    @st.composite
    def damaged(draw: Callable) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(1, 6))):
            start = draw(st.integers(0, len(data)))
            end = draw(st.integers(start, min(len(data), start + 16)))
            data[start:end] = draw(st.binary(max_size=8) | words)
        return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])

    slow_is_fine = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @settings(
        max_examples=executions, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=slow_is_fine,
    )  # fmt: skip
    @given(damaged() | st.lists(words, max_size=40).map(b"".join) | st.binary(max_size=200))
    def check(data: bytes) -> None:
        counts[0] += 1
        try:
            read(data)
        except Exception as error:
            counts[1] += 1
            keep(name, data, error)

    check()
    return counts[0], counts[1]


def by_atheris(name: str, seeds: list[bytes], executions: int, seed: int) -> tuple[int, int]:
    """Executions and findings, from a process that ends at its first finding; it is started again for the rest."""
    done = found = 0
    with tempfile.TemporaryDirectory() as folder:
        for index, content in enumerate(seeds):
            (Path(folder) / f"seed-{index}").write_bytes(content)
        while done < executions and found < 20:
            limits = [f"-runs={executions - done}", f"-seed={seed + found + 1}", "-max_len=4096", "-timeout=10"]
            command = [sys.executable, __file__, "--atheris", name, f"-artifact_prefix={folder}/", *limits, folder]
            process = subprocess.run(command, capture_output=True, text=True)
            crashes = [path for path in Path(folder).iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
            counted = re.findall(r"^#(\d+)|Done (\d+) runs", process.stderr, re.MULTILINE)
            done += max((int(a or b) for a, b in counted), default=0)
            for path in crashes:
                found += 1
                keep(name, path.read_bytes(), process.stderr[-2000:])
                path.unlink()
            if not crashes and process.returncode:
                sys.exit(f"atheris did not run:\n{process.stderr[-2000:]}")
            if not crashes:
                break
    return done, found


def keep(name: str, data: bytes, error: object) -> None:
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"FINDING {path.name}: {type(error).__name__}: {str(error)[-500:]}", flush=True)


def follow_branches(name: str, argv: list[str]) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        from reliability.readers import READERS

    atheris.Setup([sys.argv[0], *argv], READERS[name])
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--atheris"]:
        follow_branches(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="12,000 executions")
    parser.add_argument("--only", choices=SHARES, help="one reader, with all executions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from reliability.readers import READERS, SEEDS

    executions = 12_000 if options.quick else options.executions
    shares = {options.only: 100} if options.only else SHARES
    has_atheris = importlib.util.find_spec("atheris") is not None
    if not has_atheris:
        print("atheris is not installed (pip install -e '.[fuzz]'): Hypothesis makes all the data")
    started, all_done, all_found = time.perf_counter(), 0, 0
    for name, share in shares.items():
        wanted = executions * share // 100
        first = int(wanted * BY_HYPOTHESIS) if has_atheris else wanted
        done, found = by_hypothesis(name, READERS[name], SEEDS[name], first)
        print(f"{name}: {done} executions by Hypothesis, {found} findings", flush=True)
        all_done, all_found = all_done + done, all_found + found
        if has_atheris:
            done, found = by_atheris(name, SEEDS[name], wanted - done, options.seed)
            print(f"{name}: {done} executions by atheris, {found} findings", flush=True)
            all_done, all_found = all_done + done, all_found + found
    print(f"{all_done} executions, {all_found} findings, {time.perf_counter() - started:.0f} s")
    return 1 if all_found else 0


if __name__ == "__main__":
    sys.exit(main())
