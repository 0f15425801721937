"""The dataset of a folder of articles: batches of them, each its own shard. See __main__.py."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from data_pipelines.card import write_card
from data_pipelines.options import WriteOptions, option
from data_pipelines.pmc.articles import list_inputs, open_articles
from data_pipelines.pmc.context import ContextOptions
from data_pipelines.pmc.records import FigureOptions, Item, article_items
from data_pipelines.text_table import read_rows, stage
from data_pipelines.write import STAGED_ROWS, build_dataset
from jaxclip.data.record import Dataset, Drop


@dataclasses.dataclass(slots=True, kw_only=True)
class PmcOptions(WriteOptions):
    """Where articles come from, and where the dataset goes."""

    input: str = option("", "folder of articles or packages, or one of them")
    articles_per_shard: int = option(0, "files of the input in a batch; 0: 1/16, 8 to 256")

    def validate(self) -> None:
        for name in ("input", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        if self.articles_per_shard < 0:
            raise ValueError(f"articles_per_shard ({self.articles_per_shard}) must be 0 or more.")


def build_pmc(
    options: PmcOptions,
    figures: FigureOptions,
    context: ContextOptions,
    beam: Sequence[str] = (),
) -> Dataset:
    """Builds the dataset of a folder of articles, with its card.

    Raises:
      ValueError: an option, or what build_dataset raises.
    """
    figures.split = tuple(float(share) for share in figures.split)
    figures.licences = tuple(figures.licences)
    for part in (options, figures, context):
        part.validate()
    root, _ = list_inputs(options.input)
    staged = os.path.join(options.out, STAGED_ROWS)

    def jobs() -> list[range]:
        if not os.path.exists(staged):
            print(f"Listing {options.input} ...")
            rows = ({"file": name} for name in list_inputs(options.input)[1])
            stage(rows, ["file"], [], staged, from_csv=False)
        count = pq.read_metadata(staged).num_rows
        if not count:
            raise ValueError(f"input ({options.input!r}) has no .nxml, .xml or .tar.gz in it.")
        step = options.articles_per_shard or min(max(8, -(-count // 16)), 256)
        return [range(i, min(i + step, count)) for i in range(0, count, step)]

    cache = context.summary_cache or options.out.rstrip("/") + ".summaries"
    dataset = build_dataset(
        options.out,
        jobs=jobs,
        make_items=functools.partial(_make_items, root, staged, figures, context, cache),
        made_by=_made_by(options, figures, context),
        workers=options.workers,
        beam=beam,
        tokenizer_vocab=options.tokenizer_vocab,
        overwrite=options.overwrite,
    )
    write_card(dataset)
    return dataset


def _made_by(options: PmcOptions, figures: FigureOptions, context: ContextOptions) -> dict:
    content = {"input": options.input, "articles_per_shard": options.articles_per_shard}
    content |= dataclasses.asdict(figures) | dataclasses.asdict(context)
    for name in ("summary_url", "summary_cache", "summary_requests"):  # change no byte
        del content[name]
    return {"module": "data_pipelines.pmc", "options": content}


def _make_items(
    root: str,
    staged: str,
    figures: FigureOptions,
    context: ContextOptions,
    cache: str,
    rows: range,
) -> Iterator[Item]:
    for _, row in read_rows(staged, rows, ["file"]):
        try:
            for source in open_articles(root, row["file"]):
                if isinstance(source, Drop):
                    yield source
                else:
                    yield from article_items(figures, context, cache, source)
        except Exception as error:
            error.add_note(row["file"])
            raise
