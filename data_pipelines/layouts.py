"""The released layouts of the corpora, one declaration each: a row as published -> a Figure.

Known traps, and what is done about each, stand beside the field they are about. Sources: the
projects' own readers and writers, as told in each docstring.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_pipelines.figure import Figure, as_json, as_text
from jaxclip.data.image import ImageError

Row = Mapping[str, Any]
NAME = re.compile(r"(PMC\d+)_(.+?)(?:_(\d+))?(?:\.\w+)?")  # PMC212319_Fig3_4.jpg
PMCID = re.compile(r"PMC\d+")
NO_CAPTION = {"no caption found", "nan", "none"}  # what the writers put where there was none


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a corpus is published.

    to_figure makes a Figure of a row: the fields of a sample or line, with "image_bytes", or where
    the table names them, with what was found under the names of `image_names`.
    """

    reader: str  # tar | table | parquet | tfds
    files: str  # what --input is
    to_figure: Callable[[Row], Figure] | None = None  # None: by the fields of the command line
    source: str = ""  # name of the corpus; "": the layout's
    licence: str = ""
    split_by_file: bool = False  # the files' names say train, validation or test
    image_names: Callable[[Row], Sequence[str]] = lambda row: ()  # in --images: the first that is


def parse_name(name: str) -> tuple[str, str, str]:
    """ "a/PMC212319_Fig3_4.jpg" -> ("PMC212319", "Fig3", "4"): article, figure, panel or ""."""
    base = name.rpartition("/")[2]
    if match := NAME.fullmatch(base):
        return match[1], match[2], match[3] or ""
    found = PMCID.search(base)
    return (found[0] if found else ""), base.rpartition(".")[0] or base, ""


def caption_text(value: Any) -> str:
    text = as_text(value)
    return "" if text.lower().rstrip(".") in NO_CAPTION else text


def figure_of(row: Row, item: str = "", **fields: Any) -> Figure:
    """A Figure of a row with a field "caption", or of what `fields` say instead.

    Args:
      item: what a table's line is about; a sample of a tar is known by its key.
    """
    image = row.get("image_bytes")
    common = {
        "name": f"line {row['__key__']}: {item}" if item else f"{row['__url__']}: {row['__key__']}",
        "image": image if isinstance(image, (bytes, ImageError)) else ImageError("no image"),
        "caption": caption_text(row.get("caption")),
    }
    return Figure(**common | fields)


def _strings(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    return [as_text(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]


# --- Open-PMC, PMC-OA, BIOMEDICA ------------------------------------------------------------------


def open_pmc(row: Row) -> Figure:
    """Open-PMC: PMC_ID, image, full_caption, sub_caption, intext_refs, modality.

    Where the caption could not be split, the writer stored its language model's answer "NO" as the
    sub-caption: that is no text of the figure's, and the signal `sub_caption_refused` says so.
    """
    article, figure, panel = parse_name(as_text(row.get("image")) or row["__key__"])
    sub_caption = caption_text(row.get("sub_caption"))
    refused = sub_caption.strip(". ").upper() == "NO"
    sub_caption = "" if refused else sub_caption
    references = row.get("intext_refs")
    return figure_of(
        row,
        caption=caption_text(row.get("full_caption") or row.get("caption")) or sub_caption,
        panel_caption=sub_caption,
        references=as_text(as_json(references) or references),
        summary=as_text(row.get("intext_refs_summary") or row.get("summary")),
        article_id=as_text(row.get("PMC_ID") or row.get("pmcid")) or article,
        figure_id=figure,
        panel_id=panel,
        licence=as_text(row.get("license")),
        signals={"modality": as_text(row.get("modality")), "sub_caption_refused": refused},
    )


def open_pmc_18m(row: Row) -> Figure:
    """Open-PMC-18M: tars of jpg with json or jsonl; sub-figures of BIOMEDICA's figures.

    The 2025 release gives every sub-figure the caption of its whole figure, so panels of a figure
    share a text (`figure_id` groups them); the 2026 revision adds sub_caption, summary and labels.
    Unverified: the release's field names beyond `caption`; those of Open-PMC are read too.
    """
    figure = open_pmc(row)
    label = row.get("label_L1") or row.get("primary_label") or row.get("modality")
    signals = figure.signals | {"modality": as_text(label)}
    signals |= {"modality_fine": as_text(row.get("label_L2") or row.get("secondary_label"))}
    return dataclasses.replace(figure, signals=signals)


def pmc_oa(row: Row) -> Figure:
    """PMC-OA: image, caption, alignment_type, alignment_score (the loader's and writer's fields).

    pmc_oa.jsonl has the sub-caption where alignment_type is OCR or CLIP, and the whole caption for
    nonCompound-*; pmc_oa_beta.jsonl the whole caption always. The README's rows have neither
    alignment field. `caption` is the text there is; a sub-caption stands in `panel_caption` too.
    """
    image, alignment = as_text(row.get("image")), as_text(row.get("alignment_type"))
    article, figure, panel = parse_name(image)
    score = row.get("alignment_score")
    score = float(score) if isinstance(score, (int, float)) else None
    return figure_of(
        row,
        image,
        panel_caption=caption_text(row.get("caption")) if alignment in ("OCR", "CLIP") else "",
        article_id=as_text(row.get("pmcid")) or article,
        figure_id=figure,
        panel_id=panel,
        signals={"alignment_type": alignment, "alignment_score": score},
    )


BIOMEDICA_SIGNALS = {  # column <- released field
    "cluster": "image_label_id",
    "image_hash": "image_hash",
    "panel_type": "image_panel_type",  # these two contradict each other for half of the clusters,
    "panel_subtype": "image_panel_subtype",  # so they stay two columns
    "journal": "article_journal",
    "date": "article_date",
}
BIOMEDICA_LISTS = {
    "primary_label": "image_primary_label",
    "secondary_label": "image_secondary_label",
    "mesh_terms": "article_mesh_terms",
    "keywords": "article_keywords",
}


def biomedica(row: Row) -> Figure:
    """BIOMEDICA: jpg, txt (the caption), json (image_*, article_*; the ETL's step 06).

    `image_cluster_id` is the graphic's id, and `image_label_id` the cluster. `image_context` is the
    whole article's {href: [paragraphs]}, with only this figure's taken. The full text, which every
    image of an article repeats, is left out. Shards are sorted by cluster: the trainer's shuffle is
    over all records.
    """
    href = as_text(row.get("image_cluster_id") or row.get("image_file_name"))
    article = as_text(row.get("article_accession_id"))
    if not article and (found := PMCID.search(row["__key__"])):
        article = found[0]
    signals = {name: as_text(row.get(field)) for name, field in BIOMEDICA_SIGNALS.items()}
    signals |= {name: _strings(row.get(field)) for name, field in BIOMEDICA_LISTS.items()}
    return figure_of(
        row,
        caption=caption_text(row.get("txt")),
        references=context_of(href, as_json(row.get("image_context"))),
        article_id=f"PMC{article}" if article.isdecimal() else article,
        figure_id=href.rpartition(".")[0] if href.lower().endswith((".jpg", ".png")) else href,
        licence=as_text(row.get("article_license")),
        signals=signals,
    )


def context_of(href: str, context: Any) -> str:
    """The paragraphs of {href: [paragraphs]} about one figure; hrefs come with and without ".jpg".

    `("f1", {"f1.jpg": ["See Fig. 1."], "f2": ["No."]})` -> "See Fig. 1."
    """
    if not isinstance(context, Mapping) or not href:
        return ""
    stem = re.sub(r"\.(jpe?g|png|gif|tiff?)$", "", href, flags=re.IGNORECASE)
    for name in (href, stem, f"{stem}.jpg"):
        if name in context:
            return as_text(context[name])
    return ""


# --- Their kin ------------------------------------------------------------------------------------


def roco(row: Row) -> Figure:
    """ROCO: {train,test,validation}data.csv with id, name, caption; images named as `name`.

    Its figures are whole ones: ci9b00834_0002 is no panel of ci9b00834. Images that the publisher
    has since removed are missing files. The release's splits are by image: figures of an article
    stand in several. They are kept, because results are quoted on them.
    """
    name, roco_id = as_text(row.get("name")), as_text(row.get("id"))
    article, figure, number = parse_name(name)
    return figure_of(
        row,
        name,
        article_id=article or roco_id,
        figure_id=f"{figure}_{number}" if number else figure,
        split=row["__split__"],
        signals={"roco_id": roco_id},
    )


def rocov2(row: Row) -> Figure:
    """ROCOv2: parquet of image, image_id, caption, cui; no article ids, so none is invented."""
    image_id = as_text(row.get("image_id")) or row["__key__"]
    return figure_of(
        row,
        article_id=image_id,
        figure_id=image_id,
        split=row["__split__"],
        signals={"cui": _strings(row.get("cui"))},
    )


def medicat(row: Row) -> Figure:
    """MedICaT: pdf_hash, fig_uri, s2_caption or s2orc_caption, s2orc_references (list or null)."""
    oa = row.get("oa_info") if isinstance(row.get("oa_info"), Mapping) else {}
    paper, figure = as_text(row.get("pdf_hash")), as_text(row.get("fig_uri"))
    return figure_of(
        row,
        f"{paper}_{figure}",
        caption=caption_text(row.get("s2orc_caption")) or caption_text(row.get("s2_caption")),
        references=as_text(row.get("s2orc_references")),
        article_id=paper,
        figure_id=figure,
        licence=as_text(oa.get("license") or oa.get("oa_license")),
        signals={
            "radiology": bool(row.get("radiology")),
            "predicted_type": as_text(row.get("predicted_type")),
        },
    )


def quilt(row: Row) -> Figure:
    """Quilt-1M: caption, image_path, subset, split, pathology, magnification of the lookup CSV.

    An image has several rows, each another caption; they are kept as records of one figure. Frames
    of one video are one group: `VIDEO_image_UUID.jpg`, where the name has that form; images of an
    article, if the name begins with its PMC id. Published in ten zips.
    """
    path = as_text(row.get("image_path"))
    stem = path.rpartition("/")[2].rpartition(".")[0]
    return figure_of(
        row,
        path,
        article_id=parse_name(path)[0] or stem.partition("_image_")[0],
        figure_id=stem,
        split=as_text(row.get("split")),
        signals={name: as_text(row.get(name)) for name in ("subset", "pathology", "magnification")},
    )


LAYOUTS = {
    "open_pmc": Layout(
        reader="tar", files="train-*.tar (jpg + jsonl)", to_figure=open_pmc, licence="MIT"
    ),
    "open_pmc_18m": Layout(
        reader="tar", files="*.tar (jpg + json or jsonl)", to_figure=open_pmc_18m, licence="MIT"
    ),
    "pmc_oa": Layout(
        reader="table",
        files="pmc_oa.jsonl or pmc_oa_beta.jsonl, with --images=images.zip",
        to_figure=pmc_oa,
        image_names=lambda row: (
            f"caption_T060_filtered_top4_sep_v0_subfigures/{row.get('image')}",
            f"{row.get('image')}",
        ),
    ),
    "biomedica": Layout(
        reader="tar", files="commercial/*.tar (jpg + txt + json)", to_figure=biomedica
    ),
    "roco": Layout(
        reader="table",
        files="data/*/radiology/*data.csv, with images/ beside each",
        to_figure=roco,
        split_by_file=True,
        image_names=lambda row: (f"images/{row.get('name')}", f"images/{row.get('id')}.jpg"),
    ),
    "rocov2": Layout(
        reader="parquet",
        files="data/*.parquet",
        to_figure=rocov2,
        licence="CC BY-NC-SA 4.0",
        split_by_file=True,
    ),
    "medicat": Layout(
        reader="table",
        files="s2_full_figures_*_public.jsonl, with --images=figures",
        to_figure=medicat,
        image_names=lambda row: (f"{row.get('pdf_hash')}_{row.get('fig_uri')}",),
    ),
    "quilt": Layout(
        reader="table",
        files="quilt_1M_lookup.csv, with --images='images_part_*.zip'",
        to_figure=quilt,
        source="quilt_1m",
        image_names=lambda row: (f"{row.get('image_path')}", f"quilt_1m/{row.get('image_path')}"),
    ),
}
