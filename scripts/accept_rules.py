"""What every rule of accept or revert would have made of a finished run.

    python scripts/accept_rules.py runs/mine sealtools

Of the run's adapted inputs that have a label (and whose training did not diverge, which every rule drops): how many
each rule accepts, the answers that were fixed and broken among them, and those that it reverts although they were
fixed, or rightly since they were broken. `all` accepts everything.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ttsi_jax.errors import InputError
from ttsi_jax.quality.accept import CONDITIONS, Evidence, cases, effect, rules
from ttsi_jax.runs.groups import load_run
from ttsi_jax.runs.table import plain_table
from ttsi_jax.tasks import load_task


@dataclass(frozen=True)
class Settings:
    """What every rule of accept or revert would have made of a finished run.

    Attributes:
        run: its directory; made with --synthesis.held-out.
        task: the task that it ran on, with its labels.
        data: folder of the task files that do not come with a package.
    """

    run: Annotated[Path, tyro.conf.Positional]
    task: Annotated[str, tyro.conf.Positional]
    data: Path | None = None


def main(argv: list[str] | None = None) -> int:
    settings = tyro.cli(Settings, args=argv)
    try:
        judged = cases(load_run(settings.run).records, load_task(settings.task, data_dir=settings.data))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A condition that this run did not measure would revert everything.
    nothing = {name: condition(Evidence()) for name, condition in CONDITIONS.items()}
    found = [{name: condition(case.evidence) for name, condition in CONDITIONS.items()} for case in judged]
    known = [name for name in CONDITIONS if any(own[name] != nothing[name] for own in found)]
    rows = [(", ".join(rule) or "all", *effect(judged, rule)) for rule in ((), *rules(known))]
    headings = ("rule", "accepted", "fixed", "broke", "spared a break", "lost a fix")
    Console().print(plain_table(headings, rows))
    print(f"{len(judged)} adapted inputs with a label")
    return 0


if __name__ == "__main__":
    sys.exit(main())
