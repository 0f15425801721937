"""Draws biomedical-looking figures of known content: `draw(rng, facts, size) -> uint8 [H, W, 3]`.

Pictures are square; lengths are fractions of `size`, their side in pixels; x runs right, y down. As
radiologists look at images, the patient's left is on the right.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from data_pipelines.synthetic_captions import Facts
from data_pipelines.synthetic_figures.charts import draw_chart, write_text
from data_pipelines.synthetic_figures.microscopy import draw_fluorescence, draw_histology
from data_pipelines.synthetic_figures.radiology import draw_ct, draw_radiograph
from data_pipelines.synthetic_figures.ultrasound import draw_ultrasound

JPEG_QUALITY = 92
_DRAW = {
    "radiograph": draw_radiograph,
    "ct": draw_ct,
    "ultrasound": draw_ultrasound,
    "histology": draw_histology,
    "fluorescence": draw_fluorescence,
    "chart": draw_chart,
}


def draw(rng: np.random.Generator, facts: Facts, size: int) -> np.ndarray:
    """The picture of `facts`, RGB [size, size, 3]."""
    return _DRAW[facts.modality](rng, facts, size)


def compose(
    panels: Sequence[np.ndarray], letters: Sequence[str], columns: int, gap: int
) -> np.ndarray:
    """One figure of equally large panels [H, W, 3], row by row, a letter in the corner of each."""
    tiles = []
    for panel, letter in zip(panels, letters, strict=True):
        tile = np.pad(panel, ((0, gap), (0, gap), (0, 0)), constant_values=255)
        box = round(0.15 * len(panel))
        tile[:box, :box] = 255
        write_text(tile, letter, 0.02, 0.11, 0.0033)
        tiles.append(tile)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)[: -gap or None, : -gap or None]


def near_duplicate(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image as another publication shows it: cropped by up to 3 % a side, rescaled, relit."""
    height, width = image.shape[:2]
    top, bottom = (rng.uniform(0.005, 0.03, 2) * height).astype(int)
    left, right = (rng.uniform(0.005, 0.03, 2) * width).astype(int)
    image = image[top : height - bottom, left : width - right]
    scale = rng.uniform(0.85, 1.0)
    image = cv2.resize(
        image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
    )
    return cv2.convertScaleAbs(image, alpha=rng.uniform(0.88, 1.08), beta=rng.uniform(-6, 10))


def encode(image: np.ndarray) -> bytes:
    """JPEG: grey where the image is, else 4:4:4, as figures are full of fine coloured detail."""
    red, green, blue = (image[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        grey = np.ascontiguousarray(image[..., :1])
        return simplejpeg.encode_jpeg(
            grey, JPEG_QUALITY, colorspace="GRAY", colorsubsampling="Gray"
        )
    return simplejpeg.encode_jpeg(image, JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
