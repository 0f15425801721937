"""Compound figures taken apart: where the panels are, without any learned weights.

    find_panels(pixels) -> [Panel(box=(0, 0, 310, 240), label="", score=0.93), ...]

Recursive XY-cut (Nagy and Seth 1984) with evidence. A gutter is a band of page colour, or a seam
where two pictures touch, right through a region. Cutting at every gutter would take charts apart
too, so what it leaves is joined again: letters, axis titles, legends go to the piece next to them,
and a region is cut only between pieces that have a body: a picture, or a drawing held together by
its axes. Inside a panel, only gutters nearly as wide as those around it count.

Shape letters: H height, W width. Boxes are (left, top, right, bottom), right and bottom excluded.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from data_pipelines.panel_cuts import MIN_FIGURE, Page
from data_pipelines.panel_labels import Letter
from data_pipelines.panel_regions import Box

BESIDE = 2.0  # heights of a letter, from its centre to the panel that it names
FAR = 1e6


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One panel of a figure; a single one that covers the whole means: not compound."""

    box: Box  # left, top, right, bottom, in pixels of the figure
    label: str = ""  # as printed in the panel, where it was read
    score: float = 1.0  # 0 to 1: how sure the cut is; of a whole figure, that there is none


# What a learned detector has to be, to be given to build_pmc or panels_of_caption instead of
# find_panels: pixels uint8 [H, W, 3], num_labels, letters -> panels, in reading order. For
# build_pmc it is a module's function, which workers import.
Detector = Callable[[np.ndarray, int, Sequence[Letter]], list[Panel]]


def find_panels(
    pixels_HW3: np.ndarray, num_labels: int = 0, letters: Sequence[Letter] = ()
) -> list[Panel]:
    """The panels of a figure in reading order; one that covers the whole if it is not compound.

    Args:
      pixels_HW3: uint8, RGB.
      num_labels: how many panels the caption names, 0 if it does not say. A panel "A" may consist
        of several pictures: where more are found than labels, only the widest gutters are cut.
        Where fewer are found, less evidence is enough, if that gives the number.
      letters: labels of the caption as they were read in the figure, each once. Where gutters
        leave one of them in every panel, those are the panels.
    """
    height, width = pixels_HW3.shape[:2]
    whole = Panel((0, 0, width, height))
    page = Page(pixels_HW3)
    if min(page.height, page.width) < MIN_FIGURE:
        return [whole]
    scale = np.array([width / page.width, height / page.height] * 2)
    places = [tuple(np.divide(letter.centre, scale[:2]).tolist()) for letter in letters]
    regions = page.regions(num_labels, places)
    if len(regions) < 2:
        score = 0.55 + 0.45 * math.exp(-page.rejected() / 4)  # more than half, or it had been cut
        return [dataclasses.replace(whole, score=score)]
    panels = []
    for region in regions:
        left, top, right, bottom = np.rint(np.multiply(page.trim(region.box), scale)).astype(int)
        box = (int(left), int(top), min(width, int(right)), min(height, int(bottom)))
        panels.append(Panel(box, score=round(region.score, 3)))
    return reading_order(_name(panels, letters))


def _name(panels: Sequence[Panel], letters: Sequence[Letter]) -> list[Panel]:
    """Panels with their labels: a letter in or beside each, such that they are nearest all in all.

    What stands in one panel with other letters names nothing.
    """
    if not letters:
        return list(panels)
    gaps_PL = np.array([[_gap(panel.box, one) for one in letters] for panel in panels])
    is_alone = (gaps_PL == 0).sum(1, keepdims=True) < 2
    costs_PL = np.where((gaps_PL <= BESIDE) & is_alone, gaps_PL, FAR)
    named = list(panels)
    for i, k in zip(*linear_sum_assignment(costs_PL), strict=True):
        if costs_PL[i, k] < FAR:
            named[i] = dataclasses.replace(panels[i], label=letters[k].text)
    return named


def _gap(box: Box, letter: Letter) -> float:
    """From a letter's centre to a box, in heights of the letter; 0 inside."""
    x, y = letter.centre
    apart = np.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3]))
    return float(apart) / (letter.box[3] - letter.box[1])


def reading_order(panels: Sequence[Panel]) -> list[Panel]:
    """Rows from the top, in each from the left; a row's panels overlap half of their heights."""
    rows: list[list[Panel]] = []
    for panel in sorted(panels, key=lambda panel: panel.box[1]):
        for row in rows:
            top, bottom = row[0].box[1], row[0].box[3]
            overlap = min(bottom, panel.box[3]) - max(top, panel.box[1])
            if overlap > 0.5 * min(bottom - top, panel.box[3] - panel.box[1]):
                row.append(panel)
                break
        else:
            rows.append([panel])
    return [panel for row in rows for panel in sorted(row, key=lambda panel: panel.box[0])]
