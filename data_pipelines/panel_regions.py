"""Pieces of a figure as a tree of cuts; which of them make a panel, by number or by labels.

Boxes are (left, top, right, bottom), right and bottom excluded.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

MOST_PIECES = 64  # of a figure whose pieces are put together by labels
ELSEWHERE = 1e4  # pixels that a piece left of or above a label counts as farther away

Box = tuple[int, int, int, int]
Point = tuple[float, float]  # x, y


@dataclasses.dataclass(slots=True)
class Region:
    """A box, and the two that its strongest gutter parts it in, if any."""

    box: Box
    score: float
    strength: float = 0.0
    halves: tuple["Region", ...] = ()


def leaves(region: Region, most: int) -> list[Region]:
    """The regions after all cuts; after the `most - 1` strongest ones, if `most` is not 0."""
    leaves = [region]
    while any(leaf.halves for leaf in leaves) and (most == 0 or len(leaves) < most):
        strongest = max((leaf for leaf in leaves if leaf.halves), key=lambda leaf: leaf.strength)
        leaves.remove(strongest)
        leaves += strongest.halves
    return leaves


def named_regions(pieces: Sequence[Region], places: Sequence[Point]) -> list[Region]:
    """Pieces put together so that each of `places`, where labels are, has one; [] if that fails.

    A piece without a label goes to the nearest panel that it makes a rectangle with, before others
    to one on its left or above it, as labels stand at the upper left.
    """
    named = [p for p in pieces if num_inside(p.box, places) == 1]
    others = [p for p in pieces if num_inside(p.box, places) == 0]
    if len(named) != len(places) or len(pieces) > MOST_PIECES:
        return []
    while others:
        pairs = itertools.product(range(len(named)), others)
        n, piece = min(pairs, key=lambda pair: _cost(named, *pair))
        if _cost(named, n, piece) == np.inf:
            return []
        named[n] = Region(_around(named[n].box, piece.box), min(named[n].score, piece.score))
        others = [p for p in others if not _overlap(p.box, named[n].box)]
    return named


def num_inside(box: Box, places: Sequence[Point]) -> int:
    return sum(box[0] <= x < box[2] and box[1] <= y < box[3] for x, y in places)


def _cost(named: Sequence[Region], n: int, piece: Region) -> float:
    """Pixels between a piece and panel n; infinite where another panel is between them."""
    panel = named[n].box
    both = _around(piece.box, panel)
    if any(_overlap(both, other.box) for i, other in enumerate(named) if i != n):
        return np.inf
    gaps = [max(0, piece.box[i] - panel[i + 2], panel[i] - piece.box[i + 2]) for i in (0, 1)]
    starts = [piece.box[i] - panel[i] + 0.1 * (panel[i + 2] - panel[i]) for i in (0, 1)]
    return max(gaps) + (0 if min(starts) >= 0 else ELSEWHERE)


def _around(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _overlap(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def in_two(regions: list[Region], strengths: list[float], score: float) -> Region:
    """Regions in a row as a tree that parts at the strongest gutter first."""
    if len(regions) == 1:
        return regions[0]
    at = int(np.argmax(strengths))
    boxes = np.array([region.box for region in regions])
    left, top, right, bottom = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    halves = (
        in_two(regions[: at + 1], strengths[:at], score),
        in_two(regions[at + 1 :], strengths[at + 1 :], score),
    )
    return Region((left, top, right, bottom), score, strengths[at], halves)
