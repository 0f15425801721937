"""What is the image tower's own: patch dropout, position embeddings of another size.

Shape letters: B images, T patches, D width, G patches a side.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import clip
from jaxclip.models.vit import drop_patches, resize_position_embedding, vit
from tests.models.test_clip import IMAGES, INPUTS, VARIANTS, shapes


@pytest.mark.parametrize(("rate", "kept"), [(0.5, 5), (0.75, 2), (0.1, 9), (0.99, 1)])
def test_patch_dropout_keeps_a_share_of_each_image(rate, kept):
    x_BTD = jnp.broadcast_to(jnp.arange(10.0)[None, :, None], (4000, 10, 2))
    kept_BT = np.asarray(drop_patches(x_BTD, rate, jax.random.key(0), jnp.arange(4000)))[..., 0]
    assert kept_BT.shape == (4000, kept)
    assert (np.diff(kept_BT, axis=1) > 0).all()  # in order, none twice
    # uniform: each patch is kept in 4000 * kept / 10 images, within 5 standard deviations
    counts = np.bincount(kept_BT.astype(int).ravel(), minlength=10)
    deviation = np.sqrt(4000 * kept / 10 * (1 - kept / 10))
    assert (np.abs(counts - 400 * kept) < 5 * deviation).all()


def test_patch_dropout_is_of_training_only():
    config = dataclasses.replace(
        VARIANTS["openai"],
        image=dataclasses.replace(VARIANTS["openai"].image, patch_dropout=0.5),
    )

    def program(config, key):
        def encode(params):
            return clip.encode_image(config, INPUTS, params, IMAGES, key)

        return jax.jit(encode).lower(shapes("openai")).as_text()

    assert program(config, None) == program(VARIANTS["openai"], None)
    assert program(config, jax.random.key(0)) != program(config, None)


def test_resized_position_embedding():
    embedding_TD = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    same = resize_position_embedding(embedding_TD, 16)
    np.testing.assert_allclose(same, embedding_TD, atol=1e-6)
    constant = resize_position_embedding(np.full((16, 3), 7.0), 49)
    np.testing.assert_allclose(constant, np.full((49, 3), 7.0), rtol=1e-6)
    # the row's number stays a function of the row, and of its middle: patches are in row order
    row_GG = resize_position_embedding(np.repeat(np.arange(4.0), 4)[:, None], 64).reshape(8, 8)
    np.testing.assert_allclose(row_GG - row_GG[:, :1], 0, atol=1e-6)
    assert (np.diff(row_GG[:, 0]) > 0).all()
    np.testing.assert_allclose(row_GG.mean(), 1.5, rtol=1e-6)
    for old, new in ((15, 16), (16, 15)):
        with pytest.raises(ValueError, match=f"{old} patches cannot become {new}: both must be"):
            resize_position_embedding(np.zeros((old, 3)), new)


def test_families_of_the_sizes():
    openai, siglip = vit("B", 16).transformer, vit("So400m", 14, family="siglip").transformer
    assert (openai.activation, openai.norm_epsilon) == ("gelu", 1e-5)
    assert (siglip.activation, siglip.norm_epsilon) == ("gelu_tanh", 1e-6)
    assert (siglip.width, siglip.depth, siglip.num_heads, siglip.mlp_width) == (1152, 27, 16, 4304)
    with pytest.raises(ValueError, match=r"size \('B16'\) of a ViT must be one of \('Ti', 'S'"):
        vit("B16", 16)
    with pytest.raises(ValueError, match=r"family \('sigmoid'\) of a ViT must be one of"):
        vit("B", 16, family="sigmoid")
