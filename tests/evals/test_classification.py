"""Metrics of classification against torchmetrics and scikit-learn, and by hand."""

import numpy as np
import pytest

from jaxclip.evals.classification import (
    Ranking,
    multi_label,
    predictions,
    single_label,
)
from tests.evals.fixture import expected


@pytest.mark.parametrize("part", ["single_label", "binary"])
def test_single_label_equals_the_libraries(part):
    given, reference = expected(part)
    groups = np.arange(len(given["true"]))
    found = single_label("x", given["logits"], given["true"], groups).values()
    for name, value in reference.items():
        assert found[name] == pytest.approx(float(value), abs=2e-6), name  # theirs are float32


def test_multi_label_equals_the_libraries():
    given, reference = expected("multi_label")
    groups = np.arange(len(given["true"]))
    found = multi_label("x", given["probability"], given["true"], groups).values()
    for name, value in reference.items():
        assert found[name] == pytest.approx(float(value), abs=2e-6), name


def test_drawn_units_count_as_often_as_they_are_drawn():
    """A metric of a draw is that of a set in which the images really stand so often."""
    given, _ = expected("single_label")
    units = np.random.default_rng(0).integers(0, 200, 200)
    whole = single_label("x", given["logits"], given["true"], np.arange(200))
    drawn = single_label("x", given["logits"][units], given["true"][units], np.arange(200))
    assert whole.metrics(units) == pytest.approx(drawn.values(), abs=1e-12)
    right_U = whole.items["accuracy"][units]
    assert right_U.mean() == pytest.approx(drawn.values()["accuracy"], abs=1e-12)
    given, _ = expected("multi_label")
    units = units[:120] % 120
    whole = multi_label("x", given["probability"], given["true"], np.arange(120))
    drawn = multi_label("x", given["probability"][units], given["true"][units], np.arange(120))
    assert whole.metrics(units) == pytest.approx(drawn.values(), abs=1e-12)


def test_a_tie_is_an_error():
    score = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.1, 0.2, 0.9]])
    assert predictions(score, np.array([0, 1, 2])).tolist() == [1, 0, 2]


def test_areas_by_hand():
    score, true = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    # of the four (true, false) pairs three are in order and one is a tie
    ranking = Ranking(score[:, None], true[:, None])
    assert ranking.area_under_roc(np.ones(4)) == 3.5 / 4
    # from above: 0.8 alone is right; then two at once, one of them right
    assert ranking.average_precision(np.ones(4)) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(ranking.area_under_roc(np.array([1, 0, 1, 0])))


def test_a_class_without_images_counts_nowhere():
    logits, true = np.eye(3)[[0, 0, 1, 1]] * 5, np.array([0, 0, 1, 1])
    found = single_label("x", logits, true, np.arange(4))
    assert found.values()["balanced_accuracy"] == found.values()["macro_f1"] == 1
    assert found.values()["auroc"] == 1
    assert found.chance["balanced_accuracy"] == 1 / 2  # of the classes that are there


def test_sensitivity_is_the_recall_of_the_positive_class():
    # class 0 (malignant): found 1 of 3; class 1 (benign): 2 of 2
    logits, true = np.eye(2)[[0, 1, 1, 1, 1]] * 5, np.array([0, 0, 0, 1, 1])
    malignant = single_label("x", logits, true, np.arange(5), positive=0)
    assert malignant.values()["sensitivity"] == pytest.approx(1 / 3)
    assert malignant.values()["specificity"] == 1
    benign = single_label("x", logits, true, np.arange(5)).values()
    assert (benign["sensitivity"], benign["specificity"]) == (1, pytest.approx(1 / 3))
    # a draw without a malignant image says nothing of how many of them are found
    drawn = malignant.metrics(np.array([3, 4, 4]))
    assert np.isnan(drawn["sensitivity"]) and drawn["specificity"] == 1


def test_findings_are_calibrated_and_balanced_one_by_one():
    """Two findings: one right but unsure, the other always said and half the time there."""
    true = np.array([[1, 1], [0, 0], [0, 1], [0, 0]], bool)
    probability = np.array([[0.8, 0.9], [0.2, 0.9], [0.2, 0.9], [0.2, 0.9]])
    found = multi_label("x", probability, true, np.arange(4)).values()
    assert found["balanced_accuracy"] == pytest.approx((1 + (1 + 0) / 2) / 2)
    # bins: one image at 0.8 and three at 0.2, each off by 0.2; all four at 0.9, of which half are
    assert found["calibration_error"] == pytest.approx((0.2 + 0.4) / 2)
