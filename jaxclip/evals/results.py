"""The tidy table of results: one row a model, set, evaluator and metric.

results.parquet has all of ROW and the bootstrap's replicates; results.json all but those. Two
tables, of whichever runs and days, are compared by their replicates alone. items.parquet has what
each query or image adds to the metrics that are means over them, for whoever draws them anew.
"""

import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxclip.data.files import write_atomically
from jaxclip.evals.base import Measured
from jaxclip.evals.uncertainty import (
    Interval,
    bootstrap,
    compare,
    independent,
    mean_of_drawn,
    percentiles,
)

ROW = pa.schema(
    [
        ("model", pa.string()),
        ("set", pa.string()),
        ("split", pa.string()),
        ("evaluator", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),  # of the 95 % interval; null: not defined
        ("high", pa.float64()),
        ("chance", pa.float64()),  # null: not known
        ("units", pa.int64()),  # queries, images
        ("groups", pa.int64()),  # articles, patients
        ("independent", pa.int64()),  # what the interval rests on: groups, or seeds if fewer
        ("undefined", pa.int64()),  # draws in which the metric is not defined; they do not count
        ("seed", pa.int64()),  # of the bootstrap
        ("identity", pa.string()),  # of images, texts, labels and groups
        ("method", pa.string()),  # protocol, prompts, training images
        ("replicates", pa.list_(pa.float32())),
    ]
)
ITEM = pa.schema(
    [
        ("model", pa.string()),
        ("set", pa.string()),
        ("split", pa.string()),
        ("evaluator", pa.string()),
        ("metric", pa.string()),
        ("item", pa.int64()),  # number of the unit, the same for all models scored on the set
        ("group", pa.string()),  # article or patient
        ("modality", pa.string()),  # null: the set does not say
        ("value", pa.float64()),
    ]
)
Row = dict[str, Any]


def rows_of(
    found: Iterable[Measured], *, model: str, set_name: str, split: str, identity: str,
    draws: int, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Rows of all metrics of `found`, with intervals; counts are rows without."""
    rows = []
    for measured in found:
        common = {
            "model": model, "set": set_name, "split": split, "evaluator": measured.name,
            "units": measured.num_units, "groups": len(np.unique(measured.group_U)),
            "independent": independent(measured), "seed": seed, "identity": identity,
            "method": measured.method,
        }  # fmt: skip
        for metric, interval in bootstrap(measured, draws=draws, seed=seed).items():
            rows.append(
                common
                | {
                    "metric": metric,
                    "value": interval.value,
                    "low": _number(interval.low),
                    "high": _number(interval.high),
                    "chance": measured.chance.get(metric),
                    "undefined": int((~np.isfinite(interval.replicates_S)).sum()),
                    "replicates": interval.replicates_S.astype(np.float32).tolist(),
                }
            )
        for count, value in measured.counts.items():
            nothing = dict.fromkeys(("low", "high", "chance", "undefined", "replicates"))
            rows.append(common | nothing | {"metric": count, "value": float(value)})
    return rows


def items_of(
    found: Iterable[Measured], *, model: str, set_name: str, split: str,
    modality_N: np.ndarray | None = None,
) -> list[pa.Table]:  # fmt: skip
    """Tables of ITEM, one a metric of `found` that is a mean over units.

    Args:
      modality_N: of each row of the split.
    """
    tables = []
    for measured in found:
        for metric, value_U in measured.items.items():
            names = (model, set_name, split, measured.name, metric)
            columns = [pa.array([name] * len(value_U), pa.string()) for name in names]
            columns += [pa.array(np.arange(len(value_U)))]
            columns += [pa.array([str(group) for group in measured.group_U.tolist()], pa.string())]
            modality_U = [None] * len(value_U)
            if modality_N is not None:
                modality_U = modality_N[slice(None) if measured.row_U is None else measured.row_U]
            columns += [pa.array(modality_U, pa.string()), pa.array(np.asarray(value_U, float))]
            tables.append(pa.Table.from_arrays(columns, schema=ITEM))
    return tables


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def over_seeds(of_seeds: Sequence[Sequence[Row]], model: str) -> list[Row]:
    """Rows of several models that differ by their seed -> of their mean, as one model.

    A replicate is the mean over seeds drawn with replacement, on the units of that draw, so the
    interval has both: which images were looked at, and which seeds were trained.
    """
    rows = []
    for of_one in zip(*of_seeds, strict=True):
        row: Row = dict(of_one[0]) | {"model": model}
        assert len({(r["set"], r["evaluator"], r["metric"]) for r in of_one}) == 1
        row["value"] = float(np.mean([r["value"] for r in of_one]))
        if row["replicates"]:
            found_RS = np.array([r["replicates"] for r in of_one])
            replicates_S = mean_of_drawn(found_RS, row["seed"])
            row["independent"] = min(row["independent"], len(of_one))
            row["undefined"] = int((~np.isfinite(replicates_S)).sum())
            low, high = percentiles(replicates_S, row["independent"])
            row |= {"low": _number(low), "high": _number(high)}
            row["replicates"] = replicates_S.tolist()
        rows.append(row)
    return rows


def write(
    rows: Sequence[Row], items: Sequence[pa.Table], directory: epath.Path, about: Row
) -> None:
    """results.parquet, items.parquet and results.json; `about` is what made them."""
    directory.mkdir(parents=True, exist_ok=True)
    tables = {
        "results.parquet": pa.Table.from_pylist(list(rows), schema=ROW),
        "items.parquet": pa.concat_tables([ITEM.empty_table(), *items]),
    }
    for name, table in tables.items():
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomically(directory / name, buffer.getvalue())
    shown = [{k: _json(v) for k, v in row.items() if k != "replicates"} for row in rows]
    write_atomically(directory / "results.json", json.dumps(about | {"results": shown}, indent=1))


def _json(value: Any) -> Any:
    return _number(value) if isinstance(value, float) else value


def read(file: epath.PathLike) -> list[Row]:
    """Rows of a results.parquet, or of the one in a folder.

    Raises:
      FileNotFoundError, ValueError: there is none; it is no table of results.
    """
    file = epath.Path(file)
    if file.is_dir():
        file = file / "results.parquet"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist. Make it: python -m jaxclip.evaluate.")
    table = pq.read_table(io.BytesIO(file.read_bytes()))
    if missing := set(ROW.names) - set(table.column_names):
        raise ValueError(
            f"{file} has no columns {sorted(missing)}: not a table of jaxclip.evaluate."
        )
    return table.to_pylist()


def summary(rows: Sequence[Row]) -> list[str]:
    """A line a metric: value [low, high] (chance c), under a line a model and evaluator."""
    lines, before, counts = [], None, ""
    for row in rows:
        head = f"{row['model']} on {row['set']}/{row['split']}: {row['evaluator']}"
        if "_severity_" in row["metric"]:
            continue  # the drop is their sum; all are in the table
        if head != before:
            method = f"; {row['method']}" if row["method"] else ""
            lines.append(f"{head} ({row['units']:,} units in {row['groups']:,} groups{method})")
            before, counts = head, ""
        if row["replicates"] is not None or row["evaluator"] == "representation":
            lines.append(f"  {row['metric']}: {shown(row)}")
        elif counts:
            lines[-1] += f", {row['metric']} {shown(row)}"
        else:
            counts = f"  {row['metric']} {shown(row)}"
            lines.append(counts)
    return lines


def shown(row: Row, chance: bool = True) -> str:
    """`0.8312 [0.7990, 0.8601] (chance 0.1667)`."""
    if row["replicates"] is None and float(row["value"]).is_integer():
        return f"{int(row['value']):,}"
    small = 1e-12 < abs(row["value"]) < 1e-4  # below that it is rounding
    text = f"{row['value']:.1e}" if small else _four(row["value"])
    if row["low"] is not None:
        text += f" [{_four(row['low'])}, {_four(row['high'])}]"
    elif row["replicates"]:
        undefined = f"undefined in {row['undefined']:,} of {len(row['replicates']):,} draws"
        text += f" [no interval: {undefined if row['undefined'] else 'too few groups'}]"
    if chance and row["chance"] is not None:
        text += f" (chance {row['chance']:.4f})"
    return text


def _four(value: float) -> str:
    """Four decimals; 0.0000 and never -0.0000."""
    return f"{round(value, 4) + 0.0:.4f}"


def compared(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """Paired differences, second - first, of every metric on sets that both were scored on.

    Rows of other data, draws, protocols or prompts under the same names are not compared: `verdict`
    says so.
    """

    def key(row):
        return tuple(row[field] for field in ("set", "split", "evaluator", "metric"))

    others = {key(row): row for row in second if row["replicates"]}
    rows = []
    for one in first:
        other = others.get(key(one)) if one["replicates"] else None
        if other is None:
            continue
        row = dict(zip(("set", "split", "evaluator", "metric"), key(one), strict=True))
        row |= {"first": one["model"], "second": other["model"]}
        if one["method"] != other["method"]:
            two = f"{one['method']}, {other['method']}"
            rows.append(row | {"verdict": f"measured otherwise ({two}): not comparable"})
            continue
        same = all(one[field] == other[field] for field in ("identity", "seed", "groups"))
        if not same or len(one["replicates"]) != len(other["replicates"]):
            rows.append(row | {"verdict": "other data or draws: not comparable"})
            continue
        difference, verdict = compare(
            _interval(one), _interval(other), min(one["independent"], other["independent"])
        )
        rows.append(
            row
            | {"difference": difference.value, "low": _number(difference.low)}
            | {"high": _number(difference.high), "verdict": verdict}
        )
    return rows


def _interval(row: Row) -> Interval:
    replicates_S = np.array(row["replicates"], np.float64)
    return Interval(value=row["value"], low=np.nan, high=np.nan, replicates_S=replicates_S)


def compared_lines(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        name = f"{row['set']}/{row['split']} {row['evaluator']} {row['metric']}"
        between = f"{row['second']} - {row['first']}"
        if "difference" in row:
            low, high = (float("nan") if row[k] is None else row[k] for k in ("low", "high"))
            between += f" = {row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append(f"{name}: {between}: {row['verdict']}")
    return lines
