"""What a record is: one figure or panel with all its texts, and the names it is known by.

A DATASET is many of them in a directory: see dataset.py.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import msgpack

from jaxclip.data.files import AGAIN

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test")
ALL = "all"  # in place of a split: all of them
# what others call them
SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation"}
SPLIT_NAMES |= {"valid": "validation", "dev": "validation", "test": "test"}
TEXT_FIELDS = ("caption", "panel_caption", "references", "summary")
OTHER_VERSION = "Rebuild the dataset with this jaxclip, or install the one that wrote it."
TOKEN = re.compile(r"\w+|[^\w\s]")


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
    name = article_key(group)
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


def num_tokens(text: str) -> int:
    """Words and punctuation marks, whatever the tokenizer will be."""
    return len(TOKEN.findall(text))


def article_key(article_id: str) -> str:
    """Names an article alike in all corpora; "" where there is no id.

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
    article = article_key(record.article_id)
    figure = re.sub(r"\.(jpe?g|png|gif|tiff?)$", "", record.figure_id.strip().lower())
    return f"{article}\0{figure}" if article and figure else ""


def metadata_row(example: Example, packed_bytes: int) -> dict[str, Any]:
    record = example.record
    if example.split not in SPLITS:
        raise ValueError(f"split ({example.split!r}) must be one of {', '.join(SPLITS)}.")
    row: dict[str, Any] = {
        name: getattr(record, name)
        for name in ("article_id", "figure_id", "panel_id", "source", "licence", "width", "height")
    }
    row |= {"split": example.split, "record_bytes": packed_bytes}
    row |= {"image_sha256": record.image_sha256}
    texts = record.texts()
    row |= {f"{field}_chars": len(text.strip()) for field, text in texts.items()}
    row |= {"caption_tokens": num_tokens(record.caption)}
    row |= {"texts_hash": hash64("\x1f".join(texts.values()))}  # one image, two captions
    if clash := (row.keys() | {"position"}) & example.signals.keys():
        raise ValueError(
            f"signals {sorted(clash)} are names of the record's own columns. Rename them."
        )
    return row | example.signals


def own_columns() -> set[str]:
    """Names of the columns that metadata.parquet has of every record."""
    record = Record(image=b"", width=1, height=1, caption="")
    return {"position", *metadata_row(Example(record=record, split="train"), 0)}
