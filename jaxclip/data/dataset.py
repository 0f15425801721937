"""The DATASET contract: what a record is, how a dataset is written, and how it is opened.

A DATASET is a directory:

    records-00000.array_record ...   one record a figure or panel, image bytes and all texts
    metadata.parquet                 one row a record, by position, with every quality signal
    dropped.jsonl                    one line an item that did not become a record, with the reason
    tokenizer.json                   optional: a vocabulary trained on the train split
    manifest.json                    counts, hashes, schema version; written last

A directory without manifest.json is not a dataset: a killed writer leaves finished shards, which
the same command reuses, and nothing that opens. A record's position is its index over all shards.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import (
    array_record_data_source,
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)
from etils import epath

from jaxclip.data.files import AGAIN, DamagedError, local_path, reading, write_atomically
from jaxclip.data.record import (
    OTHER_VERSION,
    SCHEMA_VERSION,
    SPLITS,
    Drop,
    Example,
    Record,
    metadata_row,
)

METADATA = "metadata.parquet"


def shard_name(index: int) -> str:
    """Of the files of a shard, without suffix."""
    return f"records-{index:05d}"


def write_shard(
    directory: epath.PathLike, index: int, items: Iterable[Example | Drop | collections.Counter]
) -> dict:
    """Writes shard `index` of a dataset in the making; returns its counts.

    The shard is done when its .json exists, which is written last; a done shard is left as it is.
    A Counter among the items is what a source counts besides: {"articles": 1, "figures": 6}.
    """
    directory = epath.Path(directory)
    name = shard_name(index)
    done = directory / f"{name}.json"
    if done.exists():
        return json.loads(done.read_text())
    rows, drops, digest = [], [], hashlib.sha256()
    steps = collections.Counter()
    temporary = directory / f"{name}.array_record.tmp"
    writer = array_record_module.ArrayRecordWriter(
        os.fspath(temporary), "group_size:1,uncompressed"
    )
    for item in items:
        if isinstance(item, collections.Counter):
            steps.update(item)
            continue
        if isinstance(item, Drop):
            drops.append(dataclasses.asdict(item))
            continue
        packed = item.record.pack()
        rows.append(metadata_row(item, len(packed)))
        writer.write(packed)
        digest.update(packed)
    writer.close()
    temporary.replace(directory / f"{name}.array_record")
    columns = dict.fromkeys(name for row in rows for name in row)  # from_pylist takes row 0's only
    table = pa.table({column: _column([row.get(column) for row in rows]) for column in columns})
    pq.write_table(table, directory / f"{name}.parquet")
    info = {
        "file": f"{name}.array_record",
        "records": len(rows),
        "bytes": (directory / f"{name}.array_record").stat().length,
        "sha256": digest.hexdigest(),  # of the records' bytes in order
        "metadata_sha256": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        "dropped": drops,
        "steps": steps,
    }
    write_atomically(done, json.dumps(info))
    return info


def _column(values: Sequence[Any]) -> pa.Array:
    """Of one type; values of types that have nothing in common, 2020 and "2020", are text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return _text_column(values)


def _text_column(values: Sequence[Any]) -> pa.Array:
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pa.array(texts, pa.string())


def finish_dataset(
    directory: epath.PathLike,
    num_shards: int,
    made_by: Mapping[str, Any],
    columns: pa.Table | None = None,
    source: Any = None,
) -> "Dataset":
    """Joins the finished shards 0..num_shards-1 into a dataset; the manifest is its last act.

    Args:
      made_by: what made the dataset, so that it can be made again: module, options, versions.
      columns: what could be told only of all records together, for metadata.parquet; one row a
        record, by position.
      source: of the Dataset that is returned.
    Raises:
      ValueError: no record came through; the message has the counts by reason.
    """
    directory = epath.Path(directory)
    names = [shard_name(i) for i in range(num_shards)]
    infos = [json.loads((directory / f"{name}.json").read_text()) for name in names]
    drops = [drop for info in infos for drop in info.pop("dropped")]
    steps = sum(
        (collections.Counter(info.pop("steps", {})) for info in infos), start=collections.Counter()
    )
    reasons = dict(collections.Counter(drop["reason"] for drop in drops).most_common())
    lines = "".join(json.dumps(drop) + "\n" for drop in drops)
    write_atomically(directory / "dropped.jsonl", lines)
    filled = [(name, info) for name, info in zip(names, infos, strict=True) if info["records"]]
    if not filled:
        raise ValueError(
            f"No record was written to {directory.name}: dropped {reasons or 'nothing'}; one by "
            "one in its dropped.jsonl."
        )
    splits = _join_metadata(directory, [name for name, _ in filled], columns)
    records = sum(info["records"] for info in infos)
    manifest = {
        "format": "jaxclip-dataset",
        "schema_version": SCHEMA_VERSION,
        "content_hash": _content_hash([info for _, info in filled], columns),
        "counts": {
            "in": records + len(drops),
            "out": records,
            "dropped": reasons,
            "splits": {split: splits[split] for split in SPLITS},
        }
        | ({"steps": dict(steps)} if steps else {}),
        "made_by": dict(made_by),
        "metadata": _file_info(directory / METADATA) | {"records": records},
        "shards": [info for _, info in filled],
    }
    write_atomically(directory / "manifest.json", json.dumps(manifest, indent=1))
    for name, info in zip(names, infos, strict=True):  # the manifest now says what these said
        (directory / f"{name}.parquet").unlink(missing_ok=True)
        (directory / f"{name}.json").unlink(missing_ok=True)
        if not info["records"]:
            (directory / f"{name}.array_record").unlink(missing_ok=True)
    return Dataset(directory, source)


def _join_metadata(
    directory: epath.Path, names: Sequence[str], columns: pa.Table | None
) -> collections.Counter:
    """Writes metadata.parquet from the shards' tables, one at a time; returns records per split."""
    files = [directory / f"{name}.parquet" for name in names]
    schemas = [pq.read_schema(file) for file in files]
    schema = _common_schema(schemas)
    added = columns if columns is not None else pa.table({})
    whole = pa.schema([pa.field("position", pa.int64()), *schema, *added.schema])
    splits, position = collections.Counter(), 0
    temporary = directory / f"{METADATA}.tmp"
    with pq.ParquetWriter(temporary, whole) as writer:
        for file in files:
            table = _with_schema(pq.read_table(file), schema)
            positions = pa.array(np.arange(position, position + len(table), dtype=np.int64))
            parts = [positions, *table.columns, *added.slice(position, len(table)).columns]
            writer.write_table(pa.Table.from_arrays(parts, schema=whole))
            splits.update(table["split"].to_pylist())
            position += len(table)
    temporary.replace(directory / METADATA)
    return splits


def _common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """What all shards' columns fit in; text, where their types have nothing in common."""
    types: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        parts = [
            pa.schema([(field.name, t)]) for t in (types.get(field.name, pa.null()), field.type)
        ]
        try:
            types[field.name] = pa.unify_schemas(parts, promote_options="permissive").types[0]
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            types[field.name] = pa.string()
    return pa.schema(list(types.items()))


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for i, field in enumerate(table.schema):
        if pa.types.is_string(schema.field(field.name).type) and not pa.types.is_string(field.type):
            table = table.set_column(i, field.name, _text_column(table[i].to_pylist()))
    return pa.concat_tables([schema.empty_table(), table], promote_options="permissive")


def _file_info(file: epath.Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 24):
            digest.update(block)
    return {"file": file.name, "bytes": file.stat().length, "sha256": digest.hexdigest()}


def _content_hash(shards: Sequence[Mapping[str, Any]], columns: pa.Table | None) -> str:
    """Names what the dataset holds: its records in order, with their splits and signals."""
    hashes = "".join(shard["sha256"] + shard["metadata_sha256"] for shard in shards)
    digest = hashlib.sha256(hashes.encode())
    for batch in columns.to_batches(max_chunksize=1 << 16) if columns is not None else ():
        digest.update(json.dumps(batch.to_pydict(), sort_keys=True).encode())
    return digest.hexdigest()


class Dataset:
    """A finished DATASET, opened for reading: `dataset[position] -> Record`. Picklable.

    Args:
      source: `source[position]` is a packed record; None: those of the shards in `path`.
    Raises:
      FileNotFoundError: there is none at `path`, or it was not finished.
      ValueError: it is at a URL, of another schema version, or a file is missing or cut short.
    """

    def __init__(self, path: epath.PathLike, source: Any = None):
        self.path = local_path(path)
        self.manifest = self._read_manifest()
        if source is None:
            self._check_sizes()
            shards = [os.fspath(self.path / shard["file"]) for shard in self.manifest["shards"]]
            source = array_record_data_source.ArrayRecordDataSource(shards)
        self._source = source

    def _read_manifest(self) -> dict[str, Any]:
        file = self.path / "manifest.json"
        if not file.exists():
            started = self.path.exists() and any(self.path.glob("records-*"))
            raise FileNotFoundError(
                f"{self.path} is a dataset that was not finished (no manifest.json). Run the "
                "command that was writing it again: it goes on where it stopped."
                if started
                else f"{self.path} is not a dataset (no manifest.json). Make one with "
                "`python -m data_pipelines.table` or `python -m data_pipelines.synthetic`."
            )
        with reading(file):
            manifest = json.loads(file.read_text())
        if not isinstance(manifest, dict) or manifest.get("format") != "jaxclip-dataset":
            raise ValueError(f"{file} is not the manifest of a jaxclip dataset.")
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"{self.path} has schema version {manifest['schema_version']}; this jaxclip reads "
                f"{SCHEMA_VERSION}. {OTHER_VERSION}"
            )
        return manifest

    def _check_sizes(self) -> None:
        for part in (self.manifest["metadata"], *self.manifest["shards"]):
            file = self.path / part["file"]
            size = file.stat().length if file.exists() else None
            if size != part["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DamagedError(
                    f"{file} {found}; the manifest says {part['bytes']} bytes. {AGAIN}"
                )

    @property
    def content_hash(self) -> str:
        return self.manifest["content_hash"]

    def __len__(self) -> int:
        return self.manifest["counts"]["out"]

    def __getitem__(self, position: int) -> Record:
        """Raises DamagedError for a record that cannot be read."""
        try:
            return Record.unpack(self._source[position])
        except ValueError as error:
            raise DamagedError(f"Record {position} of {self.path}: {error}") from error
        except RuntimeError as error:  # of ArrayRecord
            raise DamagedError(f"Record {position} of {self.path}: {error}. {AGAIN}") from error

    def __repr__(self) -> str:
        return f"Dataset({os.fspath(self.path)!r}, {len(self)} records, {self.content_hash[:12]})"

    @functools.cached_property
    def metadata(self) -> pa.Table:
        """All columns of metadata.parquet; row i is the record at position i."""
        return self.columns(None)

    @property
    def column_names(self) -> list[str]:
        """Of metadata.parquet."""
        with reading(self.path / METADATA):
            return pq.read_schema(os.fspath(self.path / METADATA)).names

    def columns(self, names: Sequence[str] | None) -> pa.Table:
        """Some columns of metadata.parquet. Raises ValueError naming a column that is not there."""
        file = os.fspath(self.path / METADATA)
        have = self.column_names
        if missing := [name for name in names or () if name not in have]:
            raise ValueError(f"{file} has no column {missing}. It has: {', '.join(have)}.")
        with reading(file):
            return pq.read_table(file, columns=None if names is None else list(names))

    def positions(self, split: str | None = None) -> np.ndarray:
        """Positions of all records of a split, ascending, int64 [N]; None means every record."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in SPLITS:
            raise ValueError(f"split ({split!r}) must be one of {', '.join(SPLITS)}.")
        return np.flatnonzero(self.columns(["split"])["split"].to_numpy() == split).astype(np.int64)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "metadata"}

    def verify(self) -> None:
        """Reads everything and compares with the manifest's hashes. Raises ValueError."""
        if _file_info(self.path / METADATA)["sha256"] != self.manifest["metadata"]["sha256"]:
            raise ValueError(f"{self.path / METADATA} does not have the content of the manifest.")
        position = 0
        for shard in self.manifest["shards"]:
            digest = hashlib.sha256()
            for _ in range(shard["records"]):
                digest.update(self._source[position])
                position += 1
            if digest.hexdigest() != shard["sha256"]:
                raise ValueError(
                    f"{self.path / shard['file']} does not have the content of the manifest."
                )
