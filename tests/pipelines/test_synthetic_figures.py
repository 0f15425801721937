"""Synthetic figures, measured without the code that drew them: the picture shows the facts."""

import cv2
import numpy as np
import pytest
import simplejpeg

from data_pipelines.synthetic_captions import CATALOGUE, Facts, describe, sample_facts
from data_pipelines.synthetic_figures import draw, encode, near_duplicate


def _pictures(num, **facts):
    return [draw(np.random.default_rng(i), Facts(**facts), 128) for i in range(num)]


def _balance(picture):
    """Mean of the image's right half, less that of its left half."""
    half = picture.shape[1] // 2
    return picture[:, half:].mean() - picture[:, :half].mean()


@pytest.mark.parametrize(
    ("modality", "organ", "finding", "size", "brighter"),
    [
        ("radiograph", "chest", "pleural effusion", "large", True),
        ("radiograph", "chest", "consolidation", "large", True),
        ("radiograph", "chest", "pneumothorax", "", False),
        ("ct", "head", "hemorrhage", "large", True),
        ("ct", "head", "infarct", "large", False),
        ("ct", "abdomen", "renal cyst", "large", False),
        ("ultrasound", "thyroid", "nodule", "large", False),
    ],
)
def test_patients_left_is_on_the_right(modality, organ, finding, size, brighter):
    facts = {"modality": modality, "organ": organ, "finding": finding, "size": size}
    left, right = (
        np.mean([_balance(picture) for picture in _pictures(8, side=side, **facts)])
        for side in ("left", "right")
    )
    assert (left > right) == brighter
    assert abs(left - right) > 1  # grey values


@pytest.mark.parametrize("finding", ["nucleus", "fibroblast", "astrocyte"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_fluorescent_cells_can_be_counted(finding, size):
    rng = np.random.default_rng(0)
    for count in range(1, 10):
        facts = Facts(modality="fluorescence", finding=finding, size=size, count=count, stain="GFP")
        picture = draw(rng, facts, 192)
        green = picture[..., 1].astype(int) - picture[..., 0] // 2 - picture[..., 2] // 2
        _, _, stats, _ = cv2.connectedComponentsWithStats((green > 60).astype(np.uint8))
        assert np.sum(stats[1:, cv2.CC_STAT_AREA] > 25) == count


def test_bars_can_be_counted_and_follow_the_trend():
    rng = np.random.default_rng(0)
    for trend, count in (("increasing", 2), ("increasing", 5), ("decreasing", 6)):
        facts = Facts(modality="chart", finding="bar chart", count=count, trend=trend)
        picture = draw(rng, facts, 192)
        ink = cv2.erode((picture.min(2) < 200).astype(np.uint8), np.ones((5, 5)))
        _, _, stats, _ = cv2.connectedComponentsWithStats(ink)
        bars = sorted(stats[stats[:, cv2.CC_STAT_AREA] > 100][1:].tolist())  # by x
        assert len(bars) == count
        heights = [bar[cv2.CC_STAT_HEIGHT] for bar in bars]
        assert heights == sorted(heights, reverse=trend == "decreasing")


def test_stains_have_their_hue():
    """Mean colour of the section: pink, brown, or with the blue of collagen."""
    for organ, finding in (("liver", "fibrosis"), ("skin", "normal"), ("colon", "normal")):
        red, green, blue = {}, {}, {}
        for stain in ("H&E", "IHC", "trichrome"):
            pictures = _pictures(3, modality="histology", organ=organ, finding=finding, stain=stain)
            red[stain], green[stain], blue[stain] = np.mean(pictures, axis=(0, 1, 2))
        assert red["H&E"] > green["H&E"] + 20 and blue["H&E"] > green["H&E"] + 20
        assert blue["IHC"] < blue["H&E"] and red["IHC"] > blue["IHC"] - 12
        assert blue["trichrome"] > red["trichrome"] + 10
    glow = {"DAPI": [2], "GFP": [1], "rhodamine": [0], "Cy5": [0, 2]}
    for stain, channels in glow.items():
        facts = {"modality": "fluorescence", "finding": "nucleus", "count": 5, "size": "large"}
        colour = np.mean(_pictures(2, stain=stain, **facts), axis=(0, 1, 2))
        assert set(np.argsort(colour)[::-1][: len(channels)]) == set(channels)


def _black(picture):
    return np.mean(cv2.blur(picture[..., 0], (5, 5)) < 20)


def _dark_in_liver(picture):
    liver = cv2.blur(picture[40:70, 22:55, 0], (3, 3))
    return np.mean(liver < 0.75 * np.percentile(liver, 90))


@pytest.mark.parametrize(
    ("modality", "organ", "finding", "shows"),
    [
        ("ct", "chest", "nodule", np.mean),
        ("ct", "abdomen", "liver lesion", _dark_in_liver),
        ("ultrasound", "liver", "hyperechoic lesion", np.mean),
        ("ultrasound", "liver", "cyst", _black),  # the tissue behind a cyst is brighter
    ],
)
def test_large_and_many_show_more_than_small_and_few(modality, organ, finding, shows):
    def mean(size, count):
        facts = {"modality": modality, "organ": organ, "finding": finding, "side": "right"}
        return np.mean([shows(p) for p in _pictures(12, size=size, count=count, **facts)])

    assert mean("large", 3) > mean("large", 1)
    assert mean("large", 2) > mean("small", 2)


@pytest.mark.parametrize("modality", CATALOGUE)
def test_everything_in_the_catalogue_can_be_drawn(modality):
    rng = np.random.default_rng(0)
    for (organ, finding), options in CATALOGUE[modality].items():
        chosen = {name: values[-1] for name, values in options.items()}
        facts = Facts(modality=modality, organ=organ, finding=finding, **chosen)
        picture = draw(rng, facts, 64)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        assert picture.std() > 20
        assert describe(rng, facts, facts.attributes()).endswith(".")


def test_near_duplicate_is_nearest_to_its_original():
    pictures = _pictures(6, modality="ct", organ="head", finding="normal")
    for index, picture in enumerate(pictures):
        copy = near_duplicate(np.random.default_rng(index), picture)
        assert copy.shape != picture.shape
        copy = cv2.resize(copy, (128, 128))
        likeness = [np.corrcoef(copy.ravel(), other.ravel())[0, 1] for other in pictures]
        assert np.argmax(likeness) == index and 0.8 < likeness[index] < 0.9999


@pytest.mark.parametrize(("modality", "subsampling"), [("ct", "Gray"), ("histology", "444")])
def test_encoded_picture_decodes_to_itself(modality, subsampling):
    facts = sample_facts(np.random.default_rng(0), modality)
    picture = draw(np.random.default_rng(0), facts, 96)
    data = encode(picture)
    assert simplejpeg.decode_jpeg_header(data)[3] == subsampling
    decoded = simplejpeg.decode_jpeg(data, colorspace="RGB")
    assert np.abs(decoded.astype(int) - picture).mean() < 6  # grey values; grain is the first to go
