"""big_vision's files: each name and shape, and the variants that no published SigLIP is."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from jaxclip.data.image import eval_pixels
from jaxclip.models import clip
from jaxclip.models.pretrained import big_vision, leaves_of, load_params, open_checkpoint, tree_of
from jaxclip.models.pretrained.table import write
from tests.models.pretrained.fixtures import read_fixture, write_folder
from tests.models.pretrained.random_weights import random_images, random_tensor

GOLDEN = pathlib.Path(__file__).parents[3] / "../shared/golden"


def fixture(tmp_path, name):
    """(family, leaves) of a Hugging Face fixture."""
    family = open_checkpoint(str(write_folder(tmp_path / name, read_fixture(name))))
    return family, leaves_of(load_params(family)[0])


def saved(tmp_path, tensors):
    np.savez(tmp_path / "checkpoint.npz", **tensors)
    return open_checkpoint(str(tmp_path / "checkpoint.npz"))


def embed_images(family, params):
    size = family.image.size
    encode = functools.partial(clip.encode_image, family.model, family.inputs)
    return np.asarray(jax.jit(encode)(params, random_images((3, size, size, 3))))


@pytest.mark.parametrize(
    ("name", "scanned"),
    [
        ("big_vision_siglip_mu16", ()),
        ("big_vision_siglip2_mu16_scan", ("image", "text")),
        ("big_vision_siglip2_mu_naflex", ("image", "text")),
    ],
)
def test_we_write_the_names_shapes_and_values_of_big_vision_itself(name, scanned):
    if not (GOLDEN / f"{name}.npz").exists():
        pytest.skip(f"needs ../shared/golden/{name}.npz")
    golden = {k.removeprefix("params/"): x for k, x in np.load(GOLDEN / f"{name}.npz").items()}
    family = open_checkpoint(str(GOLDEN / f"{name}.npz"))
    rules = big_vision.rules(family.model, scanned=scanned)
    found = write(rules, leaves_of(load_params(family)[0]))
    assert {k: x.shape for k, x in found.items()} == {k: x.shape for k, x in golden.items()}
    for key, x in found.items():
        np.testing.assert_array_equal(x, golden[key], err_msg=key)


def test_positions_of_squares_and_of_naflex(tmp_path):
    for name, shape in (("hf_siglip", (1, 16, 48)), ("hf_siglip2_naflex", (4, 4, 48))):
        family, leaves = fixture(tmp_path, name)
        tensors = write(big_vision.rules(family.model), leaves)
        assert tensors["img/pos_embedding"].shape == shape
        assert tensors["txt/pos_embedding"].shape[0] == 1 and tensors["t"].shape == (1,)
        if len(shape) == 3 and shape[0] > 1:  # rows before columns
            rows = leaves["image/position_embedding"]
            np.testing.assert_array_equal(tensors["img/pos_embedding"][1, 2], rows[shape[0] + 2])


def test_a_class_token_beside_the_positions(tmp_path):
    """vit.py since 2022, pool_type "tok"."""
    family, leaves = fixture(tmp_path, "hf_vit")
    leaves = {path: x for path, x in leaves.items() if path.startswith("image/")}
    tensors = write(big_vision.rules(family.model, towers=("image",)), leaves)
    assert tensors["img/cls"].shape == (1, 1, 48)
    assert tensors["img/pos_embedding"].shape == (1, 16, 48)
    again = saved(tmp_path, {k.removeprefix("img/"): x for k, x in tensors.items()})
    assert again.model.image.pool == "class_token"
    params, report = load_params(again)
    assert not report.unused and not report.fresh
    np.testing.assert_array_equal(params["image"]["class_token"], leaves["image/class_token"])


def test_the_head_of_an_image_tower_has_a_bias(tmp_path):
    """vit.py's head is nn.Dense: x @ kernel + bias, before the norm is made 1."""
    family, leaves = fixture(tmp_path, "hf_siglip")
    tensors = write(big_vision.rules(family.model), leaves)
    features = embed_images(family, tree_of(leaves))
    embed_dim = tensors["txt/head/kernel"].shape[1]
    head = {"img/head/kernel": np.eye(48, embed_dim, dtype=np.float32),
            "img/head/bias": random_tensor("bias", (embed_dim,))}  # fmt: skip
    with_head = saved(tmp_path, tensors | head)
    params, report = load_params(with_head)
    assert not report.unused and with_head.model.image_projection_bias
    # what the features were before their norm was made 1 is not known: their direction is
    zero_bias = saved(tmp_path, tensors | head | {"img/head/bias": np.zeros(embed_dim)})
    found = embed_images(zero_bias, load_params(zero_bias)[0])
    np.testing.assert_allclose(found, features, atol=1e-5)
    far = saved(tmp_path, tensors | head | {"img/head/bias": 1e6 * head["img/head/bias"]})
    direction = head["img/head/bias"] / np.linalg.norm(head["img/head/bias"])
    found = embed_images(far, load_params(far)[0])
    np.testing.assert_allclose(found, np.tile(direction, (3, 1)), atol=1e-4)
    # and it is written again, as it was
    again = write(big_vision.rules(with_head.model), leaves_of(params))
    np.testing.assert_array_equal(again["img/head/bias"], head["img/head/bias"])
    with pytest.raises(ValueError, match="lacks 1 tensors .*: img/head/bias"):
        load_params(saved(tmp_path, tensors | {"img/head/kernel": head["img/head/kernel"]}))


def test_two_towers_of_the_softmax_loss_have_no_bias_of_the_logits(tmp_path):
    family, leaves = fixture(tmp_path, "hf_siglip")
    del leaves["logit_bias"]
    tensors = write(big_vision.rules(family.model, has_bias=False), leaves)
    assert "b" not in tensors
    again = saved(tmp_path, tensors)
    params, _ = load_params(again)
    assert params["logit_bias"] == 0 and again.model.init_logit_bias == 0
    assert any("it has no b" in line for line in again.assumed)


def triangle(x, size, axis):
    """Linear interpolation whose filter is as wide as what a new pixel covers, in float64."""
    old = x.shape[axis]
    scale = max(1.0, old / size)
    centres = (np.arange(size) + 0.5) * old / size
    weights = np.maximum(0, 1 - abs(np.arange(old) + 0.5 - centres[:, None]) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)


def test_naflex_images_are_resized_with_antialiasing(tmp_path):
    """As tf.image.resize(antialias=True), whose fractions big_vision keeps and we round."""
    family, leaves = fixture(tmp_path, "hf_siglip2_naflex")
    naflex = saved(tmp_path, write(big_vision.rules(family.model), leaves))
    pixels = np.random.default_rng(0).integers(0, 256, (301, 117, 3)).astype(np.uint8)
    found = eval_pixels(pixels, naflex.image).astype(float)
    expected = triangle(triangle(pixels.astype(float), found.shape[0], 0), found.shape[1], 1)
    difference = found - expected
    assert found.shape[0] % 8 == 0 and found.shape[0] > 2 * found.shape[1]
    # rounded after each of the two directions, and not cut off, which would be 0.5 lower
    assert abs(difference).max() <= 1 and abs(difference).mean() < 0.3
    assert abs(difference.mean()) < 0.02
