"""SIGINT and SIGTERM: they end a run with `KeyboardInterrupt`, but never in the middle of a write."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns both signals into `KeyboardInterrupt` inside a `with` block, and remembers that one came.

    An exception that is raised inside a callback from C, such as a garbage collector's, is printed and dropped there.
    Whoever calls `check` now and then still hears of it.
    """

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._interrupt) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if a signal came."""
        if self.came:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


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
