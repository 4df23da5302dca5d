"""Runs of the loop from their names for objects to their directories: refused, kept, interrupted and resumed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_runs
import ttsi_jax
from tiny_runs import (
    EXAMPLES,
    TASK,
    example,
    gate,
    settings,
    task_of,
    timeless,
    tiny_model,
    untimed,
    with_template,
    with_tokens_beyond,
)
from ttsi_jax.errors import InputError
from ttsi_jax.loop import Loop, run
from ttsi_jax.runs.directory import CONFIG, read_records
from ttsi_jax.runs.record import Record, from_json, to_json
from ttsi_jax.tasks import Task

MODEL = tiny_model()


def records(task: Task = TASK, **changes) -> list[Record]:
    return run(MODEL, task, settings(**changes)).records


@pytest.fixture(scope="module")
def usual() -> dict[str, Record]:
    """Records of the usual run, without their seconds."""
    return untimed(records())


# Names for objects.


def test_an_estimator_of_ones_own():
    found = records(task_of(*EXAMPLES[:2]), **gate(tau=0.5, estimator="tiny_runs:least"), method="base")
    assert [(record.uncertainty, record.uncertain) for record in found] == [(0.0, True)] * 2


def test_a_rule_and_a_loss_of_ones_own(usual):
    """A ready-made `UpdateRule` has its own learning rate, here the usual one."""
    adapt = replace(settings().adapt, rule="tiny_runs:READY_RULE", loss="ttsi_jax.rules:answer_cross_entropy", lr=None)
    assert untimed(records(adapt=adapt)) == usual
    with pytest.raises(InputError, match="--adapt.lr is 9.0, but --adapt.rule tiny_runs:READY_RULE#"):
        records(adapt=replace(adapt, lr=9.0))


def test_a_rule_that_is_given_has_its_rate(tmp_path):
    run(MODEL, task_of(EXAMPLES[0]), settings(), out=tmp_path, rule=tiny_runs.READY_RULE)
    assert json.loads((tmp_path / CONFIG).read_text())["adapt"]["lr"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (gate(estimator="margn"), "unknown estimator 'margn'; did you mean 'margin'? Known: margin"),
        ({"adapt": replace(settings().adapt, rule="ftrl")}, "unknown update rule 'ftrl'. Known: adamw"),
        ({"adapt": replace(settings().adapt, loss="hinge")}, "unknown loss 'hinge'. Known: answer_cross_entropy"),
        (
            {"adapt": replace(settings().adapt, rule="tiny_runs:none")},
            "update rule 'tiny_runs:none' cannot be imported",
        ),
        ({"wave": 0}, "--wave is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        run(MODEL, TASK, settings(**changes), out=tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


# Directories.


def lines(path) -> list[str]:
    """The run's records in their order, as JSON without their seconds."""
    return [to_json(timeless(record)) for record in read_records(path / "records.jsonl")[0].values()]


@pytest.fixture(scope="module")
def gated(usual):
    """A configuration whose inputs finish at different stages, how often it tells of progress, and its records."""
    certainties = sorted(record.uncertainty for record in usual.values())
    config, told = settings(**gate(tau=certainties[4])), []
    found = run(MODEL, TASK, config, progress=lambda *args: told.append(args)).records
    return config, len(told), [to_json(timeless(record)) for record in found]


def test_a_run_is_kept(tmp_path, gated):
    config, _, expected = gated
    path = tmp_path / "run"
    found, summary = run(MODEL, TASK, config, out=path)
    assert lines(path) == expected and list(read_records(path / "records.jsonl")[0].values()) == found
    assert json.loads((path / "summary.json").read_text()) == summary
    kept = json.loads((path / "config.json").read_text())
    weights = {"model": "tiny", "checksum": MODEL.checksum, "dtype": "float32"}
    assert kept == weights | {"task": "tiny", "inputs": TASK.fingerprint} | config.to_dict()
    environment = json.loads((path / "environment.json").read_text())
    assert (environment["seed"], environment["weights"]) == (config.seed, weights)
    assert {"python", "versions", "jax", "revision"} < environment.keys()
    (path / "environment.json").write_text("{}")
    assert run(MODEL, TASK, config, out=path).records == found
    assert (path / "environment.json").read_text() == "{}", "a finished run keeps that of its making"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 0.95])
def test_an_interrupted_run_resumes_to_the_same_records(tmp_path, gated, share):
    config, n_told, expected = gated
    path, told = tmp_path / "run", []

    def interrupt(*args):
        told.append(args)
        if len(told) == 1 + int(share * n_told):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(MODEL, TASK, config, out=path, progress=interrupt)
    finished = (path / "records.jsonl").read_bytes()
    assert not (path / "summary.json").exists()
    assert {to_json(timeless(r)) for r in read_records(path / "records.jsonl")[0].values()} <= set(expected)
    resumed = run(MODEL, TASK, config, out=path)
    assert lines(path) == expected
    assert set(finished.splitlines()) <= set((path / "records.jsonl").read_bytes().splitlines()), "done only once"
    assert json.loads((path / "summary.json").read_text()) == resumed.summary


def test_a_finished_run_is_read_and_not_done_again(tmp_path, gated, monkeypatch):
    first = run(MODEL, TASK, gated[0], out=tmp_path)
    content = (tmp_path / "records.jsonl").read_bytes()
    monkeypatch.setattr(Loop, "records", None)
    again = run(MODEL, TASK, gated[0], out=tmp_path)
    assert again == first and (tmp_path / "records.jsonl").read_bytes() == content


def test_an_input_with_a_token_that_the_model_lacks_fails_alone():
    inputs = [example(text, f"Please greet {text}") for text in ("<5>", "<4>")]
    lacking, other = run(with_tokens_beyond(), task_of(*inputs), settings()).records
    n_rows = MODEL.config.vocab_size
    told = f"a prompt of input '<5>' holds the token '<5>' with the id {n_rows}, and the model's embedding has only"
    assert (lacking.error or "").startswith(f"{told} {n_rows} rows") and other.error is None


def test_failed_inputs_are_tried_again(tmp_path, usual):
    model = with_template("{% if 'greet Bo' in m['content'] %}{{ raise_exception('not now') }}{% endif %}")
    first = run(model, TASK, settings(), out=tmp_path)
    assert first.summary["failed"] == 1
    again = run(MODEL, TASK, settings(), out=tmp_path)
    assert again.summary["failed"] == 0 and untimed(again.records) == usual


@pytest.mark.parametrize(
    ("task", "changes"),
    [(TASK, {"seed": 1}), (TASK, gate(tau=0.5)), (task_of(*EXAMPLES[:2]), {}), (task_of(*EXAMPLES[::-1]), {})],
)
def test_another_run_in_the_directory_is_refused_and_left_as_it_is(tmp_path, gated, task, changes):
    run(MODEL, TASK, settings(method="base"), out=tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InputError, match="holds a run with other settings"):
        run(MODEL, task, settings(**({"method": "base"} | changes)), out=tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_record_of_an_input_that_the_task_lacks_is_told_before_anything_is_done(tmp_path):
    config, task = settings(method="base"), task_of(*EXAMPLES[:2])
    run(MODEL, task, config, out=tmp_path)
    [first, *_] = (tmp_path / "records.jsonl").read_text().splitlines()
    stray = to_json(replace(from_json(first), id="stray"))
    (tmp_path / "records.jsonl").write_text(f"{first}\n{stray}\n")
    told = []
    with pytest.raises(InputError, match="the run holds inputs that its task does not: stray"):
        run(MODEL, task, config, out=tmp_path, progress=lambda *args: told.append(args))
    assert not told


def test_progress_tells_how_many_inputs_are_done_of_those_known():
    told: dict[str, list[tuple[int, int]]] = {}
    run(MODEL, TASK, settings(), progress=lambda stage, done, known: told.setdefault(stage, []).append((done, known)))
    assert told.keys() == {"score", "synthesize", "adapt"}
    for counts in told.values():
        assert all(done <= known <= 7 for done, known in counts) and counts[-1][0] == counts[-1][1]
        assert [done for done, _ in counts] == sorted(done for done, _ in counts)
    assert told["score"][-1] == told["synthesize"][-1] == (7, 7)


def test_a_tasks_fingerprint_is_the_same_in_every_process():
    """Sets have another order in every process."""
    program = (
        "from tiny_runs import EXAMPLES, example; from ttsi_jax.tasks import *\n"
        "gold = GoldCall('add', dict.fromkeys('abcdefgh', (1, 2)), frozenset('abcdefgh'))\n"
        "print(Task('t', (*EXAMPLES, example('eight', 'What?', gold=(gold,)))).fingerprint)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(ttsi_jax.__file__).parents[1])])

    def printed(seed: str) -> str:
        env = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
        ).stdout

    assert printed("1") == printed("2")


def test_a_run_is_not_resumed_with_weights_of_another_type(tmp_path):
    task = task_of(EXAMPLES[0])
    run(MODEL, task, settings(method="base"), out=tmp_path / "run")
    params = {**MODEL.params, "embed": MODEL.params["embed"].astype("bfloat16")}
    with pytest.raises(InputError, match=r'dtype: "float32" there, "bfloat16" now'):
        run(MODEL._replace(params=params), task, settings(method="base"), out=tmp_path / "run")
