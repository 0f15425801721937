"""Imported models against what the original libraries computed (make_fixtures.py)."""

import numpy as np
import pytest

from jaxclip.models.pretrained import load_params, open_checkpoint
from tests.models.pretrained.fixtures import NAMES, embeddings, read_fixture, write_folder


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
