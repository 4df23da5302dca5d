"""Tracing and compiling: how long this process has spent on it, and a folder that spares the next one most of it."""

from __future__ import annotations

import time
from pathlib import Path

import jax
from jax import monitoring


def keep_programs(folder: Path) -> None:
    """Keeps compiled programs in a folder, and takes those that are there: JAX's persistent compilation cache."""
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # also the many small ones
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class CompileClock:
    """Adds up what JAX reports of tracing, lowering and compiling inside a `with` block."""

    _EVENTS = "/jax/core/compile/"

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float]] = []  # disjoint, in order

    def __enter__(self) -> CompileClock:
        monitoring.register_event_duration_secs_listener(self._add)
        return self

    def __exit__(self, *exception: object) -> None:
        monitoring.unregister_event_duration_listener(self._add)

    @property
    def seconds(self) -> float:
        return sum(end - start for start, end in self._intervals)

    def _add(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if not event.startswith(self._EVENTS):
            return
        end = time.perf_counter()
        start = end - duration_secs
        # A function traced inside another reports first: its time is part of the outer one's.
        while self._intervals and self._intervals[-1][0] >= start:
            self._intervals.pop()
        self._intervals.append((start, end))
