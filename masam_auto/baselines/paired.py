"""Paired statistics of two methods on the same cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Mean of ours minus theirs, its bootstrap interval [low, high], and the two-sided p-value of Wilcoxon's test.

    `cases` is the number of cases for which both have a value. With no such case all values are None; with a single
    case there is no interval.
    """

    cases: int
    mean: float | None
    low: float | None
    high: float | None
    p_value: float | None


def compare_pairs(
    ours: Sequence[float], theirs: Sequence[float], cases: Sequence[str], *, seed: int = 0
) -> PairedDifference:
    """Compare values in the same order. If either of a pair is not-a-number, both are left out.

    `cases` names the case of each value. Frames of a video are similar, so the video's mean difference counts once.
    """
    found = case_means(np.asarray(ours, float) - np.asarray(theirs, float), cases)
    if len(found) == 0:
        return PairedDifference(cases=0, mean=None, low=None, high=None, p_value=None)
    low, high = bootstrap_interval(found, seed=seed)
    return PairedDifference(cases=len(found), mean=float(found.mean()), low=low, high=high, p_value=wilcoxon_p(found))


def case_means(values: np.ndarray, cases: Sequence[str]) -> np.ndarray:
    """Mean of the known values of each case, in the order of case names: (cases with a value,)."""
    known = ~np.isnan(values)
    _, places = np.unique(np.asarray(cases)[known], return_inverse=True)
    return np.bincount(places, weights=values[known]) / np.bincount(places)


def bootstrap_interval(
    values: np.ndarray, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of the mean, drawing cases with replacement. None, None for a single case.

    Args:
        values: (cases,), at least one, all finite.
        seed: seed of the draws.
        resamples: number of resamples.
        level: share of the means inside the interval.
    """
    if len(values) == 1:
        return None, None
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, without differences of zero. 1 if nothing differs."""
    # slow to import, and only a comparison needs it
    from scipy.stats import wilcoxon

    nonzero = differences[differences != 0]
    return float(wilcoxon(nonzero).pvalue) if len(nonzero) else 1.0
