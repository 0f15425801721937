"""Contrastive losses between image and text embeddings.

Shape letters: B pairs of the global batch, E embedding. Row i of both arrays is one matched pair;
rows are unit-norm float32. `logit_scale` is after exp. Losses are in nats, per pair.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(slots=True, kw_only=True)
class LossConfig:
    """Which contrastive loss, and what bounds its temperature."""

    name: str = "softmax"  # a key of LOSSES: softmax (CLIP), sigmoid (SigLIP)
    max_logit_scale: float = 100.0  # the scale is clipped to this after each update (CLIP, section
    # 2.5); 0: never, as SigLIP

    def validate(self, name: str = "loss") -> None:
        if self.name not in LOSSES:
            raise ValueError(f"{name}.name ({self.name!r}) must be one of {tuple(LOSSES)}.")
        if self.max_logit_scale < 0:
            raise ValueError(
                f"{name}.max_logit_scale ({self.max_logit_scale}) must be positive, or 0 for "
                "no limit."
            )


def _similarity(image_BE, text_BE):
    # float32 on every backend: near 100, bfloat16 steps by 0.5
    return jnp.matmul(image_BE, text_BE.T, precision="highest", preferred_element_type=jnp.float32)


def _is_matched(logits_BB):
    # never in memory: the compiler makes it anew in each loop that reads it
    return jnp.eye(logits_BB.shape[0], dtype=bool)


def softmax_loss(image_BE, text_BE, logit_scale, logit_bias=None) -> jax.Array:
    """Symmetric InfoNCE of CLIP (Radford et al. 2021, arXiv:2103.00020, Fig. 3).

    Args:
      logit_bias: not used: the softmax does not see it.
    Returns:
      Scalar: mean of both directions' cross-entropies; log(B) at chance.
    """
    del logit_bias
    logits_BB = logit_scale * _similarity(image_BE, text_BE)
    # a masked sum: jnp.diagonal would be a gather, and move rows between devices
    matched_B = jnp.sum(logits_BB, axis=1, where=_is_matched(logits_BB))
    image_to_text = jnp.mean(jax.nn.logsumexp(logits_BB, axis=1) - matched_B)
    text_to_image = jnp.mean(jax.nn.logsumexp(logits_BB, axis=0) - matched_B)
    return (image_to_text + text_to_image) / 2


def sigmoid_loss(image_BE, text_BE, logit_scale, logit_bias) -> jax.Array:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, Alg. 1).

    Returns:
      Scalar: sum over all B*B pairs of -log sigmoid(+-logit), divided by B.
    """
    logits_BB = logit_scale * _similarity(image_BE, text_BE) + logit_bias
    # -log sigmoid(x) = softplus(-x)
    signed_BB = jnp.where(_is_matched(logits_BB), -logits_BB, logits_BB)
    return jnp.sum(jax.nn.softplus(signed_BB)) / logits_BB.shape[0]


LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
