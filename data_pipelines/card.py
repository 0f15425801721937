"""A dataset's card: what went in and came out, how its signals are distributed, random samples.

    python -m data_pipelines.card --dataset=DATASET

Writes DATASET/card.html, one page without scripts that opens anywhere, and DATASET/card.json with
the same figures. Of any dataset that jaxclip makes; the same dataset has the same card.
"""

import base64
import collections
import dataclasses
import json
import os
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from data_pipelines.options import option, run
from jaxclip.data.dataset import METADATA, Dataset
from jaxclip.data.files import write_atomically
from jaxclip.data.record import TEXT_FIELDS, Record

IDENTITIES = {"position", "article_id", "figure_id", "panel_id", "image_sha256", "article_title"}
IDENTITIES |= {"pmid", "doi", "perceptual_hash", "caption_hash", "texts_hash"}
IDENTITIES |= {"duplicate_cluster", "caption_cluster"}
HIDDEN = {"panel_box"}
BINS = 32
MOST_VALUES = 8  # of a text column
MOST_EXAMPLES = 3  # of a reason


@dataclasses.dataclass(slots=True, kw_only=True)
class CardOptions:
    """The command line."""

    dataset: str = option("", "folder of the dataset")
    samples: int = option(24, "records shown")
    seed: int = option(0, "another seed shows others")


def write_card(dataset: Dataset, samples: int = 24, seed: int = 0) -> dict[str, Any]:
    """Writes card.json and card.html beside the dataset; returns what the JSON holds."""
    card = describe(dataset)
    rng = np.random.default_rng(seed)
    shown = np.sort(rng.choice(len(dataset), min(samples, len(dataset)), replace=False))
    card["samples"] = [int(position) for position in shown]
    write_atomically(dataset.path / "card.json", json.dumps(card, indent=1))
    write_atomically(dataset.path / "card.html", render(dataset, card))
    return card


def describe(dataset: Dataset) -> dict[str, Any]:
    """The figures of the card: counts, drops by reason with examples, a summary of each column."""
    counts = dataset.manifest["counts"]
    texts = {f"{field}_chars" for field in TEXT_FIELDS}
    file = os.fspath(dataset.path / METADATA)
    names = [name for name in pq.read_schema(file).names if name not in HIDDEN]
    columns = {name: _column(name, pq.read_table(file, columns=[name])[name]) for name in names}
    return {
        "dataset": dataset.path.name,
        "content_hash": dataset.content_hash,
        "bytes": sum(shard["bytes"] for shard in dataset.manifest["shards"]),
        "counts": counts,
        "dropped": _drops(dataset.path / "dropped.jsonl", counts["dropped"]),
        "made_by": dataset.manifest["made_by"],
        "columns": {name: column for name, column in columns.items() if name not in texts},
        "texts": {name.removesuffix("_chars"): columns[name] for name in names if name in texts},
    }


def _drops(file: epath.Path, reasons: dict[str, int]) -> list[dict[str, Any]]:
    examples = collections.defaultdict(list)
    if file.exists():
        with file.open() as lines:
            for line in lines:
                drop = json.loads(line)
                if len(examples[drop["reason"]]) < MOST_EXAMPLES:
                    examples[drop["reason"]].append({k: drop[k] for k in ("item", "detail")})
    return [
        {"reason": reason, "count": count, "examples": examples[reason]}
        for reason, count in reasons.items()
    ]


def _column(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    """{"kind": "number" | "values" | "identity", ...} of one column of the metadata."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    kind = column.type
    about = {"missing": column.null_count}
    if name in IDENTITIES:
        return about | {"kind": "identity", "distinct": len(column.unique())}
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if is_number and len(column) > column.null_count:
        values = column.drop_null().to_numpy().astype(np.float64)
        return about | {"kind": "number"} | _numbers(values[np.isfinite(values)])
    counted = pc.value_counts(column.cast(pa.string())).to_pylist()
    top = sorted(counted, key=lambda c: (-c["counts"], c["values"] or ""))
    pairs = [[c["values"] or "", c["counts"]] for c in top[:MOST_VALUES]]
    return about | {"kind": "values", "distinct": len(counted), "top": pairs}


def _numbers(values: np.ndarray) -> dict[str, Any]:
    """Mean, quantiles and a histogram whose ends also hold what is beyond the 1st and 99th part."""
    if not len(values):
        return {"count": 0}
    shares = {"min": 0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1}
    quantiles = np.quantile(values, list(shares.values()))
    low, high = np.quantile(values, (0.01, 0.99), method="nearest")
    is_whole = bool(np.all(values == np.round(values)))
    bins = int(min(BINS, high - low + 1)) if is_whole and high > low else BINS
    bins = bins if high > low else 1
    counts, edges = np.histogram(np.clip(values, low, high), bins=bins)
    edges = edges if high > low else (low, high)  # not half a unit to each side
    return {
        "count": len(values),
        "mean": float(values.mean()),
        **{name: float(value) for name, value in zip(shares, quantiles, strict=True)},
        "histogram": {"edges": [float(edge) for edge in edges], "counts": counts.tolist()},
    }


# --- The page ----------------------------------------------------------------------------------


def render(dataset: Dataset, card: dict[str, Any]) -> str:
    """card.html; whatever a caption holds, it is text there."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["short"] = _short
    template = environment.get_template("card.html.jinja")
    return template.render(card=card, steps=_steps(card), samples=_samples(dataset, card))


def _steps(card: dict[str, Any]) -> list[tuple[str, int]]:
    """("figures", 1231), ... from what was read to what was written."""
    counts = card["counts"]
    split = [(f"in {name}", count) for name, count in counts["splits"].items()]
    ends = [("dropped", sum(counts["dropped"].values())), ("records", counts["out"])]
    return [*counts.get("steps", {}).items(), *ends, *split]


def _samples(dataset: Dataset, card: dict[str, Any]) -> list[dict[str, Any]]:
    positions = card["samples"]
    table = pq.read_table(
        os.fspath(dataset.path / METADATA), filters=[("position", "in", positions)]
    )
    rows = {row["position"]: row for row in table.to_pylist()}
    shown = set(card["columns"]) - IDENTITIES - {"split", "source", "licence", "record_bytes"}
    samples = []
    for position in positions:
        record = dataset[position]
        signals = {name: rows[position].get(name) for name in sorted(shown)}
        samples.append(
            {
                "position": position,
                "record": record,
                "image": _data_url(record),
                "address": _address(record.article_id),
                "split": rows[position]["split"],
                "signals": {k: v for k, v in signals.items() if v not in (None, "", [])},
            }
        )
    return samples


def _data_url(record: Record) -> str:
    kind = "png" if record.image[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(record.image).decode()}"


def _address(article_id: str) -> str:
    """Where a person can read the article; "" where the id does not say."""
    if article_id.startswith("PMC") and article_id[3:].isdecimal():
        return f"https://pmc.ncbi.nlm.nih.gov/articles/{article_id}/"
    return f"https://doi.org/{article_id}" if article_id.startswith("10.") else ""


def _short(value: Any) -> str:
    """1231 -> "1,231", 0.123456 -> "0.123", a list -> its items; long text is cut."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float) and not value.is_integer() and abs(value) < 1000:
        return f"{value:.3g}"
    if isinstance(value, (int, float)):
        return f"{value:,.0f}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def main(options: CardOptions) -> None:
    if not options.dataset:
        raise ValueError("dataset is not set. Give --dataset=FOLDER.")
    write_card(Dataset(options.dataset), options.samples, options.seed)
    print(f"The card: {os.path.join(options.dataset, 'card.html')}")


if __name__ == "__main__":
    run(main, CardOptions)
