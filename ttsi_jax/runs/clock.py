"""How long this process has spent tracing and compiling, so that it can be told apart from running."""

from __future__ import annotations

import time

from jax import monitoring


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
