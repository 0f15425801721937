"""How well compound figures are taken apart, with boxes to compare: F1 at IoU 0.5.

    python -m experiments.benchmarks.panels --shared=../shared/data --num=400

synthetic   compounds drawn with the real layouts of panels.csv from real images: pictures (VQA-RAD,
            photographs and micrographs of PMC), or, where no two panels of the layout touch, also
            drawings (charts, diagrams). Layouts are in two halves by a hash of their name; the
            constants of find_panels were chosen on the development half.
real        30 compound figures of PMC, boxed by hand: tests/pipelines/panel_boxes.json; from pixels
            alone, told the number of panels, and as the pipeline does it, with the captions.
            The rules were made looking at these
held_out    35 others, drawn at random and boxed when all rules were made
single      how often a PMC figure of one panel stays whole
"""

import argparse
import collections
import csv
import dataclasses
import hashlib
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np
import simplejpeg

from data_pipelines.captions import panels_of_caption, split_caption
from data_pipelines.images import darkest
from data_pipelines.panel_labels import Reader, rapidocr_reader
from data_pipelines.panels import Box, find_panels
from jaxclip.data.image import decode_image

GOLD = pathlib.Path(__file__).parents[2] / "tests/pipelines/panel_boxes.json"


@dataclasses.dataclass(slots=True)
class Score:
    """Boxes found and wanted; a pair counts from IoU 0.5, each box once."""

    right: int = 0
    found: int = 0
    wanted: int = 0
    figures: int = 0
    all_right: int = 0  # figures without any error

    def add(self, found: Sequence[Box], wanted: Sequence[Box]) -> None:
        right = matches(found, wanted)
        self.right, self.found = self.right + right, self.found + len(found)
        self.wanted, self.figures = self.wanted + len(wanted), self.figures + 1
        self.all_right += right == len(found) == len(wanted)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(1, self.found + self.wanted)

    def __str__(self) -> str:
        precision, recall = self.right / max(1, self.found), self.right / max(1, self.wanted)
        return (
            f"F1 {self.f1:.3f} precision {precision:.3f} recall {recall:.3f}; {self.wanted} "
            f"panels, {self.all_right} of {self.figures} figures without an error"
        )


def iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def matches(found: Sequence[Box], wanted: Sequence[Box]) -> int:
    """Pairs with IoU >= 0.5, best first, each box once."""
    pairs = [(iou(a, b), i, j) for i, a in enumerate(found) for j, b in enumerate(wanted)]
    used_found, used_wanted = set(), set()
    for overlap, i, j in sorted(pairs, reverse=True):
        if overlap >= 0.5 and i not in used_found and j not in used_wanted:
            used_found.add(i)
            used_wanted.add(j)
    return len(used_found)


# --- Drawn compounds ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class LayoutPanel:
    box: Box
    label_box: Box | None
    label: str


def read_layouts(file: pathlib.Path) -> dict[str, list[LayoutPanel]]:
    layouts = collections.defaultdict(list)
    with open(file, newline="") as opened:
        for row in csv.reader(opened):
            box = tuple(int(float(value)) for value in row[1:5])
            label_box = tuple(int(float(value)) for value in row[6:10]) if row[6] else None
            layouts[row[0]].append(LayoutPanel(box, label_box, row[10]))
    return dict(layouts)


def is_development(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def single_figures(shared: pathlib.Path) -> list[np.ndarray]:
    """PMC figures of one panel, each looked at."""
    names = json.loads(GOLD.read_text())["single"]
    return [decode_image((shared / "pmc_articles" / name).read_bytes()) for name in names]


def radiology(shared: pathlib.Path) -> list[np.ndarray]:
    folder = shared / "vqa_rad"
    return [decode_image(file.read_bytes()) for file in sorted(folder.rglob("*.jpg"))]


def draw_compound(
    layout: Sequence[LayoutPanel], images: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, list[Box]]:
    """A white page with an image in every panel and its letter on top; JPEG's noise over all."""
    left, top = (min(panel.box[i] for panel in layout) for i in (0, 1))
    right, bottom = (max(panel.box[i] for panel in layout) for i in (2, 3))
    page = np.full((bottom - top + 8, right - left + 8, 3), 255, np.uint8)
    boxes = []
    for panel in layout:
        x0, y0 = max(0, panel.box[0] - left + 4), max(0, panel.box[1] - top + 4)
        x1, y1 = panel.box[2] - left + 4, panel.box[3] - top + 4
        image = images[rng.integers(len(images))]
        method = cv2.INTER_AREA if image.shape[0] > y1 - y0 else cv2.INTER_LINEAR
        page[y0:y1, x0:x1] = cv2.resize(image, (x1 - x0, y1 - y0), interpolation=method)
        boxes.append((x0, y0, x1, y1))
    for panel in layout:
        if panel.label_box:
            _draw_letter(page, panel, left - 4, top - 4)
    data = simplejpeg.encode_jpeg(page, int(rng.integers(75, 95)))
    return simplejpeg.decode_jpeg(data), boxes


def _draw_letter(page: np.ndarray, panel: LayoutPanel, left: int, top: int) -> None:
    assert panel.label_box
    x0, y0, x1, y1 = panel.label_box
    x0, y0, x1, y1 = max(0, x0 - left), max(0, y0 - top), x1 - left, y1 - top
    under = page[y0:y1, x0:x1]
    dark = under.size > 0 and under.mean() < 128
    colour = (255, 255, 255) if dark else (0, 0, 0)
    scale = max(0.3, (y1 - y0) / 30)
    cv2.putText(page, panel.label, (x0, y1), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 2)


def _trimmed(pixels: np.ndarray) -> np.ndarray:
    """Without white margins, so that the box drawn is the box one sees."""
    filled = darkest(pixels) < 228
    if not filled.any():
        return pixels
    rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def synthetic(
    shared: pathlib.Path, num: int, development: bool
) -> Iterator[tuple[str, np.ndarray, list[Box]]]:
    """(kind of images, pixels, boxes) of `num` compounds; the same for the same arguments."""
    layouts = read_layouts(shared / "panel_layouts/panels.csv")
    names = [n for n in sorted(layouts) if len(layouts[n]) > 1 and is_development(n) == development]
    rng = np.random.default_rng(20261122)
    singles = [_trimmed(image) for image in single_figures(shared)]
    singles = [image for image in singles if min(image.shape[:2]) > 60]
    white = [(darkest(image) >= 228).mean() for image in singles]
    pictures = [image for image, share in zip(singles, white, strict=True) if share < 0.25]
    pictures += [_trimmed(image) for image in radiology(shared)]
    drawings = [image for image, share in zip(singles, white, strict=True) if share >= 0.25]
    for index in rng.permutation(len(names))[:num]:
        layout = layouts[names[index]]
        is_drawn = _narrowest(layout) >= 4 and rng.random() < 0.5
        images = [_with_margin(image) for image in drawings] if is_drawn else pictures
        yield ("drawings" if is_drawn else "pictures"), *draw_compound(layout, images, rng)


def _narrowest(layout: Sequence[LayoutPanel]) -> int:
    """Pixels between the two nearest panels; negative if they overlap."""
    apart = [
        max(max(a[0], b[0]) - min(a[2], b[2]), max(a[1], b[1]) - min(a[3], b[3]))
        for a, b in itertools.combinations([panel.box for panel in layout], 2)
    ]
    return min(apart)


def _with_margin(image: np.ndarray) -> np.ndarray:
    """Drawings never reach the edge of their panel."""
    height, width = (round(0.03 * side) for side in image.shape[:2])
    border = (height, height, width, width, cv2.BORDER_CONSTANT)
    return cv2.copyMakeBorder(image, *border, value=(255, 255, 255))


# --- Figures looked at -------------------------------------------------------------------------


def real(
    shared: pathlib.Path, part: str = "figures"
) -> Iterator[tuple[str, np.ndarray, list[Box]]]:
    """(file, pixels, boxes) of the figures boxed by hand; part: figures, or held_out."""
    for file, boxes in json.loads(GOLD.read_text())[part].items():
        pixels = decode_image((shared / "pmc_articles" / file).read_bytes())
        yield file, pixels, [tuple(box) for box in boxes]


Finder = Callable[[str, np.ndarray, list[Box]], list[Box]]  # file, pixels, gold boxes -> boxes


def by_pixels(file: str, pixels: np.ndarray, boxes: list[Box]) -> list[Box]:
    return [panel.box for panel in find_panels(pixels)]


def by_number(file: str, pixels: np.ndarray, boxes: list[Box]) -> list[Box]:
    """Told how many panels there are."""
    return [panel.box for panel in find_panels(pixels, len(boxes))]


def as_the_pipeline(shared: pathlib.Path, reader: Reader | None) -> Finder:
    """With the figure's own caption, and the letters in it if there is a reader."""
    with open(shared / "pmc_articles/figures.jsonl") as lines:
        captions = {row["file"]: row["caption"] for row in map(json.loads, lines)}

    def find(file: str, pixels: np.ndarray, boxes: list[Box]) -> list[Box]:
        split = split_caption(captions[file])
        return [panel.box for panel in panels_of_caption(pixels, split, reader)]

    return find


def measure(
    figures: Iterable[tuple[str, np.ndarray, list[Box]]], find: Finder = by_pixels
) -> tuple[dict, float]:
    """Scores by kind and of "all"; CPU seconds a figure."""
    scores, start, spent = collections.defaultdict(Score), 0.0, 0.0
    for kind, pixels, boxes in figures:
        start = time.process_time()
        found = find(kind, pixels, boxes)
        spent += time.process_time() - start
        for name in ("all", kind):
            scores[name].add(found, boxes)
    return scores, spent / max(1, scores["all"].figures)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--shared", type=pathlib.Path, required=True, help="the folder of real data"
    )
    parser.add_argument("--num", type=int, default=400, help="synthetic compounds of each half")
    parser.add_argument("--only", default="", help="development, test, real, held_out or single")
    parser.add_argument("--read_labels", action="store_true", help="real ones also with OCR")
    options = parser.parse_args()
    for half in ("development", "test"):
        if options.only in ("", half):
            figures = synthetic(options.shared, options.num, half == "development")
            scores, seconds = measure(figures)
            for kind, score in sorted(scores.items()):
                print(f"synthetic {half} {kind:10} {score}")
            print(f"  {1000 * seconds:.1f} ms of CPU a figure")
    finders = {"pixels": by_pixels, "number told": by_number}
    finders["caption"] = as_the_pipeline(options.shared, None)
    if options.read_labels:
        finders["caption and letters"] = as_the_pipeline(options.shared, rapidocr_reader())
    for kind, part in (("real", "figures"), ("held_out", "held_out")):
        for name, find in finders.items() if options.only in ("", kind) else ():
            scores, seconds = measure(real(options.shared, part), find)
            print(f"{kind}, {name:20} {scores['all']}; {1000 * seconds:.0f} ms of CPU a figure")
    if options.only in ("", "single"):
        whole = [len(find_panels(image)) == 1 for image in single_figures(options.shared)]
        print(f"single: {sum(whole)} of {len(whole)} stay whole")


if __name__ == "__main__":
    main()
