"""The card agrees with the dataset, shows text as text, and looks like a page in a browser."""

import html.parser
import json
import pathlib
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from data_pipelines.card import _short, describe, write_card
from jaxclip.data.dataset import Dataset, finish_dataset, write_shard
from jaxclip.data.record import Drop, Example, Record
from tests.conftest import tiny_example

EVIL = '<script>document.title="evil"</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def carded(tmp_path_factory) -> Dataset:
    directory = tmp_path_factory.mktemp("carded")
    examples = [tiny_example(number) for number in range(40)]
    for number, example in enumerate(examples):
        example.signals |= {"sharpness": number / 10, "keywords": ["mouse", f"k{number % 2}"]}
    examples[0].signals["sharpness"] = None
    for example in examples:
        example.record.caption += EVIL
    drops = [Drop(item=f"row {n}", reason="too small", detail=EVIL) for n in range(5)]
    write_shard(directory, 0, [*examples, *drops, Drop(item="a", reason="empty caption")])
    dataset = finish_dataset(directory, 1, {"module": "tests"})
    write_card(dataset, samples=12)
    return dataset


def test_the_figures_are_the_datasets(carded):
    card = json.loads((carded.path / "card.json").read_text())
    assert card["counts"] == carded.manifest["counts"]
    assert [(d["reason"], d["count"], len(d["examples"])) for d in card["dropped"]] == [
        ("too small", 5, 3),
        ("empty caption", 1, 1),
    ]
    sharpness = card["columns"]["sharpness"]
    values = np.arange(1, 40) / 10
    assert (sharpness["missing"], sharpness["count"]) == (1, 39)
    assert sharpness["mean"] == pytest.approx(values.mean())
    assert sharpness["median"] == pytest.approx(np.median(values))
    assert sum(sharpness["histogram"]["counts"]) == 39
    summary = card["texts"]["summary"]["histogram"]  # all are empty: no bar from -0.5 to 0.5
    assert (summary["edges"], summary["counts"]) == ([0.0, 0.0], [40])
    assert card["columns"]["keywords"]["top"] == [["mouse", 40], ["k0", 20], ["k1", 20]]
    assert card["columns"]["image_sha256"]["kind"] == "identity"
    assert card["texts"]["references"]["count"] == 40
    assert len(card["samples"]) == 12 == len(set(card["samples"]))


def test_the_same_dataset_has_the_same_card(carded):
    before = (carded.path / "card.html").read_bytes()
    write_card(carded, samples=12)
    assert (carded.path / "card.html").read_bytes() == before


class Tags(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_captions_are_text_and_nothing_is_loaded(carded):
    page = Tags((carded.path / "card.html").read_text())
    assert EVIL in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "link", "object")]
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 12
    assert all(attrs["src"].startswith("data:image/") for attrs in images)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_one_record_and_a_constant_are_enough(tmp_path):
    record = Record(image=tiny_example(1).record.image, width=1, height=1, caption="c")
    write_shard(tmp_path, 0, [Example(record=record, split="train", signals={"x": 0.5, "y": None})])
    card = describe(finish_dataset(tmp_path, 1, {"module": "tests"}))
    assert card["columns"]["x"]["median"] == 0.5


@pytest.mark.parametrize(
    "value, text",
    [(1231, "1,231"), (0.12345, "0.123"), (5324.5, "5,324"), (True, "True"), (["a", 1], "a, 1")],
)
def test_short(value, text):
    assert _short(value) == text


def test_a_browser_shows_it(carded, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip("needs a headless Chromium")
    page = pathlib.Path(carded.path / "card.html").as_uri()
    headless = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    headless += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2400"]
    shot = tmp_path / "card.png"
    subprocess.run(
        [*headless, f"--screenshot={shot}", page], check=True, timeout=120, capture_output=True
    )
    dom = subprocess.run(
        [*headless, "--dump-dom", page], check=True, timeout=120, capture_output=True
    )
    assert "<title>Dataset card:" in dom.stdout.decode()  # no caption's script has run
    pixels = cv2.imread(str(shot)).astype(int)
    assert pixels.shape == (2400, 1200, 3)
    left, right = pixels[:, :10].std(axis=(0, 1)).max(), pixels[:, -10:].std(axis=(0, 1)).max()
    assert left == right == 0  # margins: nothing is wider than the page
    blue = (pixels[..., 0] > 150) & (pixels[..., 2] < 90)  # the histograms' bars, BGR
    colourful = pixels.max(axis=2) - pixels.min(axis=2) > 60
    assert blue.mean() > 0.002 and colourful.mean() > 0.01  # bars; bars and pictures
