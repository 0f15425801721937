"""Letters printed in a figure that its caption calls panels, "A", "(b)", "iv": read by OCR.

    read_labels(pixels, ["a", "b"], rapidocr_reader()) -> [Letter("a", (3, 5, 20, 26), 0.98), ...]

An option: without it panels are told apart by gutters and get their words by order.
Shape letters: H height, W width.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable

import numpy as np

from data_pipelines.panel_cuts import Box

BRACKETS = "()[]{}<>.,:;'’\"|- "
MIN_SCORE = 0.4  # of a reading, from 0 to 1
MAX_ASPECT = 2.5  # of a label, "(iii)"
ENGINE = {  # there is a worker a core already
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Global.text_score": 0.0,  # MIN_SCORE is ours
}


@dataclasses.dataclass(frozen=True, slots=True)
class Letter:
    """A short text in a figure."""

    text: str
    box: Box  # left, top, right, bottom, in pixels of the figure
    score: float  # 0 to 1: how sure the reading is

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


# Reads every text of a figure: pixels uint8 [H, W, 3], RGB -> texts, in any order.
Reader = Callable[[np.ndarray], list[Letter]]


def read_labels(pixels_HW3: np.ndarray, labels: Iterable[str], reader: Reader) -> list[Letter]:
    """What is printed in a figure and is a label of its caption, as the caption writes it.

    Each label at most once: of several readings, the tallest, as labels are larger than ticks.
    """
    known = {label.casefold(): label for label in labels}
    if len(known) < 2:
        return []
    best: dict[str, Letter] = {}
    for letter in reader(pixels_HW3):
        label = known.get(letter.text.strip(BRACKETS).casefold())
        if label is None or letter.score < MIN_SCORE:
            continue
        if label not in best or _height(letter) > _height(best[label]):
            best[label] = dataclasses.replace(letter, text=label)
    return list(best.values())


def _height(letter: Letter) -> int:
    return letter.box[3] - letter.box[1]


@functools.cache
def rapidocr_reader() -> Reader:
    """RapidOCR on ONNX Runtime; its wheel carries the models (PP-OCR). One a process.

    Raises ValueError: it is not installed.
    """
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError(
            f"read_labels needs OCR ({error}). pip install rapidocr onnxruntime, or leave it out."
        ) from None
    logging.getLogger("RapidOCR").setLevel(logging.WARNING)
    engine = RapidOCR(params=ENGINE)

    def read(pixels_HW3: np.ndarray) -> list[Letter]:
        pixels_HW3 = np.ascontiguousarray(pixels_HW3[..., ::-1])  # BGR
        found = engine(pixels_HW3, use_det=True, use_cls=False, use_rec=False)
        letters = []
        for corners in found.boxes if found.boxes is not None else ():
            (left, top), (right, bottom) = (
                np.clip(edge, 0, pixels_HW3.shape[1::-1]).astype(int).tolist()
                for edge in (np.floor(corners.min(0)), np.ceil(corners.max(0)))
            )
            if 0 < right - left <= MAX_ASPECT * (bottom - top):  # reading a line takes longest
                crop = pixels_HW3[top:bottom, left:right]
                one = engine(crop, use_det=False, use_cls=False, use_rec=True)
                if one.txts:
                    letters.append(Letter(one.txts[0], (left, top, right, bottom), one.scores[0]))
        return letters

    return read
