"""Eight CPU devices for every test, and one small dataset for those that read one."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import cv2
import numpy as np
import pytest
import simplejpeg
from absl import flags

from data_pipelines.tokenizer import save_tokenizer, train_tokenizer
from jaxclip.data.record import Example, Record, finish_dataset, write_shard

flags.FLAGS.mark_as_parsed()  # Grain's worker processes read a flag

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230), "white": (240,) * 3}
PLACES = {"top left": (24, 16), "top right": (72, 16), "bottom left": (24, 48)}


def draw_example(index: int) -> Example:
    """A coloured disc on grey; its caption says which and where. Articles have four figures."""
    rng = np.random.default_rng(index)
    colour, place = rng.choice(list(COLOURS)), rng.choice(list(PLACES))
    pixels = rng.normal(90, 12, (64, 96, 3)).clip(0, 255).astype(np.uint8)
    cv2.circle(pixels, PLACES[place], 14, COLOURS[colour], -1)
    article = index // 4
    record = Record(
        image=simplejpeg.encode_jpeg(pixels, quality=92),
        width=96,
        height=64,
        caption=f"A {colour} disc at the {place} of figure {index % 4}.",
        references=f"See the {colour} disc." if index % 3 == 0 else "",
        article_id=f"A{article}",
        figure_id=f"F{index % 4}",
        source="drawn",
    )
    split = "train" if article % 5 else ("validation" if article % 10 else "test")
    return Example(record=record, split=split, signals={"label": str(colour)})


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    """Path of a dataset of 80 records in 2 shards: 64 train, 8 validation, 8 test."""
    path = tmp_path_factory.mktemp("datasets") / "tiny"
    path.mkdir()
    examples = [draw_example(i) for i in range(80)]
    for shard in range(2):
        write_shard(path, shard, examples[shard * 40 : shard * 40 + 40])
    captions = [example.record.caption for example in examples]
    save_tokenizer(train_tokenizer(captions, vocab_size=120, kind="wordpiece"), path / "tokenizer.json")
    finish_dataset(path, 2, {"module": "tests"})
    return path
