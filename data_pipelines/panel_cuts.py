"""Where a figure can be cut: gutters, seams, and what between them is a panel.

Shape letters: H height, W width. Boxes are (left, top, right, bottom), right and bottom excluded.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines.images import darkest, lightest
from data_pipelines.panel_regions import (
    Box,
    Point,
    Region,
    in_two,
    leaves,
    named_regions,
    num_inside,
)

MIN_FIGURE = 32  # pixels of a side, below which nothing is looked for
WORK_SIDE = 800  # pixels of the longer side while looking for gutters
PAGE_WHITE, PAGE_BLACK = 228, 22  # a page pixel is at least, at most; JPEG rings around letters
SEAM_STEP = 14  # grey levels from one side of a seam to the other
MIN_AREA = 0.008  # of the figure, of a panel
JOIN = 5  # pixels between strokes of one drawing, at WORK_SIDE
INNER_GUTTER = 0.45  # of the gutter outside, that one inside has to be wide
PICTURE = 0.5  # share of pixels that are not page, from which on a piece is a picture
SEAM = 1.0  # strength of a seam, in pixels of a gutter's width
THIN = 4  # pixels of a gutter
FRAME = 0.03  # of a gutter's length, at its ends, where a line across it is a frame around all


@dataclasses.dataclass(frozen=True, slots=True)
class _Rules:
    """How much evidence a cut needs."""

    gutter_share: float  # of page pixels along a gutter
    seam_share: float  # of a seam's length that has a step
    max_seam_page: float  # of a region with seams: in drawings, straight steps mean nothing
    body_share: float  # of a piece's thickness, that its largest connected drawing covers
    min_side: float  # of the figure's side, of a panel: 0.12 is panels.csv's first percentile
    min_drawn_side: float  # of one that is not a picture


STRICT = _Rules(0.985, 0.5, 0.35, 0.42, 0.09, 0.12)
LENIENT = _Rules(0.97, 0.4, 0.7, 0.25, 0.07, 0.07)  # where the caption names more panels

LENIENT_SCORE = 0.6  # at most, of a cut that the caption asked for


@dataclasses.dataclass(slots=True)
class _Gutter:
    start: int
    end: int
    strength: float  # pixels of width


class Page:
    """A figure at working size, with sums that make every question about a rectangle cheap."""

    def __init__(self, pixels_HW3: np.ndarray):
        height, width = pixels_HW3.shape[:2]
        scale = min(1.0, WORK_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.ascontiguousarray(pixels_HW3)
        if scale < 1:
            small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
        self.height, self.width = small.shape[:2]
        self.rules = STRICT
        white, black = darkest(small) >= PAGE_WHITE, lightest(small) <= PAGE_BLACK
        border = np.concatenate([white[0], white[-1], white[:, 0], white[:, -1]])
        page = black if white.mean() < 0.03 and border.mean() < 0.05 else white
        self._page = _sums(page)
        self._steps = [_sums(_step(small, axis, 1)) for axis in (1, 0)]
        self._changes = [_sums(_step(small, axis, 4)) for axis in (1, 0)]
        strokes = cv2.morphologyEx((~page).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((JOIN, JOIN)))
        _, _, stats, _ = cv2.connectedComponentsWithStats(strokes)
        order = np.argsort(-stats[1:, 2] * stats[1:, 3])
        self._components = stats[1:][order][:400]

    # --- Questions about rectangles ---

    def page_share(self, box: Box) -> float:
        left, top, right, bottom = box
        total = _rectangle(self._page, box)
        return float(total) / max(1, (right - left) * (bottom - top))

    def _profile(self, sums: np.ndarray, box: Box, axis: int) -> np.ndarray:
        """Share of set pixels of each column (axis 0) or row (axis 1) of a box."""
        left, top, right, bottom = box
        if axis == 0:
            line = sums[bottom, left : right + 1] - sums[top, left : right + 1]
            return np.diff(line) / max(1, bottom - top)
        line = sums[top : bottom + 1, right] - sums[top : bottom + 1, left]
        return np.diff(line) / max(1, right - left)

    def trim(self, box: Box) -> Box:
        """Without the margins of page colour."""
        left, top, right, bottom = box
        for _ in range(2):
            for axis in (0, 1):
                if right - left < 2 or bottom - top < 2:
                    return left, top, right, bottom
                filled = self._profile(self._page, (left, top, right, bottom), axis) < 0.997
                if not filled.any():
                    return left, top, right, bottom
                first, last = int(filled.argmax()), len(filled) - int(filled[::-1].argmax())
                if axis == 0:
                    left, right = left + first, left + last
                else:
                    top, bottom = top + first, top + last
        return left, top, right, bottom

    def has_body(self, box: Box, axis: int) -> bool:
        """Is a piece, cut along an axis, large enough, and more than letters?"""
        left, top, right, bottom = self.trim(box)
        width, height = right - left, bottom - top
        if width < self.rules.min_side * self.width or height < self.rules.min_side * self.height:
            return False
        if width * height < MIN_AREA * self.width * self.height:
            return False
        if self.page_share((left, top, right, bottom)) < 1 - PICTURE:
            return True
        if min(width / self.width, height / self.height) < self.rules.min_drawn_side:
            return False
        parts = self._components
        x, y = parts[:, 0] + parts[:, 2] / 2, parts[:, 1] + parts[:, 3] / 2
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        least = np.array([self.rules.min_side * self.width, self.rules.min_side * self.height])
        least[axis] = max(least[axis], self.rules.body_share * (width, height)[axis])
        return bool((parts[inside, 2:4] >= least).all(1).any())

    # --- Cutting ---

    def regions(self, num_labels: int, places: Sequence[Point] = ()) -> list[Region]:
        """The panels.

        Args:
          num_labels: of them there are so many, if that can be; 0 means any number.
          places: of their labels, as far as they are known.
        """
        counted: list[list[Region]] = []
        for rules, score in ((STRICT, 1.0), (LENIENT, LENIENT_SCORE)):
            self.rules = rules
            tree = self.cut((0, 0, self.width, self.height), (0.0, 0.0), score)
            if len(places) == num_labels > 1:
                if named := named_regions(self._parted(tree, places), places):
                    return named
            counted.append(leaves(tree, num_labels))
            if len(counted[-1]) >= num_labels and len(places) != num_labels:
                break
        return next((found for found in counted if len(found) == num_labels), counted[0])

    def rejected(self) -> float:
        """Strength of the strongest gutter that less evidence would have been enough for, of a
        figure that stayed whole; 0 for none."""
        self.rules = LENIENT
        return self.cut((0, 0, self.width, self.height), (0.0, 0.0), LENIENT_SCORE).strength

    def _parted(self, tree: Region, places: Sequence[Point]) -> list[Region]:
        """All pieces; those with several labels also cut at gutters narrower than around them."""
        pieces = []
        for piece in leaves(tree, 0):
            if num_inside(piece.box, places) > 1:
                piece = self.cut(piece.box, (0.0, 0.0), piece.score)
            pieces += leaves(piece, 0)
        return pieces

    def cut(self, box: Box, outside: tuple[float, float], score: float) -> Region:
        """Takes a box apart.

        Args:
          outside: strength of the upright and the level gutters around it; 0 where there are none.
          score: of the weakest cut around it.
        """
        box = self.trim(box)
        best: tuple[float, int, list[Box], list[float]] | None = None
        for axis in (0, 1):
            pieces, strengths = self._pieces(box, axis, outside[axis])
            if len(pieces) > 1:
                quality = min(strengths) / (1 + _unevenness(pieces, axis))
                if best is None or quality > best[0]:
                    best = quality, axis, pieces, strengths
        if best is None:
            return Region(box, score)
        _, axis, pieces, strengths = best
        weakest = min(strengths)
        outside = (weakest, outside[1]) if axis == 0 else (outside[0], weakest)
        score = min(score, 1 - 0.5 * float(np.exp(-weakest / 4)))
        regions = [self.cut(piece, outside, score) for piece in pieces]
        return in_two(regions, strengths, score)

    def _pieces(self, box: Box, axis: int, outside: float) -> tuple[list[Box], list[float]]:
        """The box cut along an axis into pieces with a body; strengths of the gutters between."""
        gutters = [
            gutter
            for gutter in self._gutters(box, axis)
            if gutter.strength == SEAM or gutter.strength >= INNER_GUTTER * outside
        ]
        edges = [box[axis], *(e for g in gutters for e in (g.start, g.end)), box[axis + 2]]
        spans = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        strengths = [gutter.strength for gutter in gutters]
        bodies = [self.has_body(_with_span(box, axis, span), axis) for span in spans]
        while len(spans) > 1 and not all(bodies):
            index = bodies.index(False)  # goes to its nearer neighbour
            before = strengths[index - 1] if index else np.inf
            after = strengths[index] if index < len(strengths) else np.inf
            first = index - 1 if before <= after else index
            joined = (spans[first][0], spans[first + 1][1])
            body = any(bodies[first : first + 2])
            body = body or self.has_body(_with_span(box, axis, joined), axis)
            spans[first : first + 2], bodies[first : first + 2] = [joined], [body]
            del strengths[first]
        return [_with_span(box, axis, span) for span in spans], strengths

    def _gutters(self, box: Box, axis: int) -> list[_Gutter]:
        """Bands of page colour, thin lines and seams right through a box; not at its ends."""
        start, end = box[axis], box[axis + 2]
        page = self._profile(self._page, box, axis)
        gutters = [
            _Gutter(start + a, start + b, b - a) for a, b in _runs(page >= self.rules.gutter_share)
        ]
        gutters = [g for g in gutters if g.start > start and g.end < end]
        # a thin one parts pictures; a wide one may part drawings, if no line goes across
        gutters = [
            g
            for g in gutters
            if (
                self._is_sharp(box, axis, g)
                if g.strength < THIN
                else not self._crossed(box, axis, g)
            )
        ]
        gutters = gutters or self._seams(box, axis)  # a seam is the weaker evidence
        return sorted(gutters, key=lambda gutter: gutter.start)

    def _is_sharp(self, box: Box, axis: int, gutter: _Gutter) -> bool:
        """Do pictures end on both sides of it?"""
        beside = [
            self.page_share(_with_span(box, axis, span))
            for span in ((gutter.start - 3, gutter.start), (gutter.end, gutter.end + 3))
        ]
        return max(beside) < 0.5

    def _crossed(self, box: Box, axis: int, gutter: _Gutter) -> bool:
        """Does a line, such as an axis, run from one side to the other? At the ends: a frame."""
        band = _with_span(box, axis, (gutter.start, gutter.end))
        page = self._profile(self._page, band, 1 - axis)
        margin = max(2, int(FRAME * len(page)))
        return bool((page[margin:-margin] == 0).any())

    def _seams(self, box: Box, axis: int) -> list[_Gutter]:
        """Straight steps between two pictures that touch, or have a thin line between them."""
        if self.page_share(box) > self.rules.max_seam_page:
            return []
        start, end = box[axis], box[axis + 2]
        steps = self._profile(self._steps[axis], box, axis)
        changes = self._profile(self._changes[axis], box, axis)  # a line has the same on both sides
        margin = max(4, int(self.rules.min_side * (self.width, self.height)[axis]))
        seams = []
        for place in np.flatnonzero(
            (steps >= self.rules.seam_share)
            & (steps >= _mean_around(steps) + 0.35)
            & (changes >= _mean_around(changes) + 0.15)
        ):
            at = start + int(place)
            if place < margin or place > end - start - margin:
                continue
            if any(g.start - 5 <= at <= g.end + 5 for g in seams):
                continue
            seams.append(_Gutter(at, at, SEAM))
        return seams


def _step(pixels_HW3: np.ndarray, axis: int, reach: int) -> np.ndarray:
    """Where what is `reach` pixels before differs from what is `reach - 1` after, bool [H, W]."""
    before = np.roll(pixels_HW3, reach, axis)
    after = np.roll(pixels_HW3, 1 - reach, axis)
    return lightest(cv2.absdiff(before, after)) > SEAM_STEP


def _mean_around(profile: np.ndarray) -> np.ndarray:
    """Mean over 31 places."""
    return cv2.blur(profile[None].astype(np.float32), (31, 1), borderType=cv2.BORDER_REFLECT)[0]


def _sums(mask_HW: np.ndarray) -> np.ndarray:
    """Integral image, int32 [H + 1, W + 1]."""
    return cv2.integral(mask_HW.astype(np.uint8))


def _rectangle(sums: np.ndarray, box: Box) -> int:
    left, top, right, bottom = box
    return int(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _with_span(box: Box, axis: int, span: Sequence[int]) -> Box:
    left, top, right, bottom = box
    if axis == 0:
        return max(left, span[0]), top, min(right, span[1]), bottom
    return left, max(top, span[0]), right, min(bottom, span[1])


def _unevenness(pieces: Sequence[Box], axis: int) -> float:
    sizes = np.array([piece[axis + 2] - piece[axis] for piece in pieces], float)
    return float(sizes.std() / sizes.mean())
