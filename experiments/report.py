"""The study's report: the answer first, then everything that it rests on.

    python -m experiments.report --workdir=W [--reference=SOURCE] [--metric=TASK/METRIC]

Writes W/report/index.html (one file; opens anywhere, loads nothing), report.md, and the figures as
SVG and PDF for a paper. Reads the tables of experiments.collect: see experiments/tables.py.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe
import numpy as np
from etils import epath

from data_pipelines.options import option, run
from experiments import conclusions, figures, fitting, variants
from experiments.conclusions import number, rate_text
from experiments.ensemble import REPLICATES
from experiments.scaling import EXTRAPOLATE, Analysis, Exchange, analyse
from experiments.tables import (
    Row,
    Study,
    compare_sources,
    is_usable,
    largest_cell,
    metric_name,
    modalities,
    read,
    scores,
    slices,
)  # fmt: skip
from jaxclip.data.record import write_atomically
from jaxclip.data.subset import POSITIONS, Subset

RATES_SHOWN = 7  # of the exchange curve, in the table
AXES_FIRST = ("source", "unique_pairs", "samples_seen", "model", "loss", "variant", "seed")


@dataclasses.dataclass(slots=True, kw_only=True)
class ReportOptions:
    """The command line."""

    workdir: str = option("", "folder of the study")
    reference: str = option("", "source that others are measured in; by default the study's")
    metric: str = option("", "TASK/METRIC that laws are fitted to; by default the study's")
    budgets: tuple[str, ...] = option((), "FLOPs to choose at, as 1e18; by default the runs' own")


def write(
    workdir: epath.PathLike, *, reference: str = "", metric: str = "",
    budgets: Sequence[float] = (), replicates: int = REPLICATES,
) -> epath.Path:  # fmt: skip
    """Writes the report of a study, prints the answer, and returns the page.

    Raises:
      FileNotFoundError, ValueError: see tables.read, tables.scores, scaling.analyse.
    """
    study = read(workdir)
    if not study.done:
        raise ValueError(f"{study.workdir / 'runs.parquet'} has no finished run. Finish the sweep.")
    metric = metric or study.about.get("metric") or _default_metric(study)
    reference = reference or study.about.get("reference") or ""
    analyses, notes = _analyses(study, metric, reference, replicates)
    directory = study.workdir / "report"
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    context = _context(study, metric, reference, analyses, notes, budgets)
    context["figures"] = _draw(directory / "figures", analyses, context, metric)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)), trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        autoescape=lambda name: ".html" in (name or ""),
    )  # fmt: skip
    environment.filters |= {
        "number": number, "cell": _cell, "interval": _interval, "stacked": _stacked,
        "rate": rate_text, "answer": conclusions.answer, "named": lambda row: (row.metric, row),
    }  # fmt: skip
    page = directory / "index.html"
    for name, file in (("report.html.jinja", page), ("report.md.jinja", directory / "report.md")):
        write_atomically(file, environment.get_template(name).render(context))
    print(*context["answers"], _best_run(study, metric), f"The report: {page}", sep="\n")
    return page


def _best_run(study: Study, metric: str) -> str:
    """Which finished run has the best `metric`, its scores beside chance, and where it is."""
    done = {run["run_id"] for run in study.done}
    rows = [row for row in study.results if row["run_id"] in done]
    best = max(
        (row for row in rows if metric_name(row) == metric),
        key=lambda row: row["value"] if row["higher_is_better"] else -row["value"],
    )
    shown = {metric, re.sub(r"recall@\d+$", "recall@1", metric)}
    scores = [
        f"{metric_name(row)} {row['value']:.3f} (chance {_chance(row)})"
        for row in rows
        if row["run_id"] == best["run_id"] and metric_name(row) in shown
    ]
    folder = study.workdir / "runs" / best["run_id"]
    return f"The best run: {folder}: {', '.join(sorted(scores))}"


def _chance(row: Row) -> str:
    return "unknown" if row["chance"] is None else number(row["chance"])


def _default_metric(study: Study) -> str:
    """image_to_text/recall@1 where there is one; else the first in the alphabet."""
    if not study.metrics:
        raise ValueError(f"{study.workdir / 'results.parquet'} has no rows: nothing was scored.")
    return next(
        (m for m in study.metrics if m.endswith("image_to_text/recall@1")), study.metrics[0]
    )


def _analyses(study: Study, metric: str, reference: str, replicates: int):
    """(the analysis of each set of runs that allows one, notes on those that do not)."""
    analyses, notes = [], []
    for axes, runs in slices(study.done):
        sizes = {run["source"]: set() for run in runs}
        for one in runs:
            sizes[one["source"]].add(one["unique_pairs"])
        short = sorted(source for source, found in sizes.items() if len(found) < 2)
        kept = [one for one in runs if one["source"] not in short]
        place = ", ".join(f"{k} {v}" for k, v in axes.items())
        if short:
            notes.append(
                f"How error falls with pairs of {', '.join(short)}{f' ({place})' if place else ''}:"
                " trained at one size only. A curve needs two, better four."
            )
        if not kept:
            continue
        first = reference if any(one["source"] == reference for one in kept) else ""
        found = scores(study, kept, metric)
        analyses.append(analyse(kept, found, first, axes=axes, replicates=replicates))
    return analyses, notes


def _context(
    study: Study, metric: str, reference: str, analyses: Sequence[Analysis], notes: list[str],
    budgets: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """What the templates show; everything that is reckoned is reckoned before."""
    main = analyses[0] if analyses else None
    truth = conclusions.planted(study)
    done = [one for _, runs in slices(study.done)[:1] for one in runs]
    at = largest_cell(done)
    reference = main.reference if main else reference or (at[0]["source"] if at else "")
    complete, partial = _metrics(study, done)
    tasks = [compare_sources(study, done, name, reference) for name in complete] if at else []
    if partial:
        notes = [*notes, f"Not every run was scored on {', '.join(partial)}: not in the table."]
    by_modality = [
        (name, compare_sources(study, done, metric, reference, name)) for name in modalities(study)
    ] if at else []  # fmt: skip
    ablated = variants.ablations(study, metric)
    answers = [conclusions.answer(e) for e in main.exchanges] if main else []
    return {
        "study": study, "metric": metric, "main": main, "analyses": analyses,
        "reference": reference, "command": study.about.get("command") or [],
        "title": study.about.get("name") or study.workdir.name,
        "question": study.about.get("question") or "",
        "answers": [*answers, *variants.answer(ablated, metric)],
        "planted": _planted(main, truth),
        "truth": truth,
        "rates": {e.source: _spread(e) for e in main.exchanges} if main else {},
        "crossings": [(c, conclusions.crossing_text(c)) for c in main.crossings] if main else [],
        "choices": conclusions.choose(main, budgets) if main else [],
        "parameters": _parameters(main) if main else [],
        "held_out": _held_out(main) if main else [],
        "at": at[0] if at else None,
        "tasks": tasks, "by_modality": by_modality,
        "ablations": ablated,
        "caption_of_ablations": variants.CAPTION.format(len(ablated)),
        "columns_of_ablations": [
            name for name in ("place", "base") if any(getattr(a, name) for a in ablated)
        ],
        "unresolved": [
            *(conclusions.unresolved(main, study) if main else []),
            *variants.without_base(study), *notes,
        ],
        "noise": _noise(main) if main else "",
        "runs": sorted(study.runs, key=_place),
        **_columns(study.runs),
        "cards": _cards(study), "extrapolate": EXTRAPOLATE,
    }  # fmt: skip


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
                "measured": rate_text(rate) if rate else "not measured",
                "agrees": "" if rate is None
                else "agrees" if conclusions.agrees(rate, (low, high)) else "does not agree",
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
    names = dict.fromkeys(k for row in runs for k in row)
    middle = [name for name in names if name not in (*AXES_FIRST, *last)]
    values = {n: {str(row.get(n)) for row in runs} for n in (*AXES_FIRST, *middle, *reversed(last))}
    constants = {n: runs[0].get(n) for n, found in values.items() if len(found) == 1}
    return {
        "columns": [name for name in values if name not in constants],
        "constants": {k: v for k, v in constants.items() if v not in (None, "")},
    }


def _cards(study: Study) -> list[tuple[str, str]]:
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


def _draw(
    directory: epath.Path, analyses: Sequence[Analysis], context: dict[str, Any], metric: str
) -> dict[str, str]:
    """{name: SVG}."""
    drawn = {}
    if analyses:
        drawn["curves"] = figures.curves(analyses[0], analyses[0].curves)
        if analyses[0].sample_curves:
            drawn["samples"] = figures.curves(analyses[0], analyses[0].sample_curves)
        if analyses[0].exchanges:
            drawn["exchange"] = figures.exchange(analyses[0], context["truth"])
    if context["ablations"]:
        drawn["ablations"] = figures.ablations(context["ablations"], metric)
    return {name: figures.save(figure, directory, name) for name, figure in drawn.items()}


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else number(value)
    return str(value)


def _interval(found: Sequence[float] | None, signed: bool = False) -> str:
    """(value, low, high) -> `0.312 (0.290 to 0.334)`."""
    if found is None:
        return ""
    value, low, high = (f"{x:+.3f}" if signed else f"{x:.3f}" for x in found)
    return value if low == high == value or "nan" in low else f"{value} ({low} to {high})"


def _stacked(found: Sequence[float], signed: bool = False) -> markupsafe.Markup:
    """The same, with the interval below the value."""
    value, _, interval = _interval(found, signed).partition(" (")
    below = f"<small>{interval.removesuffix(')')}</small>" if interval else ""
    return markupsafe.Markup(value + below)


def main(options: ReportOptions) -> None:
    if not options.workdir:
        raise ValueError("workdir is not set. Give --workdir=FOLDER.")
    try:
        budgets = [float(text) for text in options.budgets]
    except ValueError:
        raise ValueError(f"budgets ({options.budgets}) must be numbers, as 1e18,3e18.") from None
    write(options.workdir, reference=options.reference, metric=options.metric, budgets=budgets)


if __name__ == "__main__":
    run(main, ReportOptions)
