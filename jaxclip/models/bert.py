"""BERT text tower (Devlin et al. 2019, arXiv:1810.04805), as PubMedBERT and BiomedCLIP have it.

Differs from text.py: LayerNorm after each residual sum instead of before, a norm over the embedded
tokens, token types (all texts are of type 0), padding masked, and a table of positions that is
longer than the context. No pooler: [CLS] or the mean of the last layer.

Shape letters: B batch, T context length, D width.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxclip.models.layers import (
    Attention,
    Dropout,
    LayerNorm,
    Mlp,
    Transformer,
    TransformerConfig,
)
from jaxclip.models.text import Embed, is_text, masked_mean
from jaxclip.sharding import split_batch

POOLS = ("first", "mean")


@dataclasses.dataclass(slots=True, kw_only=True)
class BertConfig:
    """BERT text tower. Vocabulary, context length and pad id are the tokenizer's."""

    transformer: TransformerConfig = dataclasses.field(
        default_factory=lambda: TransformerConfig(norm_epsilon=1e-12)
    )
    pool: str = "first"  # first: [CLS] (BiomedCLIP); mean: over tokens that are not padding
    mask_padding: bool = True  # no attention to padding; PMC-CLIP was trained seeing it
    max_positions: int = 512  # rows of the position table; the context may be shorter
    token_types: int = 2  # rows of the token type table; only row 0 is used

    def validate(self, name: str = "model.text") -> None:
        self.transformer.validate(f"{name}.transformer")
        if self.pool not in POOLS:
            raise ValueError(f"{name}.pool ({self.pool!r}) must be one of {POOLS}.")
        for field in ("max_positions", "token_types"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}.{field} ({getattr(self, field)}) must be at least 1.")


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)). Called as layers.Block is."""

    config: TransformerConfig
    dtype: jnp.dtype
    is_causal: bool

    @nn.compact
    def __call__(self, x_BTD, mask, rows_B):
        c = self.config
        x_BTD = split_batch(x_BTD)
        y = Attention(c, self.dtype, name="attention")(x_BTD, x_BTD, mask, self.is_causal)
        y = x_BTD + Dropout(c.dropout)(y, rows_B)
        x_BTD = LayerNorm(c.norm_epsilon, self.dtype, name="norm1")(y)
        y = Mlp(c, self.dtype, name="mlp")(x_BTD)
        y = x_BTD + Dropout(c.dropout)(y, rows_B)
        return LayerNorm(c.norm_epsilon, self.dtype, name="norm2")(y), None


class BertTower(nn.Module):
    """Token ids int [B, T] -> pooled features [B, D]; rows_B as in layers.Dropout.

    Raises:
      ValueError: a context longer than the table of positions.
    """

    config: BertConfig
    vocab_size: int
    pad_id: int
    eos_id: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens_BT, rows_B=None):
        c, t = self.config, self.config.transformer
        T = tokens_BT.shape[1]
        if c.max_positions < T:
            raise ValueError(
                f"data.tokenizer.context_length ({T}) must be at most model.text.max_positions "
                f"({c.max_positions})."
            )
        init = nn.initializers.normal(0.02)
        x_BTD = Embed(self.vocab_size, t.width, name="token_embedding")(tokens_BT)
        x_BTD += self.param("position_embedding", init, (c.max_positions, t.width))[:T]
        x_BTD += self.param("token_type_embedding", init, (c.token_types, t.width))[0]
        x_BTD = LayerNorm(t.norm_epsilon, self.dtype, name="embedding_norm")(x_BTD)
        x_BTD = Dropout(t.dropout)(x_BTD, rows_B)
        is_text_BT = is_text(tokens_BT, self.pad_id, self.eos_id)
        mask = is_text_BT[:, None, None, :] if c.mask_padding else None
        x_BTD = Transformer(t, self.dtype, block=PostNormBlock, name="transformer")(
            x_BTD, mask, rows_B
        )
        return x_BTD[:, 0] if c.pool == "first" else masked_mean(x_BTD, is_text_BT)
