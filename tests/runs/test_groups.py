from dataclasses import replace

import pytest

from runs.synthetic import record, run
from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import open_run
from ttsi_jax.runs.groups import Run, group_runs, load_run, load_runs, notes
from ttsi_jax.runs.record import Record, to_json
from ttsi_jax.runs.summary import summarise


def labelled(id, tool, call, **values):
    return Record(id, "t", "q", tool_correct=tool, call_correct=call, **values)


def test_runs_that_differ_in_their_seed_alone_are_one_group():
    runs = {
        "base": run(2, method="base"),
        "tt-si-10": run(2, seed=10),
        "tt-si-2": run(2, seed=2),
        "other": run(2, seed=3, gate={"tau": 0.5}),
        "again": run(2, seed=2),
    }
    groups = group_runs(runs)
    assert [group.number for group in groups] == [1, 2, 3, 4]
    assert [(group.name, list(group.runs), group.seeds) for group in groups] == [
        ("base", ["base"], (0,)),
        ("tt-si (2 seeds)", ["tt-si-2", "tt-si-10"], (2, 10)),
        ("other", ["other"], (3,)),
        ("again", ["again"], (2,)),  # a repeated seed is no second sample
    ]


def test_whatever_must_be_known_of_runs_is_noted():
    whole = run(5)
    assert notes({"a": whole}) == []
    mixed = [replace(record(1), id="x", task="another"), *whole.records]
    runs = {
        "unfinished": whole._replace(summary=None),
        "two tasks": Run(whole.config, mixed, summarise(mixed)),
        "edited": whole._replace(summary={**whole.summary, "fixed": 77}),
        "base": whole._replace(config={**whole.config, "method": "base", "checksum": "1", "inputs": "2"}),
        "failing": Run(whole.config, [record(96)], summarise([record(96)])),
    }
    found = "\n".join(notes(runs))
    for said in (
        "unfinished: unfinished, with 5 inputs so far",
        "two tasks: mixed: inputs of another, made-up",
        "edited: mixed: its summary is not that of its records",
        "base: mixed: a run of the base alone with inputs that adapted",
        "failing: 1 of 1 inputs failed",
        "not of the same inputs",
        "not of the same weights",
    ):
        assert said in found


def test_runs_of_different_tasks_need_not_have_the_same_inputs():
    runs = {task: run(2, task=task, inputs=task, checksum=task) for task in ("a", "b")}
    assert [note for note in notes(runs) if "not of the same" in note] == []
    found = notes({**runs, "other": run(2, task="b", inputs="b", checksum="c")})
    assert "not of the same weights" in found[-1] and not any("same inputs" in note for note in found)


def test_loading_an_unfinished_run_changes_nothing(tmp_path):
    with open_run(tmp_path, {"seed": 0}) as opened:
        opened.append([labelled("a", True, True, error="once")])
        opened.append([labelled("b", True, True), labelled("a", True, False)])
        with open(tmp_path / "records.jsonl", "ab") as file:
            file.write(to_json(labelled("c", True, True)).encode()[:10])
        size = (tmp_path / "records.jsonl").stat().st_size
        config, records, summary, functions = load_run(tmp_path)  # although another process writes
    assert config == {"seed": 0} and summary is None and functions == []
    assert records == [labelled("a", True, False), labelled("b", True, True)]
    assert (tmp_path / "records.jsonl").stat().st_size == size


def test_runs_are_named_after_their_directories(tmp_path):
    paths = [tmp_path / "base", tmp_path / "tt-si", tmp_path / "other" / "base"]
    for path in paths:
        with open_run(path, {}) as opened:
            opened.complete([], {"n": 0})
    assert list(load_runs(paths[:2])) == ["base", "tt-si"]
    assert list(load_runs(paths)) == [str(path) for path in paths]
    with pytest.raises(InputError, match="given twice"):
        load_runs([paths[0], paths[0] / ".." / "base"])
    with pytest.raises(InputError, match="holds no run"):
        load_runs([tmp_path / "nowhere"])
