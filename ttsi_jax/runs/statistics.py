"""Statistics of paired runs: pure functions of numpy arrays, with the same numbers for the same seed.

A metric over a group of runs is an array `[S, N]`: S seeds, N inputs, 1 where the answer is right and 0 where not.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
RESAMPLES = 2_000
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate with the ends of its interval; all NaN where there is nothing to estimate from."""

    value: float
    low: float
    high: float


class Changes(NamedTuple):
    """What became of N paired inputs, as numbers of inputs; `broke_rate` is the share of what was right before."""

    broke: int
    fixed: int
    unchanged: int
    broke_rate: float
    p: float


def mcnemar_p(fixed: int, broke: int) -> float:
    """Exact two-sided McNemar test: how likely a split at least this uneven is if either change is a coin toss.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947); in its exact form the binomial test of `fixed` among `fixed + broke` at 1/2.
    """
    n = fixed + broke
    tail = sum(math.comb(n, k) for k in range(min(fixed, broke) + 1))
    return min(1.0, 2 * tail / 2**n)


def changes(before: ArrayLike, after: ArrayLike) -> Changes:
    """Counts of fixed, broken and unchanged inputs, with McNemar's exact test.

    With several seeds an input counts as fixed where it is right more often after than before, and the test is the sign
    test over inputs, of which McNemar's is the case of one seed: answers to one input under several seeds are not
    independent, inputs are. (W. J. Conover, "Practical Nonparametric Statistics", 3rd ed. 1999, section 3.4.)

    Args:
        before, after: `[S, N]`, the numbers of seeds may differ.
    """
    before, after = _means(before), _means(after)
    # Means over 3 and over 6 seeds that are equal may differ in the last bit.
    same = np.isclose(before, after, rtol=0, atol=1e-9)
    broke, fixed = int(np.sum(~same & (after < before))), int(np.sum(~same & (after > before)))
    right = float(np.sum(before))
    lost = float(np.sum(np.maximum(before - after, 0)))
    return Changes(broke, fixed, int(np.sum(same)), lost / right if right else math.nan, mcnemar_p(fixed, broke))


def accuracy(right: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of `[S, N]` with its bootstrap interval over inputs and seeds (see `difference`)."""
    right = np.atleast_2d(np.asarray(right, np.float64))
    return difference(np.zeros_like(right), right, resamples=resamples, seed=seed)


def difference(
    before: ArrayLike, after: ArrayLike, *, same_seeds: bool = True, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of `after - before` with its paired bootstrap interval over inputs and seeds.

    A resample draws inputs with replacement, the same ones for both sides, and seeds with replacement. Drawing rows and
    columns independently is the pigeonhole bootstrap (A. B. Owen, Annals of Applied Statistics 1 (2007), 386-411),
    which errs on the wide side. With one seed the interval speaks of other inputs only, not of other seeds. The ends
    are percentiles (B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).

    Args:
        before, after: `[S_before, N]` and `[S_after, N]`.
        same_seeds: whether row s of both is of the same seed, so that rows are drawn together.
    """
    return mean_difference([(before, after)], same_seeds=same_seeds, resamples=resamples, seed=seed)


def mean_difference(
    tasks: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    same_seeds: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over tasks of each one's `difference`; tasks count alike, and each one's inputs and seeds are drawn
    apart (a stratified bootstrap)."""
    sides = [tuple(np.atleast_2d(np.asarray(side, np.float64)) for side in task) for task in tasks]
    rng = np.random.default_rng(seed)

    def resampled(before: Array, after: Array) -> float:
        n = after.shape[1]
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        rows = rng.integers(len(after), size=len(after))
        others = rows if same_seeds else rng.integers(len(before), size=len(before))
        return _mean(after[rows], counts) - _mean(before[others], counts)

    if not all(after.shape[1] for _, after in sides):
        return Interval(math.nan, math.nan, math.nan)
    value = np.mean([after.mean() - before.mean() for before, after in sides])
    return _interval(float(value), lambda: float(np.mean([resampled(*task) for task in sides])), resamples)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float], n: int, *, resamples: int = 500, seed: int = 0
) -> Interval:
    """A statistic of inputs with its percentile interval.

    Args:
        statistic: of the positions of the drawn inputs, `[N]`; NaN where it has no value for them, and such resamples
            are left out.
        n: the number of inputs, N.
    """
    rng = np.random.default_rng(seed)
    value = statistic(np.arange(n)) if n else math.nan
    return _interval(value, lambda: statistic(rng.integers(n, size=n)), 0 if math.isnan(value) else resamples)


def _interval(value: float, resampled: Callable[[], float], resamples: int) -> Interval:
    drawn = np.array([resampled() for _ in range(resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _mean(right: Array, counts: NDArray[np.intp]) -> float:
    return float(right.sum(0) @ counts / right.size)


def _means(right: ArrayLike) -> Array:
    return np.atleast_2d(np.asarray(right, np.float64)).mean(0)
