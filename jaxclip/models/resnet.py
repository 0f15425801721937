"""OpenAI's ResNet image tower (Radford et al. 2021, arXiv:2103.00020, sec. 2.4); PMC-CLIP has it.

A stem of three convolutions, average pooling before every strided convolution, and attention
pooling with the mean as the query. Batch normalisation uses the statistics of the checkpoint, which
stay as they are (torchvision's "frozen" batch norm): the loss of one pair must not depend on the
rest of its batch in a second way, nor on how the batch is cut into micro-batches and devices. From
scratch, where there are no statistics, group normalisation takes its place (Wu & He 2018,
arXiv:1803.08494), and each block starts as the identity (Goyal et al. 2017, arXiv:1706.02677).

Shape letters: B batch, H rows, W columns, C channels, P positions, D width of the features.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models.layers import dense
from jaxclip.sharding import split_batch

NORMS = ("frozen_batch", "group")


@dataclasses.dataclass(slots=True, kw_only=True)
class ResNetConfig:
    """ResNet image tower. The image's size is the data's: `data.image.size`."""

    stages: tuple[int, ...] = (3, 4, 6, 3)  # bottleneck blocks; ResNet-50
    stem_width: int = 64  # channels after the stem; the features have 32 times as many
    num_heads: int = 32  # of the attention pooling; features / 64
    norm: str = "frozen_batch"  # NORMS: frozen_batch, with a checkpoint's statistics; group, which
    # training from scratch needs

    @property
    def width(self) -> int:
        """Of the features."""
        return 4 * self.stem_width * 2 ** (len(self.stages) - 1)

    @property
    def stride(self) -> int:
        """Pixels of the image a position of the features, along a side."""
        return 2 ** (len(self.stages) + 1)

    def validate(self, image_size: int, name: str = "model.image") -> None:
        if not self.stages or min(self.stages) < 1:
            raise ValueError(f"{name}.stages {self.stages} must be one or more numbers of blocks.")
        if self.stem_width < 2 or self.stem_width % 2:
            raise ValueError(f"{name}.stem_width ({self.stem_width}) must be even.")
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(
                f"{name}.num_heads ({self.num_heads}) must divide the features ({self.width})."
            )
        if self.norm not in NORMS:
            raise ValueError(f"{name}.norm ({self.norm!r}) must be one of {NORMS}.")
        if image_size % self.stride:
            raise ValueError(f"data.image.size ({image_size}) must divide by {self.stride}.")

    def multiply_adds(self, image_size: int) -> int:
        """Of the convolutions and matrix products of one image's forward pass."""
        half, side = self.stem_width // 2, image_size // 2
        total = side**2 * 9 * (3 * half + half**2 + 2 * half**2)
        side, channels = side // 2, self.stem_width
        for stage, blocks in enumerate(self.stages):
            planes = self.stem_width * 2**stage
            for block in range(blocks):
                shrinks = stage > 0 and block == 0
                before, side = side**2, side // 2 if shrinks else side
                total += before * planes * (channels + 9 * planes) + side**2 * 4 * planes**2
                total += side**2 * 4 * planes * channels * (block == 0)
                channels = 4 * planes
        positions = side**2 + 1  # keys and values of each, the query and output of the first
        return total + 2 * positions * channels**2 + channels**2 + 2 * positions * channels


def conv(features: int, size: int, name: str, dtype: jnp.dtype, stride: int = 1) -> nn.Conv:
    return nn.Conv(
        features, (size, size), stride, padding=size // 2, use_bias=False, dtype=dtype, name=name
    )


def average_pool(x_BHWC, window: int):
    return nn.avg_pool(x_BHWC, (window, window), (window, window))


class FrozenBatchNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-5) * scale + bias; mean and variance get no gradient."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC):
        shape = x_BHWC.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = jax.lax.stop_gradient(self.param("mean", nn.initializers.zeros, shape))
        variance = jax.lax.stop_gradient(self.param("variance", nn.initializers.ones, shape))
        factor = scale * jax.lax.rsqrt(variance + 1e-5)
        x_BHWC = x_BHWC.astype(jnp.float32) * factor + (bias - mean * factor)
        return x_BHWC.astype(self.dtype)


def normalise(
    kind: str, channels: int, dtype: jnp.dtype, name: str, *, starts_at_zero: bool = False
) -> nn.Module:
    """One of NORMS; a group norm has 32 groups, or as many as divide the channels.

    Args:
      starts_at_zero: the scale of a group norm does.
    """
    if kind == "frozen_batch":
        return FrozenBatchNorm(dtype, name=name)
    init = nn.initializers.zeros if starts_at_zero else nn.initializers.ones
    return nn.GroupNorm(math.gcd(32, channels), dtype=dtype, scale_init=init, name=name)


class Bottleneck(nn.Module):
    planes: int
    stride: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC):
        out = 4 * self.planes
        y = x_BHWC
        for i, (features, size) in enumerate([(self.planes, 1), (self.planes, 3), (out, 1)], 1):
            if i == 3 and self.stride > 1:
                y = average_pool(y, self.stride)
            y = conv(features, size, f"conv{i}", self.dtype)(y)
            y = normalise(self.norm, features, self.dtype, f"norm{i}", starts_at_zero=i == 3)(y)
            y = nn.relu(y) if i < 3 else y
        if self.stride > 1 or x_BHWC.shape[-1] != out:
            x_BHWC = average_pool(x_BHWC, self.stride) if self.stride > 1 else x_BHWC
            x_BHWC = conv(out, 1, "shortcut", self.dtype)(x_BHWC)
            x_BHWC = normalise(self.norm, out, self.dtype, "shortcut_norm")(x_BHWC)
        return nn.relu(x_BHWC + y)


class AttentionPool(nn.Module):
    """Features [B, H, W, D] -> [B, D]: their mean attends to itself and to all of them.

    The output matrix of the attention is the model's projection into the common space (clip.py).
    """

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWD):
        B, _, _, D = x_BHWD.shape
        N = self.num_heads
        x_BPD = x_BHWD.reshape(B, -1, D)
        x_BPD = jnp.concatenate([x_BPD.mean(axis=1, keepdims=True), x_BPD], axis=1)
        init = nn.initializers.normal(D**-0.5)
        x_BPD += self.param("position_embedding", init, x_BPD.shape[1:])
        x_BPD = x_BPD.astype(self.dtype)

        def heads(name, x):
            return dense(D, name, self.dtype)(x).reshape(B, -1, N, D // N)

        query, key, value = heads("query", x_BPD[:, :1]), heads("key", x_BPD), heads("value", x_BPD)
        return jax.nn.dot_product_attention(query, key, value).reshape(B, D)


class ResNet(nn.Module):
    """Normalised pixels [B, S, S, 3] -> pooled features [B, D]; rows_B is for ViTs."""

    config: ResNetConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels_BSS3, rows_B=None):
        c = self.config
        x = pixels_BSS3.astype(self.dtype)
        for i in (1, 2, 3):
            features, stride = (c.stem_width, 1) if i == 3 else (c.stem_width // 2, 3 - i)
            x = conv(features, 3, f"stem{i}", self.dtype, stride)(x)
            x = nn.relu(normalise(c.norm, features, self.dtype, f"stem_norm{i}")(x))
        x = average_pool(x, 2)
        for stage, blocks in enumerate(c.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                name = f"stage{stage}_{block}"
                planes = c.stem_width * 2**stage
                x = Bottleneck(planes, stride, c.norm, self.dtype, name=name)(split_batch(x))
        return AttentionPool(c.num_heads, self.dtype, name="attention_pool")(x)
