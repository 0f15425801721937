"""Zero-shot classification by hand.

Shape letters: N records, E embedding.
"""

import json

import numpy as np
import pytest

from jaxclip.evals.base import Embeddings
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
    assert found["accuracy"] == 2 / 4
    assert found["balanced_accuracy"] == pytest.approx((1 / 3 + 1) / 2)  # CT, MRI; no X-ray here
    assert found["chance"] == 3 / 4 and found["images"] == 4


def test_unknown_label():
    labels = np.array(["ct", "pet"], object)
    with pytest.raises(ValueError, match=r"column 'modality' .* \['pet'\].* classes: ct, mri, xr"):
        zero_shot(embedded([[1, 0, 0]], [1]), labels, PROMPTS, encode_texts)
    assert zero_shot(embedded([[1, 0, 0]], [0]), labels, PROMPTS, encode_texts)["accuracy"] == 1


def test_prompt_files(tmp_path):
    assert len(load_prompts("mednist")["classes"]) == 6
    with pytest.raises(FileNotFoundError, match=r"medmist.json is no prompt file.*: .*mednist"):
        load_prompts("medmist")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PROMPTS | {"templates": ["{}", "an image"]}))
    with pytest.raises(ValueError, match=r"template 'an image' must have {}"):
        load_prompts(str(file))
    file.write_text(json.dumps(PROMPTS | {"classes": {}}))
    with pytest.raises(ValueError, match="lacks the field 'classes'"):
        load_prompts(str(file))
