"""The transformer that both towers are made of.

Shape letters: B batch, T positions, D width, N heads, H head size, F hidden width, L depth.
Parameters are float32; `dtype` is what the matrix products run in. The parameters of the L blocks
are always stacked along a leading axis, whether the blocks are scanned over or unrolled, so that a
checkpoint, a sharding rule or an import does not depend on it.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.sharding import split_batch

ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),  # OpenCLIP
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),  # SigLIP
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's weights
}
REMAT_POLICIES = {
    "none": None,  # keep every activation
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matrix products
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only each block's input
}
ATTENTION_IMPLEMENTATIONS = ("xla", "cudnn")


@dataclasses.dataclass(slots=True, kw_only=True)
class TransformerConfig:
    """Pre-norm transformer blocks."""

    width: int = 768  # of the residual stream
    depth: int = 12  # blocks
    num_heads: int = 12  # of attention; each has width / num_heads dimensions
    mlp_width: int = 0  # 0: 4 x width
    activation: str = "gelu"  # ACTIVATIONS
    norm_epsilon: float = 1e-5  # CLIP 1e-5; SigLIP, timm 1e-6
    dropout: float = 0.0  # after attention and MLP, and on the embedded input
    attention: str = "xla"  # ATTENTION_IMPLEMENTATIONS; cudnn: NVIDIA GPUs, bfloat16
    remat: str = "none"  # REMAT_POLICIES: what the backward pass computes again
    scan: bool = True  # one compiled block in a loop: compiles faster; unrolled may run faster

    @property
    def hidden_width(self) -> int:
        return self.mlp_width or 4 * self.width

    def multiply_adds(self, length: int) -> int:
        """Of the matrix products of one sequence's forward pass."""
        per_token = 4 * self.width**2 + 2 * self.width * self.hidden_width  # q, k, v, out; MLP
        return self.depth * (length * per_token + 2 * length**2 * self.width)

    def validate(self, name: str) -> None:
        for field in ("width", "depth", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}.{field} ({getattr(self, field)}) must be at least 1.")
        if self.width % self.num_heads:
            raise ValueError(
                f"{name}.width ({self.width}) must divide by {name}.num_heads ({self.num_heads})."
            )
        if self.mlp_width < 0:
            raise ValueError(
                f"{name}.mlp_width ({self.mlp_width}) must be at least 1, or 0: 4 x {name}.width."
            )
        if not 0 < self.norm_epsilon < 1:
            raise ValueError(
                f"{name}.norm_epsilon ({self.norm_epsilon}) must be in (0, 1). Set it to 1e-5."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{name}.dropout ({self.dropout}) must be in [0, 1).")
        for field, allowed in (
            ("activation", tuple(ACTIVATIONS)),
            ("remat", tuple(REMAT_POLICIES)),
            ("attention", ATTENTION_IMPLEMENTATIONS),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{name}.{field} ({getattr(self, field)!r}) must be one of {allowed}."
                )


def dense(features: int, name: str, dtype: jnp.dtype, use_bias: bool = True) -> nn.Dense:
    """A 2-D kernel [in, features], Xavier-uniform as big_vision starts its transformers."""
    return nn.Dense(
        features, use_bias, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name
    )


class LayerNorm(nn.Module):
    """Statistics in float32, output in `dtype`."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(
            self.dtype
        )


class Dropout(nn.Module):
    """Sets a share `rate` of x [B, ...] to 0 and scales the rest up to keep the mean.

    Each row's mask is drawn from its number in the batch, rows_B int [B], so that a batch taken in
    parts draws what it draws as a whole; rows_B None, as in evaluation: x itself.
    """

    rate: float

    @nn.compact
    def __call__(self, x, rows_B):
        if rows_B is None or not self.rate:
            return x
        key, kept = self.make_rng("dropout"), 1 - self.rate

        def keep(row):
            return jax.random.bernoulli(jax.random.fold_in(key, row), kept, x.shape[1:])

        return jnp.where(jax.vmap(keep)(rows_B), x / kept, 0)


class Attention(nn.Module):
    """Multi-head attention of queries x_BTD over y_BSD; mask [B or 1, 1, T, S], True where seen."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, y_BSD, mask=None, is_causal: bool = False):
        D, N = self.config.width, self.config.num_heads
        if self.config.attention == "cudnn" and jax.default_backend() != "gpu":
            raise ValueError(
                "transformer.attention ('cudnn') needs an NVIDIA GPU, but jax runs on "
                f"{jax.default_backend()}. Set model.image.transformer.attention and "
                "model.text.transformer.attention to 'xla'."
            )

        def heads(name, inputs):
            x = dense(D, name, self.dtype)(inputs)
            return x.reshape(*x.shape[:2], N, D // N)

        out_BTNH = jax.nn.dot_product_attention(  # pyright: ignore[reportCallIssue]
            heads("query", x_BTD),
            heads("key", y_BSD),
            heads("value", y_BSD),
            mask=mask,
            is_causal=is_causal,
            implementation=self.config.attention,  # pyright: ignore[reportArgumentType]
        )
        return dense(D, "out", self.dtype)(out_BTNH.reshape(*x_BTD.shape))


class Mlp(nn.Module):
    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD):
        x_BTF = dense(self.config.hidden_width, "up", self.dtype)(x_BTD)
        x_BTF = ACTIVATIONS[self.config.activation](x_BTF)
        return dense(self.config.width, "down", self.dtype)(x_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Returns (x, None), as nn.scan wants it."""

    config: TransformerConfig
    dtype: jnp.dtype
    is_causal: bool

    @nn.compact
    def __call__(self, x_BTD, mask, rows_B):
        c = self.config
        x_BTD = split_batch(x_BTD)
        y = LayerNorm(c.norm_epsilon, self.dtype, name="norm1")(x_BTD)
        y = Attention(c, self.dtype, name="attention")(y, y, mask, self.is_causal)
        x_BTD = x_BTD + Dropout(c.dropout)(y, rows_B)
        y = LayerNorm(c.norm_epsilon, self.dtype, name="norm2")(x_BTD)
        y = Mlp(c, self.dtype, name="mlp")(y)
        return x_BTD + Dropout(c.dropout)(y, rows_B), None


class Transformer(nn.Module):
    """L blocks, parameters stacked under "blocks"; no final norm."""

    config: TransformerConfig
    dtype: jnp.dtype
    is_causal: bool = False
    block: type[nn.Module] = Block  # bert.py has another

    @nn.compact
    def __call__(self, x_BTD, mask=None, rows_B=None):
        c = self.config
        block: Any = self.block
        if c.remat != "none":
            block = nn.remat(block, prevent_cse=not c.scan, policy=REMAT_POLICIES[c.remat])
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=c.depth,
            unroll=1 if c.scan else c.depth,
        )(c, self.dtype, self.is_causal, name="blocks")
        return blocks(x_BTD, mask, rows_B)[0]


class MapHead(nn.Module):
    """Multi-head attention pooling with one learned query (Zhai et al. 2022, arXiv:2106.04560).

    [B, T, D] -> [B, D]; mask [B, T] is True at positions to see.
    """

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, mask_BT=None):
        c = self.config
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, c.width))
        probe = jnp.broadcast_to(probe.astype(self.dtype), (x_BTD.shape[0], 1, c.width))
        mask = None if mask_BT is None else mask_BT[:, None, None, :]
        x = Attention(c, self.dtype, name="attention")(probe, x_BTD, mask)
        y = LayerNorm(c.norm_epsilon, self.dtype, name="norm")(x)
        return (x + Mlp(c, self.dtype, name="mlp")(y))[:, 0]
