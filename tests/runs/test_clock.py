import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from ttsi_jax.runs import clock
from ttsi_jax.runs.clock import CompileClock

COMPILE = "/jax/core/compile/anything"


@pytest.fixture
def measured():
    with CompileClock() as clock:
        yield clock


@pytest.fixture
def at(monkeypatch):
    """Reports an event that ends at a time and took so many seconds."""

    def report(end: float, seconds: float, event: str = COMPILE) -> None:
        monkeypatch.setattr(clock.time, "perf_counter", lambda: end)
        jax.monitoring.record_event_duration_secs(event, seconds)

    return report


def test_intervals_add_up(at, measured):
    assert measured.seconds == 0
    at(10, 2)
    at(20, 3)
    assert measured.seconds == pytest.approx(5)


def test_nested_intervals_count_once(at, measured):
    at(3, 1)
    at(13, 1)
    at(15, 1.5)
    at(16, 5)  # holds the two before it, not the first
    assert measured.seconds == pytest.approx(6)
    at(30, 30)  # holds everything
    assert measured.seconds == pytest.approx(30)


def test_only_compiling_inside_the_block_counts(at):
    at(10, 2)
    with CompileClock() as measured:
        at(20, 2, "/jax/core/something_else")
    at(30, 2)
    assert measured.seconds == 0


def test_real_compilation_is_counted_once_and_only_the_first_time(measured):
    inner = jax.jit(lambda x: jnp.sin(x) * 3)
    outer = jax.jit(lambda x: inner(x) + inner(x + 1))
    x = jnp.arange(3.0)
    start, before = time.perf_counter(), measured.seconds
    outer(x).block_until_ready()
    elapsed, first = time.perf_counter() - start, measured.seconds
    assert 0 < first - before <= elapsed
    outer(x).block_until_ready()
    assert measured.seconds == first


def test_compiled_programs_are_kept(tmp_path):
    """In a process of its own: the cache of a process cannot be turned off again."""
    program = """
import sys, jax
from pathlib import Path
from ttsi_jax.runs.clock import keep_programs
keep_programs(Path(sys.argv[1]))
jax.jit(lambda x: x * 17 + 3)(jax.numpy.ones(19)).block_until_ready()
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "new" / "folder")], check=True, timeout=120)
    assert any((tmp_path / "new" / "folder").iterdir())
