"""The published test sets: where each comes from, and what was found in it."""

from dataclasses import dataclass

from ttsi_jax.tasks.bfcl import CATEGORIES
from ttsi_jax.tasks.faults import Faults


@dataclass(frozen=True)
class Published:
    """A test set that has a name here.

    Attributes:
        n_inputs: as published; None where nobody counted.
        faults: as counted when this was written; None where the data was not at hand.
        file: its name in the Hammer project's folder; None for what comes with the package `bfcl-eval`.
        sha256: of that file at the commit that `fetch` takes; None where it was not at hand.
        remarks: what else is known of the data, or "".
        any_number: whether several calls, or none, may be right. The library's instructions ask for one, so every
            input is then told so (`ttsi_jax.tasks.prompts.ANY_NUMBER`).
    """

    n_inputs: int | None
    faults: Faults | None
    licence: str = "Apache-2.0"
    file: str | None = None
    sha256: str | None = None
    remarks: str = ""
    any_number: bool = False


BFCL = "bfcl:"
_YEAR = 'the prompts lack the line "The current year is 2023."'

_HAMMER = {
    "sealtools": Published(
        294,
        Faults(loose=55),
        file="sealtool.json",
        sha256="113238730efce7de0044547bc2d0aab5e877c4e1c2bafe711a3c2390075ebaef",
        remarks="about 12 right calls are generator noise",
    ),
    "apibank": Published(
        399,
        Faults(one_candidate=105, duplicates=10, unmatchable=14, loose=40),
        file="apibank_l1.json",
        sha256="b6c129cd887da3e1965479bdbe56170adc0d315567c6a716a7c493de26887f19",
        remarks=_YEAR,
    ),
    "apibank-l2": Published(None, None, file="apibank_l2.json", remarks=f"{_YEAR}; has duplicates"),
    "toolalpaca": Published(
        114,
        Faults(several_calls=20, one_candidate=38, unmatchable=40, loose=5),
        "Apache-2.0 (repository)",
        file="toolalpaca.json",
        remarks="34 right calls hold keys that the prompt does not, 6 name functions that are not listed",
        any_number=True,
    ),
    "nexusraven": Published(
        318, None, "CC-BY-NC-4.0 (repository)", file="NexusRaven.json", remarks="long tool lists; no commercial use"
    ),
}
_BFCL = {  # of bfcl-eval 2026.3.23
    "simple_python": Published(400, Faults(one_candidate=400)),
    "multiple": Published(200, Faults()),
    "parallel": Published(200, Faults(several_calls=200, one_candidate=200), any_number=True),
    "parallel_multiple": Published(200, Faults(several_calls=200, loose=2), any_number=True),
    "live_simple": Published(258, Faults(one_candidate=258)),
    "live_multiple": Published(1053, Faults(unmatchable=2, loose=13)),
    "live_parallel": Published(16, Faults(several_calls=16, one_candidate=14), any_number=True),
    "live_parallel_multiple": Published(24, Faults(several_calls=24, loose=1), any_number=True),
    "irrelevance": Published(240, Faults(one_candidate=240), remarks="no call is right", any_number=True),
    "live_irrelevance": Published(
        884, Faults(one_candidate=508, no_candidate=4, duplicates=3), remarks="no call is right", any_number=True
    ),
}
PUBLISHED = _HAMMER | {BFCL + category: _BFCL[category] for category in CATEGORIES}
