"""Signals of pictures and captions whose values are known; the classifier on figures looked at."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
import simplejpeg

from data_pipelines import modality, signals, similarity
from data_pipelines.captions import Alignment
from data_pipelines.modality import (
    MODALITIES,
    image_probabilities,
    image_statistics,
    modality_of,
    named_modalities,
)
from data_pipelines.panels import Panel
from data_pipelines.pmc.build import build_pmc
from data_pipelines.pmc.context import ContextOptions
from data_pipelines.pmc.options import PmcOptions
from data_pipelines.synthetic_captions import Facts
from data_pipelines.synthetic_figures import draw
from jaxclip.data.dataset import finish_dataset, write_shard
from jaxclip.data.image import decode_image
from jaxclip.data.record import Drop, Example, Record
from tests.pipelines.pmc.articles import write_articles

SHARED = pathlib.Path(__file__).parents[3] / "shared/data"
GOLD = pathlib.Path(__file__).with_name("modalities.json")


def record(caption="Axial CT of the head.", **texts):
    return Record(image=b"", width=1, height=1, caption=caption, **texts)


@pytest.fixture(scope="module")
def head():
    return draw(np.random.default_rng(0), Facts(modality="ct", organ="head", finding="normal"), 200)


def grey(height, width, value=255):
    return np.full((height, width), value, np.uint8)


# --- Pixels ------------------------------------------------------------------------------------


def test_border_and_blank_shares_are_shares_of_the_area():
    picture = grey(100, 200)
    picture[20:60, 40:140] = np.random.default_rng(0).integers(0, 200, (40, 100))
    assert signals.border_share(picture) == pytest.approx(1 - 40 * 100 / 20_000)
    assert signals.border_share(grey(10, 10)) == 1
    half = grey(80, 160, 90)
    half[:, 80:] = np.random.default_rng(0).integers(0, 255, (80, 80))
    assert signals.blank_share(half) == 0.5
    assert signals.blank_share(grey(4, 4)) == 1


def test_sharpness_falls_with_blur(head):
    sharp = cv2.cvtColor(head, cv2.COLOR_RGB2GRAY)
    values = [signals.sharpness(cv2.GaussianBlur(sharp, (0, 0), s)) for s in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] > 4 * values[-1]
    assert signals.sharpness(grey(9, 9)) == 0


def test_colourfulness_is_that_of_hasler_and_suesstrunk():
    """Pure red: rg = 255, yb = 127.5, no spread: 0.3 * hypot(255, 127.5) = 85.53."""
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert signals.colourfulness(red) == pytest.approx(85.53, abs=0.01)
    assert signals.colourfulness(np.full((8, 8, 3), 77, np.uint8)) == 0


@pytest.mark.parametrize("inverted", [False, True])
def test_text_share_finds_lines_of_letters(inverted):
    picture = grey(200, 400)
    for line in range(5):
        place = (20, 30 + 30 * line)
        cv2.putText(picture, "letters in a row", place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 0, 1)
    picture = 255 - picture if inverted else picture
    assert 0.04 < signals.text_share(picture) < 0.3
    lines = grey(200, 400)
    cv2.rectangle(lines, (30, 30), (350, 170), 0, 2)
    cv2.line(lines, (30, 170), (350, 30), 0, 2)
    assert signals.text_share(lines) < 0.005
    assert signals.text_share(grey(3, 3)) == 0


# --- Words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Axial CT, coronal (MRI) and X-rays.", {"radiology": 3}),
        ("H&E-stained sections; T2-weighted image", {"microscopy": 1, "radiology": 1}),
        ("Magnetic   resonance imaging", {"radiology": 1}),
        ("Kaplan-Meier curves", {"chart": 2}),
        ("Photographs of the cat act direct; a pet", {"visible light": 1}),  # no CT, no PET
        ("ECT and non-PET", {}),
        ("", {}),
    ],
)
def test_words_are_found_as_words(caption, expected):
    assert named_modalities(caption) == expected


def test_words_tip_the_balance_and_pixels_can_withstand():
    unsure = dict.fromkeys(MODALITIES, 0.05) | {"chart": 0.45, "radiology": 0.40}
    assert modality_of({}, unsure)[0] == "chart"
    name, confidence = modality_of({"radiology": 1}, unsure)
    assert name == "radiology" and 0.40 < confidence < 1
    sure = dict.fromkeys(MODALITIES, 0.01) | {"chart": 0.96}
    assert modality_of({"radiology": 3}, sure)[0] == "chart"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Axial computed tomography of the chest shows a nodule in the left lung.", "en"),
        ("Das Röntgenbild der Lunge zeigt eine Verschattung auf der linken Seite.", "de"),
        ("Radiografía de tórax.", "es"),
        ("胸部X线片显示右上肺阴影，边界清楚，可见空洞形成", "zh"),
        (
            "Antimicrobial study of Coptidis rhizome-mediated silver nanoparticles.",
            "en",
        ),  # no Latin
        ("Main species: Sporophila albogularis, Paroaria dominicana, Cyanocompsa sp.", None),
        ("EGFR-tyrosine kinase inhibitors.", None),
        ("CT.", None),
    ],
)
def test_language(caption, expected):
    assert signals.language(caption) == expected


# --- The image classifier ----------------------------------------------------------------------


def test_statistics_are_finite_for_any_picture():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 500), (400, 300)]:
        for pixels in (
            np.zeros((*shape, 3), np.uint8),
            rng.integers(0, 256, (*shape, 3), np.uint8),
        ):
            assert np.isfinite(image_statistics(pixels)).all()
            assert sum(image_probabilities(pixels).values()) == pytest.approx(1)


def test_drawn_figures_are_recognised(head):
    assert max(image_probabilities(head).items(), key=lambda item: item[1])[0] == "radiology"
    bars = Facts(modality="chart", finding="bar chart", count=4, trend="increasing")
    assert image_probabilities(draw(np.random.default_rng(0), bars, 256))["chart"] > 0.5


def test_accuracy_is_what_the_weights_say():
    """On figures that were labelled by looking at them and not trained on."""
    if not SHARED.exists():
        pytest.skip("needs ../shared/data")
    measured = json.loads(modality.MEASURED.read_text())
    gold = json.loads(GOLD.read_text())["held_out"]
    right = 0
    for file, name in gold.items():
        pixels = decode_image((SHARED / "pmc_articles" / file).read_bytes())
        odds = image_probabilities(pixels)
        right += max(odds, key=lambda modality: odds[modality]) == name
    assert len(gold) == measured["held_out_figures"]
    # one figure: resizing may differ by a grey level with another OpenCV
    assert right / len(gold) == pytest.approx(measured["held_out_accuracy"], abs=1.5 / len(gold))
    assert right / len(gold) > measured["held_out_largest_class"] + 0.15


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    """Ten at 0.9, of which nine are right; ten at 0.6, of which four are."""
    pytest.importorskip("sklearn")
    from experiments.train_modality import calibration_error

    confidence = np.repeat([0.9, 0.6], 10)
    right = np.array([True] * 9 + [False] + [True] * 4 + [False] * 6)
    assert calibration_error(confidence, right, num_bins=2) == pytest.approx((0 + 0.2) / 2)


# --- All together ------------------------------------------------------------------------------


def test_signals_of_a_panel(head):
    alignment = Alignment(1, "MRI.", "OCR", 0.9)
    panels = [Panel((0, 0, 90, 90), score=0.8), Panel((100, 0, 190, 90), score=0.6)]
    item = record("All of it.", panel_caption="Head MRI.", references="See it. And again it is.")
    found = signals.signals(item, head, panels=panels, alignment=alignment)
    assert (found["aspect"], found["short_side"]) == (1, 200)
    assert found["caption_words"] == 2
    assert found["modality"] == "radiology" and found["named_modalities"] == "radiology"
    assert found["modality_overlap"] == image_probabilities(head)["radiology"]
    assert (found["alignment_type"], found["alignment_score"]) == ("OCR", 0.9)
    assert found["compound_probability"] == pytest.approx(0.7)
    assert (found["num_panels"], found["num_references"]) == (2, 2)
    assert signals.signals(item, head, num_references=7)["num_references"] == 7


def test_what_cannot_be_told_is_none(head):
    found = signals.signals(record("Results."), head)
    assert found["modality_overlap"] is None and found["language"] is None
    assert found["alignment_type"] is None and found["num_references"] == 0
    unsure = [Panel((0, 0, 9, 9), score=0.2)] * 2
    assert signals.compound_probability(unsure) == 0.5  # several: never less than for one
    assert found["compound_probability"] < 0.5 and found["num_panels"] == 1


def test_signals_are_columns_of_a_dataset(head, tmp_path):
    """No name of the record's own; None is null, not NaN or 0."""
    items = []
    for caption in ("Axial CT of the head.", "Results."):
        item = record(caption)
        item.image, item.width, item.height = simplejpeg.encode_jpeg(head), 200, 200
        found = signals.signals(item, head)
        items.append(Example(record=item, split="train", signals=found))
    write_shard(tmp_path, 0, items)
    columns = finish_dataset(tmp_path, 1, {}).metadata
    assert columns["modality_overlap"].null_count == 1
    assert str(columns["perceptual_hash"].type) == "int64"
    assert columns["caption_words"].to_pylist() == [5, 1]


@pytest.fixture(scope="module")
def untrained_run(tiny_dataset, tmp_path_factory):
    """What a run leaves, without the training: (workdir, config, tokenizer, parameters)."""
    import jax

    from jaxclip.checkpoint import CheckpointConfig, Checkpoints
    from jaxclip.config import to_dict
    from jaxclip.data.text import load_tokenizer
    from jaxclip.models import clip
    from jaxclip.start import model_inputs
    from tests import tiny_config

    workdir = tmp_path_factory.mktemp("untrained").absolute()
    config = tiny_config.get_config()
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    (workdir / "run.json").write_text("{}")
    (workdir / "tokenizer").mkdir()
    shutil.copy(tiny_dataset / "tokenizer.json", workdir / "tokenizer/tokenizer.json")
    tokenizer_file = str(tiny_dataset / "tokenizer.json")
    tokenizer = load_tokenizer(dataclasses.replace(config.data.tokenizer, path=tokenizer_file))
    inputs = model_inputs(config, tokenizer)
    params = jax.jit(lambda key: clip.init(config.model, inputs, key))(jax.random.key(3))
    with Checkpoints(workdir, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, {"params": params}, 0)
    return workdir, config, tokenizer, params


def test_similarity_is_the_cosine_of_the_runs_own_embeddings(untrained_run, tiny_dataset):
    """In padded batches."""
    import jax

    from jaxclip.data.dataset import Dataset
    from jaxclip.data.image import eval_image
    from jaxclip.models import clip
    from jaxclip.start import model_inputs

    workdir, config, tokenizer, params = untrained_run
    inputs = model_inputs(config, tokenizer)
    items = [Dataset(tiny_dataset)[i] for i in range(5)]
    images = np.stack([eval_image(item.image, config.data.image) for item in items])
    batch = {"image": images, "tokens": tokenizer.encode([item.caption for item in items])}
    image, text = jax.jit(lambda p, b: clip.apply(config.model, inputs, p, b))(params, batch)
    pairs = [(item.image, item.caption) for item in items]
    scores = similarity.ClipScore(str(workdir), batch_size=2)(pairs)
    expected = np.sum(np.asarray(image) * np.asarray(text), 1)
    assert scores == pytest.approx(expected, abs=6e-5)  # four decimals are kept
    assert np.ptp(scores) > 1e-3


def test_signals_need_no_jax():
    code = "import sys, data_pipelines.signals, data_pipelines.similarity as s; "
    code += "assert not any(m.startswith('jaxclip.models') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class FakeScore:
    """Scores a pair by the length of its text; remembers how many came at once."""

    def __init__(self):
        self.batches = []

    def __call__(self, pairs):
        self.batches.append(len(pairs))
        return np.array([len(text) for _, text in pairs], float)


def test_similarity_is_of_the_panels_own_text_and_keeps_the_order(monkeypatch):
    monkeypatch.setattr(similarity, "BATCH_SIZE", 2)
    items = [Example(record=record("x" * n), split="train") for n in (1, 2, 3)]
    items[1].record.panel_caption = "x" * 9
    mixed = [items[0], Drop(item="a", reason="b"), items[1], Counter(figures=3), items[2]]
    score = FakeScore()
    assert list(similarity.add_similarity(mixed, score)) == mixed
    assert [item.signals["similarity"] for item in items] == [1.0, 9.0, 3.0]
    assert score.batches == [2, 1]


def test_similarity_becomes_a_column(untrained_run, tmp_path):
    """What the pipeline stores is what ClipScore says of the stored records; the weights are named,
    so that another checkpoint at the same place is another dataset."""
    workdir = str(untrained_run[0])
    source = write_articles(tmp_path / "in", 2)
    options = {"workers": 1, "tokenizer_vocab": 0, "similarity": workdir}
    options |= {"input": str(source), "out": str(tmp_path / "ds")}
    dataset = build_pmc(PmcOptions(**options), ContextOptions())
    pairs = [(r.image, r.caption) for r in map(dataset.__getitem__, range(len(dataset)))]
    scored = similarity.clip_score(workdir)  # loaded once a process
    assert dataset.metadata["similarity"].to_pylist() == scored(pairs).tolist()
    assert len(pairs) == 2
    made_by = dataset.manifest["made_by"]["options"]
    assert made_by["similarity_weights"] == scored.weights_sha256
