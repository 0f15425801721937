"""Means over runs, and what they are uncertain by: the seeds trained, the items looked at.

Runs that differ in nothing but their seed are a cell. With two or three seeds the spread of one
cell says little, so it is pooled over all cells and intervals take Student's t with the pooled
degrees of freedom; resampling two seeds with replacement would give half of the variance. Items
are resampled by their group (article, patient), together in all runs, which were all scored on the
same items: what makes a test set hard cancels in differences between runs.

Shape letters: R runs, C cells, I items, G groups, D draws.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import special, stats

DRAWS = 1000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
    """Every run's score on every item."""

    value_RI: np.ndarray
    group_I: np.ndarray

    def resampled(self, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
        """Means [D, R] over as many groups as there are, drawn with replacement."""
        groups, group_I = np.unique(self.group_I, return_inverse=True)
        sum_GR = np.zeros((len(groups), len(self.value_RI)))
        np.add.at(sum_GR, group_I, self.value_RI.T)
        rng = np.random.default_rng(seed)
        drawn_DG = rng.integers(len(groups), size=(draws, len(groups)))
        drawn_DG += len(groups) * np.arange(draws)[:, None]
        count_DG = np.bincount(drawn_DG.ravel(), minlength=drawn_DG.size).astype(float)
        count_DG = count_DG.reshape(drawn_DG.shape)
        return (count_DG @ sum_GR) / (count_DG @ np.bincount(group_I))[:, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Means:
    """Means of C cells. Their covariance is diag(seed_variance / runs_C) + items_CC."""

    value_C: np.ndarray
    runs_C: np.ndarray
    seed_variance: float  # of one run; NaN: no cell has two
    seed_df: int
    items_CC: np.ndarray  # of what all seeds share
    num_groups: int  # of items; 0: not known, items_CC is of the runs' own intervals
    cell_R: np.ndarray
    deviation_R: np.ndarray  # of each run from its cell, in standard deviations; NaN: no other

    def interval(self, weight_C: np.ndarray) -> tuple[float, float, float]:
        """(value, low, high) of sum(weight_C * value_C), at LEVEL."""
        value = float(weight_C @ self.value_C)
        half = half_width(*self.variances(weight_C), self)
        return value, value - half, value + half

    def p_value(self, weight_C: np.ndarray) -> float:
        """Two-sided p of sum(weight_C * value_C) being 0; NaN: nothing tells its variance."""
        seeds, items = self.variances(weight_C)
        error = np.sqrt(seeds + items)
        if not error > 0:
            return np.nan
        t = abs(weight_C @ self.value_C) / error
        return float(2 * special.stdtr(_df(seeds, items, self, seeds + items), -t))

    @property
    def equal_p(self) -> float:
        """p of equal variances in all cells, by Bartlett's test; NaN: no two have seeds to tell."""
        of_cells = [self.deviation_R[self.cell_R == c] for c in range(len(self.runs_C))]
        told = [of_cell for of_cell in of_cells if len(of_cell) > 1 and np.ptp(of_cell) > 0]
        return float(stats.bartlett(*told).pvalue) if len(told) > 1 else np.nan

    def variances(self, weight_C: np.ndarray) -> tuple[float, float]:
        """Variance by seeds, by items."""
        seeds = float(np.sum(weight_C**2 / self.runs_C) * np.nan_to_num(self.seed_variance))
        return seeds, float(weight_C @ self.items_CC @ weight_C)


def half_width(seeds, items, means: Means, certain=0.0):
    """Of the interval at LEVEL: Student's t.

    Args:
      seeds, items, certain: variances, of any shape; `certain` is taken as known.
    """
    total = np.asarray(seeds + items + certain, float)
    return special.stdtrit(_df(seeds, items, means, total), (1 + LEVEL) / 2) * np.sqrt(total)


def _df(seeds, items, means: Means, total):
    """Degrees of freedom of the variance `total`, by Satterthwaite (1946)."""
    df_seeds = max(means.seed_df, 1)
    df_items = means.num_groups - 1 if means.num_groups > 1 else np.inf
    spent = np.square(seeds) / df_seeds + np.square(items) / df_items
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spent > 0, total**2 / spent, 1e9)
    return np.minimum(df, 1e9)


def holm(p_K: np.ndarray) -> np.ndarray:
    """p values corrected for being one of K: step-down (Holm 1979). NaN stays, and is not counted.

    `[0.01, 0.04, 0.03]` -> `[0.03, 0.06, 0.06]`
    """
    told = np.flatnonzero(~np.isnan(p_K))
    order = told[np.argsort(p_K[told])]
    corrected_K = np.full(len(p_K), np.nan)
    factor_K = len(order) - np.arange(len(order))
    corrected_K[order] = np.minimum(np.maximum.accumulate(factor_K * p_K[order]), 1)
    return corrected_K


def average(
    value_R: np.ndarray,
    cell_R: np.ndarray,
    *,
    items: Items | None = None,
    error_R: np.ndarray | None = None,
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Means:
    """Means over the runs of each cell of transform(value).

    Args:
      cell_R: int, 0 .. C - 1.
      items: whose means are value_R.
      error_R: where there are no items, the runs' standard errors by items, of transform(value).
        How they go together is not known; taken as independent, which is too careful for
        differences.
    """
    y_R, runs_C = transform(value_R), np.bincount(cell_R)
    average_CR = (cell_R == np.arange(len(runs_C))[:, None]) / runs_C[:, None]
    value_C = average_CR @ y_R
    off_R = y_R - value_C[cell_R]
    df = int(len(y_R) - len(runs_C))
    variance = float(off_R @ off_R / df) if df else np.nan
    alone_R = runs_C[cell_R] == 1
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation_R = off_R / np.sqrt(variance * (1 - 1 / runs_C[cell_R]))
    items_CC, num_groups = np.zeros((len(runs_C),) * 2), 0
    if items is not None:
        items_CC, num_groups = (
            _shared(transform(items.resampled()), cell_R, average_CR),
            len(np.unique(items.group_I)),
        )
        items_CC = items_CC * num_groups / max(num_groups - 1, 1)  # Hesterberg 2015, section 5.3
    elif error_R is not None:
        items_CC = np.diag(average_CR**2 @ np.nan_to_num(error_R) ** 2)
    return Means(
        value_C=value_C, runs_C=runs_C, seed_variance=variance, seed_df=df, items_CC=items_CC,
        num_groups=num_groups, cell_R=cell_R, deviation_R=np.where(alone_R, np.nan, deviation_R),
    )  # fmt: skip


def _shared(y_DR: np.ndarray, cell_R: np.ndarray, average_CR: np.ndarray) -> np.ndarray:
    """Covariance [C, C] over draws of items of the cells' means, less what seeds already show.

    Which items a single run happens to get right differs from seed to seed, so it is within the
    spread of the seeds and would count twice.
    """
    runs_C = np.bincount(cell_R)
    mean_DC = y_DR @ average_CR.T
    total_CC = np.atleast_2d(np.cov(mean_DC.T))
    df = len(cell_R) - len(runs_C)
    if not df:
        return total_CC
    own_DR = y_DR - y_DR.mean(axis=0) - (mean_DC - mean_DC.mean(axis=0))[:, cell_R]
    own = np.square(own_DR).sum() / (len(y_DR) - 1) / df
    value_C, vector_CC = np.linalg.eigh(total_CC - np.diag(own / runs_C))
    return (vector_CC * np.maximum(value_C, 0)) @ vector_CC.T
