"""Forms of error against unique pairs and samples seen, and the laws made of them.

A form is one function of parameters, pairs and samples. A law is a form together with the
parameters that all sources have in common: with all but the amplitude shared, sources differ by an
efficiency factor, and a pair of one is worth a constant number of pairs of another.

Parameters are unbounded reals (log amplitude, log exponent, logit of the floor), each with a weak
normal prior, so that three sizes are not fitted by a step and a floor of zero is not at infinity.
The data decide wherever they say more than "the exponent is between 0.04 and 2".

Shape letters: C cells (a source, a number of pairs, a number of samples), S sources, P parameters
of a form.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """Where error was measured."""

    sources: tuple[str, ...]
    source_C: np.ndarray  # int, index into sources
    pairs_C: np.ndarray  # unique pairs
    samples_C: np.ndarray  # samples seen
    worst: float  # error of guessing; where that is not known, above the largest error seen
    knows_worst: bool

    def ends(self, source: int) -> tuple[float, float]:
        """The fewest and the most pairs that were trained of it."""
        pairs = self.pairs_C[self.source_C == source]
        return float(pairs.min()), float(pairs.max())

    def samples_ends(self, source: int) -> tuple[float, float]:
        """The fewest and the most samples seen of it."""
        samples = self.samples_C[self.source_C == source]
        return float(samples.min()), float(samples.max())

    def pairs_within(self, source: int, samples: float) -> tuple[float, float]:
        """The fewest and the most pairs between cells that were trained, at so many samples.

        That is where the convex hull of the source's cells, in log pairs and log samples, is cut;
        `samples` must be between its own.
        """
        mine = self.source_C == source
        x, y, at = np.log(self.pairs_C[mine]), np.log(self.samples_C[mine]), np.log(samples)
        i, j = np.nonzero((y[:, None] <= at + 1e-9) & (y[None, :] >= at - 1e-9))
        share = (at - y[i]) / np.where(y[j] > y[i], y[j] - y[i], 1)
        cut = np.rint(np.exp(x[i] + np.clip(share, 0, 1) * (x[j] - x[i])))
        return float(cut.min()), float(cut.max())

    @property
    def has_free_samples(self) -> bool:
        """Whether some source has one number of pairs at several numbers of samples."""
        places = list(zip(self.source_C, self.pairs_C, strict=True))
        return len(set(places)) < len(set(zip(places, self.samples_C, strict=True)))

    @property
    def is_tied(self) -> bool:
        """Whether samples vary with pairs and with nothing else, as in a design of fixed epochs."""
        return not self.has_free_samples and len(np.unique(self.samples_C)) > 1

    @property
    def common_samples(self) -> float:
        """The samples seen that most cells have, the most of those; NaN: tied to pairs."""
        found, counts = np.unique(self.samples_C, return_counts=True)
        return np.nan if self.is_tied else float(found[counts == counts.max()].max())

    def samples_at(self, source: int, pairs_X: np.ndarray, samples: float) -> np.ndarray:
        """Samples seen with so many pairs: `samples`, or where the design ties the two, its own."""
        if not self.is_tied:
            return np.full(len(pairs_X), samples)
        mine = self.source_C == source
        order = np.argsort(self.pairs_C[mine])
        log_pairs, log_samples = (np.log(x[mine][order]) for x in (self.pairs_C, self.samples_C))
        return np.exp(np.interp(np.log(pairs_X), log_pairs, log_samples))


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
    samples_vary = design.has_free_samples
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
