"""Corruptions get worse with severity, are the same again, and leave the original alone."""

import numpy as np
import pytest

from jaxclip.evals.robustness import (
    CORRUPTIONS,
    PERTURBATIONS,
    SEVERITIES,
    corrupt_image,
    perturb_caption,
)

CAPTION = "Axial computed tomography of the chest in a patient with hepatocellular carcinoma."


@pytest.fixture(scope="module")
def image():
    y, x = np.mgrid[:60, :90]
    pixels = 128 + 100 * np.sin(x / 3.0) * np.cos(y / 5.0)
    return np.repeat(pixels[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_severity_is_farther_from_the_original(image, corruption):
    original = image.copy()
    clean = corrupt_image(image, corruption, 0, number=0).astype(float)
    assert clean.shape == (224, 336, 3)
    errors = []
    for severity in SEVERITIES:
        found = corrupt_image(image, corruption, severity, number=5)
        assert found.shape == clean.shape and found.dtype == np.uint8
        np.testing.assert_array_equal(found, corrupt_image(image, corruption, severity, number=5))
        errors.append(np.abs(found - clean).mean())
    assert errors == sorted(errors) and errors[0] > 0
    np.testing.assert_array_equal(image, original)


def test_noise_differs_from_image_to_image(image):
    one, two = (corrupt_image(image, "noise", 1, number) for number in (0, 1))
    assert np.abs(one.astype(int) - two).mean() > 1


def test_abbreviations():
    assert perturb_caption(CAPTION, "abbreviations", 5, 0) == (
        "Axial CT of the chest in a pt w/ HCC."
    )
    assert perturb_caption("Without patients", "abbreviations", 5, 0) == "w/o pts"


def test_truncation_keeps_the_first_words():
    assert perturb_caption(CAPTION, "truncation", 5, 0) == "Axial"
    assert perturb_caption("word", "truncation", 5, 0) == "word"


def test_word_order_keeps_the_words():
    found = perturb_caption(CAPTION, "word_order", 5, 3)
    assert found != CAPTION and sorted(found.split()) == sorted(CAPTION.split())


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_severity_0_is_the_caption(perturbation):
    assert perturb_caption(CAPTION, perturbation, 0, 0) == CAPTION
