"""A corpus of synthetic biomedical figures, with captions that are known to be true or untrue.

    python -m data_pipelines.synthetic --out=DIR --size=8000 --seed=0 --swap_fraction=0.1

Figures are drawn (synthetic_figures/), captions say what is drawn (synthetic_captions.py), and
dials add what spoils real corpora. The truth is in the columns of metadata.parquet:

    modality organ finding side count size stain trend  what is drawn; "|" between panels
    figure_index num_panels is_compound                 of the figure that a panel is part of
    caption_states      attributes that the caption names: "modality,organ"; "|" between panels
    caption_is_swapped  the caption is untrue: it is about the figure in caption_of
    caption_is_short    it leaves most attributes out
    duplicate_of        article/figure(/panel) of which this is a near-duplicate, or ""
    copy                0; 1, 2, ... of what --copies stores again, bytes and texts alike

Every figure has its own random streams, one for each decision. Hence the corpus of a smaller --size
is a prefix of that of a larger one, and a dial that is turned up spoils the same figures and more
of them. In-text references are always true of the image. Dials spoil the train split only, unless
--spoil_held_out, so that all settings are measured on the same held-out figures.
"""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from data_pipelines.options import WriteOptions, option, run
from data_pipelines.synthetic_captions import (
    ATTRIBUTES,
    IMAGING,
    Facts,
    cite,
    describe,
    sample_facts,
    stated_attributes,
)
from data_pipelines.synthetic_figures import compose, draw, encode, near_duplicate
from data_pipelines.write import build_dataset
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import Example, Record, split_of

# Articles have 1..6 figures: each block of 6 articles has every number once, in its own order. So
# the article of a figure is known without looking at those before it.
BLOCK_ARTICLES, BLOCK_FIGURES = 6, 21
LATER_SHARE = 15 / 21  # of figures that are not the first of their article
PANEL_LAYOUTS = ((2, 2), (2, 1), (3, 3), (4, 2), (6, 3), (6, 2))  # panels, columns
PANEL_SCALE = 2 / 3  # a panel's short side, in that of a simple figure
MARKS = ("({})", "{},", "{}.", "({}):", "Panel {}:")
FIGURE_WORDS = ("Fig.", "Figure")
FIGURES_PER_SHARD = 500


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticConfig:
    """What determines the content of the corpus; fractions are expected shares of figures."""

    size: int = option(8000, "figures; with --split_panels there are more records")
    seed: int = option(0, "another seed is another corpus")
    image_size: int = option(192, "short side of simple figures, in pixels")
    validation_fraction: float = option(0.0625, "share of articles in the validation split")
    test_fraction: float = option(0.0625, "share of articles in the test split")
    chart_fraction: float = option(0.0, "figures that are charts")
    compound_fraction: float = option(0.0, "figures of 2 to 6 panels")
    split_panels: bool = option(False, "a record of each panel, with its panel_caption")
    duplicate_fraction: float = option(0.0, "figures that are near-duplicates of another")
    duplicate_leak: float = option(0.0, "near-duplicates whose original is in an earlier article")
    copies: int = option(1, "records of each figure and its caption, all the same")
    swap_fraction: float = option(0.0, "figures with the caption of another figure")
    short_fraction: float = option(0.0, "figures whose caption leaves most attributes out")
    spoil_held_out: bool = option(False, "apply the dials to validation and test, too")

    def validate(self) -> None:
        for name, least in (("size", 1), ("seed", 0), ("image_size", 64), ("copies", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} ({value}) must be at least {least}.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and not 0 <= value <= 1:
                raise ValueError(f"{field.name} ({value}) must be from 0 to 1. Set 0.1 for 10 %.")
        if (held_out := self.validation_fraction + self.test_fraction) >= 1:
            raise ValueError(
                f"validation_fraction + test_fraction ({held_out:g}) must be below 1, or "
                "nothing is left to train on. Lower one of them."
            )
        if self.duplicate_fraction > LATER_SHARE:
            raise ValueError(
                f"duplicate_fraction ({self.duplicate_fraction}) must be at most "
                f"{LATER_SHARE:.3f}: the first figure of an article is an original. Lower it."
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a figure stands in the corpus."""

    article: int
    number: int  # in its article, from 1
    first: int  # index of its article's first figure
    article_id: str
    split: str


@dataclasses.dataclass(frozen=True, slots=True)
class Spoiled:
    """What the dials do to a figure."""

    chart: bool
    compound: bool
    duplicate: bool
    leak: bool
    swap: bool
    short: bool


def _rng(config: SyntheticConfig, purpose: str, *index: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, zlib.crc32(purpose.encode()), *index))


@functools.lru_cache(maxsize=1 << 14)
def place_of(config: SyntheticConfig, index: int) -> Place:
    block, offset = divmod(index, BLOCK_FIGURES)
    ends = np.cumsum(1 + _rng(config, "articles", block).permutation(BLOCK_ARTICLES))
    k = int(np.searchsorted(ends, offset, side="right"))
    number = offset + 1 - (int(ends[k - 1]) if k else 0)
    article = block * BLOCK_ARTICLES + k
    article_id = f"synthetic{config.seed}-{article:07d}"
    held_out = config.validation_fraction, config.test_fraction
    split = split_of(article_id, (1 - sum(held_out), *held_out))
    return Place(article, number, index - number + 1, article_id, split)


@functools.lru_cache(maxsize=1 << 14)
def spoiled(config: SyntheticConfig, index: int) -> Spoiled:
    place = place_of(config, index)
    spoils = place.split == "train" or config.spoil_held_out
    u = _rng(config, "dials", index).random(6).tolist()
    return Spoiled(
        chart=spoils and u[0] < config.chart_fraction,
        compound=spoils and u[1] < config.compound_fraction,
        duplicate=spoils and place.number > 1 and u[2] * LATER_SHARE < config.duplicate_fraction,
        leak=place.article > 0 and u[3] < config.duplicate_leak,
        swap=spoils and u[4] < config.swap_fraction,
        short=spoils and u[5] < config.short_fraction,
    )


def original_of(config: SyntheticConfig, index: int) -> int:
    """Index of the figure that figure `index` is a near-duplicate of, or its own.

    It is the first figure of this article or, if it leaks, of an earlier one: never a duplicate.
    """
    spoil, first = spoiled(config, index), place_of(config, index).first
    if not spoil.duplicate:
        return index
    if not spoil.leak:
        return first
    return place_of(config, int(_rng(config, "original", index).integers(first))).first


def panels_of(config: SyntheticConfig, index: int, num_panels: int = 0) -> tuple[Facts, ...]:
    """What a figure shows, one Facts a panel; num_panels: as if it had so many."""
    index = original_of(config, index)
    spoil, article = spoiled(config, index), place_of(config, index).article
    topic = IMAGING[_rng(config, "topic", article).integers(len(IMAGING))]
    rng = _rng(config, "chart" if spoil.chart else "facts", index)

    def modality(usual: str) -> str:
        """Half of an article's figures, and of a figure's panels, are of one modality."""
        return usual if rng.random() < 0.5 else IMAGING[rng.integers(len(IMAGING))]

    panels = [sample_facts(rng, "chart" if spoil.chart else modality(topic))]
    count, _ = layout_of(config, index) if spoil.compound else (1, 1)
    while len(panels) < (num_panels or count):
        panels.append(sample_facts(rng, "chart" if spoil.chart else modality(panels[0].modality)))
    return tuple(panels)


def layout_of(config: SyntheticConfig, index: int) -> tuple[int, int]:
    """Panels and columns, if the figure is a compound one."""
    return PANEL_LAYOUTS[_rng(config, "layout", index).integers(len(PANEL_LAYOUTS))]


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """What the caption of a figure is about: the facts of each panel, and which are stated."""

    figure: int  # another one, if the caption is swapped
    panels: Sequence[Facts]
    stated: Sequence[tuple[str, ...]]


def subject_of(config: SyntheticConfig, index: int, panels: Sequence[Facts]) -> Subject:
    """A swapped caption is untrue of every panel: something that it states is not what is drawn."""
    spoil = spoiled(config, index)
    rng = _rng(config, "swap" if spoil.swap else "stated", index)
    if not spoil.swap:
        return Subject(index, panels, [stated_attributes(rng, f, spoil.short) for f in panels])
    while True:
        donor = int(rng.integers(max(0, index - 5000), index + 5000))  # size has no say in it
        theirs = panels_of(config, donor, len(panels))
        stated = [stated_attributes(rng, facts, spoil.short) for facts in theirs]
        untrue = all(
            any(getattr(own, name) != getattr(their, name) for name in names)
            for own, their, names in zip(panels, theirs, stated, strict=True)
        )
        if untrue and place_of(config, donor).article != place_of(config, index).article:
            return Subject(donor, theirs, stated)


@dataclasses.dataclass(frozen=True, slots=True)
class Wording:
    """The texts of a figure."""

    letters: Sequence[str]  # of the panels; [""] of a simple figure
    panel_captions: Sequence[str]
    caption: str
    references: str


def wording_of(config: SyntheticConfig, index: int, subject: Subject) -> Wording:
    panels, letters = panels_of(config, index), [""]
    if len(panels) > 1:  # a near-duplicate has the letters of its original
        upper = _rng(config, "letters", original_of(config, index)).random() < 0.5
        letters = list(("ABCDEF" if upper else "abcdef")[: len(panels)])
    rng = _rng(config, "wording", index)
    figure = f"{FIGURE_WORDS[rng.integers(len(FIGURE_WORDS))]} {place_of(config, index).number}"
    mark = MARKS[rng.integers(len(MARKS))] if len(panels) > 1 else "{}"
    texts = [describe(rng, *said) for said in zip(subject.panels, subject.stated, strict=True)]
    pairs = list(zip(letters, texts, strict=True))
    caption = " ".join(f"{mark.format(letter)} {text}" for letter, text in pairs).strip()
    cited = [cite(rng, f, figure + letter) for f, letter in zip(panels, letters, strict=True)]
    return Wording(letters, texts, caption, " ".join(cited))


def examples_of(config: SyntheticConfig, index: int) -> list[Example]:
    """The records of one figure: itself, or with split_panels each of its panels."""
    place, original = place_of(config, index), original_of(config, index)
    panels = panels_of(config, index)
    subject = subject_of(config, index, panels)
    wording = wording_of(config, index, subject)
    images = images_of(config, index, wording.letters)
    examples = []
    for k, image in enumerate(images):
        is_panel = len(images) > 1
        shown = slice(k, k + 1) if is_panel else slice(None)
        panel_id = wording.letters[k].lower() if is_panel else ""
        record = Record(
            image=encode(image),
            width=image.shape[1],
            height=image.shape[0],
            caption=wording.caption,
            panel_caption=wording.panel_captions[k] if is_panel else "",
            references=wording.references,
            article_id=place.article_id,
            figure_id=f"F{place.number}",
            panel_id=panel_id,
            source="synthetic",
            licence="CC0-1.0",
        )
        signals = _signals(panels[shown], subject.stated[shown]) | {
            "figure_index": index,
            "num_panels": len(panels),
            "is_compound": len(panels) > 1,
            "caption_is_swapped": subject.figure != index,
            "caption_of": _key(config, subject.figure) if subject.figure != index else "",
            "caption_is_short": spoiled(config, index).short,
            "duplicate_of": _key(config, original, panel_id) if original != index else "",
        }
        examples.append(Example(record=record, split=place.split, signals=signals))
    return examples


def images_of(config: SyntheticConfig, index: int, letters: Sequence[str]) -> list[np.ndarray]:
    """The figure, uint8 [H, W, 3], or with split_panels each of its panels."""
    original, panels = original_of(config, index), panels_of(config, index)
    size = round(config.image_size * (PANEL_SCALE if len(panels) > 1 else 1))
    images = [
        draw(_rng(config, "image", original, k), facts, size) for k, facts in enumerate(panels)
    ]
    if len(panels) > 1 and not config.split_panels:
        _, columns = layout_of(config, original)
        images = [compose(images, letters, columns, gap=max(2, size // 25))]
    if original == index:
        return images
    return [near_duplicate(_rng(config, "copy", index, k), image) for k, image in enumerate(images)]


def _key(config: SyntheticConfig, index: int, panel_id: str = "") -> str:
    place = place_of(config, index)
    return "/".join(filter(None, (place.article_id, f"F{place.number}", panel_id)))


def _signals(panels: Sequence[Facts], stated: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """The attributes of what is drawn; count is 0 if there are several panels."""
    signals = {name: "|".join(str(getattr(facts, name)) for facts in panels) for name in ATTRIBUTES}
    signals["count"] = panels[0].count if len(panels) == 1 else 0
    return signals | {"caption_states": "|".join(",".join(names) for names in stated)}


def make_examples(config: SyntheticConfig, figures: range) -> Iterator[Example]:
    cv2.setNumThreads(1)  # a process per core draws already
    for index in figures:
        spoils = place_of(config, index).split == "train" or config.spoil_held_out
        examples = examples_of(config, index)
        for copy in range(config.copies if spoils else 1):
            for example in examples:
                signals = example.signals | {"copy": copy}
                yield dataclasses.replace(example, signals=signals)


def build_synthetic(config: SyntheticConfig, out: str, **options: Any) -> Dataset:
    """Writes the corpus at `out`; options: of build_dataset."""
    config.validate()
    first = range(0, config.size, FIGURES_PER_SHARD)
    return build_dataset(
        out,
        jobs=[range(i, min(i + FIGURES_PER_SHARD, config.size)) for i in first],
        make_items=functools.partial(make_examples, config),
        made_by={
            "module": "data_pipelines.synthetic",
            "options": dataclasses.asdict(config),
            "drawn_with": {"opencv": cv2.__version__, "numpy": np.__version__},
        },
        **options,
    )


def main(config: SyntheticConfig, options: WriteOptions) -> None:
    if not options.out:
        raise ValueError("out is not set. Give --out=FOLDER.")
    build_synthetic(config, **dataclasses.asdict(options))


if __name__ == "__main__":
    run(main, SyntheticConfig, WriteOptions)
