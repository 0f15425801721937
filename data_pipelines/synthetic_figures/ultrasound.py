"""Ultrasound of known content; echo strengths are 0..1, about."""

import functools

import cv2
import numpy as np

from data_pipelines.synthetic_captions import Facts
from data_pipelines.synthetic_figures.shapes import (
    arc,
    fill,
    grey_picture,
    image_side,
    oval,
    paint,
    ramp,
    spots,
    stroke,
    texture,
)


@functools.lru_cache(maxsize=8)
def _beams(size: int, curved: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Beam 0..1, depth 0..1 and whether it is in view, of each pixel: float32 [size, size]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    if not curved:
        beam, depth = (x - 0.06) / 0.88, (y - 0.06) / 0.88
    else:
        dx, dy = x - 0.5, y + 0.22  # the beams meet above the image
        beam = np.arctan2(dx, dy) / 1.16 + 0.5
        depth = (np.hypot(dx, dy) - 0.3) / 0.84
    inside = (beam > 0) & (beam < 1) & (depth > 0) & (depth < 1)
    return beam, depth, inside.astype(np.float32)


def draw_ultrasound(rng: np.random.Generator, facts: Facts, size: int) -> np.ndarray:
    """Echo strength times speckle, which is fine along the beam and spreads across it."""
    beam, depth, inside = _beams(size, facts.organ in ("liver", "gallbladder", "kidney"))
    echo = np.full((size, size), 0.3, np.float32) * (1 + 0.08 * texture(rng, size, 9))
    _SCANS[facts.organ](rng, facts, size, echo)
    waves = rng.standard_normal((2, size, 96), np.float32)
    speckle = np.hypot(*waves) / 1.25
    speckle = cv2.remap(
        speckle, beam * 95, depth * (size - 1), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    echo = cv2.GaussianBlur(echo, (0, 0), 0.004 * size) * (1.12 - 0.35 * depth)
    image = inside * np.clip(0.02 + echo, 0.01, None) * speckle
    image = np.log1p(6 * image) / np.log1p(6)  # what the display does with a wide range of echoes
    for y in np.linspace(0.1, 0.9, 9):
        image += 0.6 * stroke(size, [(0.97, y), (0.985, y)], 0.005)  # depth scale
    return grey_picture(rng, image, 0.01, 0.003 * size)


def _shadow(size, x, y, radius, curved):
    """What lies behind (x, y) for the beams: float32 [size, size]."""
    vertex = np.array([0.5, -0.22]) if curved else np.array([x, -50.0])
    ray = (np.array([x, y]) - vertex) / np.linalg.norm(np.array([x, y]) - vertex)
    near, far = np.array([x, y]), np.array([x, y]) + ray * 1.2
    across = np.array([-ray[1], ray[0]]) * radius
    spread = 1 + 1.2 / np.linalg.norm(near - vertex)
    corners = np.stack([near - across, near + across, far + across * spread, far - across * spread])
    return fill(size, [corners], 0.008)


def _cysts(rng, size, echo, centres, radius, curved):
    for x, y in centres:
        echo *= 1 + 0.9 * _shadow(size, x, y, radius * 0.8, curved)  # enhancement behind fluid
        paint(echo, oval(rng, size, x, y, radius, radius * 0.92, 0, 0.04, 0.002), 0.0)


def _scan_liver(rng, facts, size, echo):
    echo += 0.5 * stroke(size, arc(0.5, 0.45, 0.5, 0.42, 30, 150), 0.018, 0.004)  # diaphragm
    for x, y in rng.uniform((0.3, 0.35), (0.7, 0.75), (4, 2)):
        vessel = [(x, y), (x + rng.uniform(-0.1, 0.1), y + rng.uniform(0.02, 0.08))]
        paint(echo, stroke(size, vessel, 0.016, 0.004), 0.08)
    radius = 0.1 if facts.size == "large" else 0.05
    centres = spots(rng, facts.count, radius, 0.5, 0.46, 0.19, 0.2) if facts.count else ()
    if facts.finding == "cyst":
        _cysts(rng, size, echo, centres, radius, True)
    for x, y in centres if facts.finding == "hyperechoic lesion" else ():
        paint(echo, 0.95 * oval(rng, size, x, y, radius, radius * 0.9, 0, 0.1, 0.006), 1.1)


def _scan_gallbladder(rng, facts, size, echo):
    tilt = rng.uniform(-25, 25)
    paint(echo, oval(rng, size, 0.5, 0.45, 0.3, 0.155, tilt, 0.03, 0.003), 0.6)  # wall
    paint(echo, oval(rng, size, 0.5, 0.45, 0.285, 0.14, tilt, 0.03, 0.003), 0.0)
    radius = 0.055 if facts.size == "large" else 0.03
    for k in range(facts.count):
        along = (k - (facts.count - 1) / 2) * max(2.6 * radius, 0.11)
        x, y = 0.5 + along, 0.45 + along * np.tan(np.deg2rad(tilt)) + 0.06
        paint(echo, 0.95 * _shadow(size, x, y, radius * 0.9, True), 0.01)
        paint(echo, oval(rng, size, x, y, radius, radius * 0.8, 0, 0.1, 0.002), 1.3)


def _scan_kidney(rng, facts, size, echo):
    tilt = rng.uniform(-15, 15)
    paint(echo, oval(rng, size, 0.5, 0.46, 0.3, 0.165, tilt, 0.03, 0.003), 0.75)  # capsule
    paint(echo, oval(rng, size, 0.5, 0.46, 0.285, 0.15, tilt, 0.03, 0.004), 0.17)  # cortex
    paint(echo, oval(rng, size, 0.5, 0.46, 0.18, 0.06, tilt, 0.15, 0.008), 0.85)  # sinus
    if facts.finding == "hydronephrosis":
        paint(echo, oval(rng, size, 0.5, 0.46, 0.19, 0.1, tilt, 0.12, 0.004), 0.0)


def _scan_thyroid(rng, facts, size, echo):
    echo *= 0.75
    for y in (0.12, 0.16, 0.21):
        echo += 0.4 * stroke(size, [(0.05, y), (0.5, y - 0.02), (0.95, y)], 0.008, 0.003)
    for s in (-1, 1):
        paint(
            echo, oval(rng, size, 0.5 + s * 0.21, 0.4, 0.145, 0.125, s * -10, 0.04, 0.004), 0.55
        )  # lobe
        paint(echo, oval(rng, size, 0.5 + s * 0.39, 0.43, 0.055, soft=0.003), 0.01)  # carotid
    paint(echo, _shadow(size, 0.5, 0.4, 0.075, False), 0.04)  # trachea
    echo += 0.7 * stroke(size, arc(0.5, 0.45, 0.085, 0.09, 200, 340), 0.016, 0.003)
    if facts.finding == "nodule":
        radius = 0.09 if facts.size == "large" else 0.048
        paint(
            echo,
            oval(rng, size, 0.5 + image_side(facts.side) * 0.21, 0.4, radius, None, 0, 0.08, 0.003),
            0.05,
        )


def _scan_breast(rng, facts, size, echo):
    paint(echo, 1 - ramp(size, 0.1, 0.02), 0.8)  # skin
    paint(echo, ramp(size, 0.12, 0.02) * (1 - ramp(size, 0.3, 0.08)), 0.16)  # fat
    for y in rng.uniform(0.25, 0.7, 6):
        strand = [(x, y + rng.uniform(-0.03, 0.03)) for x in np.linspace(0, 1, 6)]
        echo += 0.25 * stroke(size, strand, 0.012, 0.005)
    paint(echo, ramp(size, 0.78, 0.04), 0.14)  # muscle
    radius = 0.1 if facts.size == "large" else 0.055
    if facts.finding == "cyst":
        _cysts(
            rng, size, echo, spots(rng, facts.count, radius, 0.5, 0.48, 0.26, 0.12), radius, False
        )
    elif facts.finding == "mass":  # an irregular one, taller than wide, with a shadow
        x, y = spots(rng, 1, radius, 0.5, 0.47, 0.2, 0.06)[0]
        paint(echo, 0.7 * _shadow(size, x, y, radius * 0.7, False), 0.03)
        paint(echo, oval(rng, size, x, y, radius, radius * 1.2, 0, 0.35, 0.004), 0.07)


_SCANS = {
    "liver": _scan_liver,
    "gallbladder": _scan_gallbladder,
    "kidney": _scan_kidney,
    "thyroid": _scan_thyroid,
    "breast": _scan_breast,
}
