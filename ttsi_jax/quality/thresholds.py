"""Choosing tau, the certainty below which an input is adapted (`--gate.tau auto`), with few labels or none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ttsi_jax.errors import InputError
from ttsi_jax.runs.record import Record

NONE = 0.0  # adapts nothing: no certainty is below it


def by_budget(certainties: Sequence[float], fraction: float) -> float:
    """The largest tau among the certainties that adapts at most this fraction of the inputs.

    Certainties that are not finite are left out of the choice. Above all of them for a fraction of 1.
    """
    values = _finite(certainties)
    n_adapted = int(np.floor(min(max(fraction, 0.0), 1.0) * len(values) + 1e-9))
    if n_adapted == len(values):
        return float(np.nextafter(values[-1], np.inf)) if len(values) else NONE
    return float(values[n_adapted])


def by_distribution(certainties: Sequence[float]) -> float:
    """The cut that best divides the certainties in two groups, whose means are as far apart as can be: the largest
    variance between them (Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9, 1979), over the values themselves
    and not over a histogram. It lies in the middle between the groups; `NONE` where all values are alike.
    """
    values = _finite(certainties)
    cuts = np.flatnonzero(np.diff(values)) + 1  # sizes of the lower group
    if not len(cuts):
        return NONE
    sums, n = np.cumsum(values), len(values)
    low, high = sums[cuts - 1] / cuts, (sums[-1] - sums[cuts - 1]) / (n - cuts)
    best = cuts[int(np.argmax(cuts * (n - cuts) * (high - low) ** 2))]
    return float((values[best - 1] + values[best]) / 2)


def by_gain(certainties: Sequence[float], gains: Sequence[float]) -> float:
    """The tau under which adapting gained most on a labelled set; of equal ones that which adapts fewest.

    `gains`: of each labelled input, what adapting it changes (1 where its answer was fixed, -1 where it broke). `NONE`
    where no tau gains anything.
    """
    order = np.argsort(certainties, kind="stable")
    values, totals = np.asarray(certainties, np.float64)[order], np.cumsum(np.asarray(gains, np.float64)[order])
    ends = np.flatnonzero(np.diff(values, append=np.inf))  # inputs of equal certainty adapt together
    if not len(ends) or totals[ends].max() <= 0:
        return NONE
    best = int(ends[np.argmax(totals[ends])])
    return float(np.nextafter(values[best], np.inf))


class Chosen(NamedTuple):
    """A tau, and what it was chosen by."""

    tau: float
    tau_by: str  # "labels", "budget" or "distribution"


Labelled = tuple[Sequence[float], Sequence[float]]  # certainties, and what adapting gained


def automatic_tau(certainties: Sequence[float | None], budget: float = 1.0, labelled: Labelled | None = None) -> Chosen:
    """`--gate.tau auto`: by the gain on labelled inputs where there are some, and then within the budget; else by the
    budget where one is set; else by the distribution. Certainties that are None are left out."""
    known = [value for value in certainties if value is not None]
    if labelled is not None:
        tau = by_gain(*labelled)
        return Chosen(tau if budget >= 1 else min(tau, by_budget(known, budget)), "labels")
    if budget < 1:
        return Chosen(by_budget(known, budget), "budget")
    return Chosen(by_distribution(known), "distribution")


def labelled(records: Iterable[Record]) -> Labelled:
    """The certainties of a finished run's inputs and what adapting changed in their call correctness: -1, 0 or 1.

    Raises:
        InputError: an input was not adapted although it could be, or none has a label.
    """
    found, unknown = [], 0
    for record in records:
        if record.call_correct is None or record.call_correct_base is None or record.uncertainty is None:
            continue
        if record.adapted:
            found.append((record.uncertainty, record.call_correct - record.call_correct_base))
        unknown += not record.adapted and not record.synthetic
    if unknown or not found:
        raise InputError(
            f"--gate.labelled: {len(found)} labelled inputs adapted there and {unknown} were not to; give a run with"
            " --gate.select all over labelled inputs"
        )
    certainties, gains = zip(*found, strict=True)
    return certainties, gains


def _finite(certainties: Sequence[float]) -> np.ndarray:
    values = np.asarray(certainties, np.float64)
    return np.sort(values[np.isfinite(values)])
