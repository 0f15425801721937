"""The shapes that synthetic figures are drawn with: soft masks, float32 [size, size] in 0..1.

Lengths are fractions of `size`, the side in pixels; x runs right, y down.
"""

import itertools
import math

import cv2
import numpy as np

_ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_COS, _SIN = np.cos(_ANGLES), np.sin(_ANGLES)
_WAVES = np.stack([wave(k * _ANGLES) / k for k in range(2, 6) for wave in (np.cos, np.sin)])


def outline(rng, x, y, rx, ry=None, angle=0.0, rough=0.0):
    """Points [40, 2] around an ellipse that is irregular by `rough`."""
    radius = 1 + rough * 0.7 * rng.standard_normal(len(_WAVES)) @ _WAVES if rough else 1
    px, py = rx * radius * _COS, (ry or rx) * radius * _SIN
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.stack([x + c * px - s * py, y + s * px + c * py], 1)


def fill(size, outlines, soft=0.0):
    """The insides of closed outlines, a list of points [N, 2]; the edge is blurred by `soft`."""
    canvas = np.zeros((size, size), np.uint8)
    for points in outlines:
        pixels = np.round(np.asarray(points) * size * 16).astype(np.int32)
        cv2.fillPoly(canvas, [pixels], 255, cv2.LINE_AA, 4)
    return _soften(canvas, soft * size)


def oval(rng, size, x, y, rx, ry=None, angle=0.0, rough=0.0, soft=0.0):
    """The inside of one outline."""
    return fill(size, [outline(rng, x, y, rx, ry, angle, rough)], soft)


def stroke(size, points, width, soft=0.0):
    """A line through points [N, 2]: float32 [size, size] in 0..1."""
    canvas = np.zeros((size, size), np.uint8)
    pixels = np.round(np.asarray(points) * size * 16).astype(np.int32)
    cv2.polylines(canvas, [pixels], False, 255, max(1, round(width * size)), cv2.LINE_AA, 4)
    return _soften(canvas, soft * size)


def _soften(canvas, sigma):
    return (cv2.GaussianBlur(canvas, (0, 0), sigma) if sigma else canvas).astype(np.float32) / 255


def arc(x, y, rx, ry, start, end):
    """Points [16, 2] of an ellipse from angle `start` to `end`, in degrees."""
    t = np.deg2rad(np.linspace(start, end, 16))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def paint(image, mask, value):
    """Covers the image with `value` where the mask is 1; in place."""
    image += mask * (value - image)


def texture(rng, size, lumps):
    """Smooth noise of about unit variance with `lumps` lumps a side: float32 [size, size]."""
    coarse = rng.standard_normal((lumps, lumps), np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) * 1.3


def ramp(size, start, length):
    """0 above y = start, 1 below start + length: float32 [size, 1]."""
    return np.clip((np.linspace(0, 1, size, dtype=np.float32) - start) / length, 0, 1)[:, None]


def spots(rng, count, radius, x, y, rx, ry):
    """Centres [count, 2] in an ellipse, so that discs of `radius` around them keep apart."""
    for attempt in itertools.count():
        t, r = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count))
        centres = np.stack([x + rx * r * np.cos(t), y + ry * r * np.sin(t)], 1)
        distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + 9 * np.eye(count)
        if distances.min() > 2.5 * radius * 0.999**attempt:
            return centres


def grey_picture(rng, image, noise, blur):
    """The scanner's blur and grain, and the window that somebody chose: uint8 [H, W, 3]."""
    image = np.maximum(cv2.GaussianBlur(image, (0, 0), blur), 0) ** rng.uniform(0.9, 1.15)
    image += noise * rng.standard_normal(image.shape, np.float32)
    image = np.clip(image * rng.uniform(0.92, 1.08) + rng.uniform(-0.02, 0.02), 0, 1)
    return cv2.cvtColor((image * 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def image_side(side: str) -> int:
    """Direction of the finding in the image, from the midline."""
    return 1 if side == "left" else -1
