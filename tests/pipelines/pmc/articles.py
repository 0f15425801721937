"""Small articles as PMC ships them: JATS with figures beside their images."""

import collections
import io
import json
import os
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.pmc.build import build_pmc
from data_pipelines.pmc.context import ContextOptions
from data_pipelines.pmc.options import PmcOptions
from jaxclip.data.dataset import Dataset

FRONT = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS v1.2//EN" "JATS-archivearticle1.dtd">
<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML"
 article-type="research-article"><front><journal-meta><journal-title-group>
<journal-title>Test Journal</journal-title></journal-title-group></journal-meta><article-meta>
<article-id pub-id-type="pmc">{number}</article-id>
<article-id pub-id-type="doi">10.1/{number}</article-id>
<title-group><article-title>On <italic>mice</italic></article-title></title-group>
<pub-date pub-type="ppub"><year>2019</year></pub-date>
<pub-date pub-type="epub"><day>3</day><month>2</month><year>2020</year></pub-date>
<permissions><license xlink:href="{licence}"><license-p>Open.</license-p></license></permissions>
<kwd-group><kwd>mouse</kwd><kwd>liver</kwd></kwd-group>
<kwd-group kwd-group-type="MeSH"><kwd>Animals</kwd></kwd-group>
</article-meta></front>"""
CC_BY = "http://creativecommons.org/licenses/by/4.0/"


def article(body: str, number: int = 1, licence: str = CC_BY, after: str = "") -> bytes:
    front = FRONT.format(number=number, licence=licence)
    return f"{front}<body>{body}</body>{after}</article>".encode()


def fig(number: int, caption: str = "", graphic: str = "", more: str = "") -> str:
    """<fig id="F2"> with its label, a caption of paragraphs, and an image of its own name."""
    graphic = graphic or f'<graphic xlink:href="f{number}"/>'
    caption = f"<caption>{caption}</caption>" if caption else ""
    return f'<fig id="F{number}"><label>Figure {number}.</label>{caption}{graphic}{more}</fig>'


def picture(seed: int = 0, size: tuple[int, int] = (60, 80), kind: str = "JPEG", mode: str = "RGB"):
    """A smooth random picture, encoded."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size[::-1], Image.Resampling.BICUBIC).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write_articles(folder: pathlib.Path, count: int) -> pathlib.Path:
    """`count` articles PMC100, ...: Figure 1 of each with an image, Figure 2 without one."""
    for number in range(100, 100 + count):
        directory = folder / f"PMC{number}"
        directory.mkdir(parents=True)
        text = f"<p>See Figure 1 of mouse {number}. Then nothing. Figure 2 too.</p>"
        figures = fig(1, f"<p>Mouse {number}.</p>") + fig(2, "<p>No image.</p>")
        (directory / f"PMC{number}.nxml").write_bytes(article(text + figures, number))
        (directory / "f1.jpg").write_bytes(picture(number))
    return folder


def build(source, out, *, beam=(), context=None, **options) -> Dataset:
    options = {"workers": 1, "tokenizer_vocab": 0, "articles_per_shard": 2} | options
    options = {"panels": "figures"} | options
    pmc = PmcOptions(input=os.fspath(source), out=os.fspath(out), **options)
    return build_pmc(pmc, ContextOptions(**context or {}), beam)


def drops(dataset: Dataset) -> collections.Counter:
    lines = (dataset.path / "dropped.jsonl").read_text().splitlines()
    return collections.Counter(json.loads(line)["reason"] for line in lines)
