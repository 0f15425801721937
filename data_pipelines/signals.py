"""The quality signals of a record: one entry a column of metadata.parquet.

    signals(record, pixels) -> {"aspect": 1.33, "sharpness": 212.0, ..., "modality": "chart", ...}

Each is cheap, has a unit, and says of one record only what can be seen in it. What needs others, or
a model, is added when the dataset is there: `duplicate_cluster` by fingerprint.near_duplicates of
the column `perceptual_hash`, `similarity` by similarity.ClipScore.
Shape letters: H height, W width.
"""

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
    """How sure it is that a figure has several panels."""
    if len(panels) > 1:
        return max(0.5, float(np.mean([panel.score for panel in panels])))
    return min(0.5, 1 - panels[0].score)


def language(text: str) -> str | None:
    """ISO 639-1 code, by py3langid; None for a text too short to tell."""
    if len(text) < MIN_LANGUAGE_CHARS:
        return None
    import py3langid  # its model takes a second to load

    return str(py3langid.classify(text)[0])


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
        _, _, stats, _ = cv2.connectedComponentsWithStats(ink)
        for left, top, width, height in _lines(stats[1:, :4]):
            covered[top : top + height, left : left + width] = True
    return float(covered.mean())


def _lines(boxes: np.ndarray) -> list[np.ndarray]:
    """Boxes (left, top, width, height) of letters in rows of three or more."""
    width, height = boxes[:, 2], boxes[:, 3]
    letters = boxes[(height >= 4) & (height <= 28) & (width >= 1) & (width <= 2 * height)]
    letters = letters[np.argsort(letters[:, 0])]
    found: list[np.ndarray] = []
    lines: list[list[np.ndarray]] = []
    for box in letters:
        for line in lines:
            last = line[-1]
            gap = box[0] - (last[0] + last[2])
            level = abs((box[1] + box[3]) - (last[1] + last[3]))
            like = 0.6 < box[3] / last[3] < 1.7
            if -1 <= gap <= 1.2 * last[3] and level <= 0.35 * last[3] and like:
                line.append(box)
                break
        else:
            lines.append([box])
        lines = [line for line in lines if _is_near(line, box) or not found.extend(_long(line))]
    for line in lines:
        found.extend(_long(line))
    return found


def _is_near(line: list[np.ndarray], box: np.ndarray) -> bool:
    last = line[-1]
    return box[0] <= last[0] + last[2] + 1.2 * last[3]


def _long(line: list[np.ndarray]) -> list[np.ndarray]:
    return line if len(line) >= 3 else []
