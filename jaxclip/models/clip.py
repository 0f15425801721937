"""The dual encoder: two towers, one embedding space, used functionally.

    params = init(config, inputs, key)
    image_BE, text_BE = apply(config, inputs, params, batch)

Shape letters: B pairs, S image size, T context length, D a tower's width, E embedding.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models.bert import BertConfig, BertTower
from jaxclip.models.layers import ACTIVATIONS, dense
from jaxclip.models.naflex import NaflexViT
from jaxclip.models.resnet import ResNet, ResNetConfig
from jaxclip.models.text import TextConfig, TextTower
from jaxclip.models.vit import ViT, ViTConfig, patchify
from jaxclip.sharding import split_batch

Params = dict[str, Any]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TEXT_TOWERS = {TextConfig: TextTower, BertConfig: BertTower}
TEXT_PROJECTIONS = ("linear", "mlp", "none")


@dataclasses.dataclass(slots=True, kw_only=True)
class ClipConfig:
    """Two towers and their common space."""

    image: ViTConfig | ResNetConfig = dataclasses.field(default_factory=ViTConfig)  # its tower
    text: TextConfig | BertConfig = dataclasses.field(default_factory=TextConfig)  # its tower
    embed_dim: int = 512  # of the common space
    image_projection: bool = True  # SigLIP's image tower has none: its width is embed_dim
    text_projection: str = "linear"  # TEXT_PROJECTIONS; mlp: two matrices (BiomedCLIP)
    image_projection_bias: bool = False  # big_vision's has one, and so has a ResNet's, always
    projection_bias: bool = False  # of the text's linear one; SigLIP has one
    dtype: str = "bfloat16"  # DTYPES: of the towers' matrix products; parameters stay float32. GPUs
    # and TPUs round the factors of float32 products, too, while training; jaxclip.load does not
    init_temperature: float = 0.07  # logits are divided by it; SigLIP 0.1
    init_logit_bias: float = 0.0  # SigLIP -10; only the sigmoid loss has one

    @property
    def image_width(self) -> int:
        """Of the image tower's features."""
        if isinstance(self.image, ViTConfig):
            return self.image.transformer.width
        return self.image.width

    def validate(self, image_size: int, name: str = "model") -> None:
        self.image.validate(image_size, f"{name}.image")
        self.text.validate(f"{name}.text")
        if self.dtype not in DTYPES:
            raise ValueError(f"{name}.dtype ({self.dtype!r}) must be one of {tuple(DTYPES)}.")
        if self.embed_dim < 1:
            raise ValueError(f"{name}.embed_dim ({self.embed_dim}) must be at least 1.")
        if self.text_projection not in TEXT_PROJECTIONS:
            raise ValueError(
                f"{name}.text_projection ({self.text_projection!r}) must be one of "
                f"{TEXT_PROJECTIONS}."
            )
        for tower, is_off, width in (
            ("image", not self.image_projection, self.image_width),
            ("text", self.text_projection == "none", self.text.transformer.width),
        ):
            if is_off and width != self.embed_dim:
                raise ValueError(
                    f"{name}.{tower}_projection is off, so {name}.embed_dim ({self.embed_dim}) "
                    f"must equal the width of {name}.{tower} ({width})."
                )
        if not 0 < self.init_temperature < math.inf:
            raise ValueError(f"{name}.init_temperature ({self.init_temperature}) must be positive.")
        for tower in ("image", "text"):
            transformer = getattr(getattr(self, tower), "transformer", None)
            if transformer and transformer.attention == "cudnn" and self.dtype != "bfloat16":
                raise ValueError(
                    f"{name}.{tower}.transformer.attention ('cudnn') needs {name}.dtype "
                    f"'bfloat16', not {self.dtype!r}."
                )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the model must know of its inputs; from the image config and the tokenizer."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    vocab_size: int
    context_length: int
    pad_id: int
    eos_id: int


class MlpProjection(nn.Module):
    """Two matrices with GELU between, as OpenCLIP's hf_proj_type "mlp": D -> (D + E) / 2 -> E."""

    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BD):
        hidden = (x_BD.shape[-1] + self.embed_dim) // 2
        x = dense(hidden, "up", self.dtype, use_bias=False)(x_BD)
        return dense(self.embed_dim, "down", self.dtype, use_bias=False)(ACTIVATIONS["gelu"](x))


def _towers(config: ClipConfig, inputs: Inputs) -> tuple[nn.Module, nn.Module]:
    dtype = DTYPES[config.dtype]
    ids = inputs.vocab_size, inputs.pad_id, inputs.eos_id
    text = TEXT_TOWERS[type(config.text)](config.text, *ids, dtype)  # pyright: ignore[reportArgumentType]
    if isinstance(config.image, ResNetConfig):
        return ResNet(config.image, dtype), text
    if config.image.naflex:
        return NaflexViT(config.image, inputs.image_size // config.image.patch_size, dtype), text
    return ViT(config.image, dtype), text


def _projection(config: ClipConfig, tower: str) -> nn.Module | None:
    """The tower's map into the common space; None where there is none."""
    dtype = DTYPES[config.dtype]
    if tower == "image":
        # a ResNet's is the output matrix of its attention pooling
        has_bias = isinstance(config.image, ResNetConfig) or config.image_projection_bias
        is_there = config.image_projection
        return dense(config.embed_dim, "projection", dtype, has_bias) if is_there else None
    if config.text_projection == "mlp":
        return MlpProjection(config.embed_dim, dtype, name="projection")
    is_there = config.text_projection == "linear"
    return (
        dense(config.embed_dim, "projection", dtype, config.projection_bias) if is_there else None
    )


def init(config: ClipConfig, inputs: Inputs, key: jax.Array) -> Params:
    """Random parameters, float32: {"image", "text", "logit_scale", "logit_bias"}.

    logit_scale is a natural logarithm; both are scalars.
    """
    image: Any = jnp.zeros((1, inputs.image_size, inputs.image_size, 3))
    if isinstance(config.image, ViTConfig) and config.image.naflex:
        image = {"patches": patchify(image, config.image.patch_size), "grid": jnp.ones((1, 2), int)}
    examples = {
        "image": image,
        "text": jnp.zeros((1, inputs.context_length), jnp.int32),
    }
    params: Params = {}
    for (tower, example), module in zip(examples.items(), _towers(config, inputs), strict=True):
        key, tower_key, projection_key = jax.random.split(key, 3)
        features, variables = module.init_with_output(tower_key, example)
        params[tower] = variables["params"]
        if projection := _projection(config, tower):
            params[tower] |= {"projection": projection.init(projection_key, features)["params"]}
    params["logit_scale"] = jnp.float32(-math.log(config.init_temperature))
    params["logit_bias"] = jnp.float32(config.init_logit_bias)
    return params


def encode_image(
    config: ClipConfig, inputs: Inputs, params: Params, image, key=None, rows_B=None
) -> jax.Array:
    """uint8 pixels -> unit-norm embeddings, float32 [B, E]; key, rows_B: see apply.

    Args:
      image: [B, S, S, 3]; for NaFlex {"patches": [B, T, P * P * 3], "grid": int [B, 2]}, whose
        grid has the rows and columns of each image.
    """
    mean, std = (jnp.array(x, jnp.float32) * 255 for x in (inputs.mean, inputs.std))

    def normalise(pixels):
        x = (pixels.reshape(*pixels.shape[:2], -1, 3).astype(jnp.float32) - mean) / std
        return x.reshape(pixels.shape)

    if isinstance(image, dict):
        image = {"patches": normalise(image["patches"]), "grid": image["grid"]}
    else:
        image = normalise(image)
    return _encode(config, "image", _towers(config, inputs)[0], params, image, key, rows_B)


def encode_text(
    config: ClipConfig, inputs: Inputs, params: Params, tokens_BT, key=None, rows_B=None
) -> jax.Array:
    """Token ids int [B, T] -> unit-norm embeddings, float32 [B, E]; key, rows_B: see apply."""
    return _encode(config, "text", _towers(config, inputs)[1], params, tokens_BT, key, rows_B)


def _encode(config, tower, module, params, x, key, rows_B):
    """Features of a tower, projected to the common space."""
    variables = {"params": params[tower]}
    if key is None:
        features_BD: Any = module.apply(variables, x)
    else:
        rows_B = jnp.arange(len(jax.tree.leaves(x)[0])) if rows_B is None else rows_B
        features_BD = module.apply(variables, x, rows_B=rows_B, rngs={"dropout": key})
    if projection := _projection(config, tower):
        features_BD = projection.apply({"params": params[tower]["projection"]}, features_BD)
    x_BE = split_batch(features_BD.astype(jnp.float32))
    return x_BE / jnp.maximum(jnp.linalg.norm(x_BE, axis=-1, keepdims=True), 1e-8)


def apply(
    config: ClipConfig,
    inputs: Inputs,
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Both embeddings of a batch {"image": uint8 [B, S, S, 3], "tokens": int32 [B, T]}.

    For NaFlex "image" has patches and "grid" their layout, see encode_image.

    Args:
      key: PRNG key of dropout and patch dropout; None: none of either (evaluation).
      rows_B: number of each row in the batch, by which it is given its masks, where `batch` is a
        part of one; None: 0 to B - 1.
    Returns:
      image_BE, text_BE: float32, unit norm.
    """
    image_key, text_key = (None, None) if key is None else jax.random.split(key)
    image: Any = batch["image"]
    if "grid" in batch:
        image = {"patches": image, "grid": batch["grid"]}
    image_BE = encode_image(config, inputs, params, image, image_key, rows_B)
    return image_BE, encode_text(config, inputs, params, batch["tokens"], text_key, rows_B)


def flops_per_pair(config: ClipConfig, inputs: Inputs) -> dict[str, float]:
    """Matrix-product FLOPs (2 a multiply-add) of one pair's forward pass, by part of the model.

    Parts are "image", "text", each without its projection, "image/projection", "text/projection".
    Counted from the shapes: XLA's cost analysis counts a scanned block once. Training costs 3 x
    this.
    """
    E, t = config.embed_dim, config.text.transformer
    projections = {"linear": t.width * E, "mlp": (t.width + E) ** 2 // 2, "none": 0}
    multiply_adds = {
        "image": config.image.multiply_adds(inputs.image_size),
        "image/projection": config.image_width * E * config.image_projection,
        "text": t.multiply_adds(inputs.context_length),
        "text/projection": projections[config.text_projection],
    }
    return {part: 2.0 * count for part, count in multiply_adds.items()}
