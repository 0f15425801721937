"""How fast are articles parsed, beside pubmed_parser on the same files, and is any figure lost?

  python -m experiments.benchmarks.jats --archive=../shared/data/pmc_xml/pmc_xml_biomed.tar.xz

Needs pubmed_parser (pip install pubmed_parser). Of each article both read what a figure's record is
made of: metadata, captions, the paragraphs of the text. Here that is one parse_article, which also
resolves who cites what; there parse_pubmed_xml, parse_pubmed_caption and parse_pubmed_paragraph,
with all_paragraph=True (by default it leaves out what cites no literature, but may cite figures).
The two take turns article by article, files in memory's cache, CPU seconds of this one process. An
article at which pubmed_parser fails counts with the time until then.

No figure may be lost: of every article that is read, those of parse_article are at least lxml's own
<fig> elements (a <fig-group> with an image of its own is one more), or this ends with an error; and
so it does where an article is not read.
"""

import collections
import contextlib
import io
import json
import os
import tempfile
import time

from absl import flags
from lxml import etree

from data_pipelines.pmc.articles import Folder, open_articles
from data_pipelines.pmc.jats import XmlError, parse_article
from jaxclip import command
from jaxclip.data.record import Drop

ARCHIVE = flags.DEFINE_string("archive", None, "tar of JATS files", required=True)
OUT = flags.DEFINE_string("out", "", "JSON file for the figures found")
THEIRS = {"parse_pubmed_xml": {}, "parse_pubmed_caption": {}}
THEIRS |= {"parse_pubmed_paragraph": {"all_paragraph": True}}


def main(_) -> None:
    seconds: collections.Counter = collections.Counter()
    counts: collections.Counter = collections.Counter()
    folder, _, name = os.path.abspath(ARCHIVE.value).rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "article.xml")
        for source in open_articles(Folder(folder), name):
            if isinstance(source, Drop):
                raise ValueError(f"archive: {source.reason}: {source.detail}")
            with open(path, "wb") as file:
                file.write(source.xml)
            compare(path, seconds, counts)
    found = summary(seconds, counts)
    print(json.dumps(found, indent=1))
    if OUT.value:
        with open(OUT.value, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


def compare(path: str, seconds: collections.Counter, counts: collections.Counter) -> None:
    """One article by both, the first of the two in turn; adds to seconds and counts."""
    import pubmed_parser

    counts["articles"] += 1
    parsed = None
    runs = [ours, *(getattr(pubmed_parser, name) for name in THEIRS)]
    for run in runs if counts["articles"] % 2 else runs[::-1]:
        start = time.process_time()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = run(path, **THEIRS.get(run.__name__, {}))
        except Exception as error:
            counts[f"{run.__name__} failed: {type(error).__name__}"] += 1
            result = None
        seconds[run.__name__] += time.process_time() - start
        if run is ours and result is not None:
            counts["figures"] += len(result.figures)
            counts["figures cited"] += sum(bool(figure.citations) for figure in result.figures)
            counts["figures with a caption"] += sum(bool(f.caption) for f in result.figures)
            counts["damaged"] += result.is_damaged
            parsed = result
    tree = etree.parse(path, etree.XMLParser(recover=True, load_dtd=False, no_network=True))
    elements = sum(1 for _ in tree.iter("fig"))
    counts["<fig> elements"] += elements
    if parsed is None or len(parsed.figures) < elements:
        found = "nothing" if parsed is None else f"{len(parsed.figures)} figures"
        raise AssertionError(f"article {counts['articles']}: {found} of {elements} <fig> elements")


def ours(path: str):
    with open(path, "rb") as file:
        data = file.read()
    try:
        return parse_article(data)
    except XmlError as error:
        raise RuntimeError(error.reason) from error


def summary(seconds: collections.Counter, counts: collections.Counter) -> dict:
    theirs = sum(seconds[name] for name in THEIRS)
    return {
        "counts": dict(counts),
        "cpu_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "articles_per_second_per_core": round(counts["articles"] / seconds["ours"], 1),
        "articles_per_second_per_core_pubmed_parser": round(counts["articles"] / theirs, 1),
        "times_as_fast": round(theirs / seconds["ours"], 2),
        "times_as_fast_as_captions_alone": round(
            seconds["parse_pubmed_caption"] / seconds["ours"], 2
        ),
    }


if __name__ == "__main__":
    command.run(main)
