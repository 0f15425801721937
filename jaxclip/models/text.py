"""Transformer text tower: as CLIP (Radford et al. 2021, arXiv:2103.00020, sec. 2.4) or as SigLIP.

Shape letters: B batch, T context length, D width, V vocabulary.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxclip.models.layers import Dropout, LayerNorm, Transformer, TransformerConfig
from jaxclip.sharding import gather

POOLS = ("eot", "last", "mean", "first")


@dataclasses.dataclass(slots=True, kw_only=True)
class TextConfig:
    """Text tower. Vocabulary, context length, pad and end-of-text ids are the tokenizer's."""

    transformer: TransformerConfig = dataclasses.field(
        default_factory=lambda: TransformerConfig(width=512, num_heads=8)
    )
    is_causal: bool = True  # CLIP; SigLIP and BERT see the whole text
    pool: str = "eot"  # eot: at the first end-of-text token (CLIP); last: position T-1, padding or
    # not (SigLIP); mean: over tokens that are not padding; first: [CLS]
    mask_padding: bool = False  # no attention to padding; SigLIP was trained seeing it

    def validate(self, name: str = "model.text") -> None:
        self.transformer.validate(f"{name}.transformer")
        if self.pool not in POOLS:
            raise ValueError(f"{name}.pool ({self.pool!r}) must be one of {POOLS}.")
        if self.is_causal and self.pool == "first":
            raise ValueError(
                f"{name}.pool ('first') with {name}.is_causal pools a token that sees nothing "
                "else. Use pool='eot', or is_causal=False."
            )


def siglip_text(width: int, depth: int, num_heads: int, mlp_width: int = 0) -> TextConfig:
    """SigLIP's text tower: bidirectional, last token, tanh GELU (Zhai et al. 2023)."""
    return TextConfig(
        transformer=TransformerConfig(
            width=width, depth=depth, num_heads=num_heads, mlp_width=mlp_width,
            activation="gelu_tanh", norm_epsilon=1e-6,
        ),
        is_causal=False,
        pool="last",
    )  # fmt: skip


class Embed(nn.Module):
    """Token ids int [B, T] -> rows of the table, float32 [B, T, D]; NaN for an id beyond it."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens_BT):
        init = nn.initializers.normal(0.02)
        table_VD = self.param("embedding", init, (self.vocab_size, self.width))
        return jnp.take(gather(table_VD), tokens_BT, axis=0)  # else the whole batch is gathered


def is_text(tokens_BT, pad_id: int, eos_id: int):
    """bool [B, T]: False where there is only padding."""
    is_text_BT = tokens_BT != pad_id
    if pad_id == eos_id:  # one id for both: the first one is the end of the text
        is_text_BT |= jnp.cumsum(~is_text_BT, axis=1) <= 1
    return is_text_BT


def masked_mean(x_BTD, is_seen_BT):
    """[B, T, D] -> float32 [B, D]: the mean over what is not padding."""
    # float32: bfloat16 does not count beyond 256
    weight_BT1 = is_seen_BT[..., None].astype(jnp.float32)
    return (x_BTD * weight_BT1).sum(1) / jnp.maximum(weight_BT1.sum(1), 1)


class TextTower(nn.Module):
    """Token ids int [B, T] -> pooled features [B, D]; rows_B as in layers.Dropout."""

    config: TextConfig
    vocab_size: int
    pad_id: int
    eos_id: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens_BT, rows_B=None):
        c, t = self.config, self.config.transformer
        # float32 until both are added: the gradient of a frequent token is a sum of many thousands
        x_BTD = Embed(self.vocab_size, t.width, name="token_embedding")(tokens_BT)
        init = nn.initializers.normal(0.01)
        x_BTD += self.param("position_embedding", init, x_BTD.shape[1:])
        x_BTD = x_BTD.astype(self.dtype)
        x_BTD = Dropout(t.dropout)(x_BTD, rows_B)
        is_text_BT = is_text(tokens_BT, self.pad_id, self.eos_id)
        mask = is_text_BT[:, None, None, :] if c.mask_padding else None
        x_BTD = Transformer(t, self.dtype, c.is_causal, name="transformer")(x_BTD, mask, rows_B)
        x_BTD = LayerNorm(t.norm_epsilon, self.dtype, name="final_norm")(x_BTD)
        if c.pool == "mean":
            return masked_mean(x_BTD, is_text_BT)
        if c.pool == "eot":
            index_B = jnp.argmax(tokens_BT == self.eos_id, axis=1)
            return jnp.take_along_axis(x_BTD, index_B[:, None, None], axis=1)[:, 0]
        return x_BTD[:, -1] if c.pool == "last" else x_BTD[:, 0]
