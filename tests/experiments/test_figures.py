"""What is drawn is what was measured: the data of lines, and the words for those who see none."""

import html
import re

import numpy as np
import pytest
from etils import epath

from experiments import figures
from tests.experiments.test_scaling import SIZES, THIRD, analysis


@pytest.fixture(scope="module")
def found():
    return analysis(THIRD, SIZES)


def drawn(axes, style: str, colour: str) -> np.ndarray:
    """The finite points of all lines of this style and colour, [2, N]."""
    lines = [
        np.array(line.get_data(), float) for line in axes.lines
        if (line.get_linestyle(), line.get_color()) == (style, colour)
    ]  # fmt: skip
    points = np.concatenate(lines, axis=1)
    return points[:, np.isfinite(points).all(axis=0)]


def test_curves_are_the_errors(found):
    (axes,) = figures.curves(found, found.curves).axes
    for s, truth in enumerate(THIRD.values()):
        pairs, error = drawn(axes, "-", figures.COLOURS[s])
        assert (pairs.min(), pairs.max()) == pytest.approx((SIZES[0], SIZES[-1]))
        np.testing.assert_allclose(error, truth(pairs, 0), rtol=0.01)
        marks = drawn(axes, "None", figures.COLOURS[s])
        assert marks.shape[1] == 3 * len(SIZES)  # each run
        np.testing.assert_allclose(marks[1], truth(marks[0], 0), rtol=1e-3)
    assert axes.get_yscale() == "log" and not axes.yaxis_inverted()


def test_the_rate_is_that_of_the_source(found):
    (axes,) = figures.exchange(found, {"b": (3, 3)}).axes
    pairs, rate = drawn(axes, "-", figures.COLOURS[1])
    np.testing.assert_allclose(rate, 3, rtol=0.03)  # and not a third
    assert pairs.min() == pytest.approx(SIZES[0])
    planted = [text.get_text() for text in axes.texts if "planted" in text.get_text()]
    assert planted == ["planted: 3"]


def test_figures_say_what_they_show(found, tmp_path):
    evil = '"><script>#0072b2'
    alt = figures.curves_alt(found, found.curves) + evil
    svg = figures.save(figures.curves(found, found.curves), epath.Path(tmp_path), "curves", alt)
    told = html.unescape(re.search(r'aria-label="([^"]*)"', svg)[1])
    assert told == alt and "<script" not in svg
    ends = re.search(r": a from ([\d.]+) at 2,000 to ([\d.]+) at 16k; b from", told).groups()
    expected = [THIRD["a"](size, 0) for size in (2_000, 16_000)]
    assert [float(end) for end in ends] == pytest.approx(expected, abs=0.002)
    assert "b 3." in figures.exchange_alt(found)
