"""A run's directory after a crash, a full disk or a signal at any step to the disk."""

import errno
import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.runs import directory
from ttsi_jax.runs.directory import open_run, read_records
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.signals import Interrupts, held_back

CONFIG = {"gate": {"tau": 0.95}}
IDS = [f"input-{i}" for i in range(6)]


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def work(path, appended):
    """A whole run, resumed where there is something to resume; `appended` gathers the ids that were kept."""
    with open_run(path, CONFIG) as run:
        todo = [id for id in reversed(IDS) if id not in run.finished]
        for i in range(0, len(todo), 2):
            run.append([Record(id, "task", f"query of {id} – ü") for id in todo[i : i + 2]])
            appended.update(todo[i : i + 2])
        run.complete(IDS, {"n": len(IDS)})


@contextmanager
def instead_of(steps, act):
    """Has `act` called for the steps to the disk that are numbered in `steps`: half of a write is done before.

    Steps are writes, syncs, replacements and removals. Gives the count of steps that were begun.
    """
    begun = []

    def step(real, *args, **kwargs):
        begun.append(real)
        if len(begun) - 1 not in steps:
            return real(*args, **kwargs)
        if real is write:
            file, content = args
            file.write(content[: len(content) // 2])
            return act(real) or real(file, content[len(content) // 2 :])
        return act(real) or real(*args, **kwargs)

    write = directory._write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "_write", functools.partial(step, write))
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, functools.partial(step, getattr(os, name)))
        yield begun


class Crash(BaseException):
    """The process is gone: nothing after it is done."""


def crash(step):
    raise Crash


def full(step, removes=os.unlink):
    if step is not removes:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What an uninterrupted run leaves, and the number of its steps to the disk."""
    path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    with instead_of((), crash) as begun:
        work(path, set())
    assert len(begun) > 15
    return contents(path), len(begun)


@pytest.mark.parametrize("times", [1, 2])
def test_a_crash_at_any_step_to_the_disk_loses_nothing(tmp_path, expected, times):
    """Once, and again at the same step of the resumed run."""
    for number in range(expected[1]):
        path, appended = tmp_path / str(number), set()
        for _ in range(times):
            with suppress(Crash), instead_of({number}, crash):
                work(path, appended)
            with open_run(path, CONFIG) as run:
                assert appended <= run.finished.keys()
        work(path, appended)
        assert contents(path) == expected[0]


def test_a_full_disk_loses_nothing_and_leaves_no_half_line(tmp_path, expected):
    for number in range(expected[1]):
        path, appended = tmp_path / str(number), set()
        with suppress(OSError, InputError), instead_of(range(number, 10_000), full):
            work(path, appended)
        records = path / "records.jsonl"
        assert not records.exists() or records.read_bytes()[-1:] in (b"", b"\n")
        assert not [name for name in contents(path) if name.endswith(".tmp")]
        with open_run(path, CONFIG) as run:
            assert appended <= run.finished.keys()
        work(path, appended)
        assert contents(path) == expected[0]


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with open_run(tmp_path, CONFIG) as run:
        with pytest.raises(OSError) as caught, instead_of({2}, full):
            run.append([Record("a", "task", "query")])
        assert caught.value.filename == str(tmp_path / "records.jsonl")
        run.append([Record("a", "task", "query")])
    assert list(read_records(tmp_path / "records.jsonl")[0]) == ["a"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_write_in_hand_finish(tmp_path, expected, number):
    for step in range(expected[1]):
        path, appended = tmp_path / str(step), set()
        with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
            with instead_of({step}, lambda step: os.kill(os.getpid(), number)):
                work(path, appended)
        assert interrupts.came
        if (path / "records.jsonl").exists():
            found, intact = read_records(path / "records.jsonl")
            assert intact == (path / "records.jsonl").stat().st_size and len(found) % 2 == 0
        work(path, appended)
        assert contents(path) == expected[0]


class Callback:
    """Something that Python calls where no exception can go anywhere."""

    def __init__(self, act):
        self.act = act

    def __del__(self):
        self.act()


def test_a_signal_in_a_callback_is_neither_lost_nor_printed(capsys):
    with Interrupts() as interrupts:
        interrupts.check()
        Callback(lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert capsys.readouterr().err == ""


def test_other_exceptions_in_callbacks_are_told_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    with Interrupts():
        Callback(lambda: 1 / 0)
    assert told[0].exc_type is ZeroDivisionError


def test_signals_have_their_own_handlers_again_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts(), held_back():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_may_write(tmp_path):
    thread = threading.Thread(target=work, args=(tmp_path / "run", set()))
    thread.start()
    thread.join()
    assert len(read_records(tmp_path / "run/records.jsonl")[0]) == len(IDS)


PROGRAM = """
import sys
from ttsi_jax.runs.directory import open_run
from ttsi_jax.runs.record import Record
path, count = sys.argv[1], int(sys.argv[2])
ids = [f"input-{i}" for i in range(count)]
with open_run(path, {"tau": 0.95}) as run:
    todo = [id for id in reversed(ids) if id not in run.finished]
    for i in range(0, len(todo), 3):
        run.append([Record(id, "task", "words " * 2000) for id in todo[i : i + 3]])
    run.complete(ids, {"n": count})
"""


def test_a_run_killed_again_and_again_ends_as_if_uninterrupted(tmp_path):
    count, moments, kills = 300, random.Random(0), 0
    killed, records = tmp_path / "killed", tmp_path / "killed" / "records.jsonl"

    def start(path):
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(path), str(count)])

    assert start(tmp_path / "uninterrupted").wait() == 0
    expected = contents(tmp_path / "uninterrupted")
    share = len(expected["records.jsonl"]) / 10
    finished = set()
    for attempt in range(10):
        process = start(killed)
        goal = share * (attempt + moments.random())
        while process.poll() is None and not (records.exists() and records.stat().st_size >= goal):
            time.sleep(0.0005)
        process.kill()
        kills += process.wait() < 0
        before, finished = finished, set(read_records(records)[0])
        assert before <= finished
    assert kills >= 5
    assert start(killed).wait() == 0
    assert contents(killed) == expected
