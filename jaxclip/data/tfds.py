"""Any TensorFlow Datasets (TFDS) dataset of images and texts, read as a DATASET is, without
TensorFlow: it must have been prepared with file_format="array_record".

    data.path=DATA_DIR/NAME/1.0.0
    data.path='DATA_DIR/NAME/1.0.0?caption=report&article_id=patient'     # which feature is what

Features that have the name of a field of Record are that field. Of the others, the only image is
the image, and the only text the caption. One inside another is `captions/text`; the items of a
sequence are lines of a text, and a class is its name. Splits keep their names (val, valid and dev
are validation); others are left out, and `left_out` counts them. Positions are counted through
train, validation and test.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxclip.data.image import ImageError, image_size
from jaxclip.data.record import SPLIT_NAMES, SPLITS, TEXT_FIELDS, Record, num_tokens

INFO = "dataset_info.json"
IDS = ("article_id", "figure_id", "panel_id", "source", "licence")
MAPPED = ("image", *TEXT_FIELDS, *IDS)
CHARS = {f"{field}_chars": field for field in TEXT_FIELDS}
ROWS = 1024  # read at a time


def is_tfds(path: epath.PathLike) -> bool:
    return (epath.Path(str(path).partition("?")[0]) / INFO).exists()


class TfdsDataset:
    """A prepared TFDS dataset, opened for reading: `dataset[position] -> Record`. Picklable.

    Raises:
      ValueError: tensorflow_datasets is not installed; the files are not array_record; which
        feature is the image or the caption is not clear.
    """

    def __init__(self, path: epath.PathLike):
        directory, _, query = str(path).partition("?")
        self.path, self._query = epath.Path(directory), dict(parse_qsl(query))
        self._builder = open_builder(self.path)
        self._leaves = dict(_leaves(self._builder.info.features))
        self.features = {name: leaf.kind for name, leaf in self._leaves.items()}
        self._fields = self._choose_fields()
        infos = self._builder.info.splits
        named = {SPLIT_NAMES[name]: name for name in infos if name in SPLIT_NAMES}
        self._splits = [(split, named[split]) for split in SPLITS if split in named]
        counts = dict.fromkeys(SPLITS, 0)
        counts |= {split: infos[name].num_examples for split, name in self._splits}
        if not self._splits:
            raise ValueError(
                f"{self.path} has the splits {', '.join(infos)}; none is train or test."
            )
        self._stops = np.cumsum([counts[split] for split, _ in self._splits])
        used = {name for _, name in self._splits}
        self.left_out = {name: infos[name].num_examples for name in infos if name not in used}
        self.manifest = {"counts": {"out": len(self), "splits": counts}}
        self._sources = self._open()

    def _choose_fields(self) -> dict[str, str]:
        """Field of Record -> feature."""
        fields = {name: name for name in MAPPED if name in self.features} | self._query
        unknown = [n for n in fields if n not in MAPPED]
        unknown += [f for f in fields.values() if f not in self.features]
        if unknown:
            raise ValueError(
                f"{self.path}: {unknown[0]!r} is no feature or field. Features: "
                f"{', '.join(self.features)}; fields: {', '.join(MAPPED)}."
            )
        for field, kind in (("image", "Image"), ("caption", "Text")):
            candidates = [name for name, k in self.features.items() if k == kind]
            if kind == "Text" and not candidates:
                candidates = [name for name, k in self.features.items() if k == "strings"]
            if field not in fields and len(candidates) == 1:
                fields[field] = candidates[0]
            if field not in fields:
                raise ValueError(
                    f"{self.path} has no feature {field!r} and {len(candidates)} of type {kind} "
                    f"({', '.join(candidates)}). Name it: data.path='{self.path}?{field}=FEATURE'."
                )
        return fields

    def _open(self) -> list[Any]:
        decoders: dict[str, Any] = {}  # images as the bytes they are
        for leaf in self._leaves.values():
            if leaf.kind == "Image":
                *outer, name = leaf.keys
                inner = functools.reduce(
                    lambda node, key: node.setdefault(key, {}), outer, decoders
                )
                inner[name] = load_tfds().decode.SkipDecoding()
        try:
            return [
                self._builder.as_data_source(name, decoders=decoders) for _, name in self._splits
            ]
        except NotImplementedError as error:
            raise ValueError(
                f"{self.path} is not in array_record ({error}). Prepare it again with "
                'file_format="array_record".'
            ) from None

    @functools.cached_property
    def content_hash(self) -> str:
        info = json.loads((self.path / INFO).read_text())
        content = json.dumps([info, sorted(self._fields.items())], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._stops[-1])

    def _row(self, position: int) -> Mapping[str, Any]:
        index = int(np.searchsorted(self._stops, position, side="right"))
        return self._sources[index][position - (int(self._stops[index - 1]) if index else 0)]

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        return functools.reduce(lambda value, key: value[key], self._leaves[name].keys, row)

    def _texts(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The fields of Record but the image."""
        names = {field: name for field, name in self._fields.items() if field != "image"}
        return {f: _text(self._value(row, n), self._leaves[n]) for f, n in names.items()}

    def row(self, position: int) -> dict[str, Any]:
        """All features of a record, a class as its name; the fields of Record that are made of
        them; the image as "image_bytes"; and "split"."""
        index = int(np.searchsorted(self._stops, position, side="right"))
        row = self._row(position)
        values = {name: self._value(row, name) for name in self.features}
        values |= {n: _text(values[n], leaf) for n, leaf in self._leaves.items() if leaf.classes}
        own = {"image_bytes": values[self._fields["image"]], "split": self._splits[index][0]}
        return values | self._texts(row) | own

    def __getitem__(self, position: int) -> Record:
        row = self._row(int(position))
        texts, image = self._texts(row), self._value(row, self._fields["image"])
        try:
            height, width = image_size(image)
        except ImageError:
            height = width = 0  # whoever decodes it says what is wrong, and where
        sha256 = hashlib.sha256(image).hexdigest()
        return Record(image=image, width=width, height=height, image_sha256=sha256, **texts)

    def positions(self, split: str | None = None) -> np.ndarray:
        """As Dataset.positions."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"split ({split!r}) must be one of {', '.join(SPLITS)}.")
        start = 0
        for (name, _), stop in zip(self._splits, self._stops, strict=True):
            if name == split:
                return np.arange(start, stop, dtype=np.int64)
            start = stop
        return np.arange(len(self) if split is None else 0, dtype=np.int64)

    @property
    def column_names(self) -> list[str]:
        """Of what columns() gives."""
        return list(self._known_columns())

    def _known_columns(self) -> dict[str, str]:
        """{column: the field of TFDS that it is made of; "": none, and the column is empty}"""
        known = {name: name for name in self.features} | {"image_sha256": self._fields["image"]}
        known |= {field: self._fields.get(field, "") for field in IDS}
        known |= {column: self._fields.get(field, "") for column, field in CHARS.items()}
        return known | {"caption_tokens": self._fields["caption"]}

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of a DATASET's metadata, as far as TFDS has them.

        TFDS keeps no columns: one that is asked for the first time costs a pass over all records,
        which decodes no image. It is kept in the user's cache, by content.

        Raises ValueError naming one that is not there.
        """
        known = self._known_columns()
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"{self.path} has no column {missing}. It has: {', '.join(known)}.")
        files = {name: self._kept_column(name) for name in names}
        found = {name: pq.read_table(f)[name] for name, f in files.items() if f.exists()}
        new = {name: known[name] for name in names if name not in found}
        found |= self._read_columns(new)
        for name in new:
            _keep(files[name], pa.table({name: found[name]}))
        return pa.table({name: found[name] for name in names})

    def _kept_column(self, name: str) -> epath.Path:
        cache = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        key = hashlib.sha256(f"{self.content_hash} {name}".encode()).hexdigest()
        return cache / "jaxclip" / f"tfds2-{key[:32]}.parquet"

    def _read_columns(self, features: Mapping[str, str]) -> dict[str, list[Any]]:
        """Values of each column, of its feature, or "" where it has none."""
        if not any(features.values()):
            return {name: [_cell(name, "", None)] * len(self) for name in features}
        values = {name: [] for name in features}
        for source in self._sources:
            for start in range(0, len(source), ROWS):
                numbers = list(range(start, min(start + ROWS, len(source))))
                for row in source.__getitems__(numbers):
                    for name, feature in features.items():
                        value = self._value(row, feature) if feature else ""
                        values[name].append(_cell(name, value, self._leaves.get(feature)))
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {"path": str(self.path), "query": self._query}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(f"{state['path']}?{urlencode(state['query'])}")


def load_tfds() -> Any:
    """tensorflow_datasets, which imports TensorFlow only for what is not used here."""
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ValueError(
            f"TFDS datasets need a package that is missing ({error.name}): "
            "pip install 'jaxclip[tfds]'."
        ) from None


def open_builder(path: epath.PathLike) -> Any:
    if not (epath.Path(path) / INFO).exists():
        raise FileNotFoundError(
            f"{path} is no prepared TFDS dataset (no {INFO}). Give its folder: "
            "DATA_DIR/NAME/[CONFIG/]VERSION."
        )
    logging.getLogger("absl").setLevel(logging.WARNING)  # it tells of every file it opens
    return load_tfds().builder_from_directory(str(path))


class _Leaf(NamedTuple):
    """A feature that holds no others, or a sequence of such."""

    keys: tuple[str, ...]  # `row[keys[0]][keys[1]]` is its value
    kind: str  # Text; strings: all else that is text; of others, the type's name
    classes: tuple[str, ...] = ()  # names of a ClassLabel's numbers


def _leaves(
    features: Mapping[str, Any], keys: tuple[str, ...] = (), many: bool = False
) -> Iterator[tuple[str, _Leaf]]:
    """(name, leaf) of every feature, by name; `captions/text` of one inside another."""
    for name, feature in sorted(features.items()):
        inner, own, of_many = feature, (*keys, name), many
        while hasattr(inner, "feature"):  # of a sequence, what it is of
            inner, of_many = inner.feature, True
        if hasattr(inner, "items"):
            yield from _leaves(inner, own, of_many)
            continue
        kind = "strings" if inner.np_dtype == np.object_ else type(inner).__name__
        if not of_many and type(inner).__name__ == "Text":
            kind = "Text"
        kind = f"many of {kind}" if of_many and kind != "strings" else kind
        classes = tuple(inner.names) if type(inner).__name__ == "ClassLabel" else ()
        yield "/".join(own), _Leaf(own, kind, classes)


def _cell(column: str, value: Any, leaf: _Leaf | None) -> Any:
    """A value of a feature as a column of a DATASET's metadata has it."""
    if column in CHARS:
        return len(_text(value, leaf))
    if column == "caption_tokens":
        return num_tokens(_text(value, leaf))
    if column == "image_sha256":
        return hashlib.sha256(value).hexdigest()
    return _text(value, leaf) if column in IDS else _plain(value)


def _keep(file: epath.Path, table: pa.Table) -> None:
    """Writes a table whole or not at all; a folder that cannot be written costs time, no more."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        pq.write_table(table, temporary)
        temporary.replace(file)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


def _text(value: Any, leaf: _Leaf | None) -> str:
    """`[b"a", b"b"]` -> "a\nb"; of a class its name, and "" of one that is not known (-1)."""
    if isinstance(value, (list, np.ndarray)):
        return "\n".join(filter(None, (_text(item, leaf) for item in value)))
    if leaf is not None and leaf.classes:
        return leaf.classes[value] if value >= 0 else ""
    return "" if value is None else str(_plain(value)).strip()
