"""NaFlex image tower of SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786, sec. 2.4).

An image keeps its aspect: it becomes rows x columns patches, padded to T of them, and the table of
positions, a square grid, is resized to rows x columns for each image.

Shape letters: B batch, T patches with padding, K values of a patch, G grid a side, D width.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxclip.models.layers import Dropout, LayerNorm, MapHead, Transformer
from jaxclip.models.text import masked_mean
from jaxclip.models.vit import ViTConfig


class NaflexViT(nn.Module):
    """{"patches": normalised [B, T, K], "grid": int [B, 2]} -> pooled features [B, D].

    grid has the rows and columns of each image; its patches come first, in row order.
    The parameters are those of a ViT whose images have the size of the table of positions.
    """

    config: ViTConfig
    grid_size: int  # of the table of positions, a side
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image, rows_B=None):
        c, t = self.config, self.config.transformer
        x_BTD = nn.Dense(
            t.width, c.patch_bias, dtype=self.dtype, name="patch_embedding",
            kernel_init=nn.initializers.lecun_normal(),
        )(image["patches"].astype(self.dtype))  # fmt: skip
        init = nn.initializers.normal(t.width**-0.5)
        table_GD = self.param("position_embedding", init, (self.grid_size**2, t.width))
        grid_B2, T = image["grid"], x_BTD.shape[1]
        x_BTD += resized_positions(table_GD, grid_B2, T)
        x_BTD = Dropout(t.dropout)(x_BTD.astype(self.dtype), rows_B)
        is_patch_BT = jnp.arange(T) < (grid_B2[:, 0] * grid_B2[:, 1])[:, None]
        x_BTD = Transformer(t, self.dtype, name="transformer")(
            x_BTD, is_patch_BT[:, None, None, :], rows_B
        )
        x_BTD = LayerNorm(t.norm_epsilon, self.dtype, name="final_norm")(x_BTD)
        if c.pool == "map":
            return MapHead(t, self.dtype, name="map_head")(x_BTD, is_patch_BT)
        return masked_mean(x_BTD, is_patch_BT)


def resized_positions(table_GD, grid_B2, length: int):
    """The table, resized for each image and laid out as its patches: float32 [B, T, D].

    Bilinear with antialiasing, half-pixel centres, as jax.image.resize and torch's interpolate;
    written as matrices because the sizes differ within the batch. Rows of padding are arbitrary.

    Args:
      table_GD: float32 [G * G, D].
    """
    G = math.isqrt(table_GD.shape[0])
    rows_B1, columns_B1 = grid_B2[:, :1], grid_B2[:, 1:]
    index_T = jnp.arange(length)
    row_BTG = _weights(index_T // columns_B1, rows_B1, G)
    column_BTG = _weights(index_T % columns_B1, columns_B1, G)
    weights = row_BTG[..., :, None] * column_BTG[..., None, :]
    return weights.reshape(*weights.shape[:2], G * G) @ table_GD


def _weights(index_BT, size_B1, G: int):
    """What position `index` of `size` takes of each of G: a triangle, wider where it shrinks."""
    shrink_B11 = (G / size_B1)[..., None]
    centre_BT1 = (index_BT[..., None] + 0.5) * shrink_B11 - 0.5
    distance_BTG = jnp.abs(jnp.arange(G) - centre_BT1) / jnp.maximum(shrink_B11, 1)
    weight_BTG = jnp.maximum(0, 1 - distance_BTG)
    return weight_BTG / jnp.maximum(weight_BTG.sum(-1, keepdims=True), 1e-8)
