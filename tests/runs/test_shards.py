"""Inputs divided among processes, and their runs joined."""

import json
import random
from pathlib import Path

import pytest

from tiny_runs import EXAMPLES, gate, numbered, settings, task_of, timeless, tiny_model, with_template
from ttsi_jax.checkpoints.adapters import saved_ids
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.runs.directory import RECORDS, read_config, read_records, read_summary
from ttsi_jax.runs.groups import load_runs, notes
from ttsi_jax.runs.record import to_json
from ttsi_jax.runs.shards import INPUTS, Shard, cost, divide, merge, parse_shard, part_of
from ttsi_jax.tasks import Example, Task, Tool

MODEL = tiny_model()
TASK = task_of(*numbered(9))
CONFIG = settings(method="base")


def lines(path: Path) -> list[str]:
    return [to_json(timeless(record)) for record in read_records(path / RECORDS)[0].values()]


def figures(path: Path) -> dict:
    return {name: value for name, value in read_summary(path).items() if "seconds" not in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "whole"
    run(MODEL, TASK, CONFIG, out=path)
    return path


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    """Two shards of the same run."""
    paths = [tmp_path / f"shard {index}" for index in (1, 2)]
    for index, path in enumerate(paths, start=1):
        run(MODEL, TASK, CONFIG, out=path, shard=Shard(index, 2))
    return paths


def test_a_chosen_tau_is_that_of_one_run(tmp_path):
    """Every host scores all inputs for it; the joined summary tells it."""
    config = settings(**gate(tau="auto", budget=0.5), method="base")
    run(MODEL, TASK, config, out=tmp_path / "whole")
    paths = [tmp_path / "1", tmp_path / "2"]
    for index, path in enumerate(paths, start=1):
        run(MODEL, TASK, config, out=path, shard=Shard(index, 2))
    merge(paths, tmp_path / "joined")
    assert figures(tmp_path / "joined") == figures(tmp_path / "whole") and "tau" in figures(tmp_path / "whole")
    assert lines(tmp_path / "joined") == lines(tmp_path / "whole")


# Dividing.


def mixed(n: int, seed: int) -> Task:
    """Inputs of very different lengths: one to forty tools, and some that cannot be used."""
    rng = random.Random(seed)
    found = []
    for index in range(n):
        tools = tuple(Tool(f"f{k}", "x" * rng.randint(10, 900), {"type": "object"}) for k in range(rng.randint(1, 40)))
        problem = "cannot be read" if rng.random() < 0.05 else None
        found.append(Example(f"{index}", ({"role": "user", "content": "?"},), tools, None, problem))
    return Task("mixed", tuple(found))


@pytest.mark.parametrize(("n_inputs", "n"), [(100, 2), (100, 5), (400, 16), (1000, 64)])
def test_no_shard_has_a_tenth_more_to_do_than_another(n_inputs, n):
    task = mixed(n_inputs, n)
    owners = divide(task, n)
    loads = [
        sum(cost(e) for e, owner in zip(task.examples, owners, strict=True) if owner == i) for i in range(1, n + 1)
    ]
    assert min(loads) > 0.9 * max(loads)
    assert owners == divide(Task("mixed", tuple(task.examples)), n), "the task alone decides"


def test_shards_are_a_partition_in_the_tasks_order():
    parts = [part_of(TASK, Shard(index, 4)).examples for index in range(1, 5)]
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in TASK.examples)
    assert all([e for e in TASK.examples if e in part] == list(part) for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "-1/2", "1/0", "a/b", "1/2/3", "1 / 2", "1/99999999"])
def test_what_is_no_shard(text):
    with pytest.raises(InputError, match="it must be i/n with i from 1 to n"):
        parse_shard(text)
    assert parse_shard("2/4") == Shard(2, 4) and str(Shard(2, 4)) == "2/4"


def test_more_shards_than_inputs():
    with pytest.raises(InputError, match="--shard 4/12: tiny has only 9 inputs"):
        run(MODEL, TASK, CONFIG, shard=Shard(4, 12))


def test_inputs_that_are_tied_together_are_not_divided(tmp_path):
    tied = settings(wave=1, adapt=settings().adapt.__class__(reset="never", save=True))
    with pytest.raises(InputError, match="--adapt.reset never ties all inputs together"):
        run(MODEL, TASK, tied, out=tmp_path / "run", shard=Shard(1, 2))
    assert not (tmp_path / "run").exists()


# Joining.


def test_joined_shards_are_the_run_of_all_inputs(tmp_path, whole, shards):
    merged = merge(shards[::-1], tmp_path / "joined")
    assert (merged.n, merged.missing, merged.failed) == (9, {}, [])
    assert lines(tmp_path / "joined") == lines(whole) and figures(tmp_path / "joined") == figures(whole)
    assert read_config(tmp_path / "joined") == read_config(whole)
    assert notes(load_runs([whole, tmp_path / "joined"])) == []


def test_adaptation_in_a_shard_is_that_of_the_whole_run(tmp_path):
    """Inputs of a shard are padded as in the whole run, whoever is with them."""
    config = settings(adapt=settings().adapt.__class__(scope="suffix", epochs=3, lr=3e-2, rank=2, save=True))
    task = task_of(*EXAMPLES)
    run(MODEL, task, config, out=tmp_path / "whole")
    for index in (1, 2):
        run(MODEL, task, config, out=tmp_path / f"{index}", shard=Shard(index, 2))
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "joined")
    assert lines(tmp_path / "joined") == lines(tmp_path / "whole")
    assert figures(tmp_path / "joined") == figures(tmp_path / "whole")
    assert sorted(saved_ids(tmp_path / "joined")) == sorted(saved_ids(tmp_path / "whole")) != []


def test_a_dead_host_costs_its_unfinished_inputs_alone(tmp_path, whole, shards):
    records = shards[1] / RECORDS
    finished = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(finished[:2]) + finished[2][:40])  # killed while it wrote its third record
    (shards[1] / "summary.json").unlink()
    out = tmp_path / "joined"
    merged = merge(shards, out)
    assert merged.missing == {2: len(finished) - 2} and read_summary(out) is None
    done = []
    found = run(MODEL, TASK, CONFIG, out=out, progress=lambda stage, n, known: done.append(known))
    assert max(done) == len(finished) - 2, "only those are done"
    assert len(found.records) == 9 and lines(out) == lines(whole) and figures(out) == figures(whole)


def test_a_shard_that_is_not_there_can_be_added_later(tmp_path, whole, shards):
    out = tmp_path / "joined"
    assert merge(shards[:1], out).missing == {2: len(read_records(shards[1] / RECORDS)[0])}
    assert merge(shards, out).missing == {}
    assert lines(out) == lines(whole) and figures(out) == figures(whole)
    content = (out / RECORDS).read_bytes()
    assert merge(shards, out).missing == {} and (out / RECORDS).read_bytes() == content


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_a_run_finished_stays_as_it_is_until_a_shard_has_something_new(tmp_path):
    """Nobody finished a shard, so none can tell tau and the seconds of compiling."""
    config, out = settings(**gate(tau="auto", budget=0.5), method="base"), tmp_path / "joined"
    paths = [tmp_path / "1", tmp_path / "2"]
    for index, path in enumerate(paths, start=1):
        run(MODEL, TASK, config, out=path, shard=Shard(index, 2))
        (path / "summary.json").unlink()
        late, *others = (path / RECORDS).read_text().splitlines(keepends=True)  # the run does them
        (path / RECORDS).write_text("".join(others))
    merge(paths, out)
    query = json.loads(late)["query"]
    failing = with_template(f"{{% if '{query}' in m['content'] %}}{{{{ raise_exception('no') }}}}{{% endif %}}")
    made = run(failing, TASK, config, out=out).summary | {"compile_seconds": 7.5}
    (out / "summary.json").write_text(json.dumps(made))
    before = contents(out)
    assert made["failed"] == 1 and merge(paths, out).missing == {} and contents(out) == before

    with (paths[1] / RECORDS).open("a") as file:
        file.write(late)
    for path in paths:
        (path / "environment.json").unlink()
    assert merge(paths, out).failed == []
    after, of_making = read_summary(out), ("tau", "tau_by", "compile_seconds")
    assert after["failed"] == 0 and [after[name] for name in of_making] == [made[name] for name in of_making]
    assert contents(out)["environment.json"] == before["environment.json"]


def test_what_does_not_belong_together_is_refused(tmp_path, whole, shards):
    first, second = shards
    out = tmp_path / "joined"
    for paths, message in (
        ([], "no run given"),
        ([tmp_path / "nowhere"], "holds no run"),
        ([first, whole], "is a run of all inputs, not of a shard"),
        ([first, first], "are both shard 1/2"),
    ):
        with pytest.raises(InputError, match=message):
            merge(paths, out)

    def change(path: Path, **changes) -> None:
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | changes))

    change(second / "config.json", seed=7)
    with pytest.raises(InputError, match="has other settings than(?s:.*)seed: 0 there, 7 here"):
        merge(shards, out)
    change(second / "config.json", seed=0, shard="2/3")
    with pytest.raises(InputError, match="is shard 2/3, .* is shard 1/2"):
        merge(shards, out)
    change(second / "config.json", shard="2/2")
    change(second / INPUTS, inputs=[])
    with pytest.raises(InputError, match="their inputs.json differ"):
        merge(shards, out)
    for damaged in ({}, {"task": "t"}, {"task": "t", "inputs": [{"id": "a"}]}, {"task": "t", "inputs": [1]}):
        (second / INPUTS).write_text(json.dumps(damaged))
        with pytest.raises(InputError, match="shard 2/inputs.json: is not what a run with --shard writes"):
            merge(shards, out)
    (second / INPUTS).unlink()
    with pytest.raises(InputError, match="ended before it began"):
        merge(shards, out)
    content = {name: value for name, value in read_summary(first).items() if name != "compile_seconds"}
    (first / "summary.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="shard 1/summary.json: has no compile_seconds. Delete it"):
        merge([first], out)
    (first / "summary.json").unlink()
    config = read_config(first)
    (first / "config.json").write_text(json.dumps({"shard": "1/2", "task": "tiny"}))
    with pytest.raises(InputError, match="shard 1/config.json: has no model and no method"):
        merge([first], out)
    (first / "config.json").write_text(json.dumps(config))
    assert not out.exists()
    with pytest.raises(InputError, match="holds a run with other settings"):
        merge([first], first)
