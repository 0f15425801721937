"""Variants beside their base: one change at a time, run by run with the same seed, item by item.

Shape letters: R pairs of runs, C cells (a variant on one source), K comparisons.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.means import LEVEL, Items, average, holm
from experiments.tables import ABOUT, Row, Study, scores

CELL = ("variant", "source", "model")  # what is averaged is alike in these
UNCLEAR = "not distinguished"
CAPTION = (
    "Variant less its base, on the same source and with the same seed. Lines are 95 % intervals of "
    "one comparison each, paired by seed and by item; verdicts hold for all {} comparisons "
    "together, at 5 % (Holm 1979)."
)
SHOWN = 5  # variants that the answer names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """A variant less its base on one source, on one metric."""

    variant: str
    base: str  # the variant that it is told against; "": the run without one
    place: str  # source, model: those of them that vary in the study
    value: float
    low: float
    high: float
    p: float  # of no difference, corrected for all comparisons of the table; NaN: not known
    runs: int
    higher_is_better: bool
    also_differs: tuple[str, ...]  # "unique_pairs 80000 -> 61000"

    @property
    def name(self) -> str:
        """`sharp`, `without_sharp on pmc_oa`"""
        return f"{self.variant} on {self.place}" if self.place else self.variant

    @property
    def verdict(self) -> str:
        if not self.p < 1 - LEVEL:
            return UNCLEAR
        return "better" if (self.value > 0) == self.higher_is_better else "worse"


def ablations(study: Study, metric: str) -> list[Ablation]:
    """Each variant's difference from its base, on each source."""
    pairs = [(run, base) for run, base in _pairs(study) if base is not None]
    if not pairs:
        return []
    keys = [tuple(run.get(axis) or "" for axis in CELL) for run, _ in pairs]
    cells = sorted(set(keys), key=lambda key: (key[1:], key[0]))
    found = scores(study, [run for pair in pairs for run in pair], metric)
    items = found.items
    if items is not None:
        items = Items(value_RI=items.value_RI[::2] - items.value_RI[1::2], group_I=items.group_I)
    means = average(
        found.value_R[::2] - found.value_R[1::2], np.array([cells.index(key) for key in keys]),
        items=items, error_R=np.hypot(found.error_R[::2], found.error_R[1::2]),
    )  # fmt: skip
    weight_CC = np.eye(len(cells))
    p_C = holm(np.array([means.p_value(weight_C) for weight_C in weight_CC]))
    varies = [len({key[i] for key in keys}) > 1 for i in range(len(CELL))]
    ablated = []
    for c, cell in enumerate(cells):
        value, low, high = means.interval(weight_CC[c])
        mine = [pair for pair, key in zip(pairs, keys, strict=True) if key == cell]
        changes = sorted({change for run, base in mine for change in _changes(run, base)})
        place = [str(x) for x, shown in zip(cell[1:], varies[1:], strict=True) if shown]
        ablated.append(
            Ablation(
                variant=cell[0], base=mine[0][1]["variant"], place=", ".join(place), value=value,
                low=low, high=high, p=float(p_C[c]), runs=int(means.runs_C[c]),
                higher_is_better=found.higher_is_better, also_differs=tuple(changes),
            )
        )  # fmt: skip
    return ablated


def without_base(study: Study) -> list[str]:
    """A line on runs of variants whose base has no finished run of their source and seed."""
    lone = [run["run_id"] for run, base in _pairs(study) if base is None]
    if not lone:
        return []
    return [
        f"What {len(lone)} runs of variants are worth, the first {lone[0]}: their base has no "
        "finished run with the same source and seed."
    ]


def _pairs(study: Study) -> list[tuple[Row, Row | None]]:
    done = study.done
    return [(run, _base(run, done)) for run in done if run["variant"]]


def _base(run: Row, runs: Sequence[Row]) -> Row | None:
    """The run of the variant's base with this one's source and seed, and most of its axes."""
    bases = [
        base for base in runs
        if all(base[k] == v for k, v in
               (("variant", run["base"]), ("source", run["source"]), ("seed", run["seed"])))
    ]  # fmt: skip
    return min(bases, key=lambda base: (len(_changes(run, base)), base["run_id"]), default=None)


def _changes(run: Row, base: Row) -> list[str]:
    axes = sorted(set(run) - ABOUT - {"variant"})
    return [f"{a} {base.get(a)} -> {run[a]}" for a in axes if run[a] != base.get(a)]


def answer(found: Sequence[Ablation], metric: str) -> list[str]:
    """What the variants are worth, in a sentence; none where there are no variants."""
    if not found:
        return []
    ordered = sorted(found, key=lambda a: -abs(a.value))
    told = [a for a in ordered if a.verdict != UNCLEAR]
    shown = [f"{a.name} {a.value:+.3f} ({a.low:+.3f} to {a.high:+.3f})" for a in told or ordered]
    if not told:
        return [
            f"None of {len(found)} variants is told apart from its base in {metric}; the largest "
            f"difference is that of {shown[0]}."
        ]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return [
        f"{'; '.join(shown[:SHOWN])}{more}: {len(told)} of {len(found)} variants told apart from "
        f"their base in {metric}."
    ]
