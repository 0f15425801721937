"""Captions of compound figures: which words are about which panel.

    split_caption("Mice. (a) CT. (b) MRI. Bar, 1 mm.") -> prefix "Mice.", parts (("a",), "CT."),
        (("b",), "MRI."), suffix "Bar, 1 mm."
    align(panels, split) -> the text of each panel, how it was found, and how far to trust it

Written for the ways in which journals mark panels: "(a) ...", "a) ...", "A. ...", "A: ...",
"A, ...; B-D, ...", "A Text", "text (A) and text (B)", "Panel A ...", "Left: ...", "text (left)".
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.caption_markers import Marker, find_markers, in_series
from data_pipelines.panel_labels import Reader, read_labels
from data_pipelines.panels import Detector, Panel, find_panels
from jaxclip.data.text import sentence_spans

# Share of panels.csv whose label is what reading order says: experiments/benchmarks/captions.py
ORDER_SCORE = 0.92
# How a caption says what holds for all of its panels, at the end.
GENERAL = re.compile(
    r"(scale ?bars?|bars?\b|(original |total )?magnifications?|\(?[x×*]\s?\d+\b"
    r"|\*+ ?,? ?p\b|p ?[<=]"
    r"|(all )?(data|values|results|error bars?|graphs?|images?|experiments?|quantifications?) "
    r"(are|is|were|was|represents?|shows?|shown|expressed|presented|obtained)"
    r"|all (the )?(images|panels|data|scale|ihc|sections|experiments)|statistic|abbreviations?"
    r"|mean\b|means\b|immunohistochemistry with|see also|details (are|of)|n ?= ?\d"
    r"|(white |black |red |yellow )?(arrow(head)?s?|asterisks?|stars?)\b.{0,12}"
    r"(indicat|point|show|mark)"
    r"|(symbols?|letters?|lines?|colou?rs?|circles?) (represent|indicat|denot|show)"
    r"|asterisks?\b|reprinted|adapted|reproduced|modified from|copyright|source:)",
    re.IGNORECASE,
)

UNFINISHED = re.compile(r"\b(?:of|in|from|with|for|by|to|on|at|between|the|both)$")
_CONJUNCTION_FIRST = re.compile(r"^(?:and|or|while|whereas) +")
_CONJUNCTION_LAST = re.compile(r"[ ,;](?:and|or|while|whereas)$")


@dataclasses.dataclass(frozen=True, slots=True)
class SplitCaption:
    """A caption in parts. Without parts it could not be split, and `prefix` is all of it."""

    prefix: str  # before the parts, about all of them
    parts: tuple[tuple[tuple[str, ...], str], ...] = ()  # (labels, text), a label once
    suffix: str = ""  # after the parts, about all of them

    @property
    def is_split(self) -> bool:
        return bool(self.parts)

    def text(self, part: int) -> str:
        """What is said of one part's panels: prefix, the part itself, suffix."""
        return " ".join(filter(None, (self.prefix, self.parts[part][1], self.suffix)))

    def whole(self) -> str:
        """Prefix, every part with its labels, suffix."""
        parts = (f"({', '.join(labels)}) {text}" for labels, text in self.parts)
        return " ".join(filter(None, (self.prefix, *parts, self.suffix)))


@dataclasses.dataclass(frozen=True, slots=True)
class Alignment:
    """The text of one panel.

    alignment_type has PMC-OA's names where it means the same, and two more:
      "nonCompound-figure"   one panel: the whole caption
      "nonCompound-caption"  several panels, and no telling which words are whose: the whole caption
      "OCR"                  the label read in the panel is the label of the part
      "position"             the caption says left, right, top, bottom
      "order"                as many labels as panels, in reading order
    PMC-OA's "CLIP" (a model chose) is never given here.
    """

    panel: int  # index into the panels
    text: str
    alignment_type: str
    alignment_score: float  # 0 to 1: how likely the text is this panel's


# --- Splitting ---------------------------------------------------------------------------------


def split_caption(text: str) -> SplitCaption:
    """Splits the caption of a compound figure at its panel labels.

    Labels are kept as written ("A", "b", "iv", "left"); "(A-C)" and "A and B:" give several. A part
    that announces others ("A and B: mice. A: control.") is said with each of them.
    """
    text = " ".join(text.split())
    markers = find_markers(text)
    if not markers:
        return SplitCaption(text)
    prefix, claims, suffix = _claim_text(text, markers)
    texts: dict[str, list[str]] = {}
    for marker, words in claims:
        for label in marker.labels:
            texts.setdefault(label, []).extend([words] if words else [])
    parts: list[tuple[tuple[str, ...], str]] = []
    for label, words in texts.items():
        joined = " ".join(words)
        if parts and parts[-1][1] == joined:
            parts[-1] = ((*parts[-1][0], label), joined)
        else:
            parts.append(((label,), joined))
    if not all(words for _, words in parts):  # a label without words: not understood
        return SplitCaption(text)
    return SplitCaption(prefix, tuple(parts), suffix)


def _claim_text(text: str, markers: Sequence[Marker]) -> tuple[str, list[tuple[Marker, str]], str]:
    """The text between markers goes to the one it follows or the one it leads to."""
    before = text[: markers[0].start]
    claims = []
    if markers[0].leads:
        prefix = before
    else:
        prefix, words = _cut_last_sentence(before)
        claims.append((markers[0], _tidy(words)))
    stem = ""  # "SEM images of" (c) mice "and" (d) rats
    for marker, following in zip(markers, markers[1:], strict=False):
        between = text[marker.end : following.start]
        before, last = _cut_last_sentence(between)
        if before.strip():
            stem = ""
            if following.leads and not following.at_start and UNFINISHED.search(last.rstrip()):
                between, stem = before, _tidy(last)
        if marker.leads and not following.leads:
            between, words = _cut_last_sentence(between)
            claims += [(marker, _tidy(between)), (following, _tidy(words))]
        elif not following.leads:
            claims.append((following, _tidy(between)))
        else:
            claims.append((marker, _tidy(between)))
            claims += [(following, stem)] if not following.at_start else []
    rest = text[markers[-1].end :]
    if not markers[-1].leads:
        return _tidy(prefix), claims, _tidy(rest)
    words, suffix = _cut_general(rest)
    return _tidy(prefix), [*claims, (markers[-1], _tidy(words))], suffix.strip()


def _clauses(text: str) -> Iterator[int]:
    """Where each sentence begins, and each part of one after a semicolon."""
    for start, end in sentence_spans(text):
        yield start
        yield from (start + match.end() for match in re.finditer(r";\s+", text[start:end]))


def _cut_last_sentence(text: str) -> tuple[str, str]:
    *_, start = _clauses(text)
    return text[:start], text[start:]


def _cut_general(text: str) -> tuple[str, str]:
    """The last part's own words, and the sentences from the first that is about all panels on."""
    for start in list(_clauses(text))[1:]:
        if GENERAL.match(text, start):
            return text[:start], text[start:]
    return text, ""


def _tidy(text: str) -> str:
    """Without what joined it to its neighbours. Stripped, not searched: a regular expression with
    "[,;(]+$" takes time quadratic in a run of brackets."""
    text = _CONJUNCTION_FIRST.sub("", text.lstrip(" ,;:.)]–—-，；："))
    text = text.rstrip(" ,;:([–—-（，；：")
    if found := _CONJUNCTION_LAST.search(text):
        text = text[: found.start()].rstrip(" ,;")
    if text.count("(") == text.count(")") + 1:  # "(PSA; image C)" lost its end to the label
        text += ")"
    return text if re.search(r"\w", text) else ""


# --- Panels and their text ---------------------------------------------------------------------


def panels_of_caption(
    pixels_HW3: np.ndarray,
    split: SplitCaption,
    reader: Reader | None = None,
    detector: Detector = find_panels,
) -> list[Panel]:
    """The panels of a figure, looked for with what its caption says of them.

    Args:
      pixels_HW3: uint8, RGB.
      reader: reads the letters printed in the figure; None: they are not read.
      detector: finds the panels; a learned one goes here.
    """
    labels = [label for labels, _ in split.parts for label in labels]
    letters = read_labels(pixels_HW3, labels, reader) if reader else []
    is_quartered = any(label.split()[1:] for label in labels)  # "top left": there are four
    return detector(pixels_HW3, max(4, len(labels)) if is_quartered else len(labels), letters)


def align(panels: Sequence[Panel], split: SplitCaption) -> list[Alignment]:
    """The text of each panel, one Alignment a panel, in the order of `panels` (reading order).

    A label read from the picture decides where all labels that were read are in the caption, each
    once; reading order only if there are exactly as many labels as panels. Otherwise every panel
    keeps the whole caption, and the type says so.
    """
    whole = split.whole()
    if len(panels) < 2:
        return [Alignment(0, whole, "nonCompound-figure", 1.0) for _ in panels]
    texts = {label: split.text(i) for i, (labels, _) in enumerate(split.parts) for label in labels}
    by_label = _by_label(panels, texts) if texts else {}
    by_place = {} if by_label else _by_place(panels, texts)
    by_order = {}
    has_places = any(label.split()[-1] in ("left", "right", "top", "bottom") for label in texts)
    if texts and not has_places and len(texts) == len(panels):
        by_order = dict(enumerate(in_series(texts)))
        if any(by_order[panel] != label for panel, label in by_label.items()):
            by_order = {}
    alignments = []
    for index, panel in enumerate(panels):
        if index in by_label:
            found = texts[by_label[index]], "OCR", panel.score
        elif index in by_place:
            found = texts[by_place[index]], "position", ORDER_SCORE * panel.score
        elif index in by_order:
            found = texts[by_order[index]], "order", ORDER_SCORE * panel.score
        else:
            found = whole, "nonCompound-caption", 1 / max(1, len(texts))
        alignments.append(Alignment(index, *found))
    return alignments


def _by_label(panels: Sequence[Panel], texts: dict[str, str]) -> dict[int, str]:
    """Panel -> label, for labels that were read; nothing if they contradict the caption."""
    known = {label.casefold(): label for label in texts}
    read = {i: panel.label.casefold() for i, panel in enumerate(panels) if panel.label}
    if len(set(read.values())) < len(read) or not set(read.values()) <= known.keys():
        return {}
    return {i: known[label] for i, label in read.items()}


def _by_place(panels: Sequence[Panel], texts: dict[str, str]) -> dict[int, str]:
    """Panel -> "left", "top right", ...: for two panels side by side or one above the other."""
    axes = {0: ("left", "middle", "right"), 1: ("top", "middle", "bottom")}
    for axis, names in axes.items():
        wanted = [name for name in names if name in texts]
        if len(wanted) == len(texts) == len(panels) and wanted[0] != "middle":
            starts, ends = ([panel.box[axis + side] for panel in panels] for side in (0, 2))
            order = sorted(range(len(panels)), key=lambda i, s=starts: s[i])
            apart = all(ends[a] <= starts[b] + 2 for a, b in zip(order, order[1:], strict=False))
            return dict(zip(order, wanted, strict=True)) if apart else {}
    return {}
