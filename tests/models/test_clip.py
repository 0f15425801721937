"""The dual encoder against float64 NumPy, and its counts.

Shape letters: B pairs, E embedding.
"""

import copy
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import clip
from jaxclip.models.clip import ClipConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.text import TextConfig, siglip_text
from jaxclip.models.vit import SIZES, ViTConfig, vit
from tests.models import reference

INPUTS = clip.Inputs(
    image_size=12, mean=(0.5, 0.4, 0.3), std=(0.3, 0.25, 0.2), vocab_size=20, context_length=7,
    pad_id=0, eos_id=1,
)  # fmt: skip
# 1: end of text, 0: padding; the last one fills the context
TOKENS = np.array([[2, 3, 4, 1, 0, 0, 0], [9, 19, 1, 0, 0, 0, 0], [5, 6, 7, 8, 9, 10, 1]])
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)


def tiny(activation="gelu", epsilon=1e-5, width=8, **fields):
    # an MLP that is not 4 x width, heads of 4
    return TransformerConfig(
        width=width, depth=2, num_heads=2, mlp_width=12, activation=activation,
        norm_epsilon=epsilon, **fields,
    )  # fmt: skip


def clip_b16() -> ClipConfig:
    return ClipConfig(image=vit("B", 16))


def clip_text(width, depth) -> TextConfig:
    return TextConfig(transformer=TransformerConfig(width=width, depth=depth))


def siglip(size="B", patch_size=16, text=(768, 12, 12), mlp_width=0) -> ClipConfig:
    return ClipConfig(
        image=vit(size, patch_size, family="siglip"), text=siglip_text(*text, mlp_width=mlp_width),
        embed_dim=SIZES[size][0], image_projection=False, projection_bias=True,
    )  # fmt: skip


# Between them every pooling, activation and mask; large epsilons, so that ignoring them shows.
VARIANTS = {
    "openai": ClipConfig(
        image=ViTConfig(patch_size=4, transformer=tiny("quick_gelu", 0.03)),
        text=TextConfig(transformer=tiny("quick_gelu", 0.05)),
    ),
    "siglip": ClipConfig(
        image=ViTConfig(
            patch_size=4, transformer=tiny("gelu_tanh"), pool="map", pre_norm=False, patch_bias=True
        ),
        text=TextConfig(transformer=tiny("gelu_tanh"), is_causal=False, pool="last"),
        embed_dim=8,
        image_projection=False,
        projection_bias=True,
    ),
    "mean": ClipConfig(
        image=ViTConfig(patch_size=6, transformer=tiny(), pool="mean"),
        text=TextConfig(transformer=tiny(), is_causal=False, pool="mean", mask_padding=True),
    ),
    "first": ClipConfig(
        image=ViTConfig(patch_size=3, transformer=tiny(), pre_norm=False),
        text=TextConfig(transformer=tiny(), is_causal=False, pool="first"),
    ),
}
for _config in VARIANTS.values():
    _config.dtype = "float32"


@functools.cache
def shapes(variant: str, inputs: clip.Inputs = INPUTS):
    return jax.eval_shape(lambda: clip.init(VARIANTS[variant], inputs, jax.random.key(0)))


def random_params(params, seed=0):
    """Normal(0, 0.4) everywhere, biases too; float32."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.4 * rng.standard_normal(leaf.shape)).astype(np.float32), params
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_equal_a_float64_reference(variant):
    config, params = VARIANTS[variant], random_params(shapes(variant))
    image_BE, text_BE = jax.jit(functools.partial(clip.apply, config, INPUTS))(
        params, {"image": IMAGES, "tokens": TOKENS}
    )
    params = jax.tree.map(np.float64, params)
    image = [reference.image_embedding(config, INPUTS, params, image) for image in IMAGES]
    text = [reference.text_embedding(config, INPUTS, params, tokens) for tokens in TOKENS]
    # Unit vectors of 8 to 512 dimensions; float32 rounds to 6e-8, and two blocks add up.
    np.testing.assert_allclose(image_BE, image, atol=3e-6)
    np.testing.assert_allclose(text_BE, text, atol=3e-6)


def test_bfloat16_is_what_the_products_run_in_and_nothing_else():
    config = copy.deepcopy(VARIANTS["openai"])
    config.dtype = "bfloat16"
    params = jax.jit(lambda: clip.init(config, INPUTS, jax.random.key(0)))()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    batch = {"image": IMAGES, "tokens": TOKENS}
    apply = jax.jit(functools.partial(clip.apply, config, INPUTS))
    # No matrix product reads float32; the scores of the attention may be written in it.
    products = re.findall(
        r"dot_general.*: \((tensor<\S+>), (tensor<\S+>)\)", apply.lower(params, batch).as_text()
    )
    assert len(products) == 2 * (1 + 6 + 2) + 1  # a block, scanned, and projections; patches
    assert all(operand.endswith("xbf16>") for pair in products for operand in pair)
    exact = jax.jit(functools.partial(clip.apply, VARIANTS["openai"], INPUTS))(params, batch)
    for rounded_BE, exact_BE in zip(apply(params, batch), exact, strict=True):
        assert rounded_BE.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(rounded_BE, axis=1), 1, rtol=1e-6)
        # bfloat16 has 8 bits: 2 blocks of a few roundings of 0.4 % each
        assert ((rounded_BE * exact_BE).sum(axis=1) > 0.999).all()


def test_initial_values_of_the_loss_parameters():
    config = copy.deepcopy(VARIANTS["siglip"])
    config.init_temperature, config.init_logit_bias = 0.1, -10.0
    params = jax.jit(lambda: clip.init(config, INPUTS, jax.random.key(0)))()
    np.testing.assert_allclose(params["logit_scale"], 2.302585, rtol=1e-6)  # log 10
    assert params["logit_bias"] == -10.0 and params["logit_bias"].shape == ()
    # Xavier-uniform, of (fan_in, fan_out) = (8, 12) in each of the stacked blocks
    kernel = params["image"]["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    assert 0.9 < np.abs(kernel).max() / np.sqrt(6 / (8 + 12)) <= 1
    assert not np.allclose(kernel[0], kernel[1])
    query = params["image"]["transformer"]["blocks"]["attention"]["query"]["kernel"]
    key = params["image"]["transformer"]["blocks"]["attention"]["key"]["kernel"]
    assert not np.allclose(query, key)


def inputs_of(image_size, context_length, vocab_size):
    return clip.Inputs(
        image_size=image_size, mean=(0,), std=(1,), vocab_size=vocab_size,
        context_length=context_length, pad_id=0, eos_id=1,
    )  # fmt: skip


def count(config, inputs):
    params = jax.eval_shape(lambda: clip.init(config, inputs, jax.random.key(0)))
    return {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}


def test_parameter_counts_of_published_models():
    # OpenAI's ViT-B/16 has 149,620,737. Its class token is a vector plus row 0 of the position
    # embedding (768 each), ours is their sum; and we always carry a logit bias (1).
    counts = count(clip_b16(), inputs_of(224, 77, 49_408))
    assert sum(counts.values()) == 149_620_737 - 768 + 1
    assert round(sum(count(siglip(), inputs_of(224, 64, 32_000)).values()) / 1e6, 2) == 203.16
    assert round(sum(count(siglip(), inputs_of(256, 64, 256_000)).values()) / 1e6, 2) == 375.23


@pytest.mark.parametrize(
    ("size", "patch_size", "millions"),
    # timm's vit_*_patch*_224 without the head for classes
    [("Ti", 16, 5.5), ("S", 16, 21.7), ("B", 16, 85.8), ("L", 16, 303.3), ("H", 14, 630.8)],
)
def test_parameter_counts_of_sizes(size, patch_size, millions):
    image = dataclasses.replace(vit(size, patch_size), pre_norm=False, patch_bias=True)
    config = ClipConfig(image=image, embed_dim=SIZES[size][0], image_projection=False)
    assert round(count(config, inputs_of(224, 8, 8))["image"] / 1e6, 1) == millions


def test_parameter_count_of_so400m():
    # So400m/14-224 with its text tower: 877.4 M with 32,000 tokens of length 16
    config = siglip("So400m", 14, (1152, 27, 16), mlp_width=4304)
    assert round(sum(count(config, inputs_of(224, 16, 32_000)).values()) / 1e6) == 877


@pytest.mark.parametrize(
    ("config", "image_size", "context_length", "image", "text"),
    [  # GFLOP, forward; OpenCLIP's docs/model_profile.csv has the CLIP ones
        (ClipConfig(image=vit("B", 32)), 224, 77, 8.82, 5.96),
        (clip_b16(), 224, 77, 35.13, 5.96),
        (ClipConfig(image=vit("L", 14), text=clip_text(768, 12)), 224, 77, 162.0, 13.3),
        (ClipConfig(image=vit("H", 14), text=clip_text(1024, 24)), 224, 77, 334.6, 47.1),
        (siglip(), 224, 64, 35.42, 11.02),
        (siglip(), 256, 64, 46.82, 11.02),
        (siglip("L", 16, (1024, 24, 16)), 256, 64, 162.6, 39.1),
        (siglip("So400m", 14, (1152, 27, 16), 4304), 224, 64, 220.4, 53.1),
    ],
)
def test_flops_per_pair(config, image_size, context_length, image, text):
    flops = clip.flops_per_pair(config, inputs_of(image_size, context_length, 8))
    # as many digits as the table has
    for tower, expected in (("image", image), ("text", text)):
        found = (flops[tower] + flops[f"{tower}/projection"]) / 1e9
        assert found == pytest.approx(expected, abs=0.05 if image > 100 else 0.005)


def test_flops_count_only_kept_patches():
    config, inputs = clip_b16(), inputs_of(224, 77, 8)
    full = sum(clip.flops_per_pair(config, inputs).values())
    for dropout, ratio in ((0.5, 1.76), (0.75, 2.78)):
        config.image.patch_dropout = dropout
        assert full / sum(clip.flops_per_pair(config, inputs).values()) == pytest.approx(
            ratio, abs=0.01
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image.patch_size": 5}, r"data.image.size \(12\) must divide by model.image.patch_size"),
        ({"image.pool": "max"}, r"model.image.pool \('max'\) must be one of \('class_token',"),
        ({"image.patch_dropout": 1.0}, r"model.image.patch_dropout \(1.0\) must be in \[0, 1\)"),
        ({"image.transformer.num_heads": 3}, r"image.transformer.width \(8\) must divide by model"),
        ({"image.transformer.remat": "all"}, r"transformer.remat \('all'\) must be one of"),
        ({"text.transformer.activation": "relu"}, r"model.text.transformer.activation \('relu'\)"),
        ({"text.transformer.dropout": -0.1}, r"model.text.transformer.dropout \(-0.1\)"),
        ({"text.transformer.depth": 0}, r"model.text.transformer.depth \(0\) must be at least 1"),
        ({"text.pool": "first"}, r"model.text.pool \('first'\) with .*is_causal .* Use pool='eot'"),
        ({"dtype": "float16"}, r"model.dtype \('float16'\) must be one of"),
        ({"image_projection": False}, r"embed_dim \(512\) must equal the width of model.image"),
        ({"init_temperature": 0.0}, r"model.init_temperature \(0.0\) must be positive"),
        ({"image.transformer.attention": "cudnn"}, r"'cudnn'\) needs model.dtype 'bfloat16'"),
    ],
)
def test_validate_names_field_value_and_rule(change, message):
    config = copy.deepcopy(VARIANTS["openai"])
    config.validate(image_size=12)
    for path, value in change.items():
        *owners, field = path.split(".")
        setattr(functools.reduce(getattr, owners, config), field, value)
    with pytest.raises(ValueError, match=message):
        config.validate(image_size=12)
