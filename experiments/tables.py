"""A study's tables, as experiments.collect leaves them, and the comparisons that need no law.

    W/study.json       question, reference, metric, planted truth, dataset cards (all optional)
    W/runs.parquet     one row a run
    W/results.parquet  one row a run, task and metric
    W/items.parquet    one row a run, task, metric and item; may be absent

A metric is named TASK/METRIC. Shape letters: R runs, C cells, I items.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from experiments.means import Items, Means, average

Row = dict[str, Any]
Interval = tuple[float, float, float]  # value, low, high
RUN_COLUMNS = ("run_id", "source", "unique_pairs", "samples_seen", "seed", "variant", "status")
RESULT_COLUMNS = ("run_id", "task", "metric", "value", "low", "high", "chance", "items")
RESULT_COLUMNS += ("higher_is_better",)
ITEM_COLUMNS = ("run_id", "task", "metric", "item", "group", "value")
# of a run, and no axis that it was varied along
ABOUT = {"run_id", "design", "seed", "steps", "epochs", "contrastive_batch", "optimizer_batch"}
ABOUT |= {
    "flops",
    "seconds",
    "overlap_share",
    "overlap_of",
    "status",
    "error",
    "config",
    "config_hash",
}
ABOUT |= {"data_hash", "command", "base"}
PLACE = ("source", "unique_pairs", "samples_seen")
DONE = "done"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """The tables of a working directory."""

    workdir: epath.Path
    about: Row  # of study.json
    runs: list[Row]
    results: list[Row]

    @property
    def done(self) -> list[Row]:
        return [run for run in self.runs if run["status"] == DONE]

    @property
    def metrics(self) -> list[str]:
        return sorted({metric_name(row) for row in self.results})


def metric_name(row: Row) -> str:
    return f"{row['task']}/{row['metric']}"


def read(workdir: epath.PathLike) -> Study:
    """The study in `workdir`.

    Raises:
      FileNotFoundError, ValueError: a table is missing, or lacks a column.
    """
    workdir = epath.Path(workdir)
    runs = _table(workdir / "runs.parquet", RUN_COLUMNS).to_pylist()
    results = _table(workdir / "results.parquet", RESULT_COLUMNS).to_pylist()
    file = workdir / "study.json"
    about = json.loads(file.read_text()) if file.exists() else {}
    for run in runs:
        run["variant"] = run["variant"] or ""
        run["base"] = run.get("base") or ""
    return Study(workdir=workdir, about=about, runs=runs, results=results)


def _table(file: epath.Path, columns: Sequence[str], filters=None) -> pa.Table:
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist. Make it: python -m experiments.collect.")
    if missing := set(columns) - set(pq.read_schema(file).names):
        raise ValueError(f"{file} lacks the columns {sorted(missing)}. Collect the runs again.")
    return pq.read_table(file, filters=filters)


def slices(runs: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """Runs that differ in source, pairs, samples and seed alone, the largest such set first.

    Returns:
      (the axes that tell it from the others, with their values; its runs).
    """
    runs = [run for run in runs if not run["variant"]]
    axes = sorted({k for run in runs for k in run} - ABOUT - set(PLACE) - {"variant"})
    axes = [axis for axis in axes if len({str(run.get(axis)) for run in runs}) > 1]
    found: dict[tuple, list[Row]] = {}
    for run in runs:
        found.setdefault(tuple(str(run.get(axis)) for axis in axes), []).append(run)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(dict(zip(axes, key, strict=True)), of_key) for key, of_key in ordered]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """One metric of some runs, in their order."""

    metric: str
    value_R: np.ndarray
    error_R: np.ndarray  # standard error by items, of the intervals; NaN: not known
    items: Items | None
    higher_is_better: bool
    chance: float  # NaN: not known
    num_items: int

    def to_error(self, value: np.ndarray) -> np.ndarray:
        """1 - value where higher is better, and at least half an item's worth."""
        error = 1 - value if self.higher_is_better else value
        return np.maximum(error, 0.5 / max(self.num_items, 1))

    def log_error(self, value: np.ndarray) -> np.ndarray:
        return np.log(self.to_error(value))

    @property
    def is_share(self) -> bool:
        return bool(self.value_R.max() <= 1)

    @property
    def error_name(self) -> str:
        return f"1 - {self.metric}" if self.higher_is_better else self.metric


def is_usable(row: Row) -> bool:
    """Whether a result is a share, or an error from 0 up."""
    value = _number(row["value"])
    return value >= 0 and value < math.inf and (value <= 1 or not row["higher_is_better"])


def scores(study: Study, runs: Sequence[Row], metric: str, modality: str = "") -> Scores:
    """A metric of `runs`; of one modality's items alone, if one is named.

    Raises:
      ValueError: a run has no such value; an item is missing in a run; the value is no share.
    """
    of_run = {row["run_id"]: row for row in study.results if metric_name(row) == metric}
    if not of_run:
        raise ValueError(
            f"metric ({metric}) is not in the results. There are: "
            f"{', '.join(study.metrics) or 'none: nothing was scored'}."
        )
    if missing := [run["run_id"] for run in runs if run["run_id"] not in of_run]:
        raise ValueError(
            f"{len(missing)} finished runs have no {metric}, the first {missing[0]}. Score them."
        )
    rows = [of_run[run["run_id"]] for run in runs]
    value_R = np.array([row["value"] for row in rows], float)
    if not all(is_usable(row) for row in rows):
        raise ValueError(f"{metric} must be from 0 to 1, or an error above 0. Choose another one.")
    items = _items(study, rows, modality)
    if items is not None:
        mean_R = items.value_RI.mean(axis=1)
        if not modality and (off_R := np.abs(mean_R - value_R)).max() > 1e-4:
            r = off_R.argmax()
            raise ValueError(
                f"items of {rows[r]['run_id']} have the mean {mean_R[r]:.4f}, and its {metric} is "
                f"{value_R[r]:.4f}. Collect the runs again."
            )
        value_R = mean_R
    width_R = np.array([_number(row["high"]) - _number(row["low"]) for row in rows])
    return Scores(
        metric=metric, value_R=value_R, error_R=width_R / (2 * 1.96), items=items,
        higher_is_better=bool(rows[0]["higher_is_better"]), chance=_number(rows[0]["chance"]),
        num_items=int(rows[0]["items"] or 0),
    )  # fmt: skip


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _items(study: Study, rows: Sequence[Row], modality: str = "") -> Items | None:
    file = study.workdir / "items.parquet"
    if not file.exists():
        return None
    ids = pa.array([row["run_id"] for row in rows])
    filters: list[tuple] = [(name, "=", rows[0][name]) for name in ("task", "metric")]
    filters.append(("run_id", "in", ids.unique().to_pylist()))
    if modality:
        filters.append(("modality", "=", modality))
    found = _table(file, ITEM_COLUMNS, filters)
    if not len(found):
        return None
    item_K = found["item"].combine_chunks().dictionary_encode()
    first = np.unique(item_K.indices.to_numpy(), return_index=True)[1]
    group_I = found["group"].take(first).cast(pa.string()).to_numpy(zero_copy_only=False)
    names = ids.unique()
    run_K = pc.index_in(found["run_id"], value_set=names).to_numpy()
    value_NI = np.full((len(names), len(group_I)), np.nan)
    value_NI[run_K, item_K.indices.to_numpy()] = found["value"].to_numpy()
    short_N = np.isnan(value_NI).sum(axis=1)
    if short_N.any():
        raise ValueError(
            f"{names[short_N.argmax()]} lacks {short_N.max()} of {len(group_I)} items of "
            f"{metric_name(rows[0])}: runs were scored on different items. Score it again."
        )
    return Items(value_RI=value_NI[pc.index_in(ids, value_set=names).to_numpy()], group_I=group_I)


def modalities(study: Study) -> list[str]:
    """Those that items.parquet names; none where it has no such column."""
    file = study.workdir / "items.parquet"
    if not file.exists() or "modality" not in pq.read_schema(file).names:
        return []
    found = pq.read_table(file, columns=["modality"])["modality"].unique().to_pylist()
    return sorted(name for name in found if name)


# --- Sources beside each other -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """A metric in several cells, and each one's difference from the first where that is asked."""

    metric: str
    names: tuple[str, ...]
    intervals: tuple[Interval, ...]
    differences: tuple[Interval | None, ...]  # from the first
    chance: float
    higher_is_better: bool
    runs: tuple[int, ...]


def mean_of(found: Scores, cell_R: np.ndarray) -> tuple[Means, Callable[[Interval], Interval]]:
    """Means of the metric, and what makes an interval of theirs one of the metric.

    What can be above 1, as a rank, is averaged as a logarithm, from the runs' own intervals: no
    mean over items is of a logarithm.
    """
    if found.is_share:
        means = average(found.value_R, cell_R, items=found.items, error_R=found.error_R)
        return means, lambda interval: tuple(np.clip(interval, 0, 1).tolist())
    value_R = np.maximum(found.value_R, 1e-9)
    means = average(value_R, cell_R, error_R=found.error_R / value_R, transform=np.log)
    return means, lambda interval: tuple(np.exp(interval).tolist())


def mean_log_error(found: Scores, cell_R: np.ndarray) -> Means:
    relative_R = found.error_R / found.to_error(found.value_R)
    return average(
        found.value_R, cell_R, items=found.items, error_R=relative_R, transform=found.log_error
    )


def compare_sources(
    study: Study, runs: Sequence[Row], metric: str, reference: str, modality: str = ""
) -> Compared:
    """Every source beside the reference at the largest size that all have.

    The noise of seeds is that of all `runs`, at all sizes. Differences of what can be above 1, as a
    rank, are not given: see mean_of.
    """
    at = largest_cell(runs)[0]
    found = scores(study, runs, metric, modality)
    sources = [reference, *sorted({run["source"] for run in runs} - {reference})]
    keys = [tuple(run[axis] for axis in PLACE) for run in runs]
    cells = sorted(set(keys))
    cell_R = np.array([cells.index(key) for key in keys])
    means, transform = mean_of(found, cell_R)
    places = [cells.index((s, at["unique_pairs"], at["samples_seen"])) for s in sources]
    one_SC = np.eye(len(cells))[places]
    differences = [
        means.interval(one_C - one_SC[0]) if found.is_share else None for one_C in one_SC[1:]
    ]
    return Compared(
        metric=metric, names=tuple(sources), differences=(None, *differences), chance=found.chance,
        intervals=tuple(transform(means.interval(one_C)) for one_C in one_SC),
        higher_is_better=found.higher_is_better,
        runs=tuple(int(means.runs_C[place]) for place in places),
    )  # fmt: skip


def largest_cell(runs: Sequence[Row]) -> list[Row]:
    """The runs of all sources at the most pairs that all have, and there at the most samples."""
    sources = {run["source"] for run in runs}
    at: dict[tuple[int, int], set[str]] = {}
    for run in runs:
        place = (run["unique_pairs"], run["samples_seen"])
        at.setdefault(place, set()).add(run["source"])
    common = [place for place, found in at.items() if found == sources]
    if not common:
        return []
    return [run for run in runs if (run["unique_pairs"], run["samples_seen"]) == max(common)]
