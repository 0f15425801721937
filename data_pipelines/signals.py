"""The quality signals of a record: one entry a column of metadata.parquet.

    signals(record, pixels) -> {"aspect": 1.33, "sharpness": 212.0, ..., "modality": "chart", ...}

Each is cheap, has a unit, and says of one record only what can be seen in it. What needs other
records, or a model, is added by the pipeline: see duplicates.py and similarity.py.
Shape letters: H height, W width.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from data_pipelines.captions import Alignment
from data_pipelines.fingerprint import caption_hash, perceptual_hash
from data_pipelines.modality import image_probabilities, modality_of, named_modalities
from data_pipelines.panels import Panel, find_panels
from jaxclip.data.record import Record
from jaxclip.data.text import split_sentences

MEASURE_SIDE = 512  # pixels of the longer side at which edges and text are measured
MAX_LETTER = 28  # pixels of a letter's height there
LETTER_GAP = 13  # pixels between two letters of a line, a space included
LANGUAGES = (  # that journals are written in
    "en es pt fr de it nl pl ru uk zh ja ko tr cs sk hu ro bg sr hr sl sv da no fi et lv lt el "
    "ar fa he hi id ms vi th"
).split()
MIN_LANGUAGE_CHARS = 20  # of a caption whose language can be told


def signals(
    record: Record,
    pixels_HW3: np.ndarray,
    *,
    num_references: int | None = None,
    panels: Sequence[Panel] | None = None,
    alignment: Alignment | None = None,
) -> dict[str, Any]:
    """Every quality signal of one record.

    Args:
      pixels_HW3: uint8, RGB, of the record's image.
      num_references: how often the article cites the figure; by default the sentences of
        record.references.
      panels: of the record's image, where they are known; else they are looked for.
      alignment: how a panel got its text; None for a whole figure.
    Returns:
      aspect, short_side (pixels), sharpness, colourfulness, blank_share, border_share, text_share,
      chart_likeness, compound_probability, num_panels, caption_words, language,
      named_modalities, modality_overlap, modality, modality_confidence, num_references,
      alignment_type, alignment_score, perceptual_hash, caption_hash. Shares and probabilities are
      from 0 to 1; None is "cannot be told".
    """
    caption = record.panel_caption or record.caption
    by_image = image_probabilities(pixels_HW3)
    named = named_modalities(caption)
    modality, confidence = modality_of(named, by_image)
    panels = find_panels(pixels_HW3) if panels is None else panels
    if num_references is None:
        num_references = len(split_sentences(record.references)) if record.references else 0
    return {
        **_image_signals(pixels_HW3),
        "chart_likeness": by_image["chart"],
        "compound_probability": compound_probability(panels),
        "num_panels": len(panels),
        "caption_words": len(re.findall(r"\w+", caption)),
        "language": language(caption),
        "named_modalities": ", ".join(named),
        "modality_overlap": sum(by_image[name] for name in named) if named else None,
        "modality": modality,
        "modality_confidence": confidence,
        "num_references": num_references,
        "alignment_type": alignment.alignment_type if alignment else None,
        "alignment_score": alignment.alignment_score if alignment else None,
        "perceptual_hash": perceptual_hash(pixels_HW3),
        "caption_hash": caption_hash(caption),
    }


def compound_probability(panels: Sequence[Panel]) -> float:
    """How sure it is that a figure has several panels: a score to filter by, and not calibrated.

    From 0.5 on several were found, and it is the mean score of their cuts. Below, none: it is what
    the strongest gutter is worth that less evidence would have cut at, 0 if there is not even that.
    Of 30 compound figures of PMC 28 have at least 0.5; of 60 single ones 45 have 0, and 5 at least
    0.5 (experiments/benchmarks/panels.py has both sets).
    """
    if len(panels) > 1:
        return max(0.5, float(np.mean([panel.score for panel in panels])))
    return min(0.5, 1 - panels[0].score)


def language(text: str) -> str | None:
    """ISO 639-1 code of one of LANGUAGES, by py3langid; None for a text too short to tell.

    Of 5,992 English captions of PMC none gets another language, and 25 get None; with all languages
    that py3langid knows 74 were Latin, for their species, or Nigerian Pidgin.
    """
    if len(text) < MIN_LANGUAGE_CHARS:
        return None
    found, confidence = _identifier().classify(text)
    return str(found) if found == "en" or confidence >= 0.5 else None


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # takes a second to load

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


# --- Pixels ------------------------------------------------------------------------------------


def _image_signals(pixels_HW3: np.ndarray) -> dict[str, Any]:
    height, width = pixels_HW3.shape[:2]
    scale = min(1.0, MEASURE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.ascontiguousarray(pixels_HW3)
    if scale < 1:
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    return {
        "aspect": width / height,
        "short_side": min(height, width),
        "sharpness": sharpness(grey),
        "colourfulness": colourfulness(small),
        "blank_share": blank_share(grey),
        "border_share": border_share(grey),
        "text_share": text_share(grey),
    }


def sharpness(grey_HW: np.ndarray) -> float:
    """Variance of the Laplacian, squared grey levels (Pech-Pacheco et al. 2000)."""
    return float(cv2.Laplacian(grey_HW, cv2.CV_32F).var())


def colourfulness(pixels_HW3: np.ndarray) -> float:
    """0 for grey to about 100 (Hasler and Suesstrunk 2003, eq. 4)."""
    red, green, blue = (pixels_HW3[..., channel].astype(np.float32) for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    spread = np.hypot(first.std(), second.std())
    return float(spread + 0.3 * np.hypot(first.mean(), second.mean()))


def blank_share(grey_HW: np.ndarray) -> float:
    """Share of the area without any structure, in blocks of 8 x 8 pixels."""
    height, width = (side // 8 * 8 for side in grey_HW.shape)
    if not height or not width:
        return float(np.ptp(grey_HW) < 8)
    blocks = grey_HW[:height, :width].reshape(height // 8, 8, width // 8, 8)
    return float((blocks.max((1, 3)) - blocks.min((1, 3)) < 8).mean())


def border_share(grey_HW: np.ndarray) -> float:
    """Share of the area outside the smallest box around what differs from the corner's grey."""
    filled = np.abs(grey_HW.astype(np.int16) - int(grey_HW[0, 0])) > 16
    rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    if not len(rows):
        return 1.0
    content = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return 1 - float(content) / grey_HW.size


def text_share(grey_HW: np.ndarray) -> float:
    """Share of the area under lines of letters, dark on light or light on dark.

    Letters are small strokes of like height in a row: three or more beside one another.
    """
    covered = np.zeros(grey_HW.shape, bool)
    for method in (cv2.THRESH_BINARY_INV, cv2.THRESH_BINARY):
        offset = 20 if method == cv2.THRESH_BINARY_INV else -20
        ink = cv2.adaptiveThreshold(grey_HW, 1, cv2.ADAPTIVE_THRESH_MEAN_C, method, 25, offset)
        for left, top, width, height in _text_lines(ink):
            covered[top : top + height, left : left + width] = True
    return float(covered.mean())


def _text_lines(ink_HW: np.ndarray) -> np.ndarray:
    """Boxes (left, top, width, height) of rows of three or more letters."""
    count, labels_HW, stats, _ = cv2.connectedComponentsWithStats(ink_HW)
    width, height = stats[:, 2], stats[:, 3]
    is_letter = (height >= 4) & (height <= MAX_LETTER) & (width <= 2 * height)
    is_letter[0] = False  # what is not ink
    letters_HW = is_letter[labels_HW].astype(np.uint8)
    joined = cv2.morphologyEx(letters_HW, cv2.MORPH_CLOSE, np.ones((1, LETTER_GAP), np.uint8))
    _, lines_HW, line_stats, _ = cv2.connectedComponentsWithStats(joined)
    line_of_letter = np.zeros(count, np.int64)
    line_of_letter[labels_HW[letters_HW > 0]] = lines_HW[letters_HW > 0]
    letters_in_line = np.bincount(line_of_letter, minlength=len(line_stats))
    is_line = (letters_in_line >= 3) & (line_stats[:, 3] <= MAX_LETTER)
    is_line &= line_stats[:, 2] >= 2 * line_stats[:, 3]
    is_line[0] = False
    return line_stats[is_line, :4]
