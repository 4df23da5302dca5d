"""What the documentation shows runs as it stands there."""

import doctest
import importlib
import json
import pkgutil
import re
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


@pytest.mark.parametrize("script", sorted(ROOT.glob("scripts/*.sh")), ids=lambda path: path.name)
def test_files_that_shell_scripts_name_are_there(script):
    for name in re.findall(r"\b(?:tests|scripts|ttsi_jax)/[\w./]*\w", script.read_text()):
        assert (ROOT / name).exists(), name
