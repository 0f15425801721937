r"""Any table of images and captions -> a DATASET.

    python -m data_pipelines.table --table=figures.jsonl --images=FOLDER --image=file \
        --caption=caption --group=pmcid --figure=fig --keep=journal,year --out=DIR

The table is .csv, .tsv, .jsonl (each also .gz) or .parquet; the image column holds a path inside
--images, a folder or a zip, or in parquet the bytes themselves (also Hugging Face's {bytes, path}).
A row becomes a record, or a line of dropped.jsonl with the reason. Rows are numbered from 0. Rows
with the same (group, figure, panel) all become records, because a table without panel ids has them
legitimately; how many there are is reported.

Large tables are not loaded: a text table is converted once, streaming, to a parquet file beside the
shards with the columns in use, and a worker reads the row groups that its own rows are in. In a
parquet of your own with image bytes, row groups should not be much larger than --records_per_shard.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.figure import FieldOptions, Figure, as_text, to_example
from data_pipelines.images import MAX_FILE_BYTES, open_images
from data_pipelines.options import option, run
from data_pipelines.remote import exists
from data_pipelines.text_table import (
    UNREADABLE,
    columns_of,
    num_rows,
    read_rows,
    read_text_table,
    stage,
    suffix,
)
from data_pipelines.write import STAGED_ROWS, build_dataset
from jaxclip.data.dataset import Dataset
from jaxclip.data.image import ImageError
from jaxclip.data.record import TEXT_FIELDS, Drop, Example


@dataclasses.dataclass(slots=True, kw_only=True)
class TableOptions(FieldOptions):
    """The command line; fields are the table's columns."""

    table: str = option("", "the table: .csv, .tsv, .jsonl (each also .gz) or .parquet")
    split_column: str = option("", "column: train, validation or test, instead of --split")
    records_per_shard: int = option(0, "rows that one shard is made of; 0: 1/16, 64 to 4096")

    def validate(self) -> None:
        for name in ("table", "image", "caption", "group", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        if self.records_per_shard < 0:
            raise ValueError(f"records_per_shard ({self.records_per_shard}) must be 0 or more.")
        FieldOptions.validate(self)

    def text_columns(self) -> list[str]:
        roles = ("image", "group", *TEXT_FIELDS, "figure", "panel", "split_column")
        return [getattr(self, role) for role in roles if getattr(self, role)]

    def used_columns(self, have: Sequence[str]) -> list[str]:
        """The columns to read. Raises ValueError naming one that is not among `have`."""
        needed = dict.fromkeys(self.text_columns() + list(self.keep))
        if missing := [name for name in needed if name not in have]:
            raise ValueError(f"{self.table} has no column {missing}. It has: {', '.join(have)}.")
        return list(needed | dict.fromkeys(c for c in (self.source, self.licence) if c in have))


def build_table(
    options: TableOptions,
    rows: Sequence[Mapping[str, Any]] | None = None,
    module: str = "data_pipelines.table",
) -> Dataset:
    """Builds the dataset of a table.

    Args:
      rows: the table itself; options.table is then only what it was made from.
      module: what the manifest says made it.
    Raises:
      ValueError: an option, a column, or what build_dataset raises.
    """
    options.validate()
    if not os.path.exists(options.table):
        raise ValueError(f"table ({options.table!r}) does not exist.")
    if options.images:
        open_images(options.images)
    have = list(rows[0]) if rows else columns_of(options.table)
    columns = options.used_columns(have)
    for role in ("source", "licence"):
        if (value := getattr(options, role)) and value not in have:
            print(f"{role}: no column has the name {value!r}; it is the {role} of every record.")
    is_staged = rows is not None or suffix(options.table) != ".parquet"
    parquet = os.path.join(options.out, STAGED_ROWS) if is_staged else options.table
    if not is_staged:
        _check_types(options, pq.read_schema(parquet))

    def jobs() -> list[range]:
        if is_staged and not exists(parquet):
            text_rows = read_text_table(options.table) if rows is None else rows
            from_csv = rows is None and suffix(options.table) in (".csv", ".tsv")
            typed = [name for name in options.keep if name not in options.text_columns()]
            print(f"Converting {options.table} ...")
            stage(text_rows, columns, typed, parquet, from_csv)
        count = num_rows(parquet)
        # small enough that every core has a shard to write, on any machine the same
        step = options.records_per_shard or min(max(64, -(-count // 16)), 4096)
        if not count:
            raise ValueError(f"{options.table} has no rows.")
        return [range(i, min(i + step, count)) for i in range(0, count, step)]

    dataset = build_dataset(
        options.out,
        jobs=jobs,
        make_items=functools.partial(_make_items, options, parquet, columns),
        made_by=_made_by(options, module),
        workers=options.workers,
        tokenizer_vocab=options.tokenizer_vocab,
        overwrite=options.overwrite,
    )
    for warning in key_warnings(dataset):
        print(warning)
    return dataset


def _made_by(options: TableOptions, module: str) -> dict[str, Any]:
    stat = os.stat(options.table)  # a changed table is another input
    table = {"bytes": stat.st_size, "modified": stat.st_mtime_ns}
    return {"module": module, "options": options.content(), "table": table}


PANELS = "If they are panels, name their column with --panel."


def key_warnings(
    dataset: Dataset, remedy: str = PANELS, splits: str = "of --split_column"
) -> list[str]:
    """What is odd about the (article, figure, panel) keys, in sentences."""
    keys = dataset.columns(["article_id", "figure_id", "panel_id", "split"])
    same = keys.group_by(["article_id", "figure_id", "panel_id"]).aggregate([([], "count_all")])
    repeated = same.filter(pc.field("count_all") > 1)["count_all"].to_pylist()
    groups = keys.group_by("article_id").aggregate([("split", "count_distinct")])
    straddling = groups.filter(pc.field("split_count_distinct") > 1)["article_id"].to_pylist()
    warnings = []
    if repeated:
        warnings.append(
            f"Note: {sum(repeated):,} records share their (group, figure, panel) with another. "
            f"{remedy}"
        )
    if straddling:
        warnings.append(
            f"Warning: {len(straddling):,} groups are in more than one split {splits}, "
            f"e.g. {straddling[0]}: evaluation will see what was trained on."
        )
    return warnings


# --- A row becomes a record or a drop ----------------------------------------------------------


def _make_items(
    options: TableOptions, parquet: str, columns: Sequence[str], rows: range
) -> Iterator[Example | Drop]:
    for number, row in read_rows(parquet, rows, columns):
        try:
            yield _make_item(options, number, row)
        except Exception as error:
            error.add_note(f"row {number} of {options.table}")
            raise


def _make_item(options: TableOptions, number: int, row: Mapping[str, Any]) -> Example | Drop:
    name, data = _name_and_bytes(row[options.image])
    item = f"row {number}: {name}" if name else f"row {number}"
    if row.get(UNREADABLE):
        return Drop(item=item, reason="unreadable row", detail=row[UNREADABLE])

    figure = Figure(
        name=item,
        image=_read_image(options, name, data),
        article_id=options.text(row, "group"),
        figure_id=options.text(row, "figure") if options.figure else name or f"row {number}",
        panel_id=options.text(row, "panel"),
        source=options.text(row, "source") if options.source in row else options.source,
        licence=options.text(row, "licence") if options.licence in row else options.licence,
        split=options.text(row, "split_column") if options.split_column else None,
        signals={name: row[name] for name in options.keep},
        **{role: options.text(row, role) for role in TEXT_FIELDS},
    )
    return to_example(figure, options)


def _name_and_bytes(image: Any) -> tuple[str, bytes | None]:
    """A cell of the image column: a path, bytes, or Hugging Face's {"bytes": ..., "path": ...}."""
    if isinstance(image, dict):
        return as_text(image.get("path")), image.get("bytes")
    return ("", image) if isinstance(image, bytes) else (as_text(image), None)


def _read_image(options: TableOptions, name: str, data: bytes | None) -> bytes | ImageError:
    try:
        if data is not None:
            if len(data) > MAX_FILE_BYTES:
                raise ImageError("file too large", f"{len(data)} bytes, at most {MAX_FILE_BYTES}")
            return data
        if not name:
            raise ImageError("no image named")
        if not options.images:
            raise ImageError("missing file", "the table has no bytes, and there is no --images")
        return open_images(options.images).read(name)
    except ImageError as error:
        return error


def _check_types(options: TableOptions, schema: pa.Schema) -> None:
    """Says before the work what a parquet's columns cannot be."""
    for name in options.keep:
        kind = schema.field(name).type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        plain = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
        plain += (pa.types.is_string, pa.types.is_large_string)
        if not any(is_plain(kind) for is_plain in plain):
            raise ValueError(f"keep: column {name!r} is {kind}; signals are numbers, text, lists.")
    kind = schema.field(options.image).type
    if (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and not options.images:
        raise ValueError(f"image: column {options.image!r} has paths. Give --images=FOLDER or ZIP.")


if __name__ == "__main__":
    run(build_table, TableOptions)
