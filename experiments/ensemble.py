"""Several laws fitted to one study, weighed by what they say of cells that they were not shown.

Nobody knows the law, so none is bet on: predictions are averages over laws, and how much these
disagree is part of the variance, next to seeds and items (Buckland et al. 1997, "Model selection:
an integral part of inference"). Weights are pseudo-BMA+ (Yao et al. 2018, arXiv:1704.02030): each
cell of one source and one size is left out in turn.

Shape letters: C cells, S sources, Q parameters of a law, K laws, R replicates, X points.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from experiments import fitting, laws
from experiments.laws import Design, Law
from experiments.means import Means, half_width

REPLICATES = 400
NEGLIGIBLE = 0.01  # laws of less weight are shown and not used
LEAST_NOISE = 1e-4  # standard deviation of log error: seeds never agree better than this
MISFIT_P = 0.05  # below, the best law is said not to fit
ASSUMED_NOISE = 0.02  # of log error, where neither seeds nor the fit's scatter tell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A law, fitted."""

    task: fitting.Problem
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
    misfit: float  # F of the law that fits best, by which the variance was raised; 1: it was not

    def predict(self, source_X, pairs_X, samples_X) -> Predicted:
        at = [np.ravel(x) for x in np.broadcast_arrays(source_X, pairs_X, samples_X)]
        used = [fitted for fitted in self.fitted if fitted.weight]
        weight_K = np.array([fitted.weight for fitted in used])
        value_KX = np.array([fitting.predict(f.task, f.phi_Q[None], *at)[0] for f in used])
        value_X = weight_K @ value_KX
        causes = []
        for cause in ("seeds_RQ", "items_RQ"):
            off = 0.0
            for fitted, of_law_X in zip(used, value_KX, strict=True):
                if (phi_RQ := getattr(fitted, cause)) is not None:
                    off += fitted.weight * (fitting.predict(fitted.task, phi_RQ, *at) - of_law_X)
            causes.append(_covariance(off) if np.ndim(off) else np.zeros((len(value_X),) * 2))
        off_KX = value_KX - value_X
        return Predicted(
            value_X=value_X, seeds_XX=causes[0], items_XX=causes[1],
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
    return fit_many(design, [means], replicates=replicates, seed=seed)[0]


def fit_many(
    design: Design, studies: Sequence[Means], *, replicates: int = REPLICATES, seed: int = 0
) -> list[Ensemble]:
    """fit_all of several studies of one design, together: what takes time is done once for all."""
    told = [_with_noise(design, means) for means in studies]
    studies = [means for means, _ in told]
    tasks = [fitting.problem(law, design) for law in laws.laws(design)]
    of_laws = [_fit(task, studies) for task in tasks]
    misfit_D = [_misfit([of_law[d] for of_law in of_laws], m) for d, m in enumerate(studies)]
    raised = [d for d, misfit in enumerate(misfit_D) if misfit > 1]
    if raised:
        for d in raised:
            variance = studies[d].seed_variance * misfit_D[d]
            studies[d] = dataclasses.replace(studies[d], seed_variance=variance)
        for task, of_law in zip(tasks, of_laws, strict=True):
            for d, again in zip(raised, _fit(task, [studies[d] for d in raised]), strict=True):
                of_law[d] = again
    by_study = []
    for d in range(len(studies)):
        rng = np.random.default_rng(seed)
        weight_K = weigh(np.array([of_law[d].log_score_C for of_law in of_laws]), rng)
        weight_K = np.where(weight_K < NEGLIGIBLE, 0, weight_K)
        by_study.append(weight_K / weight_K.sum())
    replicated = []
    for of_law, weight_D in zip(of_laws, np.transpose(by_study), strict=True):
        weighed = [
            dataclasses.replace(f, weight=float(w)) for f, w in zip(of_law, weight_D, strict=True)
        ]
        replicated.append(_replicate(weighed, studies, replicates, np.random.default_rng(seed)))
    return [
        Ensemble(
            design=design, means=studies[d], assumed_noise=assumed, misfit=misfit_D[d],
            fitted=tuple(sorted((of_law[d] for of_law in replicated), key=lambda f: -f.weight)),
        )
        for d, (_, assumed) in enumerate(told)
    ]  # fmt: skip


def _precision(means: Means) -> np.ndarray:
    return means.runs_C / means.seed_variance


def _with_noise(design: Design, means: Means) -> tuple[Means, str]:
    """`means` with a variance of one run; where seeds do not tell it, of the scatter of a fit."""
    if np.isfinite(means.seed_variance):
        variance = max(means.seed_variance, LEAST_NOISE**2)
        return dataclasses.replace(means, seed_variance=variance), ""
    guess = dataclasses.replace(means, seed_variance=ASSUMED_NOISE**2, seed_df=1)
    scatters = []
    for law in laws.laws(design):
        task = fitting.problem(law, design)
        df = len(means.value_C) - len(task.centre_Q)
        off_C = _fit(task, [guess])[0].off_C
        scatters += [(float(off_C @ off_C / df), df)] if df > 0 else []
    if not scatters:
        return guess, f"assumed to be {ASSUMED_NOISE:.0%} of the error"
    variance, df = max(min(scatters), (LEAST_NOISE**2, 1))
    told = "taken from the scatter around the law that fits best, which may be too little"
    return dataclasses.replace(means, seed_variance=variance, seed_df=df), told


def _misfit(of_study: Sequence[Fitted], means: Means) -> float:
    """F of the scatter around the law that fits best, where seeds do not explain it; else 1.

    Then no law is right, and intervals from the seeds' noise alone would be too narrow (Birge
    1932). A law with as many parameters as there are cells fits anything, and says nothing.
    """
    found = []
    for fitted in of_study:
        df = len(fitted.off_C) - len(fitted.phi_Q)
        if df < 1:
            return 1.0
        found.append((float(np.sum(fitted.off_C**2 * _precision(means)) / df), df))
    best, df = min(found)
    return best if stats.f.sf(best, df, max(means.seed_df, 1)) < MISFIT_P else 1.0


def _fit(task: fitting.Problem, studies: Sequence[Means]) -> list[Fitted]:
    """The fit of each study to all cells and, with each cell left out, what it says of that one."""
    design, cells = task.design, len(task.design.source_C)
    y_DC = np.array([means.value_C for means in studies])
    precision_DC = np.array([_precision(means) for means in studies])
    kept_XC = np.concatenate([np.ones((1, cells)), 1 - np.eye(cells)])
    precision_BC = (precision_DC[:, None] * kept_XC).reshape(-1, cells)
    phi_BQ = fitting.fit(task, np.repeat(y_DC, cells + 1, axis=0), precision_BC)
    curve_BC = fitting.predict(task, phi_BQ, design.source_C, design.pairs_C, design.samples_C)
    variance_BC = fitting.predictive_variance(task, phi_BQ, precision_BC)
    shape = (len(studies), cells + 1, -1)
    fitted = []
    for means, phi_XQ, curve_XC, variance_XC in zip(
        studies, phi_BQ.reshape(shape), curve_BC.reshape(shape), variance_BC.reshape(shape),
        strict=True,
    ):  # fmt: skip
        variance_C = np.diag(variance_XC[1:]) + 1 / _precision(means)
        held_out_C = means.value_C - np.diag(curve_XC[1:])
        fitted.append(
            Fitted(
                task=task, phi_Q=phi_XQ[0], off_C=means.value_C - curve_XC[0],
                held_out_C=held_out_C,
                log_score_C=-0.5 * (np.log(2 * np.pi * variance_C) + held_out_C**2 / variance_C),
            )
        )  # fmt: skip
    return fitted


def weigh(log_score_KC: np.ndarray, rng: np.random.Generator, draws: int = 1000) -> np.ndarray:
    """Pseudo-BMA+ weights [K]: softmax of the summed scores, averaged over Bayesian bootstraps.

    Without the bootstrap a difference that one cell makes would decide.
    """
    share_DC = rng.dirichlet(np.ones(log_score_KC.shape[1]), size=draws)
    total_DK = log_score_KC.shape[1] * share_DC @ log_score_KC.T
    weight_DK = np.exp(total_DK - total_DK.max(axis=1, keepdims=True))
    return (weight_DK / weight_DK.sum(axis=1, keepdims=True)).mean(axis=0)


def _replicate(
    fitted: Sequence[Fitted], studies: Sequence[Means], replicates: int, rng: np.random.Generator
) -> list[Fitted]:
    """One law's fits to data sets as the studies might have had: of other seeds, of other items.

    With one rng, all laws see the same noise, so that what their average does is known, too.
    """
    found, used = list(fitted), [d for d, f in enumerate(fitted) if f.weight]
    for cause in ("seeds_RQ", "items_RQ"):
        mine = [d for d in used if cause == "seeds_RQ" or studies[d].items_CC.any()]
        if not mine:
            continue
        noise_RC = balanced(rng, replicates, len(fitted[0].off_C))
        y_BC, precision_BC, start_BQ = [], [], []
        for d in mine:
            means, f = studies[d], fitted[d]
            root = _root(means.items_CC) if cause == "items_RQ" else _seed_root(means)
            y_BC.append(means.value_C - f.off_C + noise_RC @ root)
            precision_BC.append(np.broadcast_to(_precision(means), y_BC[-1].shape))
            start_BQ.append(np.broadcast_to(f.phi_Q, (replicates, len(f.phi_Q))))
        data = [np.concatenate(x) for x in (y_BC, precision_BC, start_BQ)]
        phi_DRQ = fitting.fit(fitted[0].task, *data).reshape(len(mine), replicates, -1)
        for d, phi_RQ in zip(mine, phi_DRQ, strict=True):
            found[d] = dataclasses.replace(found[d], **{cause: phi_RQ})
    return found


def balanced(rng: np.random.Generator, replicates: int, cells: int) -> np.ndarray:
    """Normals [R, C] whose mean is 0 and covariance is 1 exactly, where there are enough of them.

    What is linear in the noise has then its true variance, not that of so many draws.
    """
    normal_RC = rng.standard_normal((replicates, cells))
    if replicates < 2 * cells:
        return normal_RC
    return np.linalg.qr(normal_RC - normal_RC.mean(axis=0))[0] * np.sqrt(replicates - 1)


def _seed_root(means: Means) -> np.ndarray:
    return np.diag(np.sqrt(means.seed_variance / means.runs_C))


def _root(cov_CC: np.ndarray) -> np.ndarray:
    """[C, C] that turns independent normals, from the right, into ones of this covariance."""
    value_C, vector_CC = np.linalg.eigh(cov_CC)
    return (vector_CC * np.sqrt(np.maximum(value_C, 0))).T
