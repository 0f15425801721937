r"""How much do datasets share with each other and with evaluation sets, and what to leave out?

    python -m data_pipelines.overlap OPEN_PMC PMC_OA BIOMEDICA --eval ROCO QUILT [--out=DIR]
    python -m data_pipelines.subset ... --exclude=DIR/exclude/OPEN_PMC-in-evals.npy

Datasets, subsets or TFDS. Five ways to be the same, each a matrix "share of A's records that have a
counterpart in B": article (id), figure (article and figure id), image (bytes), near (perceptual
hash within --max_distance bits, and thumbnails that correlate: re-encoded, resized), caption (its
words, or the panel's; five or more). Ids are compared as PMC ids: case and "PMC" do not matter.
Corpora name figures in different ways (Open-PMC "Fig1", BIOMEDICA the graphic's file): where two
have articles in common and no figure's id, `figure` is not comparable and says so.

Leaves overlap.json, overlap.html with pairs to look at, and lists of uids for subset --exclude:
exclude/A-in-evals.npy (what A shares with an evaluation set by --exclude_by) and exclude/A-in-B.npy
(duplicates by --duplicate_by). Keys are kept in keys/, so that a second run reads no image twice.
"""

import base64
import dataclasses
import html
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from data_pipelines.fingerprint import MAX_DISTANCE
from data_pipelines.options import option, run
from data_pipelines.overlap_keys import KINDS, Collection, cluster, collect
from data_pipelines.query import connect
from data_pipelines.uids import save_uids, uids_of
from jaxclip.data.files import write_atomically
from jaxclip.data.record import SPLITS
from jaxclip.data.subset import dataset_name, open_dataset
from jaxclip.data.tfds import TfdsDataset

EXAMPLES = 6  # pairs shown for two datasets


@dataclasses.dataclass(slots=True, kw_only=True)
class OverlapOptions:
    """The command line."""

    dataset: tuple[str, ...] = option((), "datasets or subsets, comma-separated")
    eval: tuple[str, ...] = option((), "those that evaluation is on, comma-separated")
    eval_split: str = option("", "of the evaluation sets: train, validation, test; default: all")
    out: str = option("overlap", "folder for the report and lists")
    max_distance: int = option(6, "bits of 64 that near duplicates may differ in")
    exclude_by: tuple[str, ...] = option(KINDS, "what counts as seen in an evaluation set")
    duplicate_by: tuple[str, ...] = option(("figure", "image", "near"), "... between datasets")
    workers: int = option(0, "processes; 0: one per core")

    def __post_init__(self):
        for name in ("dataset", "eval", "exclude_by", "duplicate_by"):
            setattr(self, name, tuple(getattr(self, name)))

    def validate(self) -> None:
        for name in ("dataset", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        for name in ("exclude_by", "duplicate_by"):
            if unknown := set(getattr(self, name)) - set(KINDS):
                raise ValueError(f"{name} ({sorted(unknown)[0]!r}) must be of {', '.join(KINDS)}.")
        if not 0 <= self.max_distance <= MAX_DISTANCE:
            raise ValueError(f"max_distance ({self.max_distance}) must be 0 to {MAX_DISTANCE}.")
        if self.eval_split not in ("", *SPLITS):
            raise ValueError(f"eval_split ({self.eval_split!r}) must be of {', '.join(SPLITS)}.")
        names = [dataset_name(path) for path in (*self.dataset, *self.eval)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"dataset, eval: two have the name {twice.pop()!r}. Rename or link one."
            )


# --- Report ---------------------------------------------------------------------------------------


def measure_overlap(options: OverlapOptions) -> dict:
    """Writes the report and lists; returns the report.

    Raises:
      ValueError, FileNotFoundError: an option; as open_dataset.
    """
    options.validate()
    for path in (*options.dataset, *options.eval):
        open_dataset(path)  # hours before the last one's turn comes
    out = epath.Path(options.out)
    (out / "exclude").mkdir(parents=True, exist_ok=True)
    splits = [""] * len(options.dataset) + [options.eval_split] * len(options.eval)
    collections = [
        collect(path, split, out, options.workers)
        for path, split in zip((*options.dataset, *options.eval), splits, strict=True)
    ]
    cluster(collections, options.max_distance, options.workers)
    datasets, evals = collections[: len(options.dataset)], collections[len(options.dataset) :]
    matrix = {kind: _matrix(collections, kind) for kind in KINDS}
    remarks = _mark_not_comparable(matrix["figure"], collections)
    report = {
        "options": json.loads(json.dumps(dataclasses.asdict(options))),
        "collections": {
            c.name: {"records": len(c.positions), "content_hash": c.opened.content_hash}
            for c in collections
        },
        "matrix": matrix,
        "not_comparable": remarks,
        "exclude": _exclude(options, out, datasets, evals),
    }
    write_atomically(out / "overlap.json", json.dumps(report, indent=1))
    write_atomically(out / "overlap.html", page(report, collections))
    for name, count in report["exclude"].items():
        print(f"{count:>10,} records  {out / 'exclude' / name}")
    for remark in remarks:
        print(f"Note: {remark}")
    print(f"See {out / 'overlap.html'}")
    return report


def _matrix(collections: Sequence[Collection], kind: str) -> dict[str, dict[str, int]]:
    """{A: {B: records of A with a counterpart in B}}; on the diagonal, with one elsewhere in A."""
    matrix = {}
    for a in collections:
        matrix[a.name] = {
            b.name: int(a.found_in(b, [kind]).sum()) for b in collections if b is not a
        }
        matrix[a.name][a.name] = _repeated(a.values(kind))
    return matrix


def _mark_not_comparable(
    matrix: dict[str, dict[str, int | None]], collections: Sequence[Collection]
) -> list[str]:
    """Sets to None, in place, what is 0 because two name their figures in different ways."""
    remarks = []
    for a, b in itertools.combinations(collections, 2):
        rows = [c.keys["article"] * (c.keys["figure"] != 0) for c in (a, b)]
        articles = np.setdiff1d(np.intersect1d(*rows), [0])
        if not len(articles) or np.intersect1d(a.keys["figure"], b.keys["figure"]).any():
            continue
        first = (np.flatnonzero(row == articles[0])[0] for row in rows)
        ids = [
            c.records[int(c.positions[row])].figure_id for c, row in zip((a, b), first, strict=True)
        ]
        remarks.append(
            f"{a.name} and {b.name} have {len(articles):,} articles in common and no figure's id, "
            f"e.g. {ids[0]!r} and {ids[1]!r}: by figure they are not comparable."
        )
        matrix[a.name][b.name] = matrix[b.name][a.name] = None
    return remarks


def _repeated(values: np.ndarray) -> int:
    """How many rows share a key with another row."""
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    own = (values[:, :, None] == values[:, None, :]).sum(axis=2)  # a row may have a key twice
    return int(((values != 0) & (counts[inverse.reshape(values.shape)] > own)).any(axis=1).sum())


def _exclude(
    options: OverlapOptions,
    out: epath.Path,
    datasets: Sequence[Collection],
    evals: Sequence[Collection],
) -> dict[str, int]:
    """Writes the lists; {file: records}."""
    counts = {}
    for a in datasets:
        lists = {f"{a.name}-in-{b.name}": a.found_in(b, options.duplicate_by)
                 for b in datasets if b is not a}  # fmt: skip
        if evals:
            seen = [a.found_in(e, options.exclude_by) for e in evals]
            lists[f"{a.name}-in-evals"] = np.any(seen, axis=0)
        if isinstance(a.records, TfdsDataset):
            continue  # it has no uids, and subsets are not made of it
        connection = connect(a.records)
        for name, found in lists.items():
            positions = a.positions[found]
            save_uids(out / "exclude" / f"{name}.npy", uids_of(connection, positions))
            counts[f"{name}.npy"] = len(positions)
    return counts


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th { text-align: left; font-weight: 600 }
th, td { padding: .3em .8em; border: 1px solid #ddd } td { text-align: right }
figure { display: inline-block; margin: .3em; width: 150px; font-size: 12px; vertical-align: top }
figure img { max-width: 150px; max-height: 110px } .pair { margin: .5em 0 }
"""


def page(report: Mapping, collections: Sequence[Collection]) -> str:
    """The report as one HTML file without links to elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Overlap</title>",
        f"<style>{STYLE}</style><h1>Overlap</h1>",
        "<p>Share of the row's records that have a counterpart in the column's set; on the "
        "diagonal, elsewhere in the same set.</p>",
    ]
    names = [c.name for c in collections]
    for kind, matrix in report["matrix"].items():
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        parts.append(f"<h2>{kind}</h2><table><tr><th></th>{heads}<th>records</th></tr>")
        for collection in collections:
            total = len(collection.positions)
            cells = "".join(_cell(matrix[collection.name][name], total) for name in names)
            row = f"<th>{html.escape(collection.name)}</th>{cells}<td>{total:,}</td>"
            parts.append(f"<tr>{row}</tr>")
        parts.append("</table>")
        remarks = report["not_comparable"] if kind == "figure" else ()
        parts += [f"<p>{html.escape(remark)}</p>" for remark in remarks]
    parts.append("<h2>Lists to exclude</h2><table><tr><th>list</th><th>records</th></tr>")
    for name, count in report["exclude"].items():
        parts.append(f"<tr><th>{html.escape(name)}</th><td>{count:,}</td></tr>")
    parts.append("</table><h2>Near duplicates</h2>")
    for i, a in enumerate(collections):
        parts += [_pairs(a, b) for b in collections[i + 1 :]]
    return "\n".join(parts)


def _cell(count: int | None, total: int) -> str:
    if count is None:
        return "<td>not comparable</td>"
    share = count / max(1, total)
    shade = f"background: rgba(200, 60, 30, {0.7 * share:.3f})"
    return f'<td style="{shade}" title="{count:,} of {total:,}">{share:.2%}</td>'


def _pairs(a: Collection, b: Collection) -> str:
    """A few pairs of near duplicates, evenly spaced, to be looked at."""
    shared, in_a, in_b = np.intersect1d(a.keys["near"], b.keys["near"], return_indices=True)
    rows = np.flatnonzero(shared != 0)
    rows = rows[:: max(1, -(-len(rows) // EXAMPLES))]
    title = (
        f"<h3>{html.escape(a.name)} and {html.escape(b.name)}: {int((shared != 0).sum()):,}</h3>"
    )
    pairs = (
        f"<div class=pair>{_figure(a, in_a[row])}{_figure(b, in_b[row])}</div>" for row in rows
    )
    return title + "".join(pairs)


def _figure(collection: Collection, row: int) -> str:
    record = collection.records[int(collection.positions[row])]
    kind = "jpeg" if record.image[:2] == b"\xff\xd8" else "png"
    data = base64.b64encode(record.image).decode()
    text = html.escape(f"{record.article_id} {record.figure_id}: {record.caption[:80]}")
    return f'<figure><img src="data:image/{kind};base64,{data}" alt=""><br>{text}</figure>'


if __name__ == "__main__":
    run(measure_overlap, OverlapOptions, positional="dataset")
