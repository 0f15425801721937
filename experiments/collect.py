"""All runs of a study in three tables: what they were, how they scored, and on which items.

    python -m experiments.collect --workdir=W

runs.parquet      a row a run: its axes, what it has seen and cost, its overlap with what it was
                  scored on, its state, hashes and command, its complete config as JSON
results.parquet   a row a run, task and metric: value, 95 % interval, chance
items.parquet     a row a run, task, metric and item: what the item adds to the metric

Runs that are not done are in runs.parquet with their state, and have no results. Rows are in an
order of their own, so that the same runs give the same tables.
"""

import collections
import dataclasses
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.options import option, run
from experiments.progress import look
from experiments.worker import TRAIN, command_of, is_done, read_plan, read_status
from jaxclip.data.record import article_name
from jaxclip.data.subset import Subset

AXES = ("design", "source", "unique_pairs", "samples_seen", "model", "loss", "seed", "variant")
RESULT = pa.schema(
    [
        ("run_id", pa.string()),
        ("task", pa.string()),  # SET/SPLIT
        ("metric", pa.string()),  # EVALUATOR/METRIC
        ("value", pa.float64()),
        ("low", pa.float64()),  # of the 95 % interval over articles or patients
        ("high", pa.float64()),
        ("chance", pa.float64()),  # null: not known
        ("items", pa.int64()),
        ("higher_is_better", pa.bool_()),
    ]
)
ITEM = pa.schema(
    [
        ("run_id", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("item", pa.string()),
        ("group", pa.string()),
        ("modality", pa.string()),
        ("value", pa.float64()),
    ]
)
PMC_ID, NO_PLACE = re.compile(r"PMC\d+"), re.compile(r".*\D.*", re.DOTALL)
NOT_MEASURED = {"overlap_share": None, "overlap_of": None}
LOWER_IS_BETTER = ("median_rank", "calibration_error", "_mean_relative_drop", "modality_gap")


@dataclasses.dataclass(slots=True, kw_only=True)
class CollectOptions:
    """The command line."""

    workdir: str = option("", "the study's folder")


def main(options: CollectOptions) -> None:
    if not options.workdir:
        raise ValueError("workdir is not set. Name the study's folder: --workdir=W.")
    collect(Path(options.workdir))


def collect(workdir: Path) -> None:
    """Writes the three tables.

    Raises:
      FileNotFoundError: the study is not there.
    """
    study = workdir / "study.json"
    if not study.exists():
        raise FileNotFoundError(f"{workdir} holds no study (no study.json). Start the sweep.")
    run_dirs = [workdir / "runs" / run_id for run_id in json.loads(study.read_text())["runs"]]
    done = [run_dir for run_dir in run_dirs if is_done(run_dir)]
    items = [table for run_dir in done for table in item_tables(run_dir)]
    tables = {
        "runs.parquet": run_table([run_row(run_dir) for run_dir in run_dirs]),
        "results.parquet": pa.Table.from_pylist(
            [row for run_dir in done for row in result_rows(run_dir)], schema=RESULT
        ),
        "items.parquet": pa.concat_tables([ITEM.empty_table(), *items]),
    }
    for name, table in tables.items():
        temporary = workdir / f"{name}.tmp"
        pq.write_table(table, temporary)
        temporary.replace(workdir / name)
    print(
        f"Collected {len(done)} of {len(run_dirs)} runs: {len(tables['results.parquet']):,} "
        f"results, {len(tables['items.parquet']):,} scores of items, in {workdir}.",
        *skipped(done),
        sep="\n",
        flush=True,
    )


def skipped(run_dirs: Sequence[Path]) -> list[str]:
    """A line a set or evaluator that was left out when runs were scored, with the reason."""
    runs = collections.Counter()
    for run_dir in run_dirs:
        for file in _files(run_dir, "results.json"):
            runs.update(json.loads(file.read_text())["skipped"])
    return [f"Skipped in {count} runs: {line}" for line, count in runs.items()]


def run_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A column an axis; null for a run that has not got it."""
    columns = dict.fromkeys(name for row in rows for name in row)
    types = {"overlap_share": pa.float64(), "overlap_of": pa.string()}  # also if all are null
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], types.get(name)) for name in columns}
    )


def run_row(run_dir: Path) -> dict[str, Any]:
    axes = json.loads((run_dir / "axes.json").read_text())
    config = json.loads((run_dir / "config.json").read_text())
    plan, status = read_plan(run_dir), read_status(run_dir)
    path = Path(config["data"]["path"][0])
    subset = Subset(path) if (path / "manifest.json").exists() else None  # it could not be drawn
    done = is_done(run_dir)
    row = {"run_id": run_dir.name} | {name: axes.pop(name) for name in AXES}
    pairs = len(subset) if subset else row["unique_pairs"]
    row |= {"unique_pairs": pairs, "epochs": row["samples_seen"] / pairs if pairs else None} | axes
    return row | {
        "contrastive_batch": config["contrastive_batch_size"] or config["batch_size"],
        "optimizer_batch": config["batch_size"],
        "flops": float(plan["flops"]),
        "seconds": float(sum(status["seconds"].values())),
        **(overlap(run_dir, subset) if done and subset else NOT_MEASURED),
        "status": look(run_dir).state,
        "error": status["error"],
        "config_hash": plan["config_hash"],
        "data_hash": subset.content_hash if subset else "",
        "config": json.dumps(config),
        "command": shlex.join(["python", *command_of(run_dir, TRAIN)[1:]]),
    }


def overlap(run_dir: Path, subset: Subset) -> dict[str, Any]:
    """Share of the articles that the run was scored on and trained on, too; and of which sets.

    Null where nothing tells: the groups of most public sets are patients or single images. Of
    public sets those count whose groups are all PMC's ids, of datasets of ours (--data) those that
    name articles, and not the records' places alone.
    """
    scored, measured = set(), []
    for task, groups in sorted(_groups(run_dir).items()):
        if all(groups):
            scored |= groups
            measured.append(task)
    if not scored:
        return NOT_MEASURED
    article = subset.dataset.columns(["article_id"])["article_id"]
    trained = set(map(article_name, pc.unique(article.take(subset.positions("train"))).to_pylist()))
    return {
        "overlap_share": len(scored & trained) / len(scored), "overlap_of": ", ".join(measured)
    }  # fmt: skip


def _groups(run_dir: Path) -> dict[str, set[str]]:
    """{task: the articles of its items, "" among them where a group is no article}."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for step, command in read_plan(run_dir)["steps"].items():
        public = {part.removeprefix("--set=") for part in command if part.startswith("--set=")}
        for table in item_tables(run_dir, [step]):
            for task in pc.unique(table["task"]).to_pylist():
                names = pc.unique(table.filter(pc.equal(table["task"], task))["group"]).to_pylist()
                is_article = PMC_ID if task.rpartition("/")[0] in public else NO_PLACE
                found[task] |= {
                    article_name(name) if is_article.fullmatch(name) else "" for name in names
                }
    return found


def result_rows(run_dir: Path) -> Iterable[dict[str, Any]]:
    """Metrics, not counts, of all evaluations."""
    for row in _read_all(run_dir, "results.parquet"):
        if row["replicates"] is None and row["evaluator"] != "representation":
            continue
        yield {
            "run_id": run_dir.name,
            "task": f"{row['set']}/{row['split']}",
            "metric": f"{row['evaluator']}/{row['metric']}",
            "higher_is_better": not row["metric"].endswith(LOWER_IS_BETTER),
            "items": row["units"],
        } | {name: row[name] for name in ("value", "low", "high", "chance")}


def item_tables(run_dir: Path, steps: Sequence[str] | None = None) -> list[pa.Table]:
    """Of these evaluations; None: of all."""
    tables = []
    for file in _files(run_dir, "items.parquet", steps):
        table = pq.read_table(file)
        columns = [
            pa.array([run_dir.name] * len(table), pa.string()),
            _joined(table["set"], table["split"]),
            _joined(table["evaluator"], table["metric"]),
            table["item"].cast(pa.string()),
            table["group"],
            table["modality"],
            table["value"],
        ]
        tables.append(pa.Table.from_arrays(columns, schema=ITEM))
    return tables


def _joined(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(first, second, "/")


def _files(run_dir: Path, name: str, steps: Sequence[str] | None = None) -> Sequence[Path]:
    steps = read_plan(run_dir)["steps"] if steps is None else steps
    return [run_dir / "evaluation" / step / name for step in steps if step != TRAIN]


def _read_all(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [row for file in _files(run_dir, name) for row in pq.read_table(file).to_pylist()]


if __name__ == "__main__":
    run(main, CollectOptions)
