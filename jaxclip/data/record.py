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
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import (
    array_record_data_source,
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)
from etils import epath

SCHEMA_VERSION = 1
METADATA = "metadata.parquet"
SPLITS = ("train", "validation", "test")
# what others call them
SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation"}
SPLIT_NAMES |= {"valid": "validation", "dev": "validation", "test": "test"}
TEXT_FIELDS = ("caption", "panel_caption", "references", "summary")
AGAIN = "Copy it again, or make it again."
OTHER_VERSION = "Rebuild the dataset with this jaxclip, or install the one that wrote it."
COPY_COMMANDS = {"gs": "gcloud storage rsync", "s3": "aws s3 sync"}  # they go on where they stopped


class DamagedError(ValueError):
    """A dataset that cannot be read; says which file or record, why, and what to do."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Record:
    """One figure or panel with all its texts."""

    image: bytes  # encoded, JPEG or PNG
    width: int  # pixels, of `image`
    height: int
    caption: str  # of the whole figure
    panel_caption: str = ""  # the part of the caption about this panel
    references: str = ""  # the sentences of the article that cite the figure
    summary: str = ""  # of the references
    article_id: str = ""
    figure_id: str = ""
    panel_id: str = ""  # "" for a whole figure
    source: str = ""  # the corpus, e.g. "open_pmc"
    licence: str = ""
    image_sha256: str = ""  # hex, of `image`; filled in by pack()

    def texts(self) -> dict[str, str]:
        return {field: getattr(self, field) for field in TEXT_FIELDS}

    def pack(self) -> bytes:
        """The bytes of one ArrayRecord entry: msgpack of [schema version, fields]."""
        self.image_sha256 = hashlib.sha256(self.image).hexdigest()
        # not asdict(), which copies in depth: 0.2 ms
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        packed = msgpack.packb([SCHEMA_VERSION, fields])
        assert packed is not None
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> "Record":
        """Raises ValueError for bytes that are not a record of this schema version."""
        try:
            version, fields = msgpack.unpackb(data)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(
                f"Not a jaxclip record ({len(data)} bytes): {error}. {AGAIN}"
            ) from None
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"Record has schema version {version}; this jaxclip reads {SCHEMA_VERSION}. "
                f"{OTHER_VERSION}"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(
                f"Record has other fields than schema version {version} ({error}). {OTHER_VERSION}"
            ) from None


@dataclasses.dataclass(slots=True, kw_only=True)
class Example:
    """A record on its way into a dataset, with what is said of it in metadata.parquet."""

    record: Record
    split: str
    signals: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True, kw_only=True)
class Drop:
    """An item that does not become a record."""

    item: str  # what the user knows it by: file name, row number
    reason: str  # a few words, the same for all of a kind: they are counted
    detail: str = ""


def split_of(group: str, fractions: Sequence[float] = (0.9, 0.05, 0.05), salt: str = "") -> str:
    """The split of all records of `group` (an article), by stable hash: never two splits.

    Args:
      group: article id; its spellings ("PMC123", "123", "PMC123.1") have one split in all corpora.
      fractions: of train, validation, test; sums to 1.
      salt: another salt is another partition.
    """
    name = article_name(group)
    if re.fullmatch(r"[1-9]\d*", name):
        group = f"PMC{name}"
    elif name.startswith("10."):  # a DOI; other names are kept, capitals and all
        group = name
    digest = hashlib.sha256(f"{salt}\0{group}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < fractions[0]:
        return "train"
    return "validation" if u < fractions[0] + fractions[1] else "test"


def hash64(text: str | bytes) -> int:
    """64-bit identity of a text or image, as int64 fits a column and a NumPy array."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)


def article_key(record: "Record") -> str:
    """Names the record's article alike in all corpora; "" where the record does not say it."""
    return article_name(record.article_id)


def article_name(article_id: str) -> str:
    """One name for the spellings of an article's id.

    "PMC123", "pmc123.1" (a version) and "123" -> "123"; "https://doi.org/10.1/A" -> "10.1/a".
    """
    name = article_id.strip().lower()
    if pmcid := re.fullmatch(r"pmc ?(\d+)(\.\d+)?", name):
        return pmcid[1]
    return re.sub(r"^(https?://(dx\.)?doi\.org/|doi: ?)", "", name)


def figure_key(record: "Record") -> str:
    """Names the record's figure among all articles'; "" where article or figure is not said.

    Of PMC123 "Fig1.JPG" and of 123 "fig1" -> "123\\0fig1".
    """
    article = article_key(record)
    figure = re.sub(r"\.(jpe?g|png|gif|tiff?)$", "", record.figure_id.strip().lower())
    return f"{article}\0{figure}" if article and figure else ""


def _metadata_row(example: Example, packed_bytes: int) -> dict[str, Any]:
    record = example.record
    if example.split not in SPLITS:
        raise ValueError(f"split ({example.split!r}) must be one of {', '.join(SPLITS)}.")
    row: dict[str, Any] = {
        name: getattr(record, name)
        for name in ("article_id", "figure_id", "panel_id", "source", "licence", "width", "height")
    }
    row |= {"split": example.split, "record_bytes": packed_bytes}
    row |= {"image_sha256": record.image_sha256}
    row |= {f"{field}_chars": len(text.strip()) for field, text in record.texts().items()}
    if clash := (row.keys() | {"position"}) & example.signals.keys():
        raise ValueError(
            f"signals {sorted(clash)} are names of the record's own columns. Rename them."
        )
    return row | example.signals


def write_atomically(path: epath.PathLike, data: bytes | str) -> None:
    """Writes a small file whole or not at all, also where two threads do so at once."""
    path = epath.Path(path)
    temporary = epath.Path(temporary_name(path))
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    temporary.replace(path)


def temporary_name(path: epath.PathLike) -> str:
    """Beside `path`, and of this call only: several threads may be writing the same file."""
    return f"{os.fspath(path)}.{uuid.uuid4().int}.tmp"


@contextlib.contextmanager
def reading(file: epath.PathLike) -> Iterator[None]:
    """Names the file where a library says no more than what is wrong in it."""
    try:
        yield
    except (ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DamagedError(f"{os.fspath(file)} cannot be read ({reason}). {AGAIN}") from error


def local_path(path: epath.PathLike) -> epath.Path:
    """Raises ValueError for a URL: ArrayRecord reads local files."""
    if "://" in os.fspath(path):
        raise ValueError(f"{path} is a URL; records are read from local files: {copying(path)}.")
    return epath.Path(path)


def copying(url: epath.PathLike) -> str:
    """How to get what is at a URL to where it can be read."""
    tool = COPY_COMMANDS.get(os.fspath(url).partition("://")[0])
    command = f" (`mkdir -p FOLDER && {tool} {os.fspath(url)} FOLDER`)" if tool else ""
    return f"copy it{command} or mount the bucket (gcsfuse, mount-s3), and give that FOLDER"


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
        rows.append(_metadata_row(item, len(packed)))
        writer.write(packed)
        digest.update(packed)
    writer.close()
    temporary.replace(directory / f"{name}.array_record")
    columns = dict.fromkeys(name for row in rows for name in row)  # from_pylist takes row 0's only
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
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
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    added = columns if columns is not None else pa.table({})
    whole = pa.schema([pa.field("position", pa.int64()), *schema, *added.schema])
    splits, position = collections.Counter(), 0
    temporary = directory / f"{METADATA}.tmp"
    with pq.ParquetWriter(temporary, whole) as writer:
        for file in files:
            table = pa.concat_tables(
                [schema.empty_table(), pq.read_table(file)], promote_options="permissive"
            )
            positions = pa.array(np.arange(position, position + len(table), dtype=np.int64))
            parts = [positions, *table.columns, *added.slice(position, len(table)).columns]
            writer.write_table(pa.Table.from_arrays(parts, schema=whole))
            splits.update(table["split"].to_pylist())
            position += len(table)
    temporary.replace(directory / METADATA)
    return splits


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
