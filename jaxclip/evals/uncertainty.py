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
    found = [measured.metrics(units) for units in resamples(measured.group_U, draws, seed)]
    num_groups = len(np.unique(measured.group_U))
    intervals = {}
    for name, value in values.items():
        replicates_S = np.array([metrics[name] for metrics in found])
        low, high = percentiles(replicates_S, num_groups, level)
        intervals[name] = Interval(value=value, low=low, high=high, replicates_S=replicates_S)
    return intervals


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
    20 articles that matters. A single group, or a metric that is not defined in a draw, has NaN.
    """
    if num_groups < 2 or not len(replicates_S) or not np.isfinite(replicates_S).all():
        return np.nan, np.nan
    n = num_groups
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(replicates_S, [tail, 1 - tail])
    return float(low), float(high)


def compare(first: Interval, second: Interval, num_groups: int) -> tuple[Interval, str]:
    """second - first by paired bootstrap, and what may be said: higher, lower, not distinguished.

    Args:
      first, second: of one metric on one set, drawn with the same groups and seed.
    """
    replicates_S = second.replicates_S - first.replicates_S
    low, high = percentiles(replicates_S, num_groups)
    difference = Interval(
        value=second.value - first.value, low=low, high=high, replicates_S=replicates_S
    )
    verdict = "higher" if low > 0 else "lower" if high < 0 else "not distinguished"
    return difference, verdict
