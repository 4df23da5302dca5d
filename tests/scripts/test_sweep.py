"""Sweeps: their cells are ordinary runs, resumed, and what they have in common is done once."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import sweep
from tiny_runs import EXAMPLES, untimed, write_model
from ttsi_jax.algorithm import Algorithm
from ttsi_jax.batching import inputs
from ttsi_jax.batching.shared import Kept
from ttsi_jax.batching.waves import Pair, Waves
from ttsi_jax.cli import main
from ttsi_jax.errors import InputError
from ttsi_jax.quality.presets import PRESETS
from ttsi_jax.runs.environment import environment
from ttsi_jax.runs.groups import load_run
from ttsi_jax.tasks import Call

SETTINGS = [
    *("--answer.form", "keys", "--answer.max-tokens", "24", "--answer.value-tokens", "4", "--wave", "4"),
    *("--synthesis.form", "request", "--synthesis.max-tokens", "8", "--gate.tau", "1.1"),
    *("--adapt.scope", "suffix", "--adapt.epochs", "3", "--adapt.rank", "2"),
]


def test_grids():
    found = sweep.grids(["--seed", "0", "1", "--", "--method", "base", "--", "--adapt.lr", "1", "--answer.vote"])
    assert found == [
        {"seed": "0", "method": "base"},
        {"seed": "1", "method": "base"},
        {"seed": "0", "adapt.lr": "1", "answer.vote": None},
        {"seed": "1", "adapt.lr": "1", "answer.vote": None},
    ]
    assert sweep.grids(["--compile_cache=a_b=c", "d"]) == [{"compile-cache": "a_b=c"}, {"compile-cache": "d"}]
    assert sweep.grids(["--seed", "0", "0"]) == [{"seed": "0"}], "each cell once"
    with pytest.raises(InputError, match="'base' belongs to no option"):
        sweep.grids(["base"])


def test_cells_are_named_after_their_options():
    options = {"model": "a/Tiny.gguf", "task": "bfcl:multiple", "adapt.targets": "q,v", "seed": "3", "method": "tt-si"}
    cell = sweep.cell_of(options, Path("out"))
    assert cell.name == "bfcl-multiple.Tiny.tt-si.adapt.targets-q-v.seed-3"
    assert cell.args.adapt.targets == ("q", "v") and cell.args.out == Path("out") / cell.name
    assert sweep.cell_of(options | {"data": "a,b", "mesh": "data=1,model=1"}, Path("out")).args.data == Path("a,b")
    for wrong in (
        {"adapt.lr": "much"},
        {"out": "x"},
        {"shard": "1/2"},
        {"wave": "0"},
        {"nonsense": "1"},
        sweep.grids(["--shard=1/2"])[0],
        {"wave": "4", "memory": "1"},
        {"teacher.key": "sk-1"},
        {"hosts": "auto"},
        {"mesh": "data=2,fsdp=2,rows=2"},
    ):
        with pytest.raises(InputError):
            sweep.cell_of(options | wrong, Path("out"))


def test_cells_that_would_share_a_directory_are_refused(capsys):
    common = ["--model", "tiny", "--task", "mine.jsonl"]
    options = sweep.grids([*common, "--dtype", "float32", "int8"])
    names = [sweep.cell_of(own, Path("out")).name for own in options]
    assert names == [f"mine.tiny.tt-si.dtype-{dtype}.seed-0" for dtype in ("float32", "int8")]
    for differing, told in (
        (["--model", "a/tiny", "b/tiny.gguf"], "--model a/tiny and b/tiny.gguf"),
        (["--task", "a/mine.jsonl", "b/mine.jsonl"], "--task a/mine.jsonl and b/mine.jsonl"),
        (["--data", "a", "b"], "--data a and b"),
    ):
        assert sweep.main(["out", *common, *differing]) == 2
        assert told in " ".join(capsys.readouterr().err.split()) and not Path("out").exists()
    grid = sweep.grids([*common, "--", "--seed", "0", "--", "--wave", "16"])
    cells = [sweep.cell_of(own, Path("out")) for own in grid]
    sweep.refuse_equal_names([*cells, *cells])  # the same cell twice is one


def test_an_out_that_cannot_be_is_told(arguments, capsys):
    Path("file").touch()
    assert sweep.main(["file", *arguments]) == 2
    assert "file" in capsys.readouterr().err


def test_a_cell_begins_with_its_preset():
    options = {"model": "tiny", "task": "mine.jsonl", "preset": "recommended", "adapt.lr": "1e-3"}
    config = sweep.cell_of(options, Path("out")).args.config()
    assert config.synthesis == PRESETS["recommended"].synthesis and config.adapt.lr == 1e-3
    assert config.adapt.accept == PRESETS["recommended"].adapt.accept


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "tiny")
    lines = []
    for one in EXAMPLES[:3]:
        tools = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in one.tools]
        lines.append(json.dumps({"id": one.id, "query": one.query, "tools": tools, "calls": []}))
    Path("mine.jsonl").write_text("\n".join(lines))
    return ["--model", "tiny", "--task", "mine.jsonl", *SETTINGS]


def test_lines_that_cannot_be_used_are_named_once(arguments, capsys):
    with open("mine.jsonl", "a") as file:
        file.write("\n{")
    pairs = ["--synthesis.source", "training", "--synthesis.file", "shelf.jsonl"]
    good = {"query": "Hi", "tools": [{"name": "f"}], "calls": [{"name": "f", "arguments": {}}]}
    Path("shelf.jsonl").write_text(f"{{\n{json.dumps(good)}")
    grid = ["--method", "tt-icl", "--limit", "1", "--seed", "0", "1", *pairs]
    assert sweep.main(["out", *arguments, *grid]) == 0
    err = capsys.readouterr().err
    assert err.count("cannot be used: shelf.jsonl:1: not valid JSON") == 1
    assert sweep.main(["out", *arguments, "--method", "base", "--seed", "0", "1"]) == 1, "its cells have a failed input"
    assert capsys.readouterr().err.count("cannot be used: mine.jsonl:4: not valid JSON") == 1


def test_a_sweep(arguments, monkeypatch, capsys):
    grid = ["--", "--method", "base", "--", "--adapt.lr", "3e-2", "1e-2", "--", "--adapt.rule", "nowhere:rule"]
    with pytest.raises(InputError, match="nowhere"):
        sweep.cell_of({"model": "tiny", "task": "mine.jsonl", "adapt.rule": "nowhere:rule"}, Path("out"))
    assert sweep.main(["out", *arguments, *grid]) == 2 and not Path("out").exists(), "told before anything runs"
    grid = [*grid[:-3], "--", "--task", "missing.jsonl"]
    scored, score = [], Waves.score

    def noted(self, rows, *rest):
        scored.extend(rows)
        return score(self, rows, *rest)

    monkeypatch.setattr(Waves, "score", noted)
    capsys.readouterr()
    assert sweep.main(["out", *arguments, *grid]) == 1, "the cell without a task failed"
    out, err = capsys.readouterr()
    assert "4 of 4" in err and "missing.jsonl" in err and "→" in out
    cells = sorted(Path("out").glob("[!.]*"))
    assert len(cells) == 3
    base = [row for row in scored if row.start == len(row.suffix)]
    together = len(scored)
    assert main(["compare", *map(str, cells)]) == 0

    scored.clear()
    assert sweep.main(["out", *arguments, *grid]) == 1 and scored == [], "finished cells are not run again"

    for options in (["--method", "base"], ["--adapt.lr", "3e-2"], ["--adapt.lr", "1e-2"]):
        assert main(["run", *arguments, *options, "--out", "alone"]) == 0
        [same] = [cell for cell in cells if load_run(cell).config == load_run("alone").config]
        assert untimed(load_run(same).records) == untimed(load_run("alone").records)
        for file in Path("alone").iterdir():
            file.unlink()
    assert base and together < len(scored), "separate runs score more"


def test_cells_in_the_scope_all_share_what_does_not_depend_on_training(arguments, monkeypatch):
    done = Counter()

    def counted(name):
        part = getattr(Algorithm, name)

        def noted(self, draft):
            done[name, draft.example.id] += 1
            return part(self, draft)

        monkeypatch.setattr(Algorithm, name, noted)

    counted("answer_with_base")
    counted("write_pairs")
    counted("learn_all")
    monkeypatch.setattr(inputs, "BUCKET_COST", 300)  # one bucket by itself for the first two cells, two for the others
    arguments = [*arguments, "--adapt.scope", "all"]
    grid = ["--", "--method", "base", "--", "--adapt.epochs", "1", "2", "--", "--synthesis.k", "2"]
    assert sweep.main(["out", *arguments, *grid]) == 0
    ids = [one.id for one in EXAMPLES[:3]]
    not_trained = Counter({key: n for key, n in done.items() if key[0] != "learn_all"})
    assert not_trained == Counter([("answer_with_base", id) for id in ids] + [("write_pairs", id) for id in ids] * 2)

    done.clear()
    assert sweep.main(["out", *arguments, *grid, "--", "--adapt.lr", "1e-2"]) == 0
    assert {part for part, _ in done} == {"learn_all"}, "a later process finds scores, base answers and pairs"
    [base] = Path("out").glob("*.base.*")
    assert main(["run", *arguments, "--method", "base", "--out", "alone"]) == 0
    for own, alone in zip(load_run(base).records, load_run("alone").records, strict=True):
        assert (own.base_calls, own.pick, own.text_base) == (alone.base_calls, alone.pick, alone.text_base)
        assert own.log_likelihoods == pytest.approx(alone.log_likelihoods, abs=1e-4)


def test_a_teachers_cells_answer_with_the_base_of_all_others(arguments, monkeypatch):
    done, answer = Counter(), Algorithm.answer_with_base

    def noted(self, draft):
        done[draft.example.id] += 1
        return answer(self, draft)

    monkeypatch.setattr(Algorithm, "answer_with_base", noted)
    arguments = [*arguments, "--synthesis.max-tokens", "1"]  # so that it is the prompt to write that is the longest
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    pairs = [json.dumps({"id": one.id, "query": "Sum of 1 and 2?", "calls": [call]}) for one in EXAMPLES[:2]]
    Path("pairs.jsonl").write_text("\n".join(pairs))
    taught = ["--method", "tt-d", "--synthesis.source", "recorded", "--synthesis.file", "pairs.jsonl"]
    assert sweep.main(["out", *arguments, "--", "--method", "base", "tt-si", "--", *taught]) == 0
    assert done == Counter(one.id for one in EXAMPLES[:3])
    [cell] = Path("out").glob("*.tt-d.*")
    assert [record.adapted for record in load_run(cell).records] == [True, True, False]


def test_what_outlives_a_sweep_is_for_the_same_code(tmp_path, monkeypatch):
    pair = Pair((1, 2), (3,), (True,), (), ((4, 5), (6,)), (0.5, 1.0), (7,), (Pair((8,), (9,)),))
    scores = np.array([-0.1, -np.inf], np.float32), 0.25
    shown = [("a request", [Call("f", {"x": [1]})])]
    kept = Kept(None, {"reason": "\u2028"}, {"synthesize": 1.5}, {"synthesize": 3}, [pair], pair, shown)
    file = sweep.SharedFile(tmp_path)
    file["pairs"], file["base"] = kept, kept._replace(value=scores, pairs=[], held_out=None, shown=[])
    [path] = (tmp_path / ".shared").iterdir()
    with path.open("a") as torn:
        torn.write('\nkey [null, {"reas')
    sweep.SharedFile(tmp_path)["later"] = kept

    found = sweep.SharedFile(tmp_path)
    assert found.keys() == {"pairs", "base", "later"} and found["pairs"] == found["later"] == kept
    assert found["base"].value[0].dtype == np.float32 and found["base"].value[1] == 0.25
    np.testing.assert_array_equal(found["base"].value[0], scores[0])

    monkeypatch.setattr(sweep, "environment", lambda: environment() | {"versions": {"jax": "another"}})
    assert not sweep.SharedFile(tmp_path)
