"""A figure as a source has it -> a record of a DATASET, or a counted drop: one rule for all."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.images import prepare_image
from data_pipelines.options import WriteOptions, option
from data_pipelines.signals import signals
from jaxclip.data.image import ImageError, decode_image
from jaxclip.data.record import (
    SPLIT_NAMES,
    TEXT_FIELDS,
    Drop,
    Example,
    Record,
    own_columns,
    split_of,
)

SIZES = {"original_width", "original_height"}


@dataclasses.dataclass(slots=True, kw_only=True)
class FigureOptions(WriteOptions):
    """What becomes of a figure, wherever it comes from."""

    split: tuple[float, ...] = option((0.9, 0.05, 0.05), "shares of train, validation, test")
    split_salt: str = option("", "another salt is another partition")
    min_side: int = option(16, "pixels; a smaller image is dropped")
    min_caption_chars: int = option(1, "a shorter caption is dropped")
    short_side: int = option(288, "pixels; a larger image is reduced to it")
    quality: int = option(92, "of the JPEG")
    keep_original: bool = option(False, "keep the image's size, and a JPEG's or PNG's bytes")

    def validate(self) -> None:
        """Raises ValueError: a field out of its range."""
        self.split = split = tuple(float(share) for share in self.split)
        if len(split) != 3 or min(split) < 0 or not math.isclose(sum(split), 1):
            raise ValueError(
                f"split {split} must be three shares that sum to 1, e.g. 0.9,0.05,0.05."
            )
        for name in ("min_side", "min_caption_chars", "short_side", "quality"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        if self.quality > 100:
            raise ValueError(f"quality ({self.quality}) must be at most 100.")

    def content(self) -> dict[str, Any]:
        """The options that decide what the dataset holds, for the manifest's made_by."""
        place = {field.name for field in dataclasses.fields(WriteOptions)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in place}


@dataclasses.dataclass(slots=True, kw_only=True)
class FieldOptions(FigureOptions):
    """Which field of a row, or column of a table, is what."""

    images: str = option("", "folder, zip or zips (glob) with the images that rows name")
    image: str = option("", "field: bytes, or a path inside --images")
    caption: str = option("", "field: caption of the whole figure")
    group: str = option("", "field: article or patient; a group is never in two splits")
    panel_caption: str = option("", "field: the part of the caption about this panel")
    references: str = option("", "field: the sentences that cite the figure")
    summary: str = option("", "field: summary of the references")
    figure: str = option("", "field: figure id within the group; default: the image's name")
    panel: str = option("", "field: panel id within the figure")
    source: str = option("", "name of the corpus, or of a table's column with it")
    licence: str = option("", "field; of a table also the licence of every record")
    keep: tuple[str, ...] = option((), "fields to keep as signals in metadata.parquet")
    signals: bool = option(False, "measure every quality signal (signals.py); takes longer")

    def __post_init__(self):
        self.keep = tuple(self.keep)

    def validate(self) -> None:
        FigureOptions.validate(self)
        if clash := sorted({*self.keep} & (own_columns() | SIZES)):
            raise ValueError(
                f"keep ({clash[0]!r}) is a column that every record has. Leave it out."
            )

    def text(self, row: Mapping[str, Any], role: str) -> str:
        """`text(row, "figure")`: what the field of that role holds; "" if none has it."""
        name = getattr(self, role)
        return as_text(row.get(name)) if name else ""


@dataclasses.dataclass(slots=True, kw_only=True)
class Figure:
    """One image with its texts, as a source has them."""

    name: str  # what the user knows it by
    image: bytes | ImageError  # the error, where there is none to be had
    caption: str
    article_id: str
    figure_id: str = ""
    panel_id: str = ""
    panel_caption: str = ""
    references: str = ""
    summary: str = ""
    source: str = ""
    licence: str = ""
    split: str | None = None  # the source's own name of it; None: by article
    signals: dict[str, Any] = dataclasses.field(default_factory=dict)


def to_example(figure: Figure, options: FieldOptions) -> Example | Drop:
    """Checks a figure, prepares its image and decides its split."""

    def drop(reason: str, detail: str = "") -> Drop:
        return Drop(item=figure.name, reason=reason, detail=detail)

    if not figure.article_id:
        return drop("missing group")
    if not figure.caption:
        return drop("empty caption")
    if len(figure.caption) < options.min_caption_chars:
        return drop("caption too short", figure.caption)
    if figure.split is None:
        split = split_of(figure.article_id, options.split, options.split_salt)
    elif (split := SPLIT_NAMES.get(figure.split.lower(), "")) == "":
        return drop("unknown split", figure.split)
    try:
        if isinstance(figure.image, ImageError):
            raise figure.image
        image = prepare_image(
            figure.image,
            short_side=options.short_side,
            quality=options.quality,
            keep_original=options.keep_original,
            min_side=options.min_side,
        )
    except ImageError as error:
        return drop(error.reason, error.detail)
    ids = ("article_id", "figure_id", "panel_id", "source", "licence")
    record = Record(
        image=image.data,
        width=image.width,
        height=image.height,
        **{name: getattr(figure, name) for name in (*TEXT_FIELDS, *ids)},
    )
    found = figure.signals
    if options.signals:
        measured = signals(record, decode_image(image.data))
        # what the release says of the same thing stays beside it
        found = {f"released_{k}" if k in measured else k: v for k, v in found.items()} | measured
    sizes = {"original_width": image.original_width, "original_height": image.original_height}
    converted = {"converted_from": image.converted_from}
    return Example(record=record, split=split, signals=found | sizes | converted)


def as_text(value: Any) -> str:
    """A cell of any table as text: None and NaN -> "", ["a", {"x": "b"}] -> "a\\nb"."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if value is None or value != value:  # NaN is how pandas writes an empty cell
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return "\n".join(filter(None, map(as_text, value)))
    # half a surrogate pair, which JSON can hold, is no UTF-8
    return str(value).encode(errors="replace").decode().strip()


def as_signal(value: Any) -> Any:
    """What metadata.parquet and JSON can hold: a bool, number or text, or a list of texts."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return [as_text(v) for v in value] if isinstance(value, (list, tuple)) else as_text(value)


def as_json(value: Any) -> Any:
    """A value that some releases keep as JSON text: '{"a": 1}' -> {"a": 1}; None if it is not."""
    if not isinstance(value, (str, bytes)):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
