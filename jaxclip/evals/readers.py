"""Layouts that public sets come in -> rows: a table, class folders, npz, parquet, TFDS.

A layout says where things are; `rows(layout, root)` yields one dict an image:

    name    what the set calls the image; two rows of one name show one image
    image   a function without arguments: encoded bytes, or uint8 RGB [H, W, 3], when it is called
    label   a class, a tuple of findings, or None: left out     group, study, split: "" if not known
    caption "" if not known, or a function that reads it

No image is in memory before it is asked for, whatever the layout.
"""

import dataclasses
import functools
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxclip.command import num_cores
from jaxclip.data.tfds import INFO, load_tfds, open_builder
from jaxclip.evals.tables import MAX_FILE_BYTES, Row, Table, read_file, table_rows

_LOCK = threading.Lock()  # what is cached is made by one thread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
    """Image files, in a folder or a zip, whose paths say what they are.

    The regex is matched with the whole path inside the root; its named groups are the fields.
    """

    pattern: str  # r"(?P<split>train|test)/(?P<label>\\w+)/.*"
    zip: str = ""  # the zip inside the root, if it is one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Npz:
    """MedMNIST: {train, val, test}_images uint8 [N, S, S(, 3)] and _labels [N, 1] or [N, C].

    The images of a split that is read are unpacked once, beside the file, and mapped: those of
    MedMNIST+ have up to 16 GB.
    """

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


Layout = Table | tuple[Table, ...] | Folders | Npz | Parquet | Tfds


def rows(layout: Layout, root: Path) -> Iterator[Row]:
    """Several tables are the splits of one set, or other places of it: those that are there count.

    Raises FileNotFoundError: what the layout names is not there.
    """
    if isinstance(layout, Table | tuple):
        return table_rows(layout if isinstance(layout, tuple) else (layout,), root)
    read: dict[type, Any] = {Folders: _folders, Npz: _npz, Parquet: _parquet, Tfds: _tfds}
    return read[type(layout)](layout, root)


def _read_member(file: Path, name: str) -> bytes:
    with _zip(file).open(name) as member:  # a ZipFile may be read by several threads
        data = member.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{name} in {file} is larger than {MAX_FILE_BYTES} bytes: no picture.")
    return data


@functools.lru_cache(maxsize=4)  # the directory of a zip is read once
def _zip(file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


def _row(name: str, image: Callable[[], bytes | np.ndarray], **fields: Any) -> Row:
    """A row; images without a group are one each."""
    empty = {"label": "", "caption": "", "study": "", "split": "", "group": name}
    return empty | fields | {"name": name, "image": image}


def _folders(layout: Folders, root: Path) -> Iterator[Row]:
    if layout.zip:
        place, read = root / layout.zip, _read_member
        names = sorted(_zip(place).namelist())
    else:
        place, read = root, read_file
        names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    pattern = re.compile(layout.pattern)
    for name in names:
        if match := pattern.fullmatch(name):
            fields = {key: value or "" for key, value in match.groupdict().items()}
            yield _row(name, functools.partial(read, place, name), **fields)


def _npz(layout: Npz, root: Path) -> Iterator[Row]:
    file = root / layout.file
    with np.load(file, allow_pickle=False) as arrays:
        labels = {split: arrays[f"{split}_labels"] for split in ("train", "val", "test")}
    for split, label_N in labels.items():
        for number, label in enumerate(label_N):
            several = np.size(label) > 1
            value = tuple(map(str, np.flatnonzero(label))) if several else str(np.ravel(label)[0])
            image = functools.partial(_npz_image, file, f"{split}_images", number)
            yield _row(f"{split}/{number}", image, label=value, split=split)


def _npz_image(file: Path, array: str, number: int) -> np.ndarray:
    with _LOCK:
        images = _mapped(file, array, file.stat().st_mtime_ns)
    image = np.asarray(images[number])
    if image.ndim == 2:
        image = image[..., None]
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


@functools.lru_cache(maxsize=4)
def _mapped(file: Path, array: str, modified_ns: int) -> np.ndarray:
    unpacked = file.with_name(f"{file.stem}.{array}.npy")
    if not unpacked.exists() or unpacked.stat().st_mtime_ns < modified_ns:
        temporary = unpacked.with_name(f"{unpacked.name}.{os.getpid()}.tmp")
        with zipfile.ZipFile(file) as opened, opened.open(f"{array}.npy") as packed:
            with temporary.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 24)
        temporary.replace(unpacked)
    return np.load(unpacked, mmap_mode="r", allow_pickle=False)


def _parquet(layout: Parquet, root: Path) -> Iterator[Row]:
    files = sorted(root.glob(layout.files))
    if not files:
        raise FileNotFoundError(f"{root} has no {layout.files}.")
    fields = {"label": layout.label, "caption": layout.caption, "group": layout.group}
    fields = {field: column for field, column in fields.items() if column}
    for file in files:
        opened, number = pq.ParquetFile(file), 0
        for group in range(opened.num_row_groups):
            texts = opened.read_row_group(group, columns=list(fields.values())).to_pydict()
            for i in range(opened.metadata.row_group(group).num_rows):
                values = {field: texts[column][i] for field, column in fields.items()}
                values = {field: "" if v is None else str(v) for field, v in values.items()}
                image = functools.partial(_parquet_image, file, group, layout.image, i)
                values["split"] = file.name.partition("-")[0]
                yield _row(f"{file.name}/{number}", image, **values)
                number += 1


def _parquet_image(file: Path, group: int, column: str, number: int) -> bytes:
    with _LOCK:
        images = _parquet_images(file, group, column)
    image = images[number].as_py()
    data = image["bytes"] if isinstance(image, dict) else image
    if data is None:
        raise ValueError(f"{file}, row {number} of row group {group}: {column} is empty.")
    return data


@functools.lru_cache(maxsize=2)  # images are asked for in order
def _parquet_images(file: Path, group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(file).read_row_group(group, columns=[column])[column]


def _tfds(layout: Tfds, root: Path) -> Iterator[Row]:
    found = sorted(root.glob(f"{layout.builder}/**/{INFO}"))
    if not found:
        raise FileNotFoundError(f"{root / layout.builder} holds no prepared dataset.")
    builder = open_builder(found[-1].parent)  # the newest version
    decoders = {layout.image: load_tfds().decode.SkipDecoding()}
    for split in builder.info.splits:
        source = builder.as_data_source(split, decoders=decoders)
        for number in range(len(source)):
            label = source[number][layout.label]
            label = label.decode() if isinstance(label, bytes) else str(int(label))
            image = functools.partial(_tfds_image, source, number, layout.image)
            yield _row(f"{split}/{number}", image, label=label, split=split)


def _tfds_image(source: Sequence[dict], number: int, feature: str) -> bytes:
    return source[number][feature]


class LazyImages(Sequence):
    """`images[i]` is read(i), and a slice a list of those, read by threads: nothing is kept."""

    def __init__(self, read: Callable[[int], bytes | np.ndarray], length: int):
        self.read, self.length = read, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        if isinstance(index, slice):
            with ThreadPoolExecutor(num_cores()) as pool:
                return list(pool.map(self.read, range(*index.indices(self.length))))
        if not 0 <= index < self.length:
            raise IndexError(index)  # what ends a loop over a sequence
        return self.read(int(index))
