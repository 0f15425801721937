"""Several laws fitted to one study, weighed by what they say of cells that they were not shown.

Nobody knows the law, so none is bet on: predictions are averages over laws, and how much these
disagree is part of the variance, next to seeds and items (Buckland et al. 1997, "Model selection:
an integral part of inference"). Weights are pseudo-BMA+ (Yao et al. 2018, arXiv:1704.02030): each
cell of one source and one size is left out in turn.

Shape letters: C cells, S sources, Q parameters of a law, K laws, R replicates, X points.
"""

import dataclasses

import numpy as np

from experiments import laws
from experiments.laws import Design, Law
from experiments.means import Means, half_width

REPLICATES = 400
NEGLIGIBLE = 0.01  # laws of less weight are shown and not used
LEAST_NOISE = 1e-4  # standard deviation of log error: seeds never agree better than this
ASSUMED_NOISE = 0.02  # of log error, where neither seeds nor the fit's scatter tell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A law, fitted."""

    task: laws.Problem
    phi_Q: np.ndarray
    off_C: np.ndarray  # log error of each cell's mean, measured less fitted
    held_out_C: np.ndarray  # the same, with that cell left out
    log_score_C: np.ndarray  # predictive density of the cell left out
    weight: float = 0.0
    seeds_RQ: np.ndarray | None = None  # parameters fitted to replicates
    items_RQ: np.ndarray | None = None

    @property
    def law(self) -> Law:
        return self.task.law


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted:
    """log error at X points: the average over laws, and its covariance by each cause."""

    value_X: np.ndarray
    seeds_XX: np.ndarray
    items_XX: np.ndarray
    laws_XX: np.ndarray
    means: Means

    def difference(self, i, j=None) -> tuple[np.ndarray, np.ndarray]:
        """(value, half width of its interval) of log error at i, less at j; i, j: int arrays."""
        value = self.value_X[i] - (0 if j is None else self.value_X[j])
        return value, half_width(*self.variances(i, j)[:2], self.means, self.variances(i, j)[2])

    def variances(self, i, j=None) -> list[np.ndarray]:
        """By seeds, by items, by laws."""
        found = []
        for cov_XX in (self.seeds_XX, self.items_XX, self.laws_XX):
            own_X = np.diag(cov_XX)
            both = 0 if j is None else own_X[j] - 2 * cov_XX[i, j]
            found.append(np.maximum(own_X[i] + both, 0))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble:
    design: Design
    means: Means  # of log error
    fitted: tuple[Fitted, ...]  # the best first
    assumed_noise: str  # "" where seeds told it

    def predict(self, source_X, pairs_X, samples_X) -> Predicted:
        at = [np.ravel(x) for x in np.broadcast_arrays(source_X, pairs_X, samples_X)]
        used = [fitted for fitted in self.fitted if fitted.weight]
        weight_K = np.array([fitted.weight for fitted in used])
        value_KX = np.array([laws.predict(f.task, f.phi_Q[None], *at)[0] for f in used])
        value_X = weight_K @ value_KX
        seeds_XX, items_XX = (
            sum(
                f.weight * _covariance(laws.predict(f.task, phi_RQ, *at) - value_KX[k])
                for k, f in enumerate(used)
                if (phi_RQ := f.seeds_RQ if cause == "seeds" else f.items_RQ) is not None
            )
            + np.zeros((len(value_X),) * 2)
            for cause in ("seeds", "items")
        )
        off_KX = value_KX - value_X
        return Predicted(
            value_X=value_X, seeds_XX=seeds_XX, items_XX=items_XX,
            laws_XX=(weight_K[:, None] * off_KX).T @ off_KX, means=self.means,
        )  # fmt: skip


def _covariance(off_RX: np.ndarray) -> np.ndarray:
    off_RX = off_RX - off_RX.mean(axis=0)
    return off_RX.T @ off_RX / (len(off_RX) - 1)


def fit_all(
    design: Design, means: Means, *, replicates: int = REPLICATES, seed: int = 0
) -> Ensemble:
    """All laws that the design can tell apart, fitted, weighed and replicated.

    Args:
      means: of log error, one cell for each of the design's.
    """
    means, assumed = _with_noise(design, means)
    tasks = [laws.problem(law, design, means.value_C) for law in laws.laws(design)]
    fitted = [_fit(task, means) for task in tasks]
    rng = np.random.default_rng(seed)
    weight_K = weigh(np.array([f.log_score_C for f in fitted]), rng)
    weight_K = np.where(weight_K < NEGLIGIBLE, 0, weight_K)
    fitted = [
        _replicate(dataclasses.replace(f, weight=float(weight)), means, replicates, rng)
        for f, weight in zip(fitted, weight_K / weight_K.sum(), strict=True)
    ]
    fitted.sort(key=lambda f: -f.weight)
    return Ensemble(design=design, means=means, fitted=tuple(fitted), assumed_noise=assumed)


def _precision(means: Means) -> np.ndarray:
    return means.runs_C / means.seed_variance


def _with_noise(design: Design, means: Means) -> tuple[Means, str]:
    """`means` with a variance of one run; where seeds do not tell it, of the scatter of a fit."""
    if np.isfinite(means.seed_variance):
        variance = max(means.seed_variance, LEAST_NOISE**2)
        return dataclasses.replace(means, seed_variance=variance), ""
    law = laws.laws(design)[-1]
    task = laws.problem(law, design, means.value_C)
    guess = dataclasses.replace(means, seed_variance=ASSUMED_NOISE**2, seed_df=1)
    df = len(means.value_C) - len(task.centre_Q)
    if df < 1:
        return guess, f"assumed to be {ASSUMED_NOISE:.0%} of the error"
    off_C = _fit(task, guess).off_C
    variance = max(float(off_C @ off_C / df), LEAST_NOISE**2)
    told = "taken from the scatter around a fit, which also has what the fit misses"
    return dataclasses.replace(means, seed_variance=variance, seed_df=df), told


def _fit(task: laws.Problem, means: Means) -> Fitted:
    """The fit to all cells and, with each cell left out, what it says of that one."""
    y_C, precision_C, cells = means.value_C, _precision(means), len(means.value_C)
    weight_BC = precision_C * np.concatenate([np.ones((1, cells)), 1 - np.eye(cells)])
    phi_BQ = laws.fit(task, np.tile(y_C, (cells + 1, 1)), weight_BC)
    design = task.design
    curve_BC = laws.predict(task, phi_BQ, design.source_C, design.pairs_C, design.samples_C)
    own_C = np.diag(laws.predictive_variance(task, phi_BQ[1:], weight_BC[1:]))
    variance_C = own_C + 1 / precision_C
    held_out_C = y_C - np.diag(curve_BC[1:])
    return Fitted(
        task=task, phi_Q=phi_BQ[0], off_C=y_C - curve_BC[0], held_out_C=held_out_C,
        log_score_C=-0.5 * (np.log(2 * np.pi * variance_C) + held_out_C**2 / variance_C),
    )  # fmt: skip


def weigh(log_score_KC: np.ndarray, rng: np.random.Generator, draws: int = 1000) -> np.ndarray:
    """Pseudo-BMA+ weights [K]: softmax of the summed scores, averaged over Bayesian bootstraps.

    Without the bootstrap a difference that one cell makes would decide.
    """
    share_DC = rng.dirichlet(np.ones(log_score_KC.shape[1]), size=draws)
    total_DK = log_score_KC.shape[1] * share_DC @ log_score_KC.T
    weight_DK = np.exp(total_DK - total_DK.max(axis=1, keepdims=True))
    return (weight_DK / weight_DK.sum(axis=1, keepdims=True)).mean(axis=0)


def _replicate(fitted: Fitted, means: Means, replicates: int, rng: np.random.Generator) -> Fitted:
    """Fits to data sets as they might have been: other seeds; other items."""
    if not fitted.weight:
        return fitted
    y_C, cells = means.value_C - fitted.off_C, len(means.value_C)
    normal_RC = rng.standard_normal((replicates, cells))
    seeds_RC = y_C + normal_RC * np.sqrt(means.seed_variance / means.runs_C)
    found = {"seeds_RQ": seeds_RC}
    if means.items_CC.any():
        value_C, vector_CC = np.linalg.eigh(means.items_CC)
        root_CC = vector_CC * np.sqrt(np.maximum(value_C, 0))
        found["items_RQ"] = y_C + rng.standard_normal((replicates, cells)) @ root_CC.T
    precision_C = _precision(means)
    return dataclasses.replace(
        fitted,
        **{
            name: laws.fit(fitted.task, y_RC, precision_C, fitted.phi_Q)
            for name, y_RC in found.items()
        },
    )
