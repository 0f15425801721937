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

from jaxclip.models.layers import dense
from jaxclip.models.text import TextConfig, TextTower
from jaxclip.models.vit import ViT, ViTConfig
from jaxclip.sharding import split_batch

Params = dict[str, Any]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(slots=True, kw_only=True)
class ClipConfig:
    """Two towers and their common space."""

    image: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    embed_dim: int = 512
    image_projection: bool = True  # SigLIP's image tower has none: its width is embed_dim
    projection_bias: bool = False  # of the text's; SigLIP has one
    dtype: str = "bfloat16"  # DTYPES: of the towers' matrix products; parameters stay float32
    init_temperature: float = 0.07  # logits are divided by it; SigLIP 0.1
    init_logit_bias: float = 0.0  # SigLIP -10; only the sigmoid loss has one

    def validate(self, image_size: int, name: str = "model") -> None:
        self.image.validate(image_size, f"{name}.image")
        self.text.validate(f"{name}.text")
        if self.dtype not in DTYPES:
            raise ValueError(f"{name}.dtype ({self.dtype!r}) must be one of {tuple(DTYPES)}.")
        if self.embed_dim < 1:
            raise ValueError(f"{name}.embed_dim ({self.embed_dim}) must be at least 1.")
        if not self.image_projection and self.image.transformer.width != self.embed_dim:
            raise ValueError(
                f"{name}.image_projection is off, so {name}.embed_dim ({self.embed_dim}) must "
                f"equal {name}.image.transformer.width ({self.image.transformer.width})."
            )
        if self.init_temperature <= 0:
            raise ValueError(f"{name}.init_temperature ({self.init_temperature}) must be positive.")
        for tower in ("image", "text"):
            attention = getattr(self, tower).transformer.attention
            if attention == "cudnn" and self.dtype != "bfloat16":
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


def _towers(config: ClipConfig, inputs: Inputs) -> tuple[ViT, TextTower]:
    dtype = DTYPES[config.dtype]
    text = TextTower(config.text, inputs.vocab_size, inputs.pad_id, inputs.eos_id, dtype)
    return ViT(config.image, dtype), text


def _projection(config: ClipConfig, tower: str) -> nn.Dense | None:
    """The tower's linear map into the common space; None where there is none."""
    if tower == "image" and not config.image_projection:
        return None
    use_bias = tower == "text" and config.projection_bias
    return dense(config.embed_dim, "projection", DTYPES[config.dtype], use_bias)


def init(config: ClipConfig, inputs: Inputs, key: jax.Array) -> Params:
    """Random parameters, float32: {"image", "text", "logit_scale", "logit_bias"}.

    logit_scale is a natural logarithm; both are scalars.
    """
    examples = {
        "image": jnp.zeros((1, inputs.image_size, inputs.image_size, 3)),
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
    config: ClipConfig, inputs: Inputs, params: Params, image_BSS3, key=None, rows_B=None
) -> jax.Array:
    """uint8 pixels [B, S, S, 3] -> unit-norm embeddings, float32 [B, E]; key, rows_B: see apply."""
    mean, std = (jnp.array(x, jnp.float32) * 255 for x in (inputs.mean, inputs.std))
    pixels = (image_BSS3.astype(jnp.float32) - mean) / std
    return _encode(config, "image", _towers(config, inputs)[0], params, pixels, key, rows_B)


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
        rows_B = jnp.arange(len(x)) if rows_B is None else rows_B
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

    Args:
      key: PRNG key of dropout and patch dropout; None: none of either (evaluation).
      rows_B: number of each row in the batch, by which it is given its masks, where `batch` is a
        part of one; None: 0 to B - 1.
    Returns:
      image_BE, text_BE: float32, unit norm.
    """
    image_key, text_key = (None, None) if key is None else jax.random.split(key)
    image_BE = encode_image(config, inputs, params, batch["image"], image_key, rows_B)
    return image_BE, encode_text(config, inputs, params, batch["tokens"], text_key, rows_B)


def flops_per_pair(config: ClipConfig, inputs: Inputs) -> dict[str, float]:
    """Matrix-product FLOPs (2 a multiply-add) of one pair's forward pass, a tower.

    Counted from the shapes: XLA's cost analysis counts a scanned block once. Training costs 3 x
    this.
    """

    def blocks(t, length):
        per_token = 4 * t.width**2 + 2 * t.width * t.hidden_width  # q, k, v, out; MLP
        return t.depth * (length * per_token + 2 * length**2 * t.width)

    v, t = config.image, config.text.transformer
    patches = (inputs.image_size // v.patch_size) ** 2
    w = v.transformer.width
    kept = max(1, round((1 - v.patch_dropout) * patches))
    image = patches * 3 * v.patch_size**2 * w
    image += blocks(v.transformer, kept + (v.pool == "class_token"))
    if v.pool == "map":
        hidden = v.transformer.hidden_width
        image += 2 * kept * w**2 + 2 * kept * w + 2 * w**2 + 2 * w * hidden
    image += w * config.embed_dim * config.image_projection
    text = blocks(t, inputs.context_length) + t.width * config.embed_dim
    return {"image": 2.0 * image, "text": 2.0 * text}
