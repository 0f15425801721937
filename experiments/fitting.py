"""Fits a law to measured error: least squares on log error, many data sets at once.

Shape letters: C cells, S sources, P parameters of a form, Q those of a law, B data sets, X points.
"""

import dataclasses

import numpy as np

from experiments.laws import EXPONENT, FLOOR, Design, Law

STEPS = 40  # of Levenberg-Marquardt, at most
FIRST_STEPS = 6  # from each of the starts, before the best goes on
LONGEST = 2.0  # step of a parameter: all are logs or logits
CONVERGED = 1e-6  # relative change of the sum of squares
EXPONENTS, FLOORS = (0.15, 0.6), (-2.0, 0.5)  # of the starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A law on a design, whatever the data.

    centre_Q and width_Q are of the priors; for unit see Form.
    """

    law: Law
    design: Design
    index_SP: np.ndarray
    centre_Q: np.ndarray
    width_Q: np.ndarray
    unit: np.ndarray


def problem(law: Law, design: Design) -> Problem:
    index_SP = law.index(len(design.sources))
    prior_Q2 = np.zeros((index_SP.max() + 1, 2))
    for p, (_, prior) in enumerate(law.form.parameters):
        prior_Q2[index_SP[:, p]] = prior
    pairs, samples = (np.exp(np.log(x).mean()) for x in (design.pairs_C, design.samples_C))
    unit = np.array([pairs, samples, design.worst])
    return Problem(
        law=law, design=design, index_SP=index_SP, centre_Q=prior_Q2[:, 0], width_Q=prior_Q2[:, 1],
        unit=unit,
    )  # fmt: skip


def fit(task: Problem, log_error_BC, precision_BC, start_BQ=None) -> np.ndarray:
    """Parameters [B, Q] of the best fit to each data set.

    Args:
      log_error_BC: means over runs of log error.
      precision_BC: 1 / variance of each; 0 leaves a cell out.
      start_BQ: parameters near by; without, the best of many starts.
    """
    y_BC = np.asarray(log_error_BC, float)
    root_BC = np.sqrt(np.broadcast_to(precision_BC, y_BC.shape))
    if start_BQ is not None:
        return _least_squares(task, y_BC, root_BC, start_BQ, STEPS)[0]
    start_KQ = _starts(task)
    many = [np.repeat(x, len(start_KQ), axis=0) for x in (y_BC, root_BC)]
    phi_XQ, cost_X = _least_squares(task, *many, np.tile(start_KQ, (len(y_BC), 1)), FIRST_STEPS)
    best_B = cost_X.reshape(len(y_BC), -1).argmin(axis=1) + np.arange(len(y_BC)) * len(start_KQ)
    return _least_squares(task, y_BC, root_BC, phi_XQ[best_B], STEPS)[0]


def predict(task: Problem, phi_BQ, source_X, pairs_X, samples_X) -> np.ndarray:
    """log error [B, X]."""
    theta_PBX = np.moveaxis(phi_BQ[:, task.index_SP[source_X]], -1, 0)
    pairs_X, samples_X = np.asarray(pairs_X, float), np.asarray(samples_X, float)
    return task.law.form.log_error(theta_PBX, pairs_X, samples_X, task.unit)


def slopes(task: Problem, phi_BQ: np.ndarray) -> np.ndarray:
    """Derivatives [B, C, Q] of the fitted log error in each cell, by complex steps.

    Squire and Trapp 1998: f'(x) = Im f(x + ih) / h, exact to rounding for h this small.
    """
    design, step = task.design, 1e-30
    slope_BCQ = np.zeros((len(phi_BQ), len(design.source_C), phi_BQ.shape[1]))
    place_CP, cells = task.index_SP[design.source_C], np.arange(len(design.source_C))
    theta_PBC = np.moveaxis(phi_BQ[:, place_CP], -1, 0).astype(complex)
    for p in range(len(theta_PBC)):
        theta_PBC[p] += 1j * step
        curve_BC = task.law.form.log_error(theta_PBC, design.pairs_C, design.samples_C, task.unit)
        slope_BCQ[:, cells, place_CP[:, p]] = curve_BC.imag / step
        theta_PBC[p] -= 1j * step
    return slope_BCQ


def predictive_variance(task: Problem, phi_BQ, precision_BC) -> np.ndarray:
    """Variance [B, C] of the fitted log error in each cell, by linearisation at the fit."""
    slope_BCQ = slopes(task, phi_BQ)
    weighted_BQC = np.swapaxes(slope_BCQ * precision_BC[:, :, None], 1, 2)
    curvature_BQQ = weighted_BQC @ slope_BCQ + np.diag(task.width_Q**-2.0)
    solved_BQC = np.linalg.solve(curvature_BQQ, np.swapaxes(slope_BCQ, 1, 2))
    return np.sum(slope_BCQ * np.swapaxes(solved_BQC, 1, 2), axis=2)


def _least_squares(task: Problem, y_BC, root_BC, phi_BQ, steps: int):
    """Levenberg-Marquardt (Marquardt 1963): (parameters [B, Q], sums of squares [B])."""
    phi_BQ, cost_B = phi_BQ.copy(), _cost(task, y_BC, root_BC, phi_BQ)
    damping_B, going = np.full(len(phi_BQ), 1e-2), np.arange(len(phi_BQ))
    for _ in range(steps):
        at_BQ, y, root = phi_BQ[going], y_BC[going], root_BC[going]
        off_BC, prior_BQ = _off(task, y, root, at_BQ)
        slope_BCQ = root[:, :, None] * slopes(task, at_BQ)
        uphill_BQ = (off_BC[:, None] @ slope_BCQ)[:, 0] + prior_BQ / task.width_Q
        curvature_BQQ = np.swapaxes(slope_BCQ, 1, 2) @ slope_BCQ + np.diag(task.width_Q**-2.0)
        diagonal_BQ = np.diagonal(curvature_BQQ, axis1=1, axis2=2)
        damped_BQQ = (
            curvature_BQQ
            + np.eye(len(task.centre_Q)) * (damping_B[going, None] * diagonal_BQ)[:, None]
        )
        step_BQ = np.linalg.solve(damped_BQQ, uphill_BQ[..., None])[..., 0]
        tried_BQ = at_BQ - np.clip(step_BQ, -LONGEST, LONGEST)
        tried_B = _cost(task, y, root, tried_BQ)
        better_B = tried_B < cost_B[going]  # False where it is NaN
        done_B = np.abs(tried_B - cost_B[going]) <= CONVERGED * cost_B[going]
        phi_BQ[going[better_B]] = tried_BQ[better_B]
        cost_B[going[better_B]] = tried_B[better_B]
        damping_B[going] = np.clip(damping_B[going] * np.where(better_B, 0.2, 5), 1e-9, 1e9)
        going = going[~done_B]
        if not len(going):
            break
    return phi_BQ, cost_B


def _off(task: Problem, y_BC, root_BC, phi_BQ):
    """Residuals in standard deviations: of the data [B, C], of the priors [B, Q]."""
    design = task.design
    curve_BC = predict(task, phi_BQ, design.source_C, design.pairs_C, design.samples_C)
    return root_BC * (curve_BC - y_BC), (phi_BQ - task.centre_Q) / task.width_Q


def _cost(task: Problem, y_BC, root_BC, phi_BQ) -> np.ndarray:
    return sum(np.square(part).sum(axis=1) for part in _off(task, y_BC, root_BC, phi_BQ))


def _starts(task: Problem) -> np.ndarray:
    """[K, Q]: exponents and floors of a small grid, the same for all sources, the rest central."""
    parameters, starts = task.law.form.parameters, []
    for exponent in EXPONENTS:
        for floor in FLOORS:
            start_Q = task.centre_Q.copy()
            for p, (_, prior) in enumerate(parameters):
                if prior in (EXPONENT, FLOOR):
                    start_Q[task.index_SP[:, p]] = np.log(exponent) if prior is EXPONENT else floor
            starts.append(start_Q)
    return np.unique(starts, axis=0)


def describe(task: Problem, phi_Q: np.ndarray) -> dict[str, dict[str, float]]:
    """{source: {"E": .., "A": .., "alpha": ..}}: parameters in natural units.

    A and B are the error lost at the geometric means of pairs and samples, b that for each e-fold.
    """
    described = {}
    for source, index_P in zip(task.design.sources, task.index_SP, strict=True):
        values = {}
        for name, value in zip(task.law.form.names, phi_Q[index_P], strict=True):
            scale = {"A": task.unit[2], "B": task.unit[2]}.get(name, 1.0)
            if task.law.form.needs_worst and name == "A":
                scale = 1.0  # odds, not an error
            values[name] = float(
                task.unit[2] / (1 + np.exp(-value)) if name == "E" else scale * np.exp(value)
            )
        described[source] = values
    return described
