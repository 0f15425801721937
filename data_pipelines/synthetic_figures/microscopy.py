"""Histology and fluorescence of known content."""

import cv2
import numpy as np

from data_pipelines.synthetic_captions import Facts
from data_pipelines.synthetic_figures.shapes import (
    fill,
    outline,
    oval,
    paint,
    spots,
    stroke,
    texture,
)

# --- histology ------------------------------------------------------------------------------------

# Optical density per unit of dye in red, green, blue.
_HEMATOXYLIN, _EOSIN, _DAB = (0.80, 0.90, 0.32), (0.06, 0.75, 0.25), (0.35, 0.75, 1.25)
_FUCHSIN, _ANILINE_BLUE, _IRON = (0.12, 0.95, 0.70), (1.15, 0.55, 0.12), (1.0, 1.1, 0.8)
# stain -> the dye and its amount on nuclei, cytoplasm, stroma
_DYES = {
    "H&E": ((_HEMATOXYLIN, 1.3), (_EOSIN, 0.75), (_EOSIN, 0.45)),
    "IHC": ((_HEMATOXYLIN, 0.7), (_DAB, 0.85), (_HEMATOXYLIN, 0.1)),
    "trichrome": ((_IRON, 1.1), (_FUCHSIN, 0.7), (_ANILINE_BLUE, 0.75)),
}


def draw_histology(rng: np.random.Generator, facts: Facts, size: int) -> np.ndarray:
    """Beer-Lambert: light times exp(-density), summed over what the dyes bind to."""
    tissue = _TISSUES[facts.organ](rng, facts, size)
    grain = 1 + 0.12 * texture(rng, size, 40) + 0.08 * texture(rng, size, 8)
    amounts, dyes = [], []
    for part, (dye, amount) in zip(tissue, _DYES[facts.stain], strict=True):
        amounts.append(part * grain * np.float32(amount * rng.uniform(0.88, 1.12)))
        dyes.append(dye)
    density = np.stack(amounts, -1).astype(np.float32) @ np.asarray(dyes, np.float32)
    light = rng.uniform(230, 246, 3).astype(np.float32)
    image = cv2.GaussianBlur(light * np.exp(-density), (0, 0), 0.003 * size)
    image += 3 * rng.standard_normal((size, size, 1), np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _grid(rng, pitch, jitter):
    """Points [N, 2] of a jittered hexagonal grid over the unit square."""
    steps = np.arange(-pitch, 1 + 2 * pitch, pitch)
    x, y = np.meshgrid(steps, steps)
    x = x + (np.arange(len(steps)) % 2)[:, None] * pitch / 2
    points = np.stack([x.ravel(), y.ravel()], 1) + rng.uniform(0, pitch, 2)
    return points + rng.uniform(-jitter, jitter, points.shape) * pitch


def _nuclei(rng, size, centres, radius, stretch=1.3, spread=0.2):
    """Small dark ovals [size, size], each of its own shade."""
    canvas = np.zeros((size, size), np.uint8)
    centres = centres[np.all((centres > -0.02) & (centres < 1.02), axis=1)]
    radii = (
        radius
        * size
        * 16
        * np.exp(spread * rng.standard_normal((len(centres), 1)))
        * [stretch, 1 / stretch]
    )
    pixels = np.round(centres * size * 16).astype(int).tolist()
    turns, shades = rng.uniform(0, 180, len(centres)), rng.integers(150, 256, len(centres)).tolist()
    for centre, axes, turn, shade in zip(
        pixels, radii.astype(int).tolist(), turns, shades, strict=True
    ):
        cv2.ellipse(canvas, centre, axes, turn, 0, 360, shade, -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255


def _ring(rng, x, y, radius, count):
    t = np.arange(count) * 2 * np.pi / count + rng.uniform(-0.1, 0.1, count)
    return np.stack([x + radius * np.cos(t), y + radius * np.sin(t)], 1)


def _glands(rng, size, centres, radius, rough, nucleus, layers=1):
    """Epithelium around a lumen: cytoplasm, lumen, nuclei, each [size, size]."""
    outer = [outline(rng, x, y, radius * rng.uniform(0.9, 1.1), None, 0, rough) for x, y in centres]
    middles = [points.mean(0) for points in outer]
    inner = [m + 0.42 * (p - m) for p, m in zip(outer, middles, strict=True)]
    beds = [
        m + (0.86 - 0.24 * layer) * (p[:: 2 + layer // 2] - m) + rng.normal(0, 0.004, 2)
        for p, m in zip(outer, middles, strict=True)
        for layer in range(layers)
    ]
    return fill(size, outer), fill(size, inner), _nuclei(rng, size, np.concatenate(beds), nucleus)


def _lymphocytes(rng, size, count, where):
    """Round dark nuclei where the mask `where` is 1."""
    centres = rng.uniform(0, 1, (count, 2))
    inside = where[tuple((centres[:, ::-1] * size).astype(int).T)] > 0.5
    return _nuclei(rng, size, centres[inside], 0.011, 1.0, 0.1)


def _colon(rng, facts, size):
    if facts.finding == "adenocarcinoma":
        centres = _grid(rng, 0.27, 0.3)
        cells, lumen, nuclei = _glands(rng, size, centres, 0.15, 0.4, 0.016, layers=3)
        scattered = 60
    else:
        inflamed = facts.finding == "inflammation"
        centres = _grid(rng, 0.36 if inflamed else 0.25, 0.08)
        cells, lumen, nuclei = _glands(rng, size, centres, 0.105, 0.06, 0.011)
        scattered = 1100 if inflamed else 110
    stroma = 1 - cells
    nuclei = np.maximum(nuclei, _lymphocytes(rng, size, scattered, stroma))
    return nuclei, cells * (1 - lumen) * 0.75, stroma * (1 - 0.5 * nuclei)


def _liver(rng, facts, size):
    nuclei = _nuclei(rng, size, _grid(rng, 0.075, 0.25), 0.014, 1.05, 0.1)
    holes = np.exp(-((texture(rng, size, 14) / 0.18) ** 2))  # sinusoids
    paint(holes, oval(rng, size, *rng.uniform(0.25, 0.75, 2), 0.075, None, 0, 0.08, 0.003), 1.0)
    stroma = np.zeros_like(holes)
    if facts.finding == "steatosis":
        drops = rng.uniform(0, 1, (110, 2))
        paint(holes, np.minimum(1.7 * _nuclei(rng, size, drops, 0.025, 1.05, 0.35), 1), 1.0)
    elif facts.finding == "fibrosis":
        nodules = _grid(rng, 0.48, 0.15)
        stroma = 1 - fill(
            size, [outline(rng, x, y, 0.205, None, 0, 0.1) for x, y in nodules], 0.004
        )
        fibroblasts = _nuclei(rng, size, rng.uniform(0, 1, (350, 2)), 0.008, 1.6)
        nuclei = nuclei * (1 - stroma) + fibroblasts * stroma
        holes *= 1 - stroma
    return nuclei * (1 - holes), (1 - holes) * (1 - stroma), 1.4 * stroma


def _kidney(rng, facts, size):
    cells, lumen, nuclei = _glands(rng, size, _grid(rng, 0.135, 0.08), 0.062, 0.08, 0.01)
    stroma = 0.8 * (1 - cells)
    cells = cells * (1 - 0.8 * lumen)
    for x, y in spots(rng, facts.count, 0.16, 0.5, 0.5, 0.33, 0.33):
        space = oval(rng, size, x, y, 0.16, None, 0, 0.03, 0.002)  # Bowman's
        tuft = oval(rng, size, x, y, 0.12, None, 0, 0.1, 0.003)
        for part, value in ((cells, 0.55), (nuclei, 0), (stroma, 0.25)):
            paint(part, space, value * tuft)
        inside = np.concatenate([_ring(rng, x, y, 0.115 * k / 5, 4 * k) for k in range(1, 6)])
        wall = _ring(rng, x, y, 0.165, 24)
        inside += rng.normal(0, 0.006, inside.shape)
        nuclei = np.maximum(nuclei, _nuclei(rng, size, np.concatenate([inside, wall]), 0.012))
    return nuclei, cells, stroma


def _skin(rng, facts, size):
    x = np.linspace(0, 1, size, dtype=np.float32)
    ridges = (
        0.33
        + 0.05 * np.sin(x * rng.uniform(14, 22) + rng.uniform(0, 6))
        + 0.02 * texture(rng, size, 9)[0]
    )
    depth = np.linspace(0, 1, size, dtype=np.float32)[:, None] + 0 * x
    surface = 0.1 + 0.015 * texture(rng, size, 6)[0]
    epidermis = ((depth > surface) & (depth < ridges)).astype(np.float32)
    dermis = (depth >= ridges).astype(np.float32)
    fibres = cv2.resize(texture(rng, size, 24), (size, 5 * size))[2 * size : 3 * size].T
    keratin = ((depth > surface - 0.05) & (depth <= surface)) * 1.2
    nuclei = _nuclei(rng, size, _grid(rng, 0.045, 0.2), 0.012) * epidermis
    cells = 260 if facts.finding == "normal" else 1500
    upper = dermis * (depth < 0.72) if cells > 260 else dermis
    nuclei += _lymphocytes(rng, size, cells // 2, upper)
    dermis = dermis * np.clip(0.9 + 0.5 * fibres, 0.1, 1.6)
    return nuclei, 0.85 * epidermis, dermis.astype(np.float32) + keratin


_TISSUES = {"colon": _colon, "liver": _liver, "kidney": _kidney, "skin": _skin}

# --- fluorescence ---------------------------------------------------------------------------------

_GLOW = {
    "DAPI": (50, 90, 255),
    "GFP": (40, 235, 70),
    "rhodamine": (255, 60, 35),
    "Cy5": (235, 45, 220),
}


def draw_fluorescence(rng: np.random.Generator, facts: Facts, size: int) -> np.ndarray:
    """Cells on a jittered 4 x 4 grid, so that no two touch."""
    radius = 0.092 if facts.size == "large" else 0.052
    glow = np.full((size, size), 0.03, np.float32) * (1 + 0.4 * texture(rng, size, 5))
    for cell in rng.permutation(16)[: facts.count]:
        jitter = rng.uniform(-1, 1, 2) * (0.115 - radius) * 0.7
        x, y = (cell % 4 + 0.5) / 4 + jitter[0], (cell // 4 + 0.5) / 4 + jitter[1]
        turn = rng.uniform(0, 180)
        if facts.finding == "nucleus":
            body = oval(rng, size, x, y, radius * 0.85, radius * 0.68, turn, 0.05, 0.004)
        elif facts.finding == "fibroblast":
            body = oval(rng, size, x, y, radius * 1.15, radius * 0.3, turn, 0.1, 0.004)
        else:
            body = fill(size, [_star(rng, x, y, radius * 1.2)], 0.003)
        paint(glow, body, rng.uniform(0.65, 0.9) * (1 + 0.15 * texture(rng, size, 32)))
        nucleolus = oval(rng, size, x, y, radius * 0.2, None, 0, 0.2, 0.004)
        paint(glow, 0.3 * nucleolus, 1.0)
    glow += 0.35 * cv2.GaussianBlur(glow, (0, 0), 0.02 * size)  # out of focus
    photons = glow + 0.05 * np.sqrt(np.maximum(glow, 0.01)) * rng.standard_normal(
        glow.shape, np.float32
    )
    image = np.clip(photons, 0, 1)[..., None] * np.asarray(_GLOW[facts.stain], np.float32)
    paint(image, stroke(size, [(0.8, 0.965), (0.95, 0.965)], 0.012)[..., None], 255)  # scale bar
    return image.astype(np.uint8)


def _star(rng, x, y, radius):
    arms = rng.integers(5, 8)
    t = (np.arange(2 * arms) + rng.uniform(-0.25, 0.25, 2 * arms)) * np.pi / arms
    r = radius * np.where(np.arange(2 * arms) % 2, 0.33, rng.uniform(0.8, 1.0, 2 * arms))
    return np.stack([x + r * np.cos(t), y + r * np.sin(t)], 1)
