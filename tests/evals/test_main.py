"""jaxclip.evaluate as it is called, on sets and embeddings whose scores one can count.

Embeddings are directions in a plane. An image that is black on its left and grey on its right has
the angle 90 degrees x contrast, up to 90; a text `angle 45` has 45 degrees.
"""

import csv
import dataclasses
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl.testing import flagsaver

from jaxclip import evaluate
from jaxclip.data.image import decode_image
from jaxclip.evals import probe, results
from jaxclip.evals.declared import DECLARED
from jaxclip.evals.probe import few_shot_indices
from jaxclip.evals.readers import Table
from jaxclip.evals.robustness import CORRUPTIONS
from jaxclip.evals.sets import Declaration, open_set
from jaxclip.evals.zero_shot import named_templates

# image (its grey), label, patient, split; those of validation contradict the others
KINDS = [(grey, "AB"[grey >= 20], f"t{grey}", "train") for grey in range(0, 240, 9)]
KINDS += [(grey, "BA"[grey >= 20], f"v{grey}", "valid") for grey in range(1, 240, 9)]
KINDS += [(grey, "A", "p0", "test") for grey in (2, 3)] + [(4, "A", "p1", "test")]
KINDS += [(grey, "B", "p2", "test") for grey in (255, 182)] + [(5, "B", "p3", "test")]
# image, caption, study, patient
PAIRS = [
    (0, "angle 0", "s0", "p0"), (64, "angle 45", "s1", "p1"), (128, "angle 45", "s2", "p2"),
    (16, "angle 180", "s0", "p0"),
]  # fmt: skip


def picture(grey: int) -> bytes:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, 24:] = grey
    return cv2.imencode(".png", pixels)[1].tobytes()


class Plane:
    logit_scale = 10.0

    def __init__(self, power: int):
        self.power = power  # of the angle's share of 90 degrees

    def _unit(self, degrees):
        angle = np.radians(degrees)
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)

    def encode_image(self, images):
        pixels = [decode_image(x) if isinstance(x, bytes) else x for x in images]
        contrast = np.array([x.mean(axis=2).std() for x in pixels])
        return self._unit(90 * np.minimum(contrast / 64, 1) ** self.power)

    def encode_text(self, texts):
        found = [re.search(r"^(.*)angle (\d+)", text) for text in texts]
        # with words before it the angle is another
        return self._unit([(90 if m[1] else 0) + int(m[2]) if m else 33 for m in found])


def table(folder, header, lines):
    (folder / "images").mkdir(parents=True)
    for grey, *_ in lines:
        (folder / f"images/{grey}.png").write_bytes(picture(grey))
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])


@pytest.fixture
def sets(tmp_path, monkeypatch):
    prompts = tmp_path / "plane.json"
    classes = {"A": ["angle 0"], "B": ["angle 90"]}
    about = {"version": 3, "label_column": "label", "templates": ["{}"]}
    prompts.write_text(json.dumps(about | {"classes": classes}))
    table(tmp_path / "kinds", ["image", "label", "patient", "split"], KINDS)
    table(tmp_path / "pairs", ["image", "caption", "study", "patient"], PAIRS)
    common = {"title": "toy", "get": "nowhere"}
    columns = {"file": "t.csv", "image": "images/{image}.png", "group": "patient"}
    layout = Table(**columns, label="label", split="split")
    kinds = Declaration(**common, prompts=str(prompts), split="official", layout=layout)
    layout = Table(**columns, caption="caption", study="study")
    monkeypatch.setitem(DECLARED, "kinds", kinds)
    monkeypatch.setitem(DECLARED, "pairs", Declaration(**common, split="test", layout=layout))
    monkeypatch.setattr(
        evaluate, "load_embedder", lambda model, *_: Plane(6 if model[0] == "b" else 1)
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(model=("a/final",), sets=("kinds",), suite=("zero_shot",), **options):
    """(exit code, rows by model, evaluator and metric: the first of each)."""
    options = {"draws": 5, "out": "out"} | options
    options |= {"model": list(model), "set": list(sets), "suite": list(suite), "sets_dir": "."}
    with flagsaver.flagsaver(**options):
        code = evaluate.main(["evaluate"])
    found = {}
    for row in results.read(options.get("out") or next(Path("evaluation").glob("*/test"))):
        for evaluator in (row["evaluator"].partition("/")[0], row["evaluator"]):
            found.setdefault((row["model"], evaluator, row["metric"]), row)
    return code, found


def test_zero_shot_with_its_matrix_and_its_templates(sets):
    code, found = run(page=True)
    row = found["final", "zero_shot", "accuracy"]
    assert code is None and row["value"] == pytest.approx(5 / 6)
    assert (row["units"], row["groups"]) == (6, 4)  # images and patients
    assert row["method"].startswith("prompts v3 ")
    page = (sets / "out/index.html").read_text()
    matrix = page.partition("aria-label='confusion matrix'")[2].partition("</svg>")[0]
    # rows are true: all 3 of A were right, of B 1 was taken for A
    assert re.findall(r"text-anchor=middle>(\d+)", matrix) == ["3", "0", "1", "2"]
    assert all("angle" not in x for x in named_templates()["open_pmc_histology"]["templates"])
    _, found = run(templates="open_pmc_histology")
    # A is at 90 degrees and B at 180: all images are taken for A
    assert found["final", "zero_shot", "accuracy"]["value"] == 0.5
    assert found["final", "zero_shot", "accuracy"]["method"].endswith("histology")


def test_retrieval_with_studies_by_either_protocol(sets):
    _, found = run(sets=["pairs"], suite=["retrieval"])
    row = found["final", "image_to_text", "recall@1"]
    # image 16 is nearest to a caption that is not its own, but of its study
    assert (row["value"], row["units"], row["groups"]) == (1, 4, 3)
    assert row["method"] == "protocol all_right"
    _, found = run(sets=["pairs"], suite=["retrieval"], protocol="open_pmc")
    # that is wrong now, and so is image 128: the same caption of another image is before its own
    assert found["final", "image_to_text", "recall@1"]["value"] == 0.5


def test_the_probe_is_chosen_on_validation_images(sets):
    """Their labels contradict those of training and test: the strongest regularisation is best."""
    _, found = run(suite=["probe"])
    assert found["final", "linear_probe/plane/all", "l2"]["value"] == 0.1
    assert found["final", "linear_probe/plane/all", "training_images"]["value"] == 27
    for split in ("train", "all"):
        with pytest.raises(ValueError, match=f"--split={split} with --suite=probe would score"):
            run(suite=["probe"], split=split)


def test_few_shots_are_chosen_on_as_few_validation_images(sets, monkeypatch):
    asked = []

    def indices(target_NC, shots, seed):
        asked.append(shots)
        return few_shot_indices(target_NC, shots, seed)

    monkeypatch.setattr(probe, "few_shot_indices", indices)
    run(suite=["probe"], draws=0)
    # of the training images and of the validation images, by turns
    pairs = set(zip(asked[::2], asked[1::2], strict=True))
    assert pairs == {(1, 1), (2, 2), (4, 4), (8, 4), (16, 4)}


@pytest.mark.parametrize("split", ["official", "hash"])
def test_without_validation_images_some_training_images_are_held(sets, monkeypatch, split):
    """Also where the training images are those of the lowest hashes."""
    kinds = [(grey, "AB"[grey >= 20], f"t{grey}", "train") for grey in range(0, 240, 3)]
    kinds += [(grey, "AB"[grey >= 20], f"v{grey}", "valid") for grey in range(1, 240, 9)]
    table(sets / "two", ["image", "label", "patient", "split"], kinds)
    two = dataclasses.replace(DECLARED["kinds"], split=split)
    monkeypatch.setitem(DECLARED, "two", two)
    _, found = run(sets=["two"], suite=["probe"], draws=0, split="validation")
    opened = open_set("two", two, sets, ("train", "validation"))
    number = len(opened["train"].images)
    trained = found["final", "linear_probe/plane/all", "training_images"]["value"]
    assert 0.05 * number < number - trained < 0.4 * number  # about a fifth is held
    assert found["final", "linear_probe/plane/all", "l2"]["value"] < 1e-3  # chosen on them


def test_severities_are_worse_and_worse(sets):
    _, found = run(suite=["robustness"])
    key = "final", "robustness/contrast/zero_shot/plane"
    accuracy = [found[*key, f"accuracy_severity_{s}"]["value"] for s in range(6)]
    # contrast 127 is above 32, where A ends, if 0.3 of it is left; 90 if 0.4 is
    np.testing.assert_allclose(accuracy, np.array([5, 5, 4, 3, 3, 3]) / 6)
    assert found[*key, "accuracy_mean_relative_drop"]["value"] == pytest.approx(0.28)
    name = "zero_shot/plane", "accuracy_mean_relative_drop"
    drops = [
        found["final", f"robustness/{change}/{name[0]}", name[1]]["value"] for change in CORRUPTIONS
    ]
    mean = found["final", f"robustness/all_corruptions/{name[0]}", name[1]]["value"]
    assert mean == pytest.approx(np.mean(drops)) and len(drops) == 5


def test_robustness_is_of_the_protocol_that_is_asked_for(sets):
    for protocol, clean in (("all_right", 1), ("open_pmc", 0.5)):
        _, found = run(sets=["pairs"], suite=["robustness"], protocol=protocol, draws=0)
        row = found["final", "robustness/contrast/image_to_text", "recall@1_severity_0"]
        assert (row["value"], row["method"]) == (clean, f"protocol {protocol}")


def test_models_of_one_name_and_what_is_between_them_and_their_sets(sets):
    _, found = run(["a/final", "b/final"], ["kinds", "pairs"], ["representation"], split="all")
    assert {model for model, *_ in found} == {"a/final", "b/final"}
    cka = [key for key in found if "cka" in key[-1]]
    assert {key[0] for key in cka} == {"b/final"}
    _, of_seeds = run(["a/final,b/final"], ["kinds"], ["representation"], draws=0)
    assert not [key for key in of_seeds if "cka" in key[-1]]  # nothing to compare one model with
    row = found["b/final", "representation", "image_cka_with_a/final"]
    assert 0.5 < row["value"] < 0.999 and row["low"] < row["value"] < row["high"]
    assert found["a/final", "representation", "mmd2_images_with_kinds_p_value"]["value"] > 1 / 201


def test_one_bad_set_does_not_take_the_others(sets, monkeypatch, capsys):
    table(sets / "odd", ["image", "label", "patient", "split"], [(1, "C", "p", "test")])
    monkeypatch.setitem(DECLARED, "odd", DECLARED["kinds"])
    noted = dataclasses.replace(DECLARED["kinds"], note="Slices repeat.")
    monkeypatch.setitem(DECLARED, "kinds", noted)
    code, found = run(sets=["odd", "bach", "kinds"])
    assert code == 2 and found["final", "zero_shot", "accuracy"]["value"] == pytest.approx(5 / 6)
    told = capsys.readouterr().out
    assert "Failed: set odd: column 'label' has the labels ['C']" in told
    assert "Skipped: BACH" in told and "Note on kinds: Slices repeat." in told
    about = json.loads((sets / "out/results.json").read_text())
    assert len(about["failed"]) == len(about["skipped"]) == 1
    # nothing could be scored: what was there stays
    with pytest.raises(ValueError, match="Nothing could be scored"):
        run(sets=["odd"])
    assert json.loads((sets / "out/results.json").read_text()) == about


def test_one_bad_model_does_not_take_the_others(sets, monkeypatch, capsys):
    def load(model, *_):
        if "bad" in model:
            raise FileNotFoundError(f"{model} does not exist.")
        return Plane(1)

    monkeypatch.setattr(evaluate, "load_embedder", load)
    # of seeds all are needed: the mean of those that are left would go by another name
    code, found = run(["bad", "a,bad_seed", "good", "b,c"])
    assert code == 2 and {model for model, *_ in found} == {"good", "b,c (2 seeds)"}
    told = capsys.readouterr().out
    assert "Failed: model bad: bad does not exist." in told
    assert "Failed: model bad_seed: " in told

    def section(*_):
        raise ValueError("no picture")

    monkeypatch.setattr(evaluate.page, "section", section)
    code, found = run(["good", "bad"], page=True)  # without its pictures a model has its scores
    assert code == 2 and found["good", "zero_shot", "accuracy"]["value"] == pytest.approx(5 / 6)
    about = json.loads((sets / "out/results.json").read_text())
    assert [why.partition(":")[0] for why in about["failed"]] == [
        "page of good on kinds/test",
        "model bad",
    ]
    with pytest.raises(ValueError, match="Nothing could be scored"):
        run(["bad"])


def test_a_set_without_the_split_that_is_asked_for_names_those_it_has(sets, capsys):
    with pytest.raises(ValueError, match="Nothing could be scored"):
        run(sets=["pairs"], split="validation")
    assert "pairs has no validation split. It has: test (4)." in capsys.readouterr().out


def test_a_set_of_one_image_a_class_has_no_image_retrieval(sets, monkeypatch, capsys):
    table(
        sets / "ones", ["image", "label", "patient", "split"], [KINDS[0], (99, "B", "p", "train")]
    )
    monkeypatch.setitem(DECLARED, "ones", DECLARED["kinds"])
    run(sets=["ones"], split="train", suite=["retrieval", "zero_shot"])
    assert "Skipped: image_to_image/" in capsys.readouterr().out


def test_a_whole_set_is_scored(sets):
    _, found = run(split="all")
    assert found["final", "zero_shot", "accuracy"]["units"] == len(KINDS)


def test_results_do_not_go_below_a_checkpoint(sets):
    (sets / "model.npz").write_bytes(b"")
    run(model=["model.npz"], out="")
    assert (sets / "evaluation/model.npz/test/results.json").exists()
    run(model=["google/siglip"], out="")
    assert not (sets / "google").exists() and (sets / "evaluation/siglip").exists()
    with pytest.raises(ValueError, match=r"--out \(model.npz/x\) cannot be written \(.*directory"):
        run(out="model.npz/x")
    with pytest.raises(ValueError, match=r"--templates \(histology\) must be one of"):
        run(templates="histology")
