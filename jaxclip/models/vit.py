"""Vision transformer image tower (Dosovitskiy et al. 2021, arXiv:2010.11929).

Shape letters: B batch, S image size, P patch size, G patches a side, T positions, D width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models.layers import Dropout, LayerNorm, MapHead, Transformer, TransformerConfig

POOLS = ("class_token", "mean", "map")
# width, depth, heads, MLP width: Dosovitskiy et al. 2021, Table 1; Touvron et al. 2021
# (arXiv:2012.12877), Table 1; So400m: Alabdulmohsin et al. 2023 (arXiv:2305.13035), section 4
SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "So400m": (1152, 27, 16, 4304),
    "H": (1280, 32, 16, 5120),
}


@dataclasses.dataclass(slots=True, kw_only=True)
class ViTConfig:
    """ViT image tower. The image's size is the data's: `data.image.size`."""

    patch_size: int = 16  # pixels, both sides; divides data.image.size
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    pool: str = "class_token"  # POOLS; map: SigLIP's attention pooling
    pre_norm: bool = True  # a LayerNorm before the first block (CLIP); SigLIP has none
    patch_bias: bool = False  # CLIP has none, SigLIP has one
    naflex: bool = False  # images of any aspect (SigLIP 2, naflex.py); `data.image.size` is that of
    # a square one with as many patches as the table of positions and an image may have
    patch_dropout: float = 0.0  # share of patches left out in training (FLIP, arXiv:2212.00794)

    def multiply_adds(self, image_size: int) -> int:
        """Of the matrix products of one image's forward pass."""
        patches, w = (image_size // self.patch_size) ** 2, self.transformer.width
        kept = max(1, round((1 - self.patch_dropout) * patches))
        total = patches * 3 * self.patch_size**2 * w
        total += self.transformer.multiply_adds(kept + (self.pool == "class_token"))
        if self.pool == "map":
            hidden = self.transformer.hidden_width
            total += 2 * kept * w**2 + 2 * kept * w + 2 * w**2 + 2 * w * hidden
        return total

    def validate(self, image_size: int, name: str = "model.image") -> None:
        self.transformer.validate(f"{name}.transformer")
        if self.patch_size < 1 or image_size % self.patch_size:
            raise ValueError(
                f"data.image.size ({image_size}) must divide by "
                f"{name}.patch_size ({self.patch_size})."
            )
        if self.pool not in POOLS:
            raise ValueError(f"{name}.pool ({self.pool!r}) must be one of {POOLS}.")
        if self.naflex and (self.pool == "class_token" or self.pre_norm or self.patch_dropout):
            raise ValueError(
                f"{name}.naflex has no class token, pre_norm or patch_dropout. Set {name}.pool="
                f"'map', {name}.pre_norm=False and {name}.patch_dropout=0."
            )
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"{name}.patch_dropout ({self.patch_dropout}) must be in [0, 1).")


def vit(size: str, patch_size: int, *, family: str = "clip") -> ViTConfig:
    """A ViT by its usual name: vit("B", 16) is ViT-B/16.

    Args:
      size: a key of SIZES.
      family: "clip" (class token, pre-norm, exact GELU) or "siglip" (attention pooling, tanh GELU).

    Raises:
      ValueError: another size or family.
    """
    for name, value, allowed in (("size", size, SIZES), ("family", family, ("clip", "siglip"))):
        if value not in allowed:
            raise ValueError(f"{name} ({value!r}) of a ViT must be one of {tuple(allowed)}.")
    width, depth, num_heads, mlp_width = SIZES[size]
    siglip = family == "siglip"
    return ViTConfig(
        patch_size=patch_size,
        transformer=TransformerConfig(
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_width=mlp_width,
            activation="gelu_tanh" if siglip else "gelu",
            norm_epsilon=1e-6 if siglip else 1e-5,
        ),
        pool="map" if siglip else "class_token",
        pre_norm=not siglip,
        patch_bias=siglip,
    )


class ViT(nn.Module):
    """Normalised pixels [B, S, S, 3] -> pooled features [B, D]; rows_B as in layers.Dropout."""

    config: ViTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels_BSS3, rows_B=None):
        c, t = self.config, self.config.transformer
        patches_BTK = patchify(pixels_BSS3, c.patch_size).astype(self.dtype)
        x_BTD = nn.Dense(
            t.width, c.patch_bias, dtype=self.dtype, name="patch_embedding",
            kernel_init=nn.initializers.lecun_normal(),
        )(patches_BTK)  # fmt: skip
        # positions of the patches alone, in row order; a class token has its own
        init = nn.initializers.normal(t.width**-0.5)
        x_BTD += self.param("position_embedding", init, x_BTD.shape[1:])  # float32, as its gradient
        x_BTD = x_BTD.astype(self.dtype)
        if c.patch_dropout and rows_B is not None:
            x_BTD = drop_patches(x_BTD, c.patch_dropout, self.make_rng("dropout"), rows_B)
        if c.pool == "class_token":
            token_D = self.param("class_token", init, (t.width,)).astype(self.dtype)
            token_B1D = jnp.broadcast_to(token_D, (x_BTD.shape[0], 1, t.width))
            x_BTD = jnp.concatenate([token_B1D, x_BTD], axis=1)
        if c.pre_norm:
            x_BTD = LayerNorm(t.norm_epsilon, self.dtype, name="pre_norm")(x_BTD)
        x_BTD = Dropout(t.dropout)(x_BTD, rows_B)
        x_BTD = Transformer(t, self.dtype, name="transformer")(x_BTD, rows_B=rows_B)
        x_BTD = LayerNorm(t.norm_epsilon, self.dtype, name="final_norm")(x_BTD)
        if c.pool == "map":
            return MapHead(t, self.dtype, name="map_head")(x_BTD)
        return x_BTD[:, 0] if c.pool == "class_token" else x_BTD.mean(axis=1)


def patchify(pixels_BSS3, patch_size: int):
    """[B, S, S, 3] -> [B, G*G, P*P*3]: patches in row order, each (row, column, channel)."""
    B, S, _, C = pixels_BSS3.shape
    G, P = S // patch_size, patch_size
    x = pixels_BSS3.reshape(B, G, P, G, P, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, G * G, P * P * C)


def drop_patches(x_BTD, rate: float, key, rows_B):
    """Keeps round((1 - rate) * T) patches of each image, at least 1, in order, uniformly drawn."""
    T = x_BTD.shape[1]
    kept = max(1, round((1 - rate) * T))
    draw = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (T,)))
    order_BT = jnp.argsort(draw(rows_B), axis=1)
    kept_BT = jnp.sort(order_BT[:, :kept], axis=1)
    return jnp.take_along_axis(x_BTD, kept_BT[..., None], axis=1)


def resize_position_embedding(embedding_TD, new_length: int):
    """Interpolates a square grid of position embeddings to another one, as for a new image size.

    Bicubic with antialiasing, as open_clip does. [T, D] -> [new_length, D].

    Raises:
      ValueError: a length that is not a square number.
    """
    T, D = embedding_TD.shape
    old, new = round(T**0.5), round(new_length**0.5)
    if old * old != T or new * new != new_length:
        raise ValueError(
            f"Position embeddings of {T} patches cannot become {new_length}: both must be squares."
        )
    grid = embedding_TD.reshape(old, old, D)
    return jax.image.resize(grid, (new, new, D), "cubic", antialias=True).reshape(-1, D)
