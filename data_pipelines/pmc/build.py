"""The dataset of a folder of articles: batches of them, each its own shard. See __main__.py."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from data_pipelines.card import write_card
from data_pipelines.duplicates import duplicate_columns
from data_pipelines.panel_labels import rapidocr_reader
from data_pipelines.panels import Detector, find_panels
from data_pipelines.pmc.articles import Folder, Source, list_inputs, open_articles
from data_pipelines.pmc.context import ContextOptions, ask_ahead
from data_pipelines.pmc.jats import Article, XmlError, parse_article
from data_pipelines.pmc.licence import licence_group
from data_pipelines.pmc.options import PmcOptions
from data_pipelines.pmc.records import Item, article_items
from data_pipelines.remote import exists, upload
from data_pipelines.similarity import add_similarity, clip_score
from data_pipelines.table import key_warnings
from data_pipelines.text_table import read_rows, stage
from data_pipelines.write import STAGED_ROWS, build_dataset
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import Drop
from jaxclip.data.subset import open_dataset


def build_pmc(
    options: PmcOptions,
    context: ContextOptions,
    beam: Sequence[str] = (),
    detector: Detector = find_panels,
) -> Dataset:
    """Builds the dataset of a folder of articles, with its card.

    Articles or images that came or went since make it another dataset; that a file changed under
    its name is not noticed.

    Args:
      detector: of the panels, a module's function; the manifest has its name.
    Raises:
      ValueError, FileNotFoundError: an option, or what build_dataset raises.
    """
    options.validate()
    context.validate()
    if options.read_labels:
        rapidocr_reader()  # says now if it is not installed
    print(f"Listing {options.input} ...")
    root, names, listing = list_inputs(options.input)
    if not names:
        raise ValueError(f"input ({options.input!r}) has no .nxml, .xml or .tar.gz in it.")
    staged = os.path.join(options.out, STAGED_ROWS)

    def jobs() -> list[range]:
        if not exists(staged):
            rows = ({"file": name} for name in names)
            stage(rows, ["file"], [], staged, from_csv=False)
        step = options.articles_per_shard or min(max(8, -(-len(names) // 16)), 256)
        return [range(i, min(i + step, len(names))) for i in range(0, len(names), step)]

    made_by = _made_by(options, context) | {"files": {"count": len(names), "sha256": listing}}
    made_by["detector"] = f"{detector.__module__}.{detector.__qualname__}"
    cache = context.summary_cache or options.out.rstrip("/") + ".summaries"
    dataset = build_dataset(
        options.out,
        jobs=jobs,
        make_items=functools.partial(_make_items, root, staged, options, context, cache, detector),
        made_by=made_by,
        workers=options.workers,
        beam=beam,
        tokenizer_vocab=options.tokenizer_vocab,
        add_columns=_add_columns(options),
        overwrite=options.overwrite,
    )
    for warning in key_warnings(
        dataset, "Is an article there twice, as folder and package, or in two versions? Keep one."
    ):
        print(warning)
    write_card(dataset)
    upload(dataset.path, ["card.json", "card.html"], options.out)
    print(f"The card: {os.path.join(options.out, 'card.html')}")
    return dataset


def _made_by(options: PmcOptions, context: ContextOptions) -> dict[str, Any]:
    content = options.content() | dataclasses.asdict(context)
    for name in ("summary_url", "summary_cache", "summary_requests"):  # change no byte
        del content[name]
    content["duplicates_of"] = {
        path: open_dataset(path).content_hash for path in options.duplicates_of
    }
    if options.read_labels:
        content["rapidocr"] = importlib.metadata.version("rapidocr")
    if options.similarity:
        content["similarity_weights"] = clip_score(options.similarity).weights_sha256
    return {"module": "data_pipelines.pmc", "options": content}


def _add_columns(options: PmcOptions) -> Callable[..., pa.Table] | None:
    if options.duplicate_bits < 0:
        return None
    others, bits = options.duplicates_of, options.duplicate_bits
    return functools.partial(duplicate_columns, others, bits, options.workers)


def _make_items(
    root: str,
    staged: str,
    options: PmcOptions,
    context: ContextOptions,
    cache: str,
    detector: Detector,
    rows: range,
) -> Iterator[Item]:
    files = [row["file"] for _, row in read_rows(staged, rows, ["file"])]
    if context.summary == "model":
        ask_ahead(context, cache, _articles(root, files, options))
    items = _items(root, files, options, context, cache, detector)
    return add_similarity(items, clip_score(options.similarity)) if options.similarity else items


def _items(
    root: str,
    files: list[str],
    options: PmcOptions,
    context: ContextOptions,
    cache: str,
    detector: Detector,
) -> Iterator[Item]:
    folder = Folder(root)
    for file in files:
        try:
            for source in open_articles(folder, file):
                if isinstance(source, Drop):
                    yield source
                else:
                    yield from article_items(options, context, cache, source, detector)
        except Exception as error:
            error.add_note(file)
            raise


def _articles(root: str, files: list[str], options: PmcOptions) -> Iterator[Article]:
    """Those of a job that have a figure with a licence that is wanted."""
    folder = Folder(root)
    for file in files:
        for source in open_articles(folder, file):
            with contextlib.suppress(XmlError):  # counted when its figures are
                if isinstance(source, Source):
                    article = parse_article(source.xml)
                    if any(licence_group(f.licence) in options.licences for f in article.figures):
                        yield article
