"""What to train at a budget of compute: which source and how much of it, and which model.

Sources of one model are compared by the fitted laws (`choose`), also at budgets between those that
were trained; models are compared where they were trained with the same FLOPs, by their runs alone
(`compare_models`). Shape letters: S sources, C cells, R runs.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from experiments.means import LEVEL, holm
from experiments.scaling import EXTRAPOLATE, Analysis, invert
from experiments.tables import Interval, Study, mean_of, scores, slices
from experiments.words import number

ENOUGH = 1.05  # the fewest pairs with at most 5 % more error than all pairs have
SAME_BUDGET = 1.05  # of FLOPs: budgets are spent in whole batches

OF_CHOICES = (
    "By the fitted laws. Pairs: the most that were trained with so many samples, and no more than "
    "are seen; sources are compared at the most of each. Enough: the fewest with at most 5 % more "
    "error, with an interval that is rough: it held the truth in 77 to 93 % of simulated studies, "
    "the least with three sizes (benchmarks.exchange_rate)."
)
OF_MODELS = (
    "By the runs alone: what was trained with the same FLOPs, within 5 %, of each source with the "
    "most pairs that all models have and with the most of each. Intervals are 95 % each, of "
    "differences paired by item; what is told apart from the first holds for a whole table, at "
    "5 % (Holm 1979)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What to train at a budget, of one model's sources."""

    flops: float
    samples: float
    source: str
    pairs: float  # the most that were trained of it with about so many samples, and no more
    enough: Interval  # pairs and interval; NaN: fewer than the fewest trained
    error: float
    low: float
    high: float
    not_told_apart: tuple[str, ...]  # other sources, each with the most pairs trained of it
    not_compared: tuple[str, ...]  # sources that were not trained with about so many samples
    is_beyond: bool  # the source was not trained with so many samples, or so few


def flops_per_sample(analysis: Analysis) -> float:
    """NaN: not recorded."""
    costs = [run["flops"] / run["samples_seen"] for run in analysis.runs if run.get("flops")]
    return float(np.median(costs)) if costs else math.nan


def choose(analysis: Analysis, budgets: Sequence[float] = ()) -> list[Choice]:
    """The source with the least error at each budget of FLOPs; the runs' own where none are given.

    Pairs are at most those that a run sees, and between those that were trained with so many
    samples. Budgets that need samples beyond EXTRAPOLATE times those seen have no entry.
    """
    cost, design = flops_per_sample(analysis), analysis.ensemble.design
    if math.isnan(cost) or design.is_tied:
        return []
    samples = [flops / cost for flops in budgets] or list(np.unique(design.samples_C))
    found = [_choose(analysis, cost * s, s) for s in samples]
    return [choice for choice in found if choice]


def _choose(analysis: Analysis, flops: float, samples: float) -> Choice | None:
    ensemble, design = analysis.ensemble, analysis.ensemble.design
    reach = EXTRAPOLATE if len(np.unique(design.samples_C)) > 1 else SAME_BUDGET
    seen_S2 = np.array([design.samples_ends(s) for s in range(len(design.sources))])
    near_S = (samples >= seen_S2[:, 0] / reach) & (samples <= seen_S2[:, 1] * reach)
    sources = np.flatnonzero(near_S)
    if not len(sources):
        return None
    clipped = [float(np.clip(samples, *seen_S2[s])) for s in sources]
    ends = [design.pairs_within(s, at) for s, at in zip(sources, clipped, strict=True)]
    most_S = np.array([min(most, samples) for _, most in ends])
    predicted, order = ensemble.predict(sources, most_S, samples), np.arange(len(sources))
    log_error_S, half_S = predicted.difference(order)
    best = int(log_error_S.argmin())
    gap_S, gap_half_S = predicted.difference(order, np.full(len(sources), best))
    names = [design.sources[s] for s in sources]
    error, low, high = np.exp(log_error_S[best] + half_S[best] * np.array([0, -1, 1]))
    return Choice(
        flops=flops, samples=samples, source=names[best], pairs=float(most_S[best]),
        enough=_enough(analysis, sources[best], (ends[best][0], most_S[best]), samples),
        error=float(error), low=float(low), high=float(high),
        not_told_apart=tuple(
            name for s, name in enumerate(names) if s != best and gap_S[s] <= gap_half_S[s]
        ),
        not_compared=tuple(np.array(design.sources)[~near_S]),
        is_beyond=not math.isclose(samples, clipped[best], rel_tol=SAME_BUDGET - 1),
    )  # fmt: skip


def _enough(analysis: Analysis, source: int, ends: tuple[float, float], samples: float) -> Interval:
    """(pairs, low, high): the fewest with ENOUGH times the error of the most; as an exchange rate's
    interval, it has the pairs that the data do not reject."""
    fewest, most = ends
    sizes = np.geomspace(min(fewest, most), most, 200)
    predicted = analysis.ensemble.predict(source, sizes, samples)
    each = np.arange(len(sizes))
    gap, half = predicted.difference(each, np.full(len(sizes), each[-1]))
    value, low, high = np.exp(invert(np.log(sizes), gap - math.log(ENOUGH), half))
    return float(value), float(low), float(high)


def enough_text(choice: Choice) -> str:
    """`747 (512 to 1,100)`, `at most 1,100`: what is below the fewest trained is not known."""
    value, low, high = choice.enough
    if math.isnan(value) or low == 0:
        return f"at most {number(high if high < choice.pairs else choice.pairs)}"
    return f"{number(value)} ({number(low)} to {number(high)})"


# --- Models of one budget ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """One model on one source."""

    model: str
    source: str
    pairs: int
    samples: int
    runs: int
    interval: Interval  # of the metric
    difference: Interval | None  # from the best; None: the best, or no share
    is_told_apart: bool  # from the best, all of the table together (Holm 1979)

    @property
    def name(self) -> str:
        return f"{self.model} on {number(self.pairs)} pairs of {self.source}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Everything that was trained with about so many FLOPs, the best first."""

    flops: float
    cells: tuple[Trained, ...]


def compare_models(study: Study, metric: str) -> list[Budget]:
    """Each budget of FLOPs at which several models were trained, with every (model, source).

    Of each source with the most pairs that all models of the budget have, and with the most that
    the model itself has. The noise of seeds is that of all runs.
    """
    of_model = [(", ".join(axes.values()), runs) for axes, runs in slices(study.done)]
    rows = [(name, run) for name, runs in of_model for run in runs if run.get("flops")]
    if len({name for name, _ in rows}) < 2:
        return []
    found = scores(study, [run for _, run in rows], metric)
    keys = [(name, run["source"], run["unique_pairs"], run["samples_seen"]) for name, run in rows]
    cells = sorted(set(keys))
    means, transform = mean_of(found, np.array([cells.index(key) for key in keys]))
    flops_C = np.array([rows[keys.index(cell)][1]["flops"] for cell in cells])
    sign = 1 if found.higher_is_better else -1
    budgets = []
    for flops, members in _grouped(flops_C):
        chosen = _comparable([(c, *cells[c]) for c in members])
        if len({cells[c][0] for c in chosen}) < 2:
            continue
        chosen = sorted(chosen, key=lambda c: -sign * means.value_C[c])
        one_KC = np.eye(len(cells))[chosen]
        p_K = holm(np.array([means.p_value(one_C - one_KC[0]) for one_C in one_KC[1:]]))
        budgets.append(Budget(flops=flops, cells=tuple(
            Trained(
                model=cells[c][0], source=cells[c][1], pairs=cells[c][2], samples=cells[c][3],
                runs=int(means.runs_C[c]), interval=transform(means.interval(one_C)),
                difference=means.interval(one_C - one_KC[0]) if k and found.is_share else None,
                is_told_apart=bool(k and p_K[k - 1] < 1 - LEVEL),
            )
            for k, (c, one_C) in enumerate(zip(chosen, one_KC, strict=True))
        )))  # fmt: skip
    return budgets


def _grouped(flops_C: np.ndarray) -> list[tuple[float, list[int]]]:
    """(FLOPs, cells) of each budget, ascending: those within SAME_BUDGET of its smallest."""
    groups: list[tuple[float, list[int]]] = []
    for c in np.argsort(flops_C, kind="stable"):
        if not groups or flops_C[c] > groups[-1][0] * SAME_BUDGET:
            groups.append((float(flops_C[c]), []))
        groups[-1][1].append(int(c))
    return groups


def _comparable(cells: Sequence[tuple[int, str, str, int, int]]) -> list[int]:
    """(cell, model, source, pairs, samples) of a budget -> the cells to compare."""
    pairs: dict[tuple[str, str], dict[int, int]] = {}
    for c, model, source, size, _ in cells:
        pairs.setdefault((source, model), {})[size] = c
    chosen = set()
    for (source, _), of_cell in pairs.items():
        others = [set(found) for (name, _), found in pairs.items() if name == source]
        common = set.intersection(*others)
        chosen |= {of_cell[max(of_cell)], of_cell[max(common or of_cell)]}
    return sorted(chosen)


def answer(budget: Budget) -> str:
    """One sentence: the best at the budget, and what is as good for all that is known."""
    best, *others = budget.cells
    value, low, high = best.interval
    text = (
        f"At {number(budget.flops)} FLOPs, {best.name} does best: {value:.3f} ({low:.3f} to "
        f"{high:.3f}; {number(best.samples)} samples seen)"
    )
    unclear = [one.name for one in others if not one.is_told_apart]
    if not unclear:
        return f"{text}; all others are told apart from it."
    return f"{text}; not told apart from it: {', '.join(unclear)}."
