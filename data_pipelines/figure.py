"""A figure as a source has it -> a record of a DATASET, or a counted drop: one rule for all."""

import dataclasses
import json
import math
from typing import Any

from data_pipelines.images import prepare_image
from data_pipelines.options import WriteOptions, option
from data_pipelines.signals import signals
from jaxclip.data.image import ImageError, decode_image
from jaxclip.data.record import SPLIT_NAMES, Drop, Example, Record, split_of


def check_figure_options(options: Any) -> None:
    """Raises ValueError: split, min_side, min_caption_chars, short_side or quality out of range."""
    if len(options.split) != 3 or min(options.split) < 0 or not math.isclose(sum(options.split), 1):
        raise ValueError(
            f"split {options.split} must be three shares that sum to 1, e.g. 0.9,0.05,0.05."
        )
    for name in ("min_side", "min_caption_chars", "short_side", "quality"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} ({getattr(options, name)}) must be at least 1.")
    if options.quality > 100:
        raise ValueError(f"quality ({options.quality}) must be at most 100.")


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
    signals: bool = option(False, "measure every quality signal (signals.py); takes longer")

    def validate(self) -> None:
        self.split = tuple(float(share) for share in self.split)
        check_figure_options(self)

    def content(self) -> dict[str, Any]:
        """The options that decide what the dataset holds, for the manifest's made_by."""
        place = {field.name for field in dataclasses.fields(WriteOptions)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in place}


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


def to_example(figure: Figure, options: FigureOptions) -> Example | Drop:
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
    texts = ("caption", "panel_caption", "references", "summary")
    ids = ("article_id", "figure_id", "panel_id", "source", "licence")
    record = Record(
        image=image.data,
        width=image.width,
        height=image.height,
        **{name: getattr(figure, name) for name in (*texts, *ids)},
    )
    found = figure.signals
    if options.signals:
        measured = signals(record, decode_image(image.data))
        # what the release says of the same thing stays beside it
        found = {f"released_{k}" if k in measured else k: v for k, v in found.items()} | measured
    sizes = {"original_width": image.original_width, "original_height": image.original_height}
    return Example(record=record, split=split, signals=found | sizes)


def as_text(value: Any) -> str:
    """A cell of any table as text: None and NaN -> "", ["a", {"x": "b"}] -> "a\\nb"."""
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


def as_json(value: Any) -> Any:
    """A value that some releases keep as JSON text: '{"a": 1}' -> {"a": 1}; None if it is not."""
    if not isinstance(value, (str, bytes)):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
