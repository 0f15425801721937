"""What the report's templates show. All that is reckoned is reckoned here, or before."""

import json
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from experiments import budgets, conclusions, fitting, variants
from experiments.scaling import EXTRAPOLATE, Analysis, Exchange
from experiments.tables import (
    Row,
    Study,
    compare_sources,
    is_usable,
    largest_cell,
    metric_name,
    modalities,
    slices,
)  # fmt: skip
from experiments.words import number
from jaxclip.data.subset import POSITIONS, Subset

RATES_SHOWN = 7  # of the exchange curve, in the table
AXES_FIRST = ("source", "unique_pairs", "samples_seen", "model", "loss", "variant", "seed")


def context(
    study: Study, metric: str, reference: str, analyses: Sequence[Analysis], notes: list[str],
    flops: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """By the names that the templates have for it."""
    main = analyses[0] if analyses else None
    truth = conclusions.planted(study)
    reference = main.reference if main else reference
    tables, partial = _tables(study, metric, reference)
    if partial:
        notes = [*notes, f"Not every run was scored on {', '.join(partial)}: not in the table."]
    of_budgets = budgets.compare_models(study, metric)
    ablated = variants.ablations(study, metric)
    return {
        "study": study, "metric": metric, "main": main, "analyses": analyses,
        "reference": reference or (tables[0]["tasks"][0].names[0] if tables else ""),
        "command": study.about.get("command") or [],
        "title": study.about.get("name") or study.workdir.name,
        "question": study.about.get("question") or "",
        "answers": [
            *([conclusions.answer(e) for e in main.exchanges] if main else []),
            *map(budgets.answer, of_budgets), *variants.answer(ablated, metric),
        ],
        "planted": _planted(main, truth),
        "truth": truth,
        "rates": {e.source: _spread(e) for e in main.exchanges} if main else {},
        "crossings": [(c, conclusions.crossing_text(c)) for c in main.crossings] if main else [],
        "choices": [
            (", ".join(one.axes.values()), choice)
            for one in analyses for choice in budgets.choose(one, flops)
        ],
        "budgets": of_budgets,
        "captions": {
            "choices": budgets.OF_CHOICES, "models": budgets.OF_MODELS,
            "ablations": variants.CAPTION.format(len(ablated)),
        },
        "parameters": _parameters(main) if main else [],
        "held_out": _held_out(main) if main else [],
        "tables": tables,
        "ablations": ablated,
        "columns_of_ablations": [
            name for name in ("place", "base") if any(getattr(a, name) for a in ablated)
        ],
        "unresolved": [
            *conclusions.unresolved(main, study), *variants.without_base(study), *notes,
        ],
        "noise": _noise(main) if main else "",
        "runs": sorted(study.runs, key=_place),
        **_columns(study.runs),
        "cards": cards(study), "extrapolate": EXTRAPOLATE,
    }  # fmt: skip


def _tables(study: Study, metric: str, reference: str) -> tuple[list[Row], list[str]]:
    """(every task and modality at the largest size, for each set of runs that has one; metrics
    that only some runs have)."""
    tables, partial = [], set()
    for axes, runs in slices(study.done):
        at = largest_cell(runs)
        complete, of_some = _metrics(study, runs)
        partial |= set(of_some)
        if not (at and complete):
            continue
        first = reference if reference in {run["source"] for run in at} else at[0]["source"]
        parts = modalities(study) if metric in complete else []
        tasks = [compare_sources(study, runs, name, first) for name in complete]
        tables.append(
            {
                "place": ", ".join(f"{k} {v}" for k, v in axes.items()), "at": at[0],
                "caption": _caption(at[0], sum(len(task.differences) - 1 for task in tasks)),
                "tasks": tasks,
                "modalities": [
                    (name, compare_sources(study, runs, metric, first, name)) for name in parts
                ],
            }
        )  # fmt: skip
    return tables, sorted(partial)


def _caption(at: Row, differences: int) -> str:
    text = (
        f"The largest size that all sources have; {number(at['samples_seen'])} samples seen. Means "
        "over seeds with 95 % intervals"
    )
    if not differences:
        return f"{text}."
    return (
        f"{text}; differences are paired by item. Each interval is of one difference: of these "
        f"{differences}, about {number(0.05 * differences)} would miss zero by chance."
    )


def _metrics(study: Study, runs: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Metrics that all `runs` have a usable value of, and those that only some have."""
    wanted = {run["run_id"] for run in runs}
    of_metric: dict[str, set[str]] = {}
    for row in study.results:
        if row["run_id"] in wanted and is_usable(row):
            of_metric.setdefault(metric_name(row), set()).add(row["run_id"])
    complete = sorted(name for name, found in of_metric.items() if found == wanted)
    return complete, sorted(set(of_metric) - set(complete))


def _planted(main: Analysis | None, truth: dict[str, tuple[float, float]]) -> list[Row]:
    exchanges = {e.source: e for e in main.exchanges} if main else {}
    rows = []
    for source, (low, high) in truth.items():
        wanted = number(low) if low == high else f"{number(low)} to {number(high)}"
        wanted = f"at least {number(low)}" if math.isinf(high) else wanted
        rate = exchanges[source].quoted if source in exchanges else None
        rows.append(
            {
                "source": source, "planted": wanted,
                "measured": conclusions.rate_text(rate) if rate else "not measured",
                "agrees": conclusions.agrees(rate, (low, high)) if rate else "",
            }
        )  # fmt: skip
    return rows


def _spread(exchange: Exchange) -> list:
    """A few rates from the first to the last of the curve."""
    places = np.linspace(0, len(exchange.curve) - 1, min(RATES_SHOWN, len(exchange.curve)))
    return [exchange.curve[i] for i in np.unique(places.round().astype(int))]


def _parameters(main: Analysis) -> list[tuple[str, dict[str, float]]]:
    best = main.ensemble.fitted[0]
    return list(fitting.describe(best.task, best.phi_Q).items())


def _held_out(main: Analysis) -> list[Row]:
    """A row a law: weight, error on cells left out and on the largest ones, rates."""
    design = main.ensemble.design
    largest_C = np.array([
        n == design.pairs_C[design.source_C == s].max()
        for s, n in zip(design.source_C, design.pairs_C, strict=True)
    ])  # fmt: skip
    rates = {e.source: {name: rate for name, _, rate in e.by_law} for e in main.exchanges}
    return [
        {
            "law": fitted.law.name, "formula": fitted.law.form.formula, "weight": fitted.weight,
            "all": math.sqrt(np.mean(fitted.held_out_C**2)),
            "largest": math.sqrt(np.mean(fitted.held_out_C[largest_C] ** 2)),
            "fit": math.sqrt(np.mean(fitted.off_C**2)),
            "rates": [rates[source][fitted.law.name] for source in rates],
        }
        for fitted in main.ensemble.fitted
    ]  # fmt: skip


def _noise(main: Analysis) -> str:
    """How far the mean of a cell is off by chance, and what would make the interval narrower."""
    means = main.ensemble.means
    one = math.sqrt(means.seed_variance)
    text = (
        f"Runs that differ in nothing but their seed differ by {one:.2%} of the error "
        f"(standard deviation, {means.seed_df} degrees of freedom)."
    )
    parts = [
        f"{e.source}: {e.shares[0]:.0%} seeds, {e.shares[1]:.0%} items, {e.shares[2]:.0%} laws"
        for e in main.exchanges
    ]
    said = f" Of the variance of the quoted rate, by cause: {'; '.join(parts)}."
    return text + said * bool(parts)


def _place(one: Row) -> list[tuple[float, str]]:
    """Of a run in the list: by its axes, numbers by size."""
    values = [one.get(axis) for axis in AXES_FIRST]
    return [(v, "") if isinstance(v, (int, float)) else (0, str(v)) for v in values]


def _columns(runs: Sequence[Row]) -> dict[str, Any]:
    """Columns of the run list, the axes first; those with one value in all runs are said once."""
    last = ("command", "data_hash", "config_hash", "run_id")
    names = dict.fromkeys(k for row in runs for k in row if k != "config")  # long; in the table
    middle = [name for name in names if name not in (*AXES_FIRST, *last)]
    values = {n: {str(row.get(n)) for row in runs} for n in (*AXES_FIRST, *middle, *reversed(last))}
    constants = {n: runs[0].get(n) for n, found in values.items() if len(found) == 1}
    return {
        "columns": [name for name in values if name not in constants],
        "constants": {k: v for k, v in constants.items() if v not in (None, "")},
    }


def cards(study: Study) -> list[tuple[str, str]]:
    """(source, link) of dataset cards: those of study.json, else those beside the runs' data."""
    links = dict(study.about.get("cards") or {})
    for one in study.runs:
        config = study.workdir / "runs" / one["run_id"] / "config.json"
        if one["source"] in links or not config.exists():
            continue
        for path in json.loads(config.read_text())["data"]["path"]:
            folder = epath.Path(path)
            if (folder / POSITIONS).exists():
                folder = Subset(folder).dataset.path
            if (folder / "card.html").exists():
                card = os.path.relpath(folder / "card.html", study.workdir / "report")
                links[one["source"]] = pathlib.PurePath(card).as_posix()
    opens = re.compile(r"(https?://|(?![\w+.-]*:))")  # a page or a file, and no other scheme
    return sorted((source, link) for source, link in links.items() if opens.match(link))
