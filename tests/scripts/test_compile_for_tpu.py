"""Programs are compiled for a TPU where libtpu is installed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import compile_for_tpu
from compile_for_tpu import CHIPS, SMALLEST, Memory

ROOT = Path(__file__).parents[2]


def test_every_chip_has_its_figures():
    assert CHIPS.keys() == SMALLEST.keys()
    assert all(chip.flops > chip.bandwidth > chip.memory for chip in CHIPS.values())


def test_without_libtpu_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["compile_for_tpu", "--shape", "tiny"])
    assert compile_for_tpu.main() == 2
    assert "tpu-aot" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu (extra tpu-aot)")
def test_a_tiny_model_is_compiled_for_a_chip(tmp_path):
    """In a process of its own, which may not see a TPU."""
    sizes = [f"--work.{name}={n}" for name, n in (("prefix", 64), ("suffix", 32), ("answer", 8), ("trained", 16))]
    command = [sys.executable, "scripts/compile_for_tpu.py", "--shape", "tiny", "--wave", "8", *sizes]
    chosen = ["--programs", "score", "adapt, suffix", "--json", str(tmp_path / "found.json")]
    subprocess.run([*command, *chosen], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=500)
    found = json.loads((tmp_path / "found.json").read_text())["programs"]
    assert set(found) == {"score", "adapt, suffix"}
    for own in found.values():
        assert own["memory"].keys() == set(Memory._fields) and own["memory"]["arguments"] > 0
        assert own["estimate"]["work"]["flops"] > 0.9 * own["estimate"]["by_hand"] > 0
        assert own["estimate"]["seconds"] > 0
