"""What the documentation shows runs as it stands there."""

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import ttsi_jax

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ttsi_jax.__path__, "ttsi_jax.")
    if ">>>" in (importlib.util.find_spec(module.name).loader.get_source(module.name) or "")
)


def test_the_page_on_update_rules_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "update-rules.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) >= 8
    namespace = {}
    for block in blocks:
        exec(compile(block, "update-rules.md", "exec"), namespace)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed


def test_the_notebook_runs(tmp_path, monkeypatch):
    """On a tiny random model; with a real one it is the same cells."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTSI_NOTEBOOK_MODEL", "tiny")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((ROOT / "docs" / "first-run.ipynb").read_text(encoding="utf-8"))
    namespace = {"display": print}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), namespace)


def commands() -> list[tuple[str, str]]:
    """Every command with options in the documentation: its page, and itself in one line."""
    found = []
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))):
        blocks = re.findall(r"```(?:bash|yaml)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        lines = re.sub(r"\\\n|\n\s+(?=--)", " ", "\n".join(blocks)).splitlines()
        parts = [part for line in lines for part in re.split(r"\s#\s|;\s|&&", line)]
        found += [
            (page.name, match[0]) for part in parts if (match := re.search(r"(ttsi-jax|scripts/\w+\.py) .*--.*", part))
        ]
    return found


@lru_cache
def known_options(*command: str) -> set[str]:
    said = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, timeout=100, cwd=ROOT)
    return set(re.findall(r"--[\w.-]*\w", said.stdout))


def test_options_that_the_documentation_shows_are_there():
    assert len(commands()) > 40
    for page, line in commands():
        words = line.split()
        of_run = words[0] == "scripts/sweep.py"  # takes the options of a run
        program = ("-m", "ttsi_jax.cli", "run" if of_run else words[1])
        known = known_options(*(program if of_run or words[0] == "ttsi-jax" else (words[0],)))
        shown = set(re.findall(r"(?<!\S)--[a-z][\w.-]*", line))
        assert shown <= known | {"--help"}, f"{page}: {line}"


@pytest.mark.parametrize("script", sorted(ROOT.glob("scripts/*.sh")), ids=lambda path: path.name)
def test_files_that_shell_scripts_name_are_there(script):
    for name in re.findall(r"\b(?:tests|scripts|ttsi_jax)/[\w./]*\w", script.read_text()):
        assert (ROOT / name).exists(), name
