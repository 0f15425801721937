"""An article -> a record a figure, or one a panel; everything else is a drop with its reason."""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

from data_pipelines.captions import (
    Alignment,
    SplitCaption,
    align,
    panels_of_caption,
    split_caption,
)
from data_pipelines.images import PreparedImage, prepare_image, prepare_pixels
from data_pipelines.panel_labels import rapidocr_reader
from data_pipelines.panels import Box, Detector, Panel, find_panels
from data_pipelines.pmc.articles import Source
from data_pipelines.pmc.context import ContextOptions, Summary, references, summarise
from data_pipelines.pmc.jats import Article, Figure, XmlError, parse_article
from data_pipelines.pmc.licence import licence_group
from data_pipelines.pmc.options import PmcOptions
from data_pipelines.signals import signals
from jaxclip.data.image import ImageError, converted_from, decode_image
from jaxclip.data.record import Drop, Example, Record, split_of

Item = Example | Drop | collections.Counter


@dataclasses.dataclass(slots=True)
class _Made:
    """What all records of one image are made of."""

    options: PmcOptions
    context: ContextOptions
    article: Article
    figure: Figure
    figure_id: str
    summary: Summary
    detector: Detector
    converted_from: str = ""  # see image.converted_from


@dataclasses.dataclass(slots=True, kw_only=True)
class _Part:
    """A figure, or one panel of it, on its way into a record."""

    image: PreparedImage
    panel_id: str = ""
    alignment: Alignment
    labels: tuple[str, ...] = ()  # of the panels that the text is about
    box: Box  # of the published image, in its pixels
    panels: list[Panel] | None  # of the image; None: not looked for


def article_items(
    options: PmcOptions,
    context: ContextOptions,
    cache: str,
    source: Source,
    detector: Detector = find_panels,
) -> Iterator[Item]:
    """The records and drops of one article, and what was counted on the way."""
    try:
        article = parse_article(source.xml)
    except XmlError as error:
        yield collections.Counter(articles=1)
        yield Drop(item=source.name, reason=f"article: {error.reason}", detail=error.detail)
        return
    yield collections.Counter(articles=1, figures=len(article.figures))
    if article.is_damaged:  # figures behind the damage were not found: they are not counted
        yield collections.Counter({"articles with damaged XML": 1})
    article.article_id = article.article_id or source.stem
    wanted = [f for f in article.figures if licence_group(f.licence) in options.licences]
    summaries = summarise(context, cache, article) if wanted else {}
    for figure in article.figures:
        item = f"{source.name} {figure.figure_id}"
        if unwanted := _unwanted(options, figure):
            yield collections.Counter({"images named": 1})
            yield Drop(item=item, reason=unwanted[0], detail=unwanted[1])
            continue
        summary = summaries.get(figure.figure_id, Summary("", ""))
        for number, names in enumerate(figure.graphics, start=1):
            yield collections.Counter({"images named": 1})
            figure_id = figure.figure_id if number == 1 else f"{figure.figure_id} image {number}"
            made_of = _Made(options, context, article, figure, figure_id, summary, detector)
            yield from _image_items(made_of, source, names)


def _unwanted(options: PmcOptions, figure: Figure) -> tuple[str, str] | None:
    """(reason, detail) for a figure that is dropped whatever its image is."""
    if licence_group(figure.licence) not in options.licences:
        return "licence", figure.licence or "none that is known"
    if not figure.caption:
        return "empty caption", ""
    if len(figure.caption) < options.min_caption_chars:
        return "caption too short", figure.caption
    return None if figure.graphics else ("no image named", "")


def _image_items(made_of: "_Made", source: Source, names: list[str]) -> Iterator[Item]:
    item = f"{source.name} {made_of.figure_id}"
    file = source.find_image(names)
    if file is None:
        yield Drop(item=item, reason="missing image", detail=" or ".join(names))
        return
    try:
        data = source.folder.read(file)
        pixels_HW3 = decode_image(data)
        made_of.converted_from = converted_from(data)
    except ImageError as error:
        yield Drop(item=item, reason=error.reason, detail=error.detail)
        return
    if made_of.converted_from:
        yield collections.Counter({f"images converted from {made_of.converted_from}": 1})
    for part in _parts(made_of, data, pixels_HW3, item):
        if isinstance(part, Drop):
            yield part
            continue
        yield collections.Counter({"panels" if part.panel_id else "whole figures": 1})
        yield _example(made_of, part)


def _parts(made_of: _Made, data: bytes, pixels_HW3, item: str) -> Iterator["_Part | Drop"]:
    """The whole figure, its panels, or both."""
    options, figure = made_of.options, made_of.figure
    split = split_caption(figure.caption)
    reader = rapidocr_reader() if options.read_labels else None
    panels = panels_of_caption(pixels_HW3, split, reader, made_of.detector)
    alignments = align(panels, split)
    is_compound = len(panels) > 1
    if not is_compound or options.panels != "panels":
        whole = Alignment(0, figure.caption, "nonCompound-figure", 1.0)
        if is_compound:
            whole = dataclasses.replace(whole, alignment_type="compound-figure")
        try:
            image = prepare_image(data, **options.image())
            box = (0, 0, image.original_width, image.original_height)
            yield _Part(image=image, alignment=whole, box=box, panels=panels)
        except ImageError as error:
            yield Drop(item=item, reason=error.reason, detail=error.detail)
    if not is_compound or options.panels == "figures":
        return
    for alignment in alignments:
        panel = panels[alignment.panel]
        left, top, right, bottom = panel.box
        panel_id = str(alignment.panel + 1)
        try:
            image = prepare_pixels(pixels_HW3[top:bottom, left:right], **options.image())
        except ImageError as error:
            yield Drop(
                item=f"{item} panel {panel_id}", reason=f"panel {error.reason}", detail=error.detail
            )
            continue
        yield _Part(
            image=image,
            panel_id=panel_id,
            alignment=alignment,
            labels=_labels(split, alignment),
            box=panel.box,
            panels=None,
        )


def _labels(split: SplitCaption, alignment: Alignment) -> tuple[str, ...]:
    """The labels of the caption's part that a panel has; () where it has the whole caption."""
    for number, (labels, _) in enumerate(split.parts):
        if split.text(number) == alignment.text:
            return labels
    return ()


def _example(made_of: "_Made", part: _Part) -> Example:
    options, article, figure = made_of.options, made_of.article, made_of.figure
    most_tokens = made_of.context.references_tokens
    text, num_references, is_cut = references(figure, part.labels, most_tokens)
    record = Record(
        image=part.image.data,
        width=part.image.width,
        height=part.image.height,
        caption=figure.caption,
        panel_caption=part.alignment.text if part.labels else "",
        references=text,
        summary=made_of.summary.text,
        article_id=article.article_id,
        figure_id=made_of.figure_id,
        panel_id=part.panel_id,
        source=options.source,
        licence=figure.licence,
    )
    columns: dict[str, Any] = {
        "original_width": part.image.original_width,
        "original_height": part.image.original_height,
        "converted_from": made_of.converted_from,
        "figure_label": figure.label,
        "panel_label": ",".join(part.labels),
        "panel_box": list(part.box),
        "references_cut": is_cut,
        "summary_by": made_of.summary.by,
        "licence_group": licence_group(figure.licence),
        "pmid": article.pmid,
        "doi": article.doi,
        "journal": article.journal,
        "date": article.date,
        "article_type": article.article_type,
        "article_title": article.title,
        "keywords": article.keywords,
        "mesh": article.mesh,
        "xml_damaged": article.is_damaged,
    }
    columns |= signals(
        record,
        decode_image(record.image),
        num_references=num_references,
        panels=part.panels,
        alignment=part.alignment,
    )
    split = split_of(article.article_id, options.split, options.split_salt)
    return Example(record=record, split=split, signals=columns)
