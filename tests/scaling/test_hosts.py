"""Jobs of several processes: the records of one, and a process that is lost costs nothing that was finished."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scaling.alike import assert_alike
from tiny_runs import ADD, GREET, example, settings, write_model
from ttsi_jax.checkpoints.adapters import load_adapter
from ttsi_jax.cli import main, watched
from ttsi_jax.cli.codes import BAD_INPUT, DONE, HOST_LOST, INTERRUPTED
from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import RECORDS
from ttsi_jax.runs.record import Record
from ttsi_jax.scaling import hosts
from ttsi_jax.scaling.hosts import Hosts, check_job, join, open_run, parse_hosts, told, told_pairs
from ttsi_jax.scaling.mesh import make_mesh, put
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call

ROOT = Path(__file__).parents[2]
N_INPUTS = 7
SETTINGS = [
    *("--answer.form", "keys", "--answer.max-tokens", "24", "--answer.value-tokens", "4", "--wave", "4"),
    *("--synthesis.form", "request", "--synthesis.max-tokens", "8", "--gate.tau", "1.1"),
    *("--adapt.scope", "suffix", "--adapt.epochs", "3", "--adapt.lr", "3e-2", "--adapt.rank", "2", "--adapt.save"),
]


class Jobs(NamedTuple):
    """Where the runs of this file are, and what they have in common."""

    path: Path

    def start(self, out: str, mesh: str | None = None, n: int = 1) -> list[subprocess.Popen[str]]:
        """The processes of a run, each with one device."""
        program = [sys.executable, "-c", "import sys; from ttsi_jax.cli import main; sys.exit(main())", "run"]
        places = ["--model", str(self.path / "model"), "--task", str(self.path / "task.jsonl")]
        places += ["--out", str(self.path / out), "--compile-cache", str(self.path / f"programs of {n}")]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        own = [[] if mesh is None else ["--mesh", mesh, "--hosts", f"{address},{i}/{n}"] for i in range(1, n + 1)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return [subprocess.Popen([*program, *places, *SETTINGS, *one], env=os.environ | flags, **pipes) for one in own]

    def lines(self, out: str) -> list[str]:
        path = self.path / out / RECORDS
        return path.read_text().splitlines() if path.exists() else []

    def records(self, out: str) -> list[dict[str, Any]]:
        return [json.loads(line) | {"seconds": {}} for line in self.lines(out)]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, output and messages of each."""
    said = [process.communicate(timeout=1800) for process in processes]
    return [(process.returncode, *own) for process, own in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Jobs:
    """With the records of one process in the run `one`."""
    path = tmp_path_factory.mktemp("jobs")
    shape = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 536}
    write_model(path / "model", **shape)
    tools = [ADD, GREET], [GREET, ADD]  # prefixes of one length
    inputs = [example(f"input {i}", f"What is {i} and 2?", tools[i % 2]) for i in range(N_INPUTS)]
    with (path / "task.jsonl").open("w") as file:
        for one in inputs:
            own = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in one.tools]
            file.write(json.dumps({"id": one.id, "messages": list(one.messages), "tools": own}) + "\n")
    jobs = Jobs(path)
    [(code, _, err)] = ends(jobs.start("one"))
    assert code == DONE, err
    return jobs


def test_a_base_that_spans_hosts_gives_the_records_of_one_process(jobs):
    """Four processes: two hold a base together, twice."""
    (first, *others) = ends(jobs.start("four", "data=2,model=2", 4))
    assert first[0] == DONE, first[2]
    assert "run: " in first[1] and "Gloo" not in first[1] + first[2]
    assert others == [(DONE, "", "")] * 3  # one tells
    assert_alike(jobs.records("one"), jobs.records("four"), "four")
    assert sum(record["adapted"] for record in jobs.records("one")) > 3
    made = json.loads((jobs.path / "four" / "environment.json").read_text())
    assert made["jax"]["processes"] == 4 and made["mesh"] == {"data": 2, "fsdp": 1, "model": 2}
    adapted = next(record["id"] for record in jobs.records("one") if record["adapted"])
    theirs, ours = (load_adapter(jobs.path / out, adapted)[0] for out in ("one", "four"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), ours, theirs)


def test_a_host_that_is_lost_costs_nothing_that_was_finished(jobs):
    """The first of two, which the runtime of the other depends on; then the same job again."""
    processes = jobs.start("lost", "model=2", 2)
    while not jobs.lines("lost") and processes[0].poll() is None:
        time.sleep(0.05)
    child = subprocess.run(["pgrep", "-P", str(processes[0].pid)], capture_output=True, text=True, check=True)
    os.kill(int(child.stdout), signal.SIGKILL)
    for (code, _, err), how in zip(ends(processes), ("was ended by signal 9", "ended with it"), strict=True):
        assert code == HOST_LOST
        assert how in err and "the same command on all hosts resumes the run" in err
        assert not any(word in err for word in ("Traceback", "    @ ", "Gloo", "coordination"))
        log = Path(err.split("what JAX said of it: ")[1].split(")")[0])
        assert "Gloo" in log.read_text()
        log.unlink()
    finished = jobs.lines("lost")
    assert 0 < len(finished) < N_INPUTS
    for code, _, err in ends(jobs.start("lost", "model=2", 2)):
        assert code == DONE, err
    assert set(finished) < set(jobs.lines("lost"))  # to the seconds that they took
    assert_alike(jobs.records("one"), jobs.records("lost"), "lost")


# The process that watches.


def ending(path: Path, commands: str) -> str:
    """An interpreter that does something else."""
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("commands", "code", "how"),
    [
        ("exit 0", 0, None),
        ("exit 2", 2, None),
        ("exit 75", 75, "the one on this host ended with it"),
        ("kill -ABRT $$", 75, "the one on this host ended with it"),
        ("kill -KILL $$", 75, "the one on this host was ended by signal 9"),
    ],
)
def test_how_a_child_ended_is_told_in_a_code_and_a_message(tmp_path, monkeypatch, commands, code, how):
    monkeypatch.setattr(sys, "executable", ending(tmp_path / "python", commands))
    monkeypatch.setattr(watched.tempfile, "tempdir", str(tmp_path))
    found, message = watched.watch([])
    assert found == code and (message is None if how is None else how in message)
    assert len([*tmp_path.glob("*.log")]) == (how is not None)


@pytest.mark.parametrize("commands", ["trap 'kill $!; exit 130' TERM; sleep 60 & wait", "trap '' TERM; exec sleep 60"])
def test_an_interruption_is_passed_on(tmp_path, monkeypatch, commands):
    monkeypatch.setattr(sys, "executable", ending(tmp_path / "python", f"touch {tmp_path}/begun; {commands}"))
    monkeypatch.setattr(watched, "PATIENCE", 1)

    def interrupt() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    monkeypatch.setattr("ttsi_jax.cli._run_watched", lambda args, argv: watched.watch(argv)[0])
    assert main(["run", "--model", "m", "--task", "t", "--hosts", "auto"]) == INTERRUPTED
    thread.join()


def test_a_child_ends_with_the_process_that_watches_it():
    program = "from ttsi_jax.cli.watched import _end_with_parent; _end_with_parent()"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, env=env)
    child.communicate(timeout=1800)
    assert child.returncode == INTERRUPTED


# What needs no other process.


def test_what_means_no_hosts_is_refused(capsys):
    assert parse_hosts("10.0.0.1:8476,2/4") == Hosts("10.0.0.1:8476", 2, 4) and parse_hosts("auto") == Hosts()
    for text in ("", "2/4", "host,2/4", "host:1", "host:1,0/4", "host:1,5/4", "host:1,2/4,", "automatic"):
        with pytest.raises(InputError, match=r"it must be auto, or ADDRESS:PORT,i/n"):
            parse_hosts(text)
    begin = ["run", "--model", "none", "--task", "none", "--hosts"]
    assert main([*begin, "here"]) == main([*begin, "auto"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert "--hosts is 'here'" in said and "--hosts needs --mesh" in said


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    def initialize(*arguments: Any, **options: Any) -> None:
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(InputError, match="--hosts auto: .*should be defined.; where JAX finds no cluster, write"):
        join("auto")


@pytest.fixture
def as_one_of_two(monkeypatch):
    """Makes this process believe that it is one of two; gives what the first one tells, where this is not the first."""
    said: list[Any] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: len(said))
    sent = lambda: json.dumps(said[0]).encode()  # noqa: E731

    def broadcast(x: Any) -> Any:
        if not said:
            return x
        return np.int32(len(sent())) if np.ndim(x) == 0 else np.frombuffer(sent().ljust(x.size), np.uint8)

    monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda x: np.array([False, bool(x)]))
    return said


def test_only_the_first_process_does_what_all_are_told(as_one_of_two):
    def refuse() -> None:
        raise InputError("no such directory")

    assert told(lambda: {"a": [1, "ü" * 3000]}) == {"a": [1, "ü" * 3000]}
    with pytest.raises(InputError, match="no such directory"):
        told(refuse)
    pairs = [
        Synthetic("q", (Call("add", {"a": 1}),), tools=(ADD,), usage={"requests": 2}, skipped=("a",)),
        Synthetic("", (), "refused", last=True),
    ]
    assert told_pairs(lambda: pairs) == pairs
    as_one_of_two.append({"value": 3})
    assert told(refuse) == 3
    as_one_of_two[0] = {"error": "no such directory"}
    with pytest.raises(InputError, match="no such directory"):
        told(refuse)


def test_the_others_write_nothing(as_one_of_two, tmp_path):
    with open_run(tmp_path / "first", {}) as run:
        run.append([Record("a", "task", "query")])
        run.complete(["a"], {"n": 1})
    as_one_of_two.append({"value": {"records": [(tmp_path / "first" / RECORDS).read_text()], "summary": {"n": 1}}})
    with open_run(tmp_path / "other", {}) as run:
        assert run.finished == {"a": Record("a", "task", "query")} and run.summary() == {"n": 1}
        run.append([Record("b", "task", "query", error="failed")])
        run.write("environment.json", {})
        run.write_once("functions.jsonl", [{}])
        assert run.failed.keys() == {"b"}
        run.complete(["a", "b"], {})
        with pytest.raises(InputError, match="inputs without a record: c"):
            run.complete(["a", "b", "c"], {})
    assert not (tmp_path / "other").exists()


def test_hosts_that_would_not_do_the_same_are_refused(as_one_of_two):
    config, mesh = settings().to_dict(), {"data": 1, "model": 2}
    check_job(config, mesh)
    with pytest.raises(InputError, match="a model on a mesh of all their devices"):
        check_job(config, None)
    with pytest.raises(InputError, match="--adapt.reset never .* takes one host"):
        check_job(settings(adapt=settings().adapt.__class__(reset="never")).to_dict(), mesh)
    as_one_of_two.append({"value": config | {"mesh": mesh, "seed": 5}})
    with pytest.raises(InputError, match="other settings or files than the first:\n  seed: 5 there, 0 here"):
        check_job(config, mesh)


def test_a_mesh_takes_the_devices_of_all_hosts(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [None] * 4)
    with pytest.raises(InputError, match="--mesh model=2 leaves some of the hosts' 4 devices idle"):
        make_mesh("model=2")


def test_values_are_put_where_they_belong():
    mesh = jax.make_mesh((1,), ("data",))
    where = NamedSharding(mesh, PartitionSpec("data"))
    found = put({"a": np.arange(4), "b": [np.ones((2, 3))]}, where)
    assert found["a"].sharding == found["b"][0].sharding == where
    assert put(np.arange(3), None).tolist() == [0, 1, 2]
