"""What quality is worth in scale: error against pairs and samples, exchange rates, choices.

The exchange rate of source B at N pairs of a reference A is r with error_B(r N) = error_A(N): one
pair of A is worth r pairs of B. Its interval is the set of r that the data do not reject: those at
which the two curves' errors, a vertical difference that is nearly normal, are not told apart. Where
B's curve has flattened out this set has no upper end, and that is what is reported, where the ratio
of two estimates would have a figure (Fieller 1954).

Curves reach EXTRAPOLATE times beyond the sizes that were trained and no further; bounds never rest
on what lies beyond. Shape letters: S sources, G sizes of a grid, X points of a curve.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.ensemble import REPLICATES, Ensemble, Predicted, fit_all
from experiments.laws import Design
from experiments.tables import Row, Scores, mean_log_error

EXTRAPOLATE = 2.0
GRID = 61


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Error of one source along unique pairs, or along samples seen."""

    source: str
    along: str  # "unique_pairs" or "samples_seen", as in the table of runs
    at: float  # the other one; NaN: tied to this one by the design
    x_G: np.ndarray
    error_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray
    measured_G: np.ndarray  # bool: between those that were trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExchangeRate:
    """How many pairs of `source` one pair of `reference` is worth, at `pairs` of the reference.

    NaN: the source does not get there within what was trained. low 0 or high inf: no bound.
    """

    source: str
    reference: str
    pairs: float
    value: float
    low: float
    high: float
    extrapolated: bool  # value or high is beyond the sizes that were trained

    @property
    def is_bounded(self) -> bool:
        return self.low > 0 and np.isfinite(self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """The exchange rate along the reference's sizes, and the one to quote."""

    source: str
    reference: str
    curve: tuple[ExchangeRate, ...]
    quoted: ExchangeRate
    by_law: tuple[tuple[str, float, float], ...]  # law, weight, rate at the quoted place; NaN: none
    shares: tuple[float, float, float]  # of the variance there: seeds, items, laws


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where two sources' curves cross at equal pairs, between sizes that both have."""

    first: str
    second: str
    pairs: float  # NaN: they do not
    low: float  # sizes between which they are not told apart; NaN: told apart everywhere
    high: float
    lower_below: str  # source with less error at the smallest size, "" where not told apart
    lower_above: str  # at the largest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that the report says of a set of runs."""

    axes: dict[str, str]  # that tell these runs from the study's others
    runs: tuple[Row, ...]
    scores: Scores
    ensemble: Ensemble
    samples: float  # at which curves and exchange rates are; NaN: tied to pairs by the design
    reference: str
    curves: tuple[Curve, ...]
    sample_curves: tuple[Curve, ...]  # none where samples were not an axis of their own
    exchanges: tuple[Exchange, ...]
    crossings: tuple[Crossing, ...]


def design_of(runs: Sequence[Row], scores: Scores, first: str = "") -> tuple[Design, np.ndarray]:
    """Where `runs` are, and each run's cell; the source `first` comes first.

    Raises:
      ValueError: `first` has no run, or a source has less than two sizes.
    """
    names = sorted({run["source"] for run in runs}, key=lambda name: (name != first, name))
    if first and names[0] != first:
        raise ValueError(f"reference ({first}) has no finished run. Sources: {', '.join(names)}.")
    keys = [(names.index(r["source"]), r["unique_pairs"], r["samples_seen"]) for r in runs]
    cells = sorted(set(keys))
    source_C, pairs_C, samples_C = (np.array(column) for column in zip(*cells, strict=True))
    for s, name in enumerate(names):
        if len(set(pairs_C[source_C == s])) < 2:
            raise ValueError(f"{name} has runs at one size only. A curve needs two, better four.")
    worst = 1 - scores.chance if scores.higher_is_better else scores.chance
    largest = float(scores.to_error(scores.value_R).max())
    knows_worst = bool(worst > largest)
    design = Design(
        sources=tuple(names), source_C=source_C, pairs_C=pairs_C.astype(float),
        samples_C=samples_C.astype(float), worst=worst if knows_worst else 2 * largest,
        knows_worst=knows_worst,
    )  # fmt: skip
    return design, np.array([cells.index(key) for key in keys])


def analyse(
    runs: Sequence[Row], scores: Scores, reference: str = "", *, axes: dict[str, str] | None = None,
    replicates: int = REPLICATES,
) -> Analysis:  # fmt: skip
    """The analysis of runs that differ in source, pairs, samples and seed alone.

    Args:
      reference: the source that others are measured in; the first in the alphabet where "".
      axes: what tells these runs from others of the study.
    """
    design, cell_R = design_of(runs, scores, reference)
    ensemble = fit_all(design, mean_log_error(scores, cell_R), replicates=replicates)
    return read_off(ensemble, runs, scores, axes or {})


def read_off(
    ensemble: Ensemble, runs: Sequence[Row], scores: Scores, axes: dict[str, str]
) -> Analysis:
    design = ensemble.design
    grid = Grid(ensemble, design.common_samples)
    pairs_of_sources = [(i, j) for j in range(len(design.sources)) for i in range(j)]
    return Analysis(
        axes=axes, runs=tuple(runs), scores=scores, ensemble=ensemble, samples=grid.samples,
        reference=design.sources[0], curves=grid.curves(), sample_curves=along_samples(ensemble),
        exchanges=tuple(grid.exchange(s) for s in range(1, len(design.sources))),
        crossings=tuple(grid.crossing(i, j) for i, j in pairs_of_sources),
    )  # fmt: skip


class Grid:
    """Every source's predicted error on one grid of sizes, and what can be read off it."""

    def __init__(self, ensemble: Ensemble, samples: float, points: int = GRID):
        design = ensemble.design
        self.design, self.ensemble, self.samples = design, ensemble, samples
        ends = np.array([design.ends(s) for s in range(len(design.sources))])
        self.ends_S2 = ends
        low, high = np.log(ends.min() / EXTRAPOLATE), np.log(ends.max() * EXTRAPOLATE)
        self.pairs_G = np.union1d(np.exp(np.linspace(low, high, points)), design.pairs_C)
        source_SG = np.arange(len(design.sources))[:, None]
        self.seen_SG = np.array(
            [design.samples_at(s, self.pairs_G, samples) for s in range(len(design.sources))]
        )
        self.predicted = ensemble.predict(source_SG, self.pairs_G, self.seen_SG)

    def at(self, source: int, g) -> np.ndarray:
        """Indices into the prediction."""
        return source * len(self.pairs_G) + np.asarray(g)

    def within(self, source: int, by: float = 1.0) -> np.ndarray:
        """bool [G]: sizes between the trained ones, or so many times beyond."""
        low, high = self.ends_S2[source]
        slack = 1 + 1e-9
        return (self.pairs_G >= low / by / slack) & (self.pairs_G <= high * by * slack)

    def curves(self) -> tuple[Curve, ...]:
        curves = []
        for s, name in enumerate(self.design.sources):
            shown = np.flatnonzero(self.within(s, EXTRAPOLATE))
            at = self.at(s, shown)
            curves.append(
                _curve(
                    self.predicted, at, source=name, along="unique_pairs", at=self.samples,
                    x_G=self.pairs_G[shown], measured_G=self.within(s)[shown],
                )
            )  # fmt: skip
        return tuple(curves)

    def exchange(self, source: int) -> Exchange:
        """Of `source`, against source 0."""
        asked = np.flatnonzero(self.within(0))
        allowed = np.flatnonzero(self.within(source, EXTRAPOLATE))
        curve = [self._rate(source, int(g), allowed) for g in asked]
        quoted = _quoted(curve)
        g = asked[curve.index(quoted)]
        there = allowed[np.abs(np.log(self.pairs_G[allowed] / self._place(quoted))).argmin()]
        parts = self.predicted.variances(self.at(source, there), self.at(0, g))
        total = float(sum(parts)) or 1.0
        return Exchange(
            source=self.design.sources[source], reference=self.design.sources[0],
            curve=tuple(curve), quoted=quoted, by_law=self._by_law(source, int(g), allowed),
            shares=tuple(float(part) / total for part in parts),
        )  # fmt: skip

    def _place(self, rate: ExchangeRate) -> float:
        """Pairs of the source at the rate, or at its nearest bound."""
        found = [x for x in (rate.value, rate.low, rate.high) if np.isfinite(x) and x > 0]
        return rate.pairs * (found[0] if found else 1.0)

    def _rate(self, source: int, g: int, allowed: np.ndarray) -> ExchangeRate:
        """At the reference's size `g`, among the source's sizes `allowed`."""
        gap, half = self.predicted.difference(self.at(source, allowed), self.at(0, g))
        value, low, high = invert(np.log(self.pairs_G[allowed]), gap, half)
        first, last = self.ends_S2[source]
        beyond = not first <= np.exp(value) <= last or np.exp(high) > last
        low, high = min(np.exp(low), last), max(np.exp(high), first)
        pairs = self.pairs_G[g]
        return ExchangeRate(
            source=self.design.sources[source], reference=self.design.sources[0],
            pairs=float(pairs), value=float(np.exp(value) / pairs), low=float(low / pairs),
            high=float(high / pairs), extrapolated=bool(beyond),
        )  # fmt: skip

    def _by_law(self, source: int, g: int, allowed: np.ndarray):
        found = []
        for fitted in self.ensemble.fitted:
            alone = dataclasses.replace(
                self.ensemble,
                fitted=(dataclasses.replace(fitted, weight=1.0, seeds_RQ=None, items_RQ=None),),
            )
            there, here = allowed, np.array([g])
            value_X = alone.predict(
                np.repeat([source, 0], [len(there), 1]),
                np.concatenate([self.pairs_G[there], self.pairs_G[here]]),
                np.concatenate([self.seen_SG[source][there], self.seen_SG[0][here]]),
            ).value_X
            gap = value_X[:-1] - value_X[-1]
            value, _, _ = invert(np.log(self.pairs_G[there]), gap, np.zeros_like(gap))
            found.append((fitted.law.name, fitted.weight, float(np.exp(value) / self.pairs_G[g])))
        return tuple(found)

    def crossing(self, first: int, second: int) -> Crossing:
        both = np.flatnonzero(self.within(first) & self.within(second))
        names = (self.design.sources[first], self.design.sources[second])
        if len(both) < 2:
            nothing = {"pairs": np.nan, "low": np.nan, "high": np.nan}
            return Crossing(
                first=names[0], second=names[1], **nothing, lower_below="", lower_above=""
            )
        gap, half = self.predicted.difference(self.at(first, both), self.at(second, both))
        pairs = self.pairs_G[both]
        change = np.flatnonzero(np.sign(gap[1:]) != np.sign(gap[:-1]))
        at = np.nan
        if len(change):
            i = change[0]
            share = gap[i] / (gap[i] - gap[i + 1])
            at = float(np.exp((1 - share) * np.log(pairs[i]) + share * np.log(pairs[i + 1])))
        unclear = pairs[np.abs(gap) <= half]
        ends = [names[int(gap[i] > 0)] if abs(gap[i]) > half[i] else "" for i in (0, -1)]
        return Crossing(
            first=names[0], second=names[1], pairs=at,
            low=float(unclear.min()) if len(unclear) else np.nan,
            high=float(unclear.max()) if len(unclear) else np.nan,
            lower_below=ends[0], lower_above=ends[1],
        )  # fmt: skip


def _curve(predicted: Predicted, places, **about) -> Curve:
    log_error, half = predicted.difference(places)
    return Curve(
        error_G=np.exp(log_error), low_G=np.exp(log_error - half), high_G=np.exp(log_error + half),
        **about,
    )  # fmt: skip


def along_samples(ensemble: Ensemble, points: int = GRID) -> tuple[Curve, ...]:
    """Error against samples seen, of each source at the most pairs that were trained for several
    numbers of samples; where none were, at the most."""
    design, curves = ensemble.design, []
    if not design.has_free_samples:
        return ()
    for s, name in enumerate(design.sources):
        mine = design.source_C == s
        sizes, counts = np.unique(design.pairs_C[mine], return_counts=True)
        most = sizes[counts > 1].max() if counts.max() > 1 else sizes.max()
        seen = design.samples_C[mine & (design.pairs_C == most)]
        low, high = np.log(seen.min() / EXTRAPOLATE), np.log(seen.max() * EXTRAPOLATE)
        x_G = np.union1d(np.exp(np.linspace(low, high, points)), seen)
        measured_G = (x_G >= seen.min()) & (x_G <= seen.max())
        curves.append(
            _curve(
                ensemble.predict(s, most, x_G), np.arange(len(x_G)), source=name,
                along="samples_seen", at=most, x_G=x_G, measured_G=measured_G,
            )
        )  # fmt: skip
    return tuple(curves)


def invert(log_pairs_G, gap_G, half_G) -> tuple[float, float, float]:
    """(value, low, high) of log pairs where a decreasing gap is 0, is not told from 0.

    value NaN: not on the grid; low -inf, high inf: the grid's end is not told from 0 either.
    """
    value = _first(log_pairs_G, gap_G)
    low = _first(log_pairs_G, gap_G - half_G)
    high = -_first(-log_pairs_G[::-1], -(gap_G + half_G)[::-1])
    if gap_G[0] <= half_G[0]:
        low = -np.inf
    elif np.isnan(low):
        low = log_pairs_G[-1]
    if gap_G[-1] >= -half_G[-1]:
        high = np.inf
    elif np.isnan(high):
        high = log_pairs_G[0]
    return value, low, high


def _first(x_G: np.ndarray, y_G: np.ndarray) -> float:
    """Where y, above 0 at first, comes down to 0; NaN: it is not above at first, or never does."""
    down = np.flatnonzero(y_G <= 0)
    if not len(down) or down[0] == 0:
        return float(x_G[0]) if len(down) and y_G[0] == 0 else np.nan
    i = down[0]
    share = y_G[i - 1] / (y_G[i - 1] - y_G[i])
    return float(x_G[i - 1] + share * (x_G[i] - x_G[i - 1]))


def _quoted(curve: Sequence[ExchangeRate]) -> ExchangeRate:
    """The rate in the middle of where both sources have data; else a bound.

    A bound is quoted where it can be strongest, which is known beforehand: a lower one at the
    reference's fewest pairs, an upper one at its most. The best along the curve would be the best
    of many, and not as sure as one.
    """
    inside = [rate for rate in curve if np.isfinite(rate.value) and not rate.extrapolated]
    inside = inside or [rate for rate in curve if np.isfinite(rate.value) and rate.is_bounded]
    if inside:
        return inside[len(inside) // 2]
    first, last = curve[0], curve[-1]
    if first.low > 0:
        return first
    return first if np.isfinite(first.high) and not np.isfinite(last.high) else last
