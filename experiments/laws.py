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
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 40  # of Levenberg-Marquardt, from each of STARTS
REFIT_STEPS = 12  # from the fit to the data, for data that differ from them by noise
EXPONENTS, FLOORS = (0.1, 0.3, 0.8), (-2.0, 0.0, 2.0)  # STARTS: around the priors' centres


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
AMPLITUDE = (0.0, 3.0)  # log, relative to the mean error
EXPONENT = (float(np.log(0.3)), 1.0)
SLOPE = (float(np.log(0.1)), 1.5)  # log of the share of the error lost for each e-fold of pairs
FLOOR = (0.0, 3.0)  # logit of the floor's share of the least error seen
REPEATS = (float(np.log(15.0)), 1.5)  # log R*; 15.4 in Muennighoff et al. 2023, table 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """log_error(theta_P, pairs, samples, unit) -> log error; unit is [pairs, samples, mean error,
    least error, worst error]."""

    name: str
    formula: str
    parameters: tuple[tuple[str, tuple[float, float]], ...]  # name, prior
    log_error: Callable[..., jax.Array]
    uses_samples: bool = False
    needs_worst: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.parameters)


def _decay(amplitude, log_exponent, size, unit_size):
    """log (A (size / unit)^-alpha), A in units of the mean error."""
    return amplitude - jnp.exp(log_exponent) * jnp.log(size / unit_size)


def _log_floor(floor, unit):
    return jnp.log(unit[3]) + jax.nn.log_sigmoid(floor)


def effective_pairs(pairs, samples, log_repeats):
    """Unique pairs that would teach as much in one pass as these do, repeated.

    Muennighoff et al. 2023 (arXiv:2305.16264), eq. 5: U + U R* (1 - exp(-R / R*)), with
    U = min(pairs, samples) unique ones and R = samples / U - 1 repetitions.
    """
    unique = jnp.minimum(pairs, samples)
    decay = jnp.exp(log_repeats)
    return unique * (1 + decay * -jnp.expm1(-(samples / unique - 1) / decay))


def _power(theta, pairs, samples, unit):
    return jnp.log(unit[2]) + _decay(theta[0], theta[1], pairs, unit[0])


def _floored(theta, pairs, samples, unit):
    return jnp.logaddexp(_log_floor(theta[2], unit), _power(theta, pairs, samples, unit))


def _saturating(theta, pairs, samples, unit):
    decay = _decay(theta[0], theta[1], pairs, unit[0])
    floor = _log_floor(theta[2], unit)
    return jnp.logaddexp(floor, jnp.log(unit[4]) + decay) - jax.nn.softplus(decay)


def _log_linear(theta, pairs, samples, unit):
    error = unit[2] * (jnp.exp(theta[0]) - jnp.exp(theta[1]) * jnp.log(pairs / unit[0]))
    return jnp.log(jnp.maximum(error, 0.01 * unit[3]))


def _repeated(theta, pairs, samples, unit):
    return _floored(theta, effective_pairs(pairs, samples, theta[3]), samples, unit)


def _repeated_saturating(theta, pairs, samples, unit):
    return _saturating(theta, effective_pairs(pairs, samples, theta[3]), samples, unit)


def _additive(theta, pairs, samples, unit):
    trained = jnp.log(unit[2]) + _decay(theta[3], theta[4], samples, unit[1])
    return jnp.logaddexp(_floored(theta, pairs, samples, unit), trained)


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
    """A law on a design, ready for any data of that design.

    Args of its arrays: index_SP; centre_Q and width_Q of the priors; unit: see Form.
    """

    law: Law
    design: Design
    index_SP: np.ndarray
    centre_Q: np.ndarray
    width_Q: np.ndarray
    unit: np.ndarray


def problem(law: Law, design: Design, log_error_C: np.ndarray) -> Problem:
    index_SP = law.index(len(design.sources))
    prior_Q2 = np.zeros((index_SP.max() + 1, 2))
    for p, (_, prior) in enumerate(law.form.parameters):
        prior_Q2[index_SP[:, p]] = prior
    pairs, samples = (np.exp(np.log(x).mean()) for x in (design.pairs_C, design.samples_C))
    unit = np.array(
        [pairs, samples, np.exp(log_error_C.mean()), np.exp(log_error_C.min()), design.worst]
    )
    return Problem(
        law=law, design=design, index_SP=index_SP, centre_Q=prior_Q2[:, 0], width_Q=prior_Q2[:, 1],
        unit=unit,
    )  # fmt: skip


def fit(task: Problem, log_error_BC, precision_BC, start_Q=None) -> np.ndarray:
    """Parameters [B, Q] of the best fit to each data set.

    Args:
      log_error_BC: means over runs of log error.
      precision_BC: 1 / variance of each; 0 leaves a cell out.
      start_Q: parameters near by; without, the best of many starts.
    """
    steps, start_KQ = (STEPS, _starts(task)) if start_Q is None else (REFIT_STEPS, start_Q[None])
    with jax.enable_x64(True):
        precision_BC = np.broadcast_to(precision_BC, np.shape(log_error_BC))
        fitted = _fit(
            task.law.form, steps, *_arrays(task), np.asarray(log_error_BC, np.float64),
            np.sqrt(precision_BC), np.asarray(start_KQ, np.float64), task.centre_Q, task.width_Q,
        )  # fmt: skip
        return np.asarray(fitted)


def predict(task: Problem, phi_BQ, source_X, pairs_X, samples_X) -> np.ndarray:
    """log error [B, X]."""
    with jax.enable_x64(True):
        at = (np.asarray(source_X), np.asarray(pairs_X, float), np.asarray(samples_X, float))
        return np.asarray(_predict(task.law.form, task.index_SP, *at, task.unit, phi_BQ))


def predictive_variance(task: Problem, phi_BQ, precision_BC) -> np.ndarray:
    """Variance [B, C] of the fitted log error in each cell, by linearisation at the fit."""
    with jax.enable_x64(True):
        return np.asarray(
            _variance(
                task.law.form, *_arrays(task), np.sqrt(precision_BC), phi_BQ, task.width_Q
            )
        )  # fmt: skip


def _arrays(task: Problem):
    design = task.design
    at = (design.source_C, np.asarray(design.pairs_C, float), np.asarray(design.samples_C, float))
    return task.index_SP, *at, task.unit


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


def _curve(form: Form, index_SP, source_X, pairs_X, samples_X, unit, phi_Q):
    theta_PX = phi_Q[index_SP[source_X]].T
    return form.log_error(theta_PX, pairs_X, samples_X, unit)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit(form, steps, index_SP, source_C, pairs_C, samples_C, unit, y_BC, root_BC, start_KQ,
         centre_Q, width_Q):  # fmt: skip
    def of_one(y_C, root_C, start_Q):
        def residuals(phi_Q):
            curve_C = _curve(form, index_SP, source_C, pairs_C, samples_C, unit, phi_Q)
            return jnp.concatenate([root_C * (curve_C - y_C), (phi_Q - centre_Q) / width_Q])

        return _least_squares(residuals, start_Q, steps)

    over_starts = jax.vmap(of_one, in_axes=(None, None, 0))
    phi_BKQ, cost_BK = jax.vmap(over_starts, in_axes=(0, 0, None))(y_BC, root_BC, start_KQ)
    best_B = jnp.argmin(cost_BK, axis=1)
    return jnp.take_along_axis(phi_BKQ, best_B[:, None, None], axis=1)[:, 0]


def _least_squares(residuals: Callable, start_Q: jax.Array, steps: int):
    """Levenberg-Marquardt (Marquardt 1963): (parameters, cost) after so many steps."""
    jacobian = jax.jacfwd(residuals)

    def step(_, carry):
        phi_Q, cost, damping = carry
        r, jacobian_RQ = residuals(phi_Q), jacobian(phi_Q)
        curvature_QQ = jacobian_RQ.T @ jacobian_RQ
        damped_QQ = curvature_QQ + damping * jnp.diag(jnp.diag(curvature_QQ))
        tried_Q = phi_Q - jnp.linalg.solve(damped_QQ, jacobian_RQ.T @ r)
        tried = jnp.sum(residuals(tried_Q) ** 2)
        better = tried < cost  # False where it is NaN
        damping = jnp.clip(jnp.where(better, damping / 5, damping * 5), 1e-9, 1e9)
        return jnp.where(better, tried_Q, phi_Q), jnp.where(better, tried, cost), damping

    start = (start_Q, jnp.sum(residuals(start_Q) ** 2), jnp.asarray(1e-2, start_Q.dtype))
    phi_Q, cost, _ = jax.lax.fori_loop(0, steps, step, start)
    return phi_Q, cost


@functools.partial(jax.jit, static_argnums=0)
def _predict(form, index_SP, source_X, pairs_X, samples_X, unit, phi_BQ):
    curve = functools.partial(_curve, form, index_SP, source_X, pairs_X, samples_X, unit)
    return jax.vmap(curve)(phi_BQ)


@functools.partial(jax.jit, static_argnums=0)
def _variance(form, index_SP, source_C, pairs_C, samples_C, unit, root_BC, phi_BQ, width_Q):
    curve = functools.partial(_curve, form, index_SP, source_C, pairs_C, samples_C, unit)

    def of_one(root_C, phi_Q):
        slope_CQ = jax.jacfwd(curve)(phi_Q)
        weighted_CQ = root_C[:, None] * slope_CQ
        curvature_QQ = weighted_CQ.T @ weighted_CQ + jnp.diag(width_Q**-2.0)
        return jnp.sum(slope_CQ * jnp.linalg.solve(curvature_QQ, slope_CQ.T).T, axis=1)

    return jax.vmap(of_one)(root_BC, phi_BQ)


def describe(task: Problem, phi_Q: np.ndarray) -> dict[str, dict[str, float]]:
    """{source: {"E": .., "A": .., "alpha": ..}}: parameters in natural units.

    A and B are the error lost at the geometric means of pairs and samples; b is the share lost for each e-fold.
    """
    described = {}
    for source, index_P in zip(task.design.sources, task.index_SP, strict=True):
        values = {}
        for name, value in zip(task.law.form.names, phi_Q[index_P], strict=True):
            scale = {"A": task.unit[2], "B": task.unit[2]}.get(name, 1.0)
            if task.law.form.needs_worst and name == "A":
                scale = 1.0  # odds, not an error
            values[name] = float(
                task.unit[3] / (1 + np.exp(-value)) if name == "E" else scale * np.exp(value)
            )
        described[source] = values
    return described
