"""Radiographs and CT of known content; grey values are 0..1."""

import functools
import itertools

import cv2
import numpy as np

from data_pipelines.synthetic_captions import Facts
from data_pipelines.synthetic_figures.shapes import (
    arc,
    grey_picture,
    image_side,
    oval,
    paint,
    ramp,
    spots,
    stroke,
    texture,
)


def _position(rng, image):
    """The patient lies a little turned, off centre, nearer or farther."""
    size = len(image)
    middle = (size / 2, size / 2)
    turn = cv2.getRotationMatrix2D(middle, rng.uniform(-4, 4), rng.uniform(0.93, 1.07))
    turn[:, 2] += rng.uniform(-0.03, 0.03, 2) * size
    return cv2.warpAffine(image, turn, (size, size), borderMode=cv2.BORDER_REPLICATE)


# --- radiograph -----------------------------------------------------------------------------------


def draw_radiograph(rng: np.random.Generator, facts: Facts, size: int) -> np.ndarray:
    return (_chest_film if facts.organ == "chest" else _forearm_film)(rng, facts, size)


def _chest_film(rng, facts, size):
    shape = functools.partial(oval, rng, size)
    shoulders = rng.uniform(0.72, 0.78)
    torso = shape(0.5, shoulders, 0.54, 0.68, soft=0.01)
    film = 0.03 + 0.42 * np.maximum(torso, shape(0.5, 0.05, 0.11, 0.2, soft=0.01))
    lungs, domes = _chest_anatomy(rng, size, film, facts.finding == "cardiomegaly")
    sign = image_side(facts.side)
    x, lung, large = 0.5 + sign * 0.235, lungs[sign], facts.size == "large"
    if facts.finding == "nodule":
        radius = 0.05 if large else 0.026
        for sx, sy in spots(rng, facts.count, radius, x, 0.44, 0.085, 0.22):
            paint(film, 0.9 * shape(sx, sy, radius, rough=0.08, soft=0.004), 0.74)
    elif facts.finding == "pleural effusion":  # it rises along the chest wall
        level = 0.42 if large else 0.62
        meniscus = 1 - shape(x - sign * 0.06, level - 0.06, 0.17, 0.17, soft=0.01)
        base = domes[sign] * (1 - ramp(size, 0.83, 0.06))
        chest = np.maximum(cv2.dilate(lung, np.ones((5, 5))), base)
        paint(film, chest * ramp(size, level - 0.05, 0.1) * meniscus, 0.78)
    elif facts.finding == "consolidation":
        radius = 0.15 if large else 0.085
        patch = shape(x, rng.uniform(0.35, 0.6), radius, radius * 1.1, rough=0.3, soft=0.02)
        paint(film, 0.95 * patch * lung, 0.68 + 0.05 * texture(rng, size, 24))
    elif facts.finding == "pneumothorax":
        collapsed = shape(0.5 + sign * 0.13, 0.55, 0.095, 0.22, 8 * sign, 0.08, 0.003)
        paint(film, 0.92 * lung * (1 - collapsed), 0.04)
        paint(film, 0.75 * collapsed * lung, 0.42 + 0.05 * texture(rng, size, 18))
    return grey_picture(rng, _position(rng, film), 0.018, 0.004 * size)


def _chest_anatomy(rng, size, film, large_heart):
    """Paints a chest on `film`; returns masks of lungs and diaphragm, by side of the image."""
    shape = functools.partial(oval, rng, size)
    dx, dy, wide, tall = rng.uniform(-0.015, 0.015, 4)
    body = film - 0.03
    domes = {s: shape(0.5 + s * 0.24, 1.0 - s * 0.02 + dy, 0.27, 0.22, soft=0.008) for s in (-1, 1)}
    lungs = {
        s: shape(0.5 + s * (0.215 + dx), 0.49, 0.16 + wide, 0.36 + tall, -5 * s, 0.02, 0.008)
        * (1 - domes[s])
        for s in (-1, 1)
    }
    vessels = 0.05 * np.abs(texture(rng, size, 14)) + 0.03 * texture(rng, size, 7)
    paint(film, lungs[-1] + lungs[1], 0.15 + vessels)
    bones = np.zeros_like(film)
    for s in (-1, 1):
        paint(film, 0.9 * domes[s], 0.6)  # liver, spleen, stomach
        for y in 0.29 + dy + 0.085 * np.arange(8):
            rib = arc(0.5 + s * 0.17, y, 0.23 + wide, 0.12, 270 - 80 * s, 270 + 85 * s)
            bones += stroke(size, rib, 0.02)
        clavicle = [(0.5 + s * x, y) for x, y in ((0.05, 0.2), (0.2, 0.13), (0.42, 0.15))]
        bones += 1.3 * stroke(size, clavicle, 0.025)
        paint(film, 0.6 * shape(0.5 + s * 0.1, 0.45, 0.035, 0.09, 20 * s, 0.2, 0.015), 0.5)  # hilum
    film += 0.2 * cv2.GaussianBlur(np.minimum(bones, 1.3), (0, 0), 0.005 * size) * body
    heart = rng.uniform(0.215, 0.24) if large_heart else rng.uniform(0.125, 0.145)
    paint(film, shape(0.5, 0.45, 0.07, 0.5, soft=0.015), 0.6)  # mediastinum
    paint(film, shape(0.48, 0.62, 0.04 + 0.45 * heart, 0.15, soft=0.015), 0.62)
    paint(film, shape(0.5 + 0.42 * heart, 0.69, heart, 0.13 + 0.2 * heart, 40, 0.03, 0.012), 0.64)
    paint(film, shape(0.555, 0.31, 0.045, 0.055, soft=0.008), 0.6)  # aortic knob
    vertebrae = np.sin(np.linspace(0, 90, size, dtype=np.float32))[:, None]
    film += (0.06 + 0.04 * vertebrae) * stroke(size, [(0.5, 0.05), (0.5, 0.98)], 0.06, 0.01)
    return lungs, domes


def _forearm_film(rng, facts, size):
    film = 0.03 + 0.22 * oval(rng, size, 0.5, 0.5, 0.29, 0.95, rng.uniform(-4, 4), soft=0.015)
    y, shift = rng.uniform(0.42, 0.58), rng.choice((-1, 1)) * rng.uniform(0.07, 0.1)
    xs = np.array([0.4, 0.6]) + rng.uniform(-0.02, 0.02)
    for x, width, bow in zip(xs, (0.085, 0.1), (-0.02, 0.02), strict=True):
        upper = [(x - bow, -0.05), (x, 0.2), (x + bow, y - 0.02)]
        lower = [(x + bow, y + 0.02), (x, 0.8), (x - bow, 1.05)]
        if facts.finding == "fracture":
            parts = [upper, [(px + shift * (1.4 - py), py + 0.02) for px, py in lower]]
        else:
            parts = [upper + lower]
        for part in parts:
            paint(film, stroke(size, part, width, 0.003), 0.8)  # cortex
            paint(film, stroke(size, part, width * 0.5, 0.008), 0.5)  # marrow
    film += 0.02 * texture(rng, size, 40) * (film > 0.4)
    if facts.finding == "plate fixation":
        x = rng.choice(xs)
        paint(film, stroke(size, [(x, 0.22), (x, 0.78)], 0.045), 1.0)
        for y in np.linspace(0.27, 0.73, 6):
            paint(film, stroke(size, [(x - 0.065, y), (x + 0.065, y)], 0.016), 1.0)
    return grey_picture(rng, _position(rng, film), 0.018, 0.003 * size)


# --- CT -------------------------------------------------------------------------------------------


def draw_ct(rng: np.random.Generator, facts: Facts, size: int) -> np.ndarray:
    """An axial slice, seen from the feet."""
    slices = {"head": _head_slice, "chest": _chest_slice, "abdomen": _abdomen_slice}
    image = np.full((size, size), 0.02, np.float32)
    image += 0.2 * stroke(size, arc(0.5, 0.2, 0.6, 0.75, 50, 130), 0.012)  # the table
    slices[facts.organ](rng, facts, size, image)
    return grey_picture(rng, _position(rng, image), 0.025, 0.004 * size)


def _head_slice(rng, facts, size, image):
    shape = functools.partial(oval, rng, size)
    tilt, sign, large = rng.uniform(-6, 6), image_side(facts.side), facts.size == "large"
    paint(image, shape(0.5, 0.49, 0.37, 0.45, tilt), 0.33)  # scalp
    paint(image, shape(0.5, 0.49, 0.355, 0.435, tilt), 1.0)
    brain = shape(0.5, 0.49, 0.325, 0.4, tilt)
    sulci = np.exp(-((texture(rng, size, 22) / 0.22) ** 2))
    cortex = 1 - shape(0.5, 0.49, 0.25, 0.32, tilt, 0.1, 0.03)
    paint(image, brain, 0.44 + 0.02 * texture(rng, size, 12) - 0.16 * sulci * cortex)
    paint(image, 0.6 * stroke(size, [(0.5, 0.1), (0.5, 0.24)], 0.008), 0.62)  # falx
    paint(image, 0.6 * stroke(size, [(0.5, 0.7), (0.5, 0.88)], 0.008), 0.62)
    width, height = (0.062, 0.16) if facts.finding == "hydrocephalus" else (0.022, 0.085)
    for s, (y, turn) in itertools.product((-1, 1), ((0.40, -18), (0.58, 25))):
        paint(
            image,
            shape(0.5 + s * (width + 0.02), y, width, height * 0.8, s * -turn, 0.05, 0.005),
            0.2,
        )
    x, y = 0.5 + sign * rng.uniform(0.16, 0.19), rng.uniform(0.4, 0.56)
    if facts.finding == "hemorrhage":
        radius = 0.115 if large else 0.055
        paint(
            image, 0.7 * brain * shape(x, y, radius * 1.3, radius * 1.5, 0, 0.2, 0.012), 0.28
        )  # oedema
        paint(image, brain * shape(x, y, radius, radius * 1.2, 0, 0.2, 0.005), 0.85)
    elif facts.finding == "infarct":
        radius = 0.15 if large else 0.08
        paint(
            image,
            0.95 * brain * shape(x + sign * 0.05, y, radius, radius * 1.3, 0, 0.15, 0.01),
            0.2,
        )


def _trunk(rng, size, image, rx, ry):
    """Skin, fat and muscle; returns the mask of the cavity."""
    shape = functools.partial(oval, rng, size, 0.5, 0.5)
    for inset, value in ((0, 0.42), (0.008, 0.24), (0.04, 0.48)):
        paint(image, shape(rx - inset, ry - inset), value)
    return shape(rx - 0.07, ry - 0.07, soft=0.003)


def _spine(rng, size, image, y):
    paint(image, oval(rng, size, 0.5, y + 0.09, 0.055, 0.05), 0.85)
    paint(image, stroke(size, [(0.42, y + 0.1), (0.58, y + 0.1)], 0.03), 0.85)
    paint(image, oval(rng, size, 0.5, y, 0.065, 0.05), 0.9)
    paint(image, oval(rng, size, 0.5, y + 0.065, 0.028, 0.022), 0.4)  # canal


def _chest_slice(rng, facts, size, image):
    shape = functools.partial(oval, rng, size)
    rx, ry = 0.46 + rng.uniform(-0.015, 0.01), 0.35 + rng.uniform(-0.015, 0.015)
    cavity = _trunk(rng, size, image, rx, ry)
    for start in range(0, 360, 36):
        a = start + rng.uniform(-6, 6)
        paint(image, stroke(size, arc(0.5, 0.5, rx - 0.06, ry - 0.055, a, a + 20), 0.022), 0.92)
    lungs = {s: cavity * shape(0.5 + s * 0.21, 0.5, 0.165, 0.255, 0, 0.03, 0.003) for s in (-1, 1)}
    vessels = np.clip(texture(rng, size, 26) - 1.7, 0, 0.6)
    paint(image, lungs[-1] + lungs[1], 0.06 + 0.4 * vessels)
    paint(image, shape(0.53, 0.46, 0.12, 0.13, 30, 0.06, 0.005), 0.62)  # heart
    paint(image, shape(0.5, 0.45, 0.05, 0.06, 0, 0.1, 0.01), 0.75)
    _spine(rng, size, image, 0.68)
    paint(image, shape(0.56, 0.61, 0.035), 0.75)  # aorta
    sign, large = image_side(facts.side), facts.size == "large"
    if facts.finding == "nodule":
        radius = 0.045 if large else 0.024
        for sx, sy in spots(rng, facts.count, radius, 0.5 + sign * 0.25, 0.5, 0.075, 0.15):
            paint(image, shape(sx, sy, radius, rough=0.12, soft=0.002), 0.7)
    elif facts.finding == "pleural effusion":  # fluid lies behind the lung: the patient is supine
        level = 0.5 if large else 0.61
        air = shape(0.5 + sign * 0.17, level - 0.1, 0.2, 0.17, soft=0.003)
        paint(image, lungs[sign] * (1 - air) * ramp(size, level - 0.06, 0.02), 0.45)


def _abdomen_slice(rng, facts, size, image):
    shape = functools.partial(oval, rng, size)
    rx, ry = 0.46 + rng.uniform(-0.015, 0.01), 0.37 + rng.uniform(-0.015, 0.015)
    cavity = _trunk(rng, size, image, rx, ry)
    paint(image, cavity, 0.27)
    liver = cavity * shape(0.33, 0.43, 0.22, 0.21, -20, 0.08, 0.003)
    spleen = cavity * shape(0.78, 0.52, 0.08, 0.14, -15, 0.05, 0.003)
    stomach = cavity * shape(0.64, 0.37, 0.12, 0.085, 20, 0.1, 0.003)
    for organ, value in ((stomach, 0.42), (spleen, 0.62), (liver, 0.6)):
        paint(image, organ, value + 0.012 * texture(rng, size, 30))
    paint(image, shape(0.63, 0.32, 0.06, 0.025, 0, 0.1, 0.002), 0.02)  # gas
    for bx, by in ((0.5, 0.43), (0.56, 0.47), (0.46, 0.5)):
        paint(image, shape(bx, by, 0.035, 0.03, 0, 0.2, 0.003), 0.46)  # bowel
    _spine(rng, size, image, 0.68)
    paint(image, shape(0.53, 0.595, 0.03), 0.78)  # aorta
    paint(image, shape(0.46, 0.6, 0.03, 0.025), 0.66)  # vena cava
    sign, large = image_side(facts.side), facts.size == "large"
    for s in (-1, 1):
        paint(image, shape(0.5 + s * 0.2, 0.645, 0.07, 0.095, s * 20, 0.04, 0.002), 0.78)
        dilated = facts.finding == "hydronephrosis" and s == sign
        radius = 0.06 if dilated else 0.025
        paint(
            image,
            shape(0.5 + s * 0.185, 0.645, radius, 1.3 * radius, s * 20, 0.1, 0.003),
            0.12 if dilated else 0.4,
        )
    if facts.finding == "liver lesion":
        radius = 0.052 if large else 0.027
        for sx, sy in spots(rng, facts.count, radius, 0.31, 0.41, 0.11, 0.11):
            paint(image, shape(sx, sy, radius, rough=0.1, soft=0.004), 0.3)
    elif facts.finding == "renal cyst":
        radius = 0.085 if large else 0.045
        paint(image, shape(0.5 + sign * 0.255, 0.6, radius, soft=0.002), 0.14)
