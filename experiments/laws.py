"""Laws of error against unique pairs and samples seen, fitted by least squares on log error.

A form is one function of parameters, pairs and samples. A law is a form together with the
parameters that all sources have in common: with all but the amplitude shared, sources differ by an
efficiency factor, and a pair of one is worth a constant number of pairs of another.

Parameters are unbounded reals (log amplitude, log exponent, logit of the floor), each with a weak
normal prior, so that three sizes are not fitted by a step and a floor of zero is not at infinity.
The data decide wherever they say more than "the exponent is between 0.04 and 2".

Shape letters: C cells (a source, a number of pairs, a number of samples), S sources, P parameters
of a form, Q those of a law, B data sets fitted at once, X points to predict.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

STEPS = 40  # of Levenberg-Marquardt, at most
FIRST_STEPS = 6  # from each of the starts, before the best goes on
LONGEST = 2.0  # step of a parameter: all are logs or logits
CONVERGED = 1e-6  # relative change of the sum of squares
EXPONENTS, FLOORS = (0.15, 0.6), (-2.0, 0.5)  # STARTS: around the priors' centres


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """Where error was measured."""

    sources: tuple[str, ...]
    source_C: np.ndarray  # int, index into sources
    pairs_C: np.ndarray  # unique pairs
    samples_C: np.ndarray  # samples seen
    worst: float  # error of guessing; where that is not known, above the largest error seen
    knows_worst: bool


# --- Forms ---------------------------------------------------------------------------------------

# (centre, standard deviation) of the priors
AMPLITUDE = (-1.0, 2.0)  # log, relative to the error of guessing; odds where that is in the form
EXPONENT = (float(np.log(0.3)), 1.0)
SLOPE = (float(np.log(0.1)), 1.5)  # log of what is lost for each e-fold of pairs, relative to it
FLOOR = (-1.0, 2.5)  # logit of the share of the error of guessing that is irreducible
REPEATS = (float(np.log(15.0)), 1.5)  # log R*; 15.4 in Muennighoff et al. 2023, table 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """log_error(theta_P, pairs, samples, unit) -> log error; unit is [pairs, samples, worst error].
    It takes complex parameters: that is how it is differentiated."""

    name: str
    formula: str
    parameters: tuple[tuple[str, tuple[float, float]], ...]  # name, prior
    log_error: Callable[..., np.ndarray]
    uses_samples: bool = False
    needs_worst: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.parameters)


def _log_sum(x, y):
    """log(e^x + e^y); of complex numbers to first order in the imaginary parts, which are steps."""
    total = np.logaddexp(np.real(x), np.real(y))
    if not (np.iscomplexobj(x) or np.iscomplexobj(y)):
        return total
    share = np.exp(np.real(x) - total)
    return total + 1j * (share * np.imag(x) + (1 - share) * np.imag(y))


def _log_sigmoid(x):
    return -_log_sum(0 * x, -x)


def _decay(amplitude, log_exponent, size, unit_size):
    """log (A (size / unit)^-alpha), A in units of the mean error."""
    return amplitude - np.exp(log_exponent) * np.log(size / unit_size)


def _log_floor(floor, unit):
    return np.log(unit[2]) + _log_sigmoid(floor)


def effective_pairs(pairs, samples, log_repeats):
    """Unique pairs that would teach as much in one pass as these do, repeated.

    Muennighoff et al. 2023 (arXiv:2305.16264), eq. 5: U + U R* (1 - exp(-R / R*)), with
    U = min(pairs, samples) unique ones and R = samples / U - 1 repetitions.
    """
    unique = np.minimum(pairs, samples)
    decay = np.exp(log_repeats)
    return unique * (1 + decay * -np.expm1(-(samples / unique - 1) / decay))


def _power(theta, pairs, samples, unit):
    return np.log(unit[2]) + _decay(theta[0], theta[1], pairs, unit[0])


def _floored(theta, pairs, samples, unit):
    return _log_sum(_log_floor(theta[2], unit), _power(theta, pairs, samples, unit))


def _saturating(theta, pairs, samples, unit):
    decay = _decay(theta[0], theta[1], pairs, unit[0])
    floor = _log_floor(theta[2], unit)
    return _log_sum(floor, np.log(unit[2]) + decay) + _log_sigmoid(-decay)


def _log_linear(theta, pairs, samples, unit):
    least = 1e-3 * unit[2]
    error = unit[2] * (np.exp(theta[0]) - np.exp(theta[1]) * np.log(pairs / unit[0]))
    return np.log(np.where(error.real > least, error, least))


def _repeated(theta, pairs, samples, unit):
    return _floored(theta, effective_pairs(pairs, samples, theta[3]), samples, unit)


def _repeated_saturating(theta, pairs, samples, unit):
    return _saturating(theta, effective_pairs(pairs, samples, theta[3]), samples, unit)


def _additive(theta, pairs, samples, unit):
    trained = np.log(unit[2]) + _decay(theta[3], theta[4], samples, unit[1])
    return _log_sum(_floored(theta, pairs, samples, unit), trained)


_POWER = (("A", AMPLITUDE), ("alpha", EXPONENT))
_FLOORED = (*_POWER, ("E", FLOOR))
FORMS = (
    Form(name="power", formula="A·N^-α", parameters=_POWER, log_error=_power),
    Form(name="power + floor", formula="E + A·N^-α", parameters=_FLOORED, log_error=_floored),
    Form(
        # Alabdulmohsin et al. 2022 (arXiv:2209.06640), eq. M4 with its exponent on the distance to
        # chance at 1, which makes it explicit
        name="saturating (M4)", formula="(e - E) / (e0 - e) = A·N^-α, e0: chance",
        parameters=_FLOORED, log_error=_saturating, needs_worst=True,
    ),
    Form(
        name="log-linear", formula="A - b·log N",
        parameters=(("A", AMPLITUDE), ("b", SLOPE)), log_error=_log_linear,
    ),
    Form(
        name="repeated data", formula="E + A·D^-α, D = U + U·R*·(1 - exp(-R / R*))",
        parameters=(*_FLOORED, ("R*", REPEATS)), log_error=_repeated, uses_samples=True,
    ),
    Form(
        name="repeated data, saturating", formula="(e - E) / (e0 - e) = A·D^-α",
        parameters=(*_FLOORED, ("R*", REPEATS)), log_error=_repeated_saturating,
        uses_samples=True, needs_worst=True,
    ),
    Form(
        # Hoffmann et al. 2022 (arXiv:2203.15556), eq. 2, with unique pairs for model size
        name="pairs + samples", formula="E + A·N^-α + B·S^-β",
        parameters=(*_FLOORED, ("B", AMPLITUDE), ("beta", EXPONENT)),
        log_error=_additive, uses_samples=True,
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """A form, and which of its parameters all sources share."""

    form: Form
    shared: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        kind = "each source its own"
        if self.shared:
            apart = [name for name in self.form.names if name not in self.shared]
            kind = f"sources differ in {' and '.join(apart)}"
        return f"{self.form.name}; {kind}"

    def index(self, num_sources: int) -> np.ndarray:
        """int [S, P]: which of the law's parameters each source's are."""
        index_SP, found = np.zeros((num_sources, len(self.form.names)), int), 0
        for p, name in enumerate(self.form.names):
            count = 1 if name in self.shared else num_sources
            index_SP[:, p] = found + np.arange(num_sources) % count
            found += count
        return index_SP


def laws(design: Design) -> list[Law]:
    """All laws that this design can tell apart: own shapes, one shape, one shape but for the floor.

    Terms of samples seen need samples that vary where pairs do not. A form is left out where a
    source has fewer cells than it has parameters of its own, less one: the priors carry no more.
    """
    samples_vary = has_free_samples(design)
    cells = np.bincount(design.source_C, minlength=len(design.sources)).min()
    found = []
    for form in FORMS:
        if form.uses_samples != samples_vary or (form.needs_worst and not design.knows_worst):
            continue
        shape = tuple(name for name in form.names if name != "A")
        kinds = {(), shape, tuple(name for name in shape if name != "E")}
        if len(design.sources) == 1:
            kinds = {()}
        for shared in sorted(kinds, key=len):
            if len(form.names) - len(shared) <= cells:
                found.append(Law(form=form, shared=shared))
    return found


def has_free_samples(design: Design) -> bool:
    """Whether some source has one number of pairs at several numbers of samples."""
    places = set(zip(design.source_C, design.pairs_C, strict=True))
    return len(places) < len(
        set(zip(design.source_C, design.pairs_C, design.samples_C, strict=True))
    )


# --- The fit -------------------------------------------------------------------------------------


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
