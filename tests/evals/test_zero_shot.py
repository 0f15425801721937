"""Zero-shot classification by hand.

Shape letters: N records, E embedding.
"""

import json

import numpy as np
import pytest

from jaxclip.evals.base import Embeddings
from jaxclip.evals.zero_shot import PROMPTS as PROMPT_FOLDER
from jaxclip.evals.zero_shot import class_embeddings, load_prompts, zero_shot

PROMPTS = {
    "label_column": "modality",
    "templates": ["{}.", "an image of {}."],
    "classes": {"ct": ["CT", "tomography"], "mri": ["MRI"], "xray": ["X-ray"]},
}
TEXTS = {
    "CT.": [1, 0, 0],
    "an image of CT.": [0, 1, 0],
    "tomography.": [1, 0, 0],
    "an image of tomography.": [1, 0, 0],
    "MRI.": [0, 0, 1],
    "an image of MRI.": [0, 0, 1],
    "X-ray.": [0, 1, 0],
    "an image of X-ray.": [0, 1, 0],
}


def encode_texts(texts):
    return np.array([TEXTS[text] for text in texts], np.float32)


def embedded(image_NE, record_N):
    image_NE = np.asarray(image_NE, np.float32)
    ids = np.arange(len(image_NE))
    return Embeddings(
        image_NE=image_NE, text_NE=image_NE, record_N=np.asarray(record_N), image_id_N=ids,
        caption_id_N=ids,
    )  # fmt: skip


def test_names_and_templates_are_averaged():
    # CT: the mean of four texts, (3, 1, 0) / 4, made unit-norm
    np.testing.assert_allclose(
        class_embeddings(PROMPTS, encode_texts),
        [[3 / 10**0.5, 1 / 10**0.5, 0], [0, 0, 1], [0, 1, 0]],
        rtol=1e-6,
    )


def test_accuracy_by_hand():
    labels = np.array(["xray", "mri", "ct", "ct", "ct", "none"], object)  # of all the records
    found = zero_shot(
        # a CT taken for a CT, one taken for an MRI, an MRI for an MRI, a CT between MRI and CT
        embedded([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]], [2, 3, 1, 4]),
        labels, PROMPTS, encode_texts,
    )  # fmt: skip
    # the last one scores 0 for every class: a tie is an error
    assert found.values()["accuracy"] == 2 / 4
    assert found.values()["balanced_accuracy"] == pytest.approx((1 / 3 + 1) / 2)  # no X-ray here
    # always saying CT is right for 3 of 4; the model says MRI, for 3 of them, and CT
    assert found.chance["accuracy"] == 3 / 4 and found.counts["images"] == 4
    labels[:] = ["ct", "mri", "ct", "ct", "mri", "none"]
    found = zero_shot(
        embedded(np.eye(3)[[0, 0, 0, 0]], [1, 2, 3, 4]), labels, PROMPTS, encode_texts
    )
    assert found.chance["accuracy"] == 2 / 4  # though CT is said always


def test_the_prompt_file_says_which_class_is_positive():
    prompts = PROMPTS | {"classes": {"ct": ["CT"], "xray": ["X-ray"]}}
    images, labels = embedded([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 1, 2]), ["xray", "ct", "xray"]
    labels = np.array(labels, object)

    def found(prompts):
        values = zero_shot(images, labels, prompts, encode_texts).values()
        return values["sensitivity"], values["specificity"]

    assert found(prompts) == (1 / 2, 1)  # the second class: one of two X-rays is found
    assert found(prompts | {"positive": "ct"}) == (1, 1 / 2)
    for file in PROMPT_FOLDER.glob("[!_]*.json"):
        prompts = load_prompts(file.stem)
        if len(prompts["classes"]) == 2:
            assert prompts["positive"] in prompts["classes"], file


def test_unknown_label():
    labels = np.array(["ct", "pet"], object)
    with pytest.raises(ValueError, match=r"column 'modality' .* \['pet'\].* classes: ct, mri, xr"):
        zero_shot(embedded([[1, 0, 0]], [1]), labels, PROMPTS, encode_texts)
    found = zero_shot(embedded([[1, 0, 0]], [0]), labels, PROMPTS, encode_texts)
    assert found.values()["accuracy"] == 1


def test_calibration_is_at_the_models_temperature():
    # cosines 1 and 0 with X-ray and MRI; with CT 1/10^.5, which does not matter at scale 1000
    images, labels = embedded([[0, 1, 0]] * 2, [0, 1]), np.array(["xray", "mri"], object)
    sharp = zero_shot(images, labels, PROMPTS, encode_texts, logit_scale=1000.0).values()
    assert sharp["calibration_error"] == pytest.approx(1 / 2)  # sure, and right half of the time
    flat = zero_shot(images, labels, PROMPTS, encode_texts, logit_scale=0.0).values()
    # a third for each class: a tie, so wrong both times
    assert flat["calibration_error"] == pytest.approx(1 / 3)


def test_findings_are_scored_against_their_absence():
    prompts = {
        "label_column": "findings", "templates": ["{}"], "negative_templates": ["no {}"],
        "classes": {"effusion": ["effusion"], "fracture": ["fracture"]},
    }  # fmt: skip
    texts = {"effusion": [1, 0], "no effusion": [0, 1], "fracture": [0, 1], "no fracture": [0, 1]}
    labels = np.empty(3, object)
    labels[:] = [("effusion",), ("effusion", "fracture"), ()]
    found = zero_shot(
        embedded([[1, 0], [0.8, 0.6], [0, 1]], [0, 1, 2]), labels, prompts,
        lambda found: np.array([texts[text] for text in found], np.float32),
    ).values()  # fmt: skip
    # effusion: .8 - .2, in order; fracture is as near as its absence everywhere: all ties
    assert found["auroc"] == (1 + 1 / 2) / 2
    assert found["macro_f1"] == 1 / 2  # effusion all right, fracture never above one half


def test_the_papers_prompts_by_name():
    prompts, texts = load_prompts("bach", "open_pmc_histology"), []
    class_embeddings(prompts, lambda found: texts.extend(found) or np.ones((len(found), 2)))
    assert texts[8:10] == [  # mmlearn, projects/med_benchmarking/datasets/bach.py
        "a histopathology slide showing breast malignant in-situ carcinoma",
        "histopathology image of breast malignant in-situ carcinoma",
    ]
    assert len(texts) == 4 * 4  # one name a class
    path = load_prompts("pathmnist", "open_pmc_histology")["classes"]
    assert path["adipose"] == ["adipose"]  # the label, not our "adipose tissue"
    choices = json.loads((PROMPT_FOLDER / "_templates.json").read_text())
    for file, names in choices["open_pmc_histology"]["classes"].items():
        assert set(names) <= set(load_prompts(file)["classes"]), file
        load_prompts(file, "open_pmc_histology")


def test_a_choice_is_refused_where_it_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match="templates .'histology'. must be one of open_pmc_hist"):
        load_prompts("mednist", "histology")
    with pytest.raises(ValueError, match="absent, and chexpert is multi-label: leave the set"):
        load_prompts("chexpert", "open_pmc_histology")
    with pytest.raises(ValueError, match="no class names for mednist.* those of bach, blood"):
        load_prompts("mednist", "open_pmc_histology")
    (tmp_path / "mine.json").write_text(json.dumps(PROMPTS))  # a file of the user's is the user's
    mine = load_prompts(str(tmp_path / "mine.json"), "open_pmc_histology")
    assert mine["classes"] == PROMPTS["classes"] and "slide" in mine["templates"][0]
    assert load_prompts("chexpert", "name_only")["negative_templates"] == ["no {}"]
    assert load_prompts("mednist", "plain")["templates"][1] == "an image of {}."


def test_absence_is_said_in_english():
    prompts, texts = load_prompts("chestmnist"), []
    fake = lambda found: texts.extend(found) or np.ones((len(found), 2))  # noqa: E731
    class_embeddings(prompts, fake, "negative_templates")
    assert {"no mass.", "a chest X-ray without a mass.", "findings: no enlarged heart."} < set(
        texts
    )
    for file in PROMPT_FOLDER.glob("[!_]*.json"):
        if "negative_templates" in (prompts := load_prompts(file.stem)):
            class_embeddings(prompts, fake, "negative_templates")
    assert not [text for text in texts if " no a " in f" {text}" or " no an " in f" {text}"]


def test_every_prompt_file_loads():
    files = [file.stem for file in PROMPT_FOLDER.glob("[!_]*.json")]
    for file in files:
        prompts = load_prompts(file)
        assert prompts["source"] and prompts["version"] >= 1, file
        names = [name for names in prompts["classes"].values() for name in names]
        assert len(names) == len(set(names)), f"{file}: two classes have one name"


def test_prompt_files(tmp_path):
    assert len(load_prompts("mednist")["classes"]) == 6
    with pytest.raises(FileNotFoundError, match=r"medmist.json is no prompt file.*: .*mednist"):
        load_prompts("medmist")
    file = tmp_path / "mine.json"
    for change, complaint in [
        ({"templates": ["{}", "an image"]}, "template 'an image' must have one {}"),
        ({"templates": ["{} of {part}"]}, "'{} of {part}' must have one {}, .* no other braces"),
        ({"templates": "{}."}, r"templates \('{}.'\) must be a list of texts"),
        ({"negative_templates": ["none"]}, "template 'none' must have one {}"),
        ({"classes": {}}, "lacks the field 'classes'"),
        ({"classes": ["ct", "mri"]}, "classes must be {label: .names., ...}, of 2 or more"),
        ({"classes": {"ct": ["CT"]}}, "classes must be .* of 2 or more"),  # always right
        # each letter would be a name, and the mean of no name is not a number
        ({"classes": {"ct": "CT", "mri": ["MRI"]}}, r"class 'ct' \('CT'\) must be a list of texts"),
        ({"classes": {"ct": [], "mri": ["MRI"]}}, r"class 'ct' \(\[\]\) must .* at least one"),
        ({"positive": "pet"}, r"positive .'pet'. must be one of its classes"),
    ]:
        file.write_text(json.dumps(PROMPTS | change))
        with pytest.raises(ValueError, match=f"mine.json.*{complaint}"):
            load_prompts(str(file))
    file.write_text("{")
    with pytest.raises(ValueError, match="mine.json is not JSON: "):
        load_prompts(str(file))
