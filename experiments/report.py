"""The study's report: the answer first, then everything that it rests on.

    python -m experiments.report --workdir=W [--reference=SOURCE] [--metric=TASK/METRIC]

Writes W/report/index.html (one file; opens anywhere, loads nothing), report.md, and the figures as
SVG and PDF for a paper. Reads the tables of experiments.collect: see experiments/tables.py.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe
from etils import epath

from data_pipelines.options import option, run
from experiments import budgets, conclusions, context, figures
from experiments.ensemble import REPLICATES
from experiments.scaling import Analysis, analyse
from experiments.tables import Row, Study, metric_name, read, scores, slices
from experiments.words import number
from jaxclip.data.files import write_atomically


@dataclasses.dataclass(slots=True, kw_only=True)
class ReportOptions:
    """The command line."""

    workdir: str = option("", "folder of the study")
    reference: str = option("", "source that others are measured in; by default the study's")
    metric: str = option("", "TASK/METRIC that laws are fitted to; by default the study's")
    budgets: tuple[str, ...] = option((), "FLOPs to choose at, as 1e18; by default the runs' own")


def write(
    workdir: epath.PathLike, *, reference: str = "", metric: str = "",
    flops: Sequence[float] = (), replicates: int = REPLICATES,
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
    shown = context.context(study, metric, reference, analyses, notes, flops)
    shown["figures"] = _draw(directory / "figures", analyses, shown, metric)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)), trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        autoescape=lambda name: ".html" in (name or ""),
    )  # fmt: skip
    environment.filters |= {
        "number": number, "cell": _cell, "interval": _interval, "stacked": _stacked,
        "rate": conclusions.rate_text, "answer": conclusions.answer,
        "named": lambda row: (row.metric, row),
        "enough": budgets.enough_text, "budget": budgets.answer,
    }  # fmt: skip
    page = directory / "index.html"
    for name, file in (("report.html.jinja", page), ("report.md.jinja", directory / "report.md")):
        write_atomically(file, environment.get_template(name).render(shown))
    print(*shown["answers"], _best_run(study, metric), f"The report: {page}", sep="\n")
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


def _draw(
    directory: epath.Path, analyses: Sequence[Analysis], shown: dict[str, Any], metric: str
) -> dict[str, Row]:
    """{name: {"svg", "alt"}}."""
    drawn, main = {}, analyses[0] if analyses else None
    for name, of_it in (("curves", "curves"), ("samples", "sample_curves")):
        if main and (of := getattr(main, of_it)):
            drawn[name] = figures.curves(main, of), figures.curves_alt(main, of)
    if main and main.exchanges:
        drawn["exchange"] = figures.exchange(main, shown["truth"]), figures.exchange_alt(main)
    if found := shown["ablations"]:
        drawn["ablations"] = figures.ablations(found, metric), figures.ablations_alt(found, metric)
    return {
        name: {"svg": figures.save(figure, directory, name, alt), "alt": alt}
        for name, (figure, alt) in drawn.items()
    }


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
        flops = [float(text) for text in options.budgets]
    except ValueError:
        raise ValueError(f"budgets ({options.budgets}) must be numbers, as 1e18,3e18.") from None
    write(options.workdir, reference=options.reference, metric=options.metric, flops=flops)


if __name__ == "__main__":
    run(main, ReportOptions)
