"""Eight CPU devices, parsed absl flags, and a small dataset for all tests to read."""

import os

from tests import xla

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla.flags(devices=8)

import pathlib

import cv2
import numpy as np
import pytest
import simplejpeg
from absl import flags

from data_pipelines.tokenizer import save_tokenizer, train_tokenizer
from jaxclip.data.dataset import finish_dataset, write_shard
from jaxclip.data.record import Example, Record

flags.FLAGS.mark_as_parsed()  # Grain's worker processes read a flag

COLOURS = {"red": (220, 40, 30), "green": (30, 160, 60), "blue": (40, 70, 210)}
SHAPES = ("circle", "square", "cross")
SPLITS = ["train"] * 7 + ["validation"] * 2 + ["test"]  # of the records 0..9, 10..19, ...


def tiny_example(number: int) -> Example:
    """A coloured shape on grey: number -> one of 9 kinds, its own size, place and captions."""
    rng = np.random.default_rng(number)
    colour, shape = list(COLOURS)[number % 3], SHAPES[number // 3 % 3]
    height, width = (int(side) for side in rng.integers(40, 72, 2))
    grey = rng.normal(120, 10, (height, width, 1)).clip(0, 255)
    pixels = np.ascontiguousarray(np.repeat(grey, 3, axis=2).astype(np.uint8))
    y, x, r = int(rng.integers(14, height - 14)), int(rng.integers(14, width - 14)), 12
    if shape == "circle":
        cv2.circle(pixels, (x, y), r, COLOURS[colour], -1)
    elif shape == "square":
        cv2.rectangle(pixels, (x - r, y - r), (x + r, y + r), COLOURS[colour], -1)
    else:
        cv2.line(pixels, (x - r, y - r), (x + r, y + r), COLOURS[colour], 5)
        cv2.line(pixels, (x - r, y + r), (x + r, y - r), COLOURS[colour], 5)
    record = Record(
        image=simplejpeg.encode_jpeg(pixels, 92, colorsubsampling="444"),
        width=width,
        height=height,
        caption=f"A {colour} {shape}. It is number {number} of the series.",
        panel_caption=f"({number}) {shape}" if number % 4 == 0 else "",
        references=f"Figure {number} shows a {shape}." if number % 2 else "",
        article_id=f"PMC{number}",
        source="tiny",
        licence="CC0",
    )
    return Example(record=record, split=SPLITS[number % 10], signals={"shape": shape})


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> pathlib.Path:
    """60 records in 2 shards (42 train, 12 validation, 6 test) with a tokenizer.json."""
    directory = tmp_path_factory.mktemp("tiny_dataset")
    examples = [tiny_example(number) for number in range(60)]
    write_shard(directory, 0, examples[:33])
    write_shard(directory, 1, examples[33:])
    texts = [text for example in examples for text in example.record.texts().values()]
    save_tokenizer(train_tokenizer(texts, vocab_size=160), directory / "tokenizer.json")
    finish_dataset(directory, 2, {"module": "tests.conftest"})
    return directory
