"""Bootstrap intervals, and what may be called better.

Units of one article or patient are drawn together (Field and Welsh 2007, "Bootstrapping clustered
data"): figures of one article resemble each other, so they say less than as many articles would.
The draws depend on the seed and the groups alone, so the replicates of two models on one set are
paired, and their difference needs nothing but the two tables of results.

Shape letters: U units, G groups, S draws.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy import stats

from jaxclip.evals.base import Measured

DRAWS = 1000
HALVES = 100  # draws where each computes kernels and ranks anew
MIN_DEFINED = 0.9  # of the draws; with 3 positives 95 % have one, with 2 only 86 %


@dataclasses.dataclass(slots=True, kw_only=True)
class Interval:
    value: float
    low: float
    high: float
    replicates_S: np.ndarray  # float64


def bootstrap(
    measured: Measured, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """The interval of each metric of `measured`; no draws: of no width known, low = high = NaN."""
    values = measured.values()
    if measured.halves:
        drawn = half_samples(measured.group_U, min(draws, HALVES), seed)
    else:
        drawn = resamples(measured.group_U, draws, seed)
    every = (measured.metrics, *measured.repeats)
    found = [[metrics(units) for metrics in every] for units in drawn]
    intervals = {}
    for name, value in values.items():
        of_RS = np.array([[one[name] for one in of_draw] for of_draw in found]).T
        replicates_S = mean_of_drawn(of_RS, seed) if found else np.zeros(0)
        if (
            measured.halves and found
        ):  # a half has its own bias, of rank and gap: its spread is what counts
            replicates_S = value + replicates_S - replicates_S.mean()
        low, high = percentiles(replicates_S, independent(measured), level)
        intervals[name] = Interval(value=value, low=low, high=high, replicates_S=replicates_S)
    return intervals


def independent(measured: Measured) -> int:
    """What an interval's width may rest on: the groups, or the repeats where those are fewer."""
    groups, repeats = len(np.unique(measured.group_U)), len(measured.repeats) + 1
    return min(groups, repeats) if repeats > 1 else groups


def mean_of_drawn(found_RS: np.ndarray, seed: int) -> np.ndarray:
    """[S]: the mean of as many of R repeats (seeds, draws of training images), with replacement."""
    if len(found_RS) == 1:
        return found_RS[0]
    drawn_RS = np.random.default_rng(seed).integers(len(found_RS), size=found_RS.shape)
    return np.take_along_axis(found_RS, drawn_RS, axis=0).mean(axis=0)


def half_samples(group_U: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of the units of half of the groups, none twice, `draws` times.

    A mean over half of the units, without replacement, has the standard error of the mean of all
    (the delete-half jackknife, Shao and Tu 1995, section 2.2): kernels, ranks and gaps need that,
    as a repeated unit is its own nearest neighbour.
    """
    groups, group_of_U = np.unique(group_U, return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(draws if len(groups) > 3 else 0):
        chosen_G = rng.permutation(len(groups)) < len(groups) / 2
        yield np.flatnonzero(chosen_G[group_of_U])


def resamples(group_U: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of units, `draws` times: as many groups as there are, drawn with replacement."""
    groups, group_of_U = np.unique(group_U, return_inverse=True)
    by_group = np.argsort(group_of_U, kind="stable")
    sizes_G = np.bincount(group_of_U)
    starts_G = np.cumsum(sizes_G) - sizes_G
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn_G = rng.integers(len(groups), size=len(groups))
        sizes = sizes_G[drawn_G]
        ends = np.cumsum(sizes)
        within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        yield by_group[np.repeat(starts_G[drawn_G], sizes) + within]


def percentiles(
    replicates_S: np.ndarray, num_groups: int, level: float = 0.95
) -> tuple[float, float]:
    """The expanded percentile interval (Hesterberg 2015, arXiv:1411.5279, section 5.3).

    The plain one is too narrow by sqrt((n-1)/n) and by the normal's quantile in place of t's; with
    20 articles that matters. Draws in which a metric is not defined (AUROC without a positive) do
    not count; where those are more than a tenth, or there is a single group, there is no interval:
    NaN.
    """
    defined_S = np.isfinite(replicates_S)
    if num_groups < 2 or not len(replicates_S) or defined_S.mean() < MIN_DEFINED:
        return np.nan, np.nan
    n = num_groups
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(replicates_S[defined_S], [tail, 1 - tail])
    return float(low), float(high)


def compare(first: Interval, second: Interval, num_groups: int) -> tuple[Interval, str]:
    """second - first by paired bootstrap, and what may be said.

    higher, lower, not distinguished; no interval: nothing may be said.

    Args:
      first, second: of one metric on one set, drawn with the same groups and seed.
    """
    replicates_S = second.replicates_S - first.replicates_S
    low, high = percentiles(replicates_S, num_groups)
    difference = Interval(
        value=second.value - first.value, low=low, high=high, replicates_S=replicates_S
    )
    verdict = "higher" if low > 0 else "lower" if high < 0 else "not distinguished"
    if np.isnan(low):
        verdict = "no interval"
    return difference, verdict
