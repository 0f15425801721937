"""What a record holds of a figure and its panels: which words, which pixels, who says so."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from data_pipelines.panels import Panel
from data_pipelines.pmc.build import build_pmc
from data_pipelines.pmc.context import ContextOptions
from data_pipelines.pmc.options import PmcOptions
from jaxclip.data.image import decode_image
from tests.pipelines.pmc.articles import article, build, drops, fig, picture

CAPTION = "Mice. (A) CT of the liver. (B) MRI of the kidney. Scale bar, 1 mm."
TEXT = "We saw mice (Figure 1). In Figure 1A it is bright. Dark is Fig. 1B. See Figure 1A, B."


def two_panels() -> np.ndarray:
    """Pictures at (10, 10, 170, 130) and (200, 10, 340, 130) of a page, uint8 [140, 350, 3]."""
    page = np.full((140, 350, 3), 255, np.uint8)
    for seed, (left, right) in enumerate(((10, 170), (200, 340))):
        one = Image.open(io.BytesIO(picture(seed, (120, right - left), "PNG")))
        page[10:130, left:right] = np.clip(np.asarray(one), 40, 200)
    return page


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "in/PMC1"
    directory.mkdir(parents=True)
    Image.fromarray(two_panels()).save(directory / "f1.png")
    body = f"<p>{TEXT}</p>{fig(1, f'<p>{CAPTION}</p>')}"
    (directory / "a.nxml").write_bytes(article(body))
    return tmp_path / "in"


def test_panels_have_their_words_their_place_and_who_cites_them(folder, tmp_path):
    dataset = build(folder, tmp_path / "ds", panels="panels")
    first, second = dataset[0], dataset[1]
    assert (first.panel_id, second.panel_id, len(dataset)) == ("1", "2", 2)
    assert first.caption == second.caption == CAPTION
    assert first.panel_caption == "Mice. CT of the liver. Scale bar, 1 mm."
    assert second.panel_caption == "Mice. MRI of the kidney. Scale bar, 1 mm."
    cited = "We saw mice (Figure 1). {} See Figure 1A, B.".format
    assert first.references == cited("In Figure 1A it is bright.")
    assert second.references == cited("Dark is Fig. 1B.")
    rows = dataset.metadata.to_pylist()
    assert [row["panel_label"] for row in rows] == ["A", "B"]
    assert [row["alignment_type"] for row in rows] == ["order", "order"]
    assert [row["num_references"] for row in rows] == [3, 3]
    boxes = np.array([row["panel_box"] for row in rows])
    assert np.abs(boxes - [[10, 10, 170, 130], [200, 10, 340, 130]]).max() <= 2
    for record, (left, top, right, bottom) in zip((first, second), boxes, strict=True):
        expected = two_panels()[top:bottom, left:right].astype(int)
        assert np.abs(decode_image(record.image) - expected).mean() < 2  # JPEG, quality 92
    assert [row["original_width"] for row in rows] == (boxes[:, 2] - boxes[:, 0]).tolist()
    assert dataset.manifest["counts"]["steps"]["panels"] == 2


def test_a_whole_figure_has_the_whole_caption(folder, tmp_path):
    dataset = build(folder, tmp_path / "ds", panels="both")
    whole, *parts = (dataset[i] for i in range(len(dataset)))
    assert len(parts) == 2 and (whole.panel_id, whole.panel_caption) == ("", "")
    assert whole.references == TEXT
    row = dataset.metadata.to_pylist()[0]
    assert (row["alignment_type"], row["panel_label"]) == ("compound-figure", "")
    assert (row["panel_box"], row["num_panels"]) == ([0, 0, 350, 140], 2)


def thirds(pixels_HW3, num_labels, letters):
    """As a learned detector would be given."""
    assert (num_labels, letters) == (2, [])
    cuts = np.linspace(0, pixels_HW3.shape[1], 4).astype(int).tolist()
    return [Panel((a, 0, b, pixels_HW3.shape[0])) for a, b in zip(cuts, cuts[1:], strict=False)]


def test_another_detector_takes_the_place_of_ours(folder, tmp_path):
    options = {"workers": 1, "tokenizer_vocab": 0}
    options = PmcOptions(input=str(folder), out=str(tmp_path / "ds"), **options)
    dataset = build_pmc(options, ContextOptions(), detector=thirds)
    boxes = dataset.metadata["panel_box"].to_pylist()
    assert boxes == [[0, 0, 116, 140], [116, 0, 233, 140], [233, 0, 350, 140]]
    assert dataset.manifest["made_by"]["detector"] == f"{__name__}.thirds"


def test_short_captions_are_dropped(folder, tmp_path):
    (folder / "PMC2").mkdir()
    (folder / "PMC2/b.nxml").write_bytes(article(fig(1, "<p>Mice eat.</p>"), 2))
    (folder / "PMC2/f1.jpg").write_bytes(picture(1))
    dataset = build(folder, tmp_path / "ds", min_caption_chars=10)
    assert [record.article_id for record in (dataset[i] for i in range(len(dataset)))] == ["PMC1"]
    assert drops(dataset) == {"caption too short": 1}
    assert len(build(folder, os.fspath(tmp_path / "all"), min_caption_chars=9)) == 2
