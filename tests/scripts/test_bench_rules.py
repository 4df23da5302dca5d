"""The lab finds rules in the working directory, and its tables can be read in a narrow terminal."""

import io
import sys

import pytest
from rich.console import Console

import bench_rules
from bench_rules import Measured, main, tables


def test_rules_in_the_working_directory_are_found(tmp_path, monkeypatch):
    (tmp_path / "lab_rules.py").write_text("from ttsi_jax import sgd as mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    class Loaded(Exception):
        pass

    def load():
        raise Loaded

    monkeypatch.setattr(bench_rules, "tiny_language_model", load)
    with pytest.raises(Loaded):  # so all names were found
        main(["--model", "tiny", "--rules", "sgd", "lab_rules:mine"])


def test_tables_fit_80_columns():
    own = Measured(
        "my_own_rules:trusted_sign", "answer_cross_entropy", [1.25, 1.0], -12, 3, 8, 12.5, 24.0, 5.33e10, 2e8
    )
    console = Console(width=80, file=io.StringIO())
    for shown in tables([own], 8):
        console.print(shown)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    for figure in ("my_own_rules:trusted_sign", "1.250 → 1.000", "-12", "12.50", "53.3", "191", "compile s"):
        assert any(figure in line for line in lines)
