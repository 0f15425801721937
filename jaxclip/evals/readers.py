"""Layouts that public sets come in -> rows: a table, class folders, npz, parquet, TFDS.

A layout says where things are; `rows(layout, root)` yields one dict an image:

    image   what `open_image` reads: bytes, an array, or a path inside the root
    label   a class, or a tuple of findings     caption, group, study, split: str, "" if not known
"""

import csv
import dataclasses
import functools
import gzip
import json
import re
import string
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

MAX_FILE_BYTES = 128 << 20  # a zip member can claim any size
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV, TSV, JSON or JSONL table (each also .gz) beside image files."""

    file: str
    image: str  # path inside the root, of columns: "images/{image}.jpg"
    label: str = ""  # column of the class
    one_hot: tuple[str, ...] = ()  # columns of the classes, of which one holds 1
    findings: tuple[str, ...] = ()  # columns that hold 1 where the finding is there
    findings_list: str = ""  # column with a list of findings, as ['a', 'b'] or a|b
    caption: str = ""  # columns, as `image`
    group: str = ""  # article or patient, as `image`
    group_pattern: str = ".*"  # what of the group's text is the group, a regex
    study: str = ""
    split: str = ""  # column


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
    """Image files, in a folder or a zip, whose paths say what they are.

    The regex is matched with the whole path inside the root; its named groups are the fields.
    """

    pattern: str  # r"(?P<split>train|test)/(?P<label>\\w+)/.*"
    zip: str = ""  # the zip inside the root, if it is one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Npz:
    """MedMNIST: {train, val, test}_images uint8 [N, S, S(, 3)] and _labels [N, 1] or [N, C]."""

    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet:
    """Hugging Face's parquet files; the image column holds bytes or {bytes, path}."""

    files: str  # a glob inside the root; what stands before the first "-" is the split
    image: str = "image"
    label: str = ""  # int: number of the class, or str
    caption: str = ""
    group: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds:
    """A TFDS dataset prepared as array_record in the root."""

    builder: str
    image: str = "image"
    label: str = "label"


Layout = Table | Folders | Npz | Parquet | Tfds


def rows(layout: Layout, root: Path) -> Iterator[Row]:
    """Raises FileNotFoundError: what the layout names is not there."""
    read: dict[type, Any] = {
        Table: _table,
        Folders: _folders,
        Npz: _npz,
        Parquet: _parquet,
        Tfds: _tfds,
    }
    return read[type(layout)](layout, root)


def open_image(image: Any, root: Path) -> bytes | np.ndarray:
    """What a row calls its image -> encoded bytes, or uint8 RGB [H, W, 3].

    Raises:
      ValueError: a path that leaves the root, or a file larger than MAX_FILE_BYTES.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[..., None]
        return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    if isinstance(image, tuple):  # (zip, member)
        return _read_member(*image)
    file = (root / image).resolve()
    if not file.is_relative_to(root.resolve()):
        raise ValueError(f"image ({image}) lies outside {root}. Paths must stay inside the set.")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"image ({image}) is larger than {MAX_FILE_BYTES} bytes: no picture.")
    return file.read_bytes()


def _read_member(file: Path, name: str) -> bytes:
    with _zip(file).open(name) as member:  # a ZipFile may be read by several threads
        data = member.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{name} in {file} is larger than {MAX_FILE_BYTES} bytes: no picture.")
    return data


@functools.lru_cache(maxsize=4)  # the directory of a zip is read once
def _zip(file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


def _table(layout: Table, root: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(root / layout.file)):
        try:
            yield {
                "image": _fill(layout.image, line),
                "label": _label(layout, line),
                "caption": _fill(layout.caption, line).strip(),
                "group": _group(layout, _fill(layout.group, line)),
                "study": _fill(layout.study, line),
                "split": line[layout.split].strip() if layout.split else "",
            }
        except KeyError as error:
            raise ValueError(
                f"{root / layout.file}, row {number}: no column {error}. It has: {', '.join(line)}."
            ) from None


def _fill(template: str, line: Row) -> str:
    """`"{a}/{b}"` or a column's name -> text of the row; a missing value is ""."""
    if "{" not in template:
        return str(line[template] or "") if template else ""
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    values: dict[str, Any] = {name: "" if line[name] is None else line[name] for name in fields}
    return template.format_map(values)


def _group(layout: Table, text: str) -> str:
    match = re.search(layout.group_pattern, text)
    return match[0] if match else text


def _label(layout: Table, line: Row) -> Any:
    if columns := layout.findings or layout.one_hot:
        found = tuple(name for name in columns if line[name] in ("1", "1.0", 1, 1.0))
        return found if layout.findings else "".join(found[:1])
    if layout.findings_list:
        text = str(line[layout.findings_list] or "")
        return tuple(
            part.strip(" '\"[]") for part in re.split(r"[|,;]", text) if part.strip(" '\"[]")
        )
    return str(line[layout.label]).strip() if layout.label else ""


def _lines(file: Path) -> Iterator[Row]:
    opened = gzip.open(file, "rt") if file.suffix == ".gz" else file.open(newline="")
    name = file.name.removesuffix(".gz")
    with opened as text:
        if name.endswith(".jsonl"):
            yield from map(json.loads, filter(str.strip, text))
        elif name.endswith(".json"):
            for item in json.load(text):
                if len(item) == 1:  # DeepEyeNet: [{path: {...}}, ...]
                    ((key, value),) = item.items()
                    item = {"key": key} | value
                yield item
        else:
            csv.field_size_limit(1 << 24)
            yield from csv.DictReader(text, delimiter="\t" if name.endswith(".tsv") else ",")


def _folders(layout: Folders, root: Path) -> Iterator[Row]:
    if layout.zip:
        file = root / layout.zip
        found = [(name, (file, name)) for name in sorted(_zip(file).namelist())]
    else:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        found = [(path.relative_to(root).as_posix(),) * 2 for path in files]
    pattern = re.compile(layout.pattern)
    for name, image in found:
        if match := pattern.fullmatch(name):
            fields = {key: value or "" for key, value in match.groupdict().items()}
            empty = {"label": "", "caption": "", "study": "", "split": "", "group": name}
            yield empty | fields | {"image": image}


def _npz(layout: Npz, root: Path) -> Iterator[Row]:
    with np.load(root / layout.file, allow_pickle=False) as arrays:
        for split in ("train", "val", "test"):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                several = np.size(label) > 1
                value = (
                    tuple(map(str, np.flatnonzero(label))) if several else str(np.ravel(label)[0])
                )
                yield {
                    "image": image, "label": value, "caption": "", "study": "", "split": split,
                    "group": f"{split}/{number}",
                }  # fmt: skip


def _parquet(layout: Parquet, root: Path) -> Iterator[Row]:
    files = sorted(root.glob(layout.files))
    if not files:
        raise FileNotFoundError(f"{root} has no {layout.files}.")
    columns = [c for c in (layout.image, layout.label, layout.caption, layout.group) if c]
    for file in files:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(256, columns=columns):
            for line in batch.to_pylist():
                image = line[layout.image]
                yield {
                    "image": image["bytes"] if isinstance(image, dict) else image,
                    "label": str(line[layout.label]) if layout.label else "",
                    "caption": str(line[layout.caption] or "") if layout.caption else "",
                    "group": str(line[layout.group]) if layout.group else f"{file.name}/{number}",
                    "study": "",
                    "split": file.name.partition("-")[0],
                }
                number += 1


def _tfds(layout: Tfds, root: Path) -> Iterator[Row]:
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{layout.builder} is read with tensorflow-datasets, which is not installed: "
            "pip install tensorflow-datasets."
        ) from None
    builder: Any = tfds.builder(layout.builder, data_dir=str(root), file_format="array_record")
    if not Path(builder.data_dir).exists():
        raise FileNotFoundError(f"{builder.data_dir} is not there.")
    for split in builder.info.splits:
        for number, example in enumerate(builder.as_data_source(split)):
            yield {
                "image": np.asarray(example[layout.image]),
                "label": str(int(example[layout.label])),
                "caption": "", "study": "", "split": split, "group": f"{split}/{number}",
            }  # fmt: skip


class LazyImages(Sequence):
    """`images[i]` opens the i-th image; a slice opens several."""

    def __init__(self, images: Sequence[Any], root: Path):
        self.images, self.root = images, root

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [open_image(image, self.root) for image in self.images[index]]
        return open_image(self.images[index], self.root)
