"""Text tables, .csv, .tsv and .jsonl: read row by row, and staged as a parquet for the workers."""

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.remote import create_file, open_file, without_query

UNREADABLE = "unreadable_row"  # column of the staged table: what is wrong with a row, or null
ROWS_PER_GROUP = 2048  # of the staged table: what a worker reads at once
MAX_CELL = 16 << 20  # characters; a csv with an unclosed quote is one cell to its end
MAX_LINE = 64 << 20  # 3 GB of one letter are 3 MB of gzip
BROKEN_OFF = (EOFError, zlib.error, gzip.BadGzipFile)
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|nan|NaN")  # "007" is an id


@dataclasses.dataclass(slots=True)
class BadRow:
    detail: str


def suffix(table: str) -> str:
    suffix = os.path.splitext(without_query(table).removesuffix(".gz"))[1].lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".parquet"):
        raise ValueError(
            f"table ({table!r}) must be .csv, .tsv, .jsonl (or .gz of it) or .parquet."
        )
    return suffix


def columns_of(table: str) -> list[str]:
    """Names of the columns; of a .jsonl, those of its first 100 rows."""
    if suffix(table) == ".parquet":
        return pq.read_schema(table).names
    if suffix(table) == ".jsonl":
        first = itertools.islice(read_text_table(table), 100)
        rows = [row for row in first if not isinstance(row, BadRow)]
        return list(dict.fromkeys(name for row in rows for name in row))
    try:
        with _csv_reader(table) as reader:
            return next(reader, [])
    except BROKEN_OFF as error:
        raise ValueError(f"{table} cannot be read: {error}.") from None


def read_text_table(table: str) -> Iterator[dict[str, Any] | BadRow]:
    """The rows; a BadRow where one cannot be read, and where the file breaks off."""
    count = 0
    try:
        for row in _read_jsonl(table) if suffix(table) == ".jsonl" else _read_csv(table):
            yield row
            count += 1
    except BROKEN_OFF as error:
        yield BadRow(f"after row {count}: the file breaks off ({error})")


def _open(table: str) -> BinaryIO:
    file = open_file(table)
    return gzip.open(file) if without_query(table).endswith(".gz") else file


@contextlib.contextmanager
def _csv_reader(table: str) -> Iterator[Any]:
    """A csv.reader; what it stumbles over becomes a ValueError with the line and a remedy."""
    csv.field_size_limit(MAX_CELL)
    delimiter = "\t" if suffix(table) == ".tsv" else ","
    with io.TextIOWrapper(_open(table), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_lines_of_csv(file), delimiter=delimiter)
        try:
            yield reader
        except csv.Error as error:
            raise ValueError(
                f"{table}, near line {reader.line_num}: {error}. Is a quote not closed?"
            ) from None
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{table}, after line {reader.line_num}: {error}. Convert it to UTF-8 (iconv)."
            ) from None


def _lines_of_csv(file: io.TextIOBase) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"line longer than {MAX_LINE} characters")
        yield line


def _read_csv(table: str) -> Iterator[dict[str, str] | BadRow]:
    with _csv_reader(table) as reader:
        header = next(reader, [])
        for cells in filter(None, reader):
            if len(cells) == len(header):
                yield dict(zip(header, cells, strict=True))
            else:
                lengths = f"{len(cells)} cells, the header has {len(header)}"
                yield BadRow(f"line {reader.line_num}: {lengths}")


def _read_jsonl(table: str) -> Iterator[dict[str, Any] | BadRow]:
    with _open(table) as file:
        for number in itertools.count(start=1):
            line = file.readline(MAX_LINE)
            if len(line) == MAX_LINE:
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield BadRow(f"line {number}: longer than {MAX_LINE} bytes")
                continue
            if not line:
                return
            if line.isspace():
                continue
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else BadRow(f"line {number}: not an object")
            except (ValueError, RecursionError) as error:
                yield BadRow(f"line {number}: {error}")


def stage(
    rows: Iterable[Mapping[str, Any] | BadRow],
    columns: Sequence[str],
    typed: Sequence[str],
    parquet: str,
    from_csv: bool,
) -> None:
    """Writes `columns` to a parquet, all as text: what a typed one holds is known only at the end.

    It is in the file's metadata then, {"year": "int64"}, and read_rows casts.
    """
    kinds = {name: set() for name in typed}
    schema = pa.schema([(name, pa.string()) for name in (*columns, UNREADABLE)])
    with create_file(parquet) as local, pq.ParquetWriter(local, schema) as writer:
        for chunk in _chunks(rows, ROWS_PER_GROUP):
            staged = []
            for row in chunk:
                if isinstance(row, BadRow):
                    staged.append({UNREADABLE: row.detail})
                    continue
                for name, seen in kinds.items():
                    seen.add(_kind(row.get(name), from_csv))
                staged.append({name: _as_text(row.get(name)) for name in columns})
            writer.write_table(pa.Table.from_pylist(staged, schema=schema))
        types = {name: _common_type(seen - {"null"}) for name, seen in kinds.items()}
        writer.add_key_value_metadata({"types": json.dumps(types)})


def _chunks(rows: Iterable, size: int) -> Iterator[list]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _as_text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # JSON can hold half a surrogate pair
    return json.dumps(value)


def _kind(value: Any, from_csv: bool) -> str:
    """Arrow's name for a cell's type: 3 -> "int64"; in a csv "3" -> "int64", "007" -> "string"."""
    if value is None or value == "":
        return "null"
    if isinstance(value, str) and from_csv:
        if NUMBER.fullmatch(value):
            return "int64" if value.removeprefix("-").isdecimal() and len(value) < 19 else "double"
        return "bool" if value in ("true", "True", "false", "False") else "string"
    if isinstance(value, int) and not isinstance(value, bool):
        return "int64" if abs(value) < 2**63 else "string"
    return {bool: "bool", float: "double"}.get(type(value), "string")


def _common_type(kinds: set[str]) -> str:
    if kinds == {"int64", "double"}:
        return "double"
    return kinds.pop() if len(kinds) == 1 else "string"


def num_rows(parquet: str) -> int:
    with open_file(parquet, at_random=True) as opened:
        return pq.read_metadata(opened).num_rows


def read_rows(
    parquet: str, rows: range, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number, row) of a range of rows; reads the row groups they are in, in batches."""
    with open_file(parquet, at_random=True) as opened, pq.ParquetFile(opened) as file:
        columns = [name for name in file.schema_arrow.names if name in {*columns, UNREADABLE}]
        types = json.loads((file.metadata.metadata or {}).get(b"types", "{}"))  # see _stage
        first = 0
        for group in range(file.num_row_groups):
            position, first = first, first + file.metadata.row_group(group).num_rows
            if position >= rows.stop or first <= rows.start:
                continue
            batches = file.iter_batches(64, row_groups=[group], columns=columns, use_threads=False)
            for batch in batches:
                for name, kind in types.items():
                    column = batch[name].cast(kind)
                    batch = batch.set_column(batch.schema.get_field_index(name), name, column)
                low = min(max(rows.start - position, 0), len(batch))
                high = max(min(rows.stop - position, len(batch)), low)
                wanted = batch.slice(low, high - low).to_pylist()
                yield from enumerate(wanted, start=position + low)
                position += len(batch)
                if position >= rows.stop:
                    break
