"""Corrupted images and perturbed captions, at five severities each, and what they cost.

Images are corrupted at a short side of 224 pixels, whatever they have, so that a severity is the
same share of the picture everywhere; the constants are ImageNet-C's (Hendrycks and Dietterich 2019,
arXiv:1903.12261). The draws depend on the image's or caption's number alone.

Shape letters: H height, W width.
"""

import functools
import io
import json
import re
from collections.abc import Callable

import cv2
import numpy as np
from etils import epath
from PIL import Image

from jaxclip.data.image import decode_image, resize

SEVERITIES = (1, 2, 3, 4, 5)
SHORT_SIDE = 224
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of pixels in [0, 1]
BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)  # standard deviation, pixels
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # factor
JPEG = (25, 18, 15, 10, 7)  # quality
RESOLUTION = (0.6, 0.5, 0.4, 0.3, 0.25)  # of the side
SHARE = (0.2, 0.4, 0.6, 0.8, 1.0)  # of words moved, or of terms abbreviated
KEPT = (0.8, 0.6, 0.4, 0.2, 0.1)  # of words, at least one


def _noise(pixels, level, rng):
    noise = rng.normal(0, NOISE[level] * 255, pixels.shape)
    return np.clip(pixels + noise + 0.5, 0, 255).astype(np.uint8)


def _blur(pixels, level, rng):
    return cv2.GaussianBlur(pixels, (0, 0), BLUR[level])


def _contrast(pixels, level, rng):
    mean = pixels.mean(axis=(0, 1))
    return np.clip((pixels - mean) * CONTRAST[level] + mean + 0.5, 0, 255).astype(np.uint8)


def _jpeg(pixels, level, rng):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG[level])
    return decode_image(buffer.getvalue())


def _resolution(pixels, level, rng):
    height, width = pixels.shape[:2]
    h, w = (max(1, round(side * RESOLUTION[level])) for side in (height, width))
    return resize(resize(pixels, h, w, "area"), height, width, "bicubic")


CORRUPTIONS: dict[str, Callable] = {
    "noise": _noise, "blur": _blur, "contrast": _contrast, "jpeg": _jpeg,
    "resolution": _resolution,
}  # fmt: skip


def corrupt_image(
    image: bytes | np.ndarray, corruption: str, severity: int, number: int
) -> np.ndarray:
    """uint8 RGB [H, W, 3] with a short side of 224.

    Args:
      severity: 1 to 5; 0: only resized, what the others are compared with.
      number: of the image; the seed of noise.
    """
    pixels = decode_image(image) if isinstance(image, bytes) else image
    scale = SHORT_SIDE / min(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    pixels = resize(np.ascontiguousarray(pixels), height, width, "bicubic")
    if not severity:
        return pixels
    return CORRUPTIONS[corruption](pixels, severity - 1, np.random.default_rng(number))


def _word_order(words, level, rng):
    moved = np.flatnonzero(rng.random(len(words)) < SHARE[level])
    found = list(words)
    for old, new in zip(moved, rng.permutation(moved), strict=True):
        found[old] = words[new]
    return found


def _truncation(words, level, rng):
    return words[: max(1, round(len(words) * KEPT[level]))]


@functools.cache
def _abbreviations() -> dict[str, str]:
    file = epath.resource_path("jaxclip") / "evals" / "prompts" / "_abbreviations.json"
    return json.loads(file.read_text())["abbreviations"]


def _abbreviate(text: str, level: int, rng: np.random.Generator) -> str:
    known = _abbreviations()
    pattern = "|".join(sorted(map(re.escape, known), key=len, reverse=True))

    def short(match):
        return known[match[0].lower()] if rng.random() < SHARE[level] else match[0]

    return re.sub(rf"\b({pattern})\b", short, text, flags=re.IGNORECASE)


PERTURBATIONS = ("word_order", "abbreviations", "truncation")


def perturb_caption(caption: str, perturbation: str, severity: int, number: int) -> str:
    """`"magnetic resonance imaging of the brain"` -> `"MRI of the brain"` (abbreviations, 5).

    Args:
      severity: 1 to 5; 0: the caption itself.
      number: of the caption; the seed of what is moved.
    """
    if not severity:
        return caption
    rng = np.random.default_rng(number)
    if perturbation == "abbreviations":
        return _abbreviate(caption, severity - 1, rng)
    change = {"word_order": _word_order, "truncation": _truncation}[perturbation]
    return " ".join(change(caption.split(), severity - 1, rng))
