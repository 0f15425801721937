r"""A corpus as it was released -> a DATASET.

    python -m data_pipelines.corpora --layout=open_pmc --input='open-pmc/train-*.tar' --out=DIR
    python -m data_pipelines.corpora --layout=biomedica --input='gs://BUCKET/{a,b}*.tar' --out=DIR
    python -m data_pipelines.corpora --layout=pmc_oa --input=pmc_oa.jsonl --images=images.zip \
        --out=DIR
    python -m data_pipelines.corpora --layout=webdataset --input=DIR --caption=txt --group=patient \
        --out=DIR
    python -m data_pipelines.corpora --layout=tfds --input=DATA_DIR/NAME/1.0.0 --out=DIR

Layouts: open_pmc, open_pmc_18m, pmc_oa, biomedica, roco, rocov2, medicat, quilt (see layouts.py),
and three of any fields: webdataset (tars), parquet (Hugging Face's, with an image column) and tfds,
where --caption, --group, ... name a field; for a table of files see table.py.

--input may be paths, folders, globs and {00..09}, local or gs://, s3://, https://. Nothing is
unpacked to disk. A tar, a row group or a range of rows is one shard: a run that was stopped goes on
with the next one. What does not become a record is in dropped.jsonl with the reason. By default a
process a core; with --runner=..., Apache Beam's options: the same shards on many machines:

    python -m data_pipelines.corpora --layout=biomedica --input='gs://B/{a,b}*.tar' \
        --out=gs://B/DATASET --runner=DataflowRunner --project=P --region=R \
        --temp_location=gs://B/tmp --sdk_container_image=IMAGE --number_of_worker_harness_threads=1

--out is then a URL, or a path that all workers share; data_pipelines.pmc has more such commands,
and says what IMAGE is.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.figure import FieldOptions, Figure, as_signal, as_text, to_example
from data_pipelines.images import open_images
from data_pipelines.layouts import LAYOUTS, Layout, parse_name
from data_pipelines.options import option, run, take_beam_options
from data_pipelines.parquet import parquet_jobs, read_parquet
from data_pipelines.remote import exists, expand, is_url, without_query
from data_pipelines.table import PANELS, key_warnings
from data_pipelines.text_table import BadRow, num_rows, read_rows, read_text_table, stage
from data_pipelines.tfds import read_tfds, tell_of_splits, tfds_jobs, with_fields
from data_pipelines.webdataset import TAR_SUFFIXES, read_samples
from data_pipelines.write import STAGED_ROWS, build_dataset
from jaxclip.data.dataset import Dataset
from jaxclip.data.image import ImageError
from jaxclip.data.record import SPLIT_NAMES, TEXT_FIELDS, Drop, Example

SUFFIXES = {
    "tar": TAR_SUFFIXES,
    "parquet": (".parquet",),
    "table": (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv"),
}
ROWS_PER_SHARD = 4096
CHECKED_ROWS = 100  # of the first file, for the fields of the command line
ROLES = (*TEXT_FIELDS, "figure", "panel", "licence")
IMAGE_FIELDS = ("image_bytes", "image", "jpg", "png", "webp")
CAPTION_FIELDS = ("caption", "txt", "text", "report")


@dataclasses.dataclass(slots=True, kw_only=True)
class CorpusOptions(FieldOptions):
    """The command line."""

    layout: str = option("", f"{', '.join(LAYOUTS)}, webdataset, parquet or tfds")
    input: tuple[str, ...] = option((), "files, folders, globs, {00..09}; comma-separated")
    split_by_article: bool = option(False, "also where the release has its own splits")

    def __post_init__(self):
        self.input = (self.input,) if isinstance(self.input, str) else tuple(self.input)
        FieldOptions.__post_init__(self)

    def validate(self) -> None:
        FieldOptions.validate(self)
        for name in ("layout", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        if self.layout not in (*LAYOUTS, *GENERIC):
            known = ", ".join((*LAYOUTS, *GENERIC))
            raise ValueError(f"layout ({self.layout!r}) must be one of {known}.")
        if not self.input:
            files = layout_of(self.layout).files
            raise ValueError(f"input is not set. Of {self.layout} it is {files}: --input=...")
        fields = ("image", "group", "keep", *ROLES)
        if self.layout in LAYOUTS and (named := [f for f in fields if getattr(self, f)]):
            raise ValueError(f"{named[0]} is known of {self.layout}. Leave --{named[0]} out.")


def build_corpus(options: CorpusOptions, beam: Sequence[str] = ()) -> Dataset:
    """Builds the dataset of a released corpus.

    Args:
      beam: options of Apache Beam, see build_dataset.
    Raises:
      ValueError, FileNotFoundError: an option, no such files, or what build_dataset raises.
    """
    options.validate()
    if options.images:
        open_images(options.images)
    layout = layout_of(options.layout)
    if layout.reader == "tfds":
        named = {"image": options.image, "caption": options.caption}
        files = {with_fields(path, **named): -1 for path in options.input}
        tell_of_splits(list(files))
    else:
        files = expand(options.input, SUFFIXES[layout.reader])
    if options.layout in GENERIC:
        _check_fields(options, list(files))
    elif layout.split_by_file and not options.split_by_article:
        _tell_of_splits(list(files))
    listing = json.dumps(sorted(files.items()))
    content = options.content() | {"images": options.images}
    dataset = build_dataset(
        options.out,
        jobs=functools.partial(JOBS[layout.reader], options, list(files)),
        make_items=functools.partial(make_items, options),
        made_by={
            "module": "data_pipelines.corpora",
            "options": content,
            "files": {"count": len(files), "sha256": hashlib.sha256(listing.encode()).hexdigest()},
        },
        workers=options.workers,
        beam=beam,
        tokenizer_vocab=options.tokenizer_vocab,
        overwrite=options.overwrite,
    )
    remedy = "" if options.layout in LAYOUTS else PANELS
    splits = "of the release (--split_by_article makes others)"
    for warning in key_warnings(dataset, remedy, splits):
        print(warning.strip())
    return dataset


def _check_fields(options: CorpusOptions, files: list[str]) -> None:
    """Raises ValueError before the work: a field of the command line that no row has."""
    layout = layout_of(options.layout)
    job = next(iter(JOBS[layout.reader](options, files[:1])), None)
    rows = itertools.islice(_rows(options, layout, job), CHECKED_ROWS) if job else ()
    rows = [row for row in rows if not isinstance(row, Drop)]
    have = {k: 0 for row in rows for k in row if k != "image_bytes" or row[k] is not None}
    if not rows:
        return
    told = f"in the first {len(rows)} rows of {files[0]}. There are: {', '.join(have)}."
    for role in ("image", "group", *ROLES, "keep"):
        names = getattr(options, role)
        for name in names if isinstance(names, tuple) else filter(None, [names]):
            if name not in have:
                raise ValueError(f"{role}: no field {name!r} {told}")
    for role, names in (("image", IMAGE_FIELDS), ("caption", CAPTION_FIELDS)):
        if not getattr(options, role) and not have.keys() & {*names}:
            wanted = ", ".join(names)
            raise ValueError(f"{role}: none of {wanted} is {told} Name it: --{role}=FIELD.")


def _tell_of_splits(files: list[str]) -> None:
    if unknown := [file for file in files if not _split_of_file(file)]:
        print(
            f"Note: {len(unknown)} of {len(files)} files, e.g. {unknown[0]}, do not say train, "
            "validation or test in their names: their records are split by article."
        )


# --- Jobs: what one shard is made of -------------------------------------------------------------


def _table_jobs(options: CorpusOptions, files: list[str]) -> list[range]:
    """Ranges of the rows of all tables, which are staged first."""
    staged = os.path.join(options.out, STAGED_ROWS)
    if not exists(staged):
        print(f"Reading {', '.join(files)} ...")
        stage(_table_rows(files), ["row"], [], staged, from_csv=False)
    rows = num_rows(staged)
    step = min(max(64, math.ceil(rows / 16)), ROWS_PER_SHARD)
    return [range(start, min(start + step, rows)) for start in range(0, rows, step)]


def _table_rows(files: list[str]) -> Iterator[dict[str, Any] | BadRow]:
    for file in files:
        for number, row in enumerate(read_text_table(file)):
            if isinstance(row, BadRow):
                yield BadRow(f"{file}, {row.detail}")
            else:
                row = row | {"__key__": str(number), "__url__": file}
                yield {"row": json.dumps(row)}


JOBS = {
    "tar": lambda options, files: files,
    "parquet": lambda options, files: parquet_jobs(files),
    "table": _table_jobs,
}
JOBS["tfds"] = lambda options, files: tfds_jobs(files, ROWS_PER_SHARD)


# --- Items: rows of a job, each to a record or a drop ---------------------------------------------


def make_items(options: CorpusOptions, job: Any) -> Iterator[Example | Drop]:
    layout = layout_of(options.layout)
    for row in _rows(options, layout, job):
        if isinstance(row, Drop):
            yield row
            continue
        try:
            if layout.reader != "tfds":  # which knows it
                row["__split__"] = _split_of_file(row["__url__"])
            if layout.to_figure:
                figure = layout.to_figure(row)
            else:
                figure = _figure_of_fields(options, row)
            split = None if options.split_by_article else figure.split or None
            source = options.source or layout.source or options.layout
            licence = figure.licence or layout.licence
            figure = dataclasses.replace(figure, split=split, source=source, licence=licence)
            yield to_example(figure, options)
        except Exception as error:
            error.add_note(f"{row['__key__']} of {row['__url__']}")
            raise


def _rows(options: CorpusOptions, layout: Layout, job: Any) -> Iterable[dict[str, Any] | Drop]:
    if layout.reader == "tar":
        return read_samples(job)
    if layout.reader == "parquet":
        return read_parquet(*job)
    if layout.reader == "tfds":
        return read_tfds(*job)
    return _staged_rows(options, layout, job)


def _staged_rows(
    options: CorpusOptions, layout: Layout, rows: range
) -> Iterator[dict[str, Any] | Drop]:
    staged = os.path.join(options.out, STAGED_ROWS)
    for number, cells in read_rows(staged, rows, ["row"]):
        if cells["row"] is None:
            yield Drop(item=f"row {number}", reason="unreadable row", detail=_bad(cells))
            continue
        row = json.loads(cells["row"])
        root = options.images or _folder(row["__url__"])
        yield row | {"image_bytes": _find_image(root, layout.image_names(row))}


def _bad(cells: Mapping[str, Any]) -> str:
    return "; ".join(str(value) for value in cells.values() if value)


def _folder(path: str) -> str:
    return (
        without_query(path).rpartition("/")[0]
        if is_url(path)
        else os.path.dirname(os.path.abspath(path))
    )


def _find_image(root: str, names: Iterable[str]) -> bytes | ImageError:
    first = ImageError("no image named")
    for number, name in enumerate(names):
        try:
            return open_images(root).read(name)
        except ImageError as error:
            if error.reason != "missing file":
                return error
            first = error if number == 0 else first
    return first


@functools.lru_cache(maxsize=64)  # a shard's rows come from one file
def _split_of_file(path: str) -> str:
    """ "data/validation-00000-of-00002.parquet", "valid/0.tar" -> "validation"; "" where the file's
    name has no word for it and none of its two folders is one."""
    *folders, name = path.lower().split("/")
    words = "".join(c if c.isalpha() else " " for c in name).split()
    words += [word.removesuffix("data") for word in words if word.endswith("data")]
    words = [*folders[-2:], *words]
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "")


def _figure_of_fields(options: CorpusOptions, row: Mapping[str, Any]) -> Figure:
    """A row of any fields, by the names of the command line."""
    captions = [options.caption] if options.caption else CAPTION_FIELDS
    caption = next((row[name] for name in captions if name in row), "")
    images = [options.image] if options.image else IMAGE_FIELDS
    image = next((row[name] for name in images if row.get(name) is not None), None)
    image = image.get("bytes") if isinstance(image, Mapping) else image
    texts = {role: options.text(row, role) for role in ROLES if role != "caption"}
    key = str(row["__key__"])
    article, figure, panel = parse_name(key)
    return Figure(
        name=f"{row['__url__']}: {key}",
        image=image if isinstance(image, bytes) else ImageError("no image"),
        caption=as_text(caption),
        article_id=options.text(row, "group") if options.group else article or key,
        figure_id=texts.pop("figure") or (figure if article else key),
        panel_id=texts.pop("panel") or panel,
        split=row["__split__"],
        signals={name: as_signal(row.get(name)) for name in options.keep},
        **texts,
    )


GENERIC = {
    "webdataset": Layout(reader="tar", files="*.tar"),
    "parquet": Layout(reader="parquet", files="*.parquet"),
    "tfds": Layout(reader="tfds", files="DATA_DIR/NAME/[CONFIG/]VERSION"),
}


def layout_of(name: str) -> Layout:
    return LAYOUTS.get(name) or GENERIC[name]


if __name__ == "__main__":
    from data_pipelines import corpora  # by its name: __main__ of a Beam worker is another module

    beam = take_beam_options(sys.argv)
    run(functools.partial(corpora.build_corpus, beam=beam), corpora.CorpusOptions)
