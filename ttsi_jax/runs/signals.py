"""SIGINT and SIGTERM: they end a run with `KeyboardInterrupt`, but never in the middle of a write."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns both signals into `KeyboardInterrupt` inside a `with` block, and remembers that one came.

    Python prints and drops an exception that is raised inside a callback, such as the one by which JAX takes part in
    garbage collection. This one is dropped without a word, and whoever calls `check` now and then still hears of it.
    """

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._interrupt) for number in SIGNALS}
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._dropped
        return self

    def __exit__(self, *exception: object) -> None:
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if a signal came."""
        if self.came:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def _dropped(self, dropped: sys.UnraisableHookArgs) -> None:
        if not (self.came and issubclass(dropped.exc_type, KeyboardInterrupt)):
            self._hook(dropped)


@contextmanager
def held_back() -> Iterator[None]:
    """Holds both signals back until the block's end; other threads than the main one are not interrupted anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)
