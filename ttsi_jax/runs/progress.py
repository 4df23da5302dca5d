"""Shows how far a run is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage, or a line per wave where nobody watches: a function of stage, inputs done, inputs known of."""
    if not console.is_terminal:
        shown: dict[str, int] = {}

        def tell(stage: str, done: int, known: int) -> None:
            if shown.get(stage, 0) != done:
                console.print(f"{stage}: {done} of {known}", highlight=False)
            shown[stage] = done

        yield tell
        return
    columns = TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bars:
        stages: dict[str, Any] = {}

        def show(stage: str, done: int, known: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=known)
            bars.update(stages[stage], completed=done, total=known)

        yield show
