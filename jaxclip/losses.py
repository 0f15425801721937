"""Contrastive losses between image and text embeddings: one family, dense or in a ring.

A loss is told by an Objective: which sums over the texts each image needs, which sums over the
images each text needs, and the scalar made of these statistics. How the statistics are taken from
the pairs, all at once or block by block, is pairwise.py's.

Shape letters: B pairs of the batch, E embedding, R images x C texts of a block of pairs, K kinds of
label. Embeddings are unit-norm float32; `logit_scale` is after exp. Losses are in nats a pair.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxclip.pairwise import (
    MASKED,
    Block,
    Relations,
    Side,
    Statistics,
    Term,
    dense_statistics,
    ring_statistics,
)
from jaxclip.sharding import AXES, BATCH_AXES

RELATIONS = ("same_caption", "same_image", "same_figure", "same_article", "same_label")
IMPLEMENTATIONS = ("auto", "dense", "ring")
MAX_DENSE_BYTES = 256 << 20  # a device; beyond it `auto` takes the ring


@dataclasses.dataclass(slots=True, kw_only=True)
class LossConfig:
    """Which contrastive loss, what are its positives and negatives, and how it is computed."""

    name: str = "softmax"  # LOSSES: softmax (CLIP), sigmoid (SigLIP), decoupled (DHN-NCE),
    # soft_labels (MedCLIP)
    positives: str = "identity"  # or one of RELATIONS: such pairs are matched, too (UniCL)
    ignore: tuple[str, ...] = ()  # RELATIONS: such pairs are no negatives; positives stay positive
    label_smoothing: float = 0.0  # share of the target that is spread evenly over all that count
    # (Szegedy et al. 2016, arXiv:1512.00567, section 7)
    image_weight: float = 0.5  # of image-to-text; text-to-image has the rest (ConVIRT: 0.75)
    hard_negatives: tuple[float, float] = (
        0.0,
        0.0,
    )  # decoupled: beta of images, of texts; how much
    # more a negative weighs the more it resembles (DHN-NCE: 0.15)
    max_logit_scale: float = 100.0  # the scale is clipped to this after each update (CLIP, section
    # 2.5); 0: never, as SigLIP. A fixed temperature: optimizer.freeze=logit_scale
    implementation: str = "auto"  # dense | ring; auto: ring where a dense step takes over 256 MiB
    chunk_rows: int = 0  # ring: images whose logits are in memory at a time; 0: 16 MiB of them

    def validate(self, name: str = "loss") -> None:
        choices = [
            ("name", (self.name,), tuple(LOSSES)),
            ("positives", (self.positives,), ("identity", *RELATIONS)),
            ("ignore", self.ignore, RELATIONS),
            ("implementation", (self.implementation,), IMPLEMENTATIONS),
        ]
        for field, values, allowed in choices:
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name}.{field} ({value!r}) must be one of {allowed}.")
        sigmoid = self.name == "sigmoid"
        rules = [
            ("label_smoothing", 0 <= self.label_smoothing < 1, "must be in [0, 1)"),
            ("image_weight", 0 <= self.image_weight <= 1, "must be in [0, 1]"),
            ("image_weight", not sigmoid or self.image_weight == 0.5,
             "must be 0.5: the sigmoid loss has no directions"),
            ("hard_negatives", min(self.hard_negatives) >= 0, "must be 0 or more"),
            ("hard_negatives", self.name == "decoupled" or not any(self.hard_negatives),
             f"is of {name}.name='decoupled' alone. Use it, or (0.0, 0.0)"),
            ("positives", self.name != "soft_labels" or self.positives == "identity",
             f"has no effect on {name}.name='soft_labels', whose targets are all pairs"),
            ("max_logit_scale", self.max_logit_scale >= 0, "must be positive, or 0 for no limit"),
            ("chunk_rows", self.chunk_rows >= 0, "must be 0 or more"),
        ]  # fmt: skip
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name}.{field} ({getattr(self, field)!r}) {rule}.")

    def needs_labels(self) -> bool:
        return self.name == "soft_labels" or "same_label" in (self.positives, *self.ignore)


# --- The family ----------------------------------------------------------------------------------


class Objective(NamedTuple):
    image_terms: dict[str, Term]
    text_terms: dict[str, Term]
    loss: Callable[[Statistics, Statistics], jax.Array]  # of images [B], of texts [B] -> scalar


def softmax(config: LossConfig) -> Objective:
    """Symmetric InfoNCE of CLIP (Radford et al. 2021, arXiv:2103.00020, Fig. 3); log(B) at chance.

    With several positives: the mean over them of -log softmax, as UniCL (Yang et al. 2022,
    arXiv:2204.03610, eq. 2-3), which MedImageInsight uses. The two directions are weighted as in
    ConVIRT (Zhang et al. 2020, arXiv:2010.00747, eq. 4).
    """
    terms = _target_terms(config, _is_positive)
    terms["log_sum"] = _logsumexp_over(lambda b: b.counted)

    def cross_entropy(stats):
        return stats["log_sum"] - _target_logit(stats, config)

    return _both_directions(config, (terms, cross_entropy), (terms, cross_entropy))


def decoupled(config: LossConfig) -> Objective:
    """The positive is not in the denominator, and negatives weigh more the harder they are.

    DHN-NCE of MedCLIP-SAM (Koleilat et al. 2024, arXiv:2403.20253, eq. 1-4); without weights, the
    decoupled InfoNCE of Yeh et al. 2021 (arXiv:2110.06848, eq. 6). With weights
    w = M exp(beta s) / sum exp(beta s) over the M negatives, log sum w exp(s) is
    log M + logsumexp((1 + beta) s) - logsumexp(beta s).
    """

    def direction(beta):
        terms = _target_terms(config, _is_positive)
        terms["negatives"] = Term("sum", lambda b: _is_negative(b).astype(jnp.float32))
        terms["weighted"] = _logsumexp_over(_is_negative, 1 + beta)
        terms["weights"] = _logsumexp_over(_is_negative, beta)

        def loss(stats):
            log_sum = jnp.log(jnp.maximum(stats["negatives"], 1))
            log_sum += stats["weighted"] - stats["weights"]
            return jnp.where(stats["negatives"] > 0, log_sum, 0) - _target_logit(stats, config)

        return terms, loss

    return _both_directions(config, *map(direction, config.hard_negatives))


def soft_labels(config: LossConfig) -> Objective:
    """Cross-entropy to a softmax over the cosine similarities of the pairs' labels.

    The semantic matching loss of MedCLIP (Wang et al. 2022, arXiv:2210.10163, eq. 3-6).
    """

    def weight(b: Block) -> jax.Array:
        assert b.similarity is not None
        return jnp.where(b.counted, jnp.exp(b.similarity), 0)

    terms = _target_terms(config, weight)
    terms["log_sum"] = _logsumexp_over(lambda b: b.counted)

    def cross_entropy(stats):
        return stats["log_sum"] - _target_logit(stats, config)

    return _both_directions(config, (terms, cross_entropy), (terms, cross_entropy))


def sigmoid(config: LossConfig) -> Objective:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, Alg. 1).

    The sum over all pairs of -log sigmoid(+-logit), divided by B. Label smoothing moves the targets
    0 and 1 by half of it.
    """

    def value(b: Block) -> jax.Array:
        signed = jnp.where(b.positive, -b.logits, b.logits)  # -log sigmoid(x) = softplus(-x)
        loss = jax.nn.softplus(signed) - config.label_smoothing / 2 * signed
        return jnp.where(b.counted, loss, 0)

    return Objective({"loss": Term("sum", value)}, {}, lambda image, _: jnp.mean(image["loss"]))


LOSSES = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "decoupled": decoupled,
    "soft_labels": soft_labels,
}


def _is_positive(b: Block) -> jax.Array:
    return b.positive.astype(jnp.float32)


def _is_negative(b: Block) -> jax.Array:
    return b.counted & ~b.positive


def _logsumexp_over(mask: Callable[[Block], jax.Array], factor: float = 1.0) -> Term:
    return Term("logsumexp", lambda b: jnp.where(mask(b), factor * b.logits, MASKED))


def _target_terms(config: LossConfig, weight: Callable[[Block], jax.Array]) -> dict[str, Term]:
    """What _target_logit needs, with a weight [R, C] of each pair as a target."""
    terms = {"target": Term("sum", lambda b: weight(b) * b.logits)}
    if config.positives != "identity" or config.name == "soft_labels":  # else the weights sum to 1
        terms["weight"] = Term("sum", weight)
    if config.label_smoothing:
        terms["all"] = Term("sum", lambda b: jnp.where(b.counted, b.logits, 0))
        terms["count"] = Term("sum", lambda b: b.counted.astype(jnp.float32))
    return terms


def _target_logit(stats: Statistics, config: LossConfig) -> jax.Array:
    """The mean logit under the target distribution."""
    target = stats["target"] / stats.get("weight", 1.0)  # never 0: a pair is its own positive
    if not config.label_smoothing:
        return target
    smooth = config.label_smoothing
    return (1 - smooth) * target + smooth * stats["all"] / stats["count"]


def _both_directions(config: LossConfig, image_to_text, text_to_image) -> Objective:
    """Objective from (terms, function of their statistics to a loss an image or text) twice."""
    (image_terms, image_loss), (text_terms, text_loss) = image_to_text, text_to_image
    w = config.image_weight

    def loss(image, text):
        return w * jnp.mean(image_loss(image)) + (1 - w) * jnp.mean(text_loss(text))

    return Objective(image_terms, text_terms, loss)


# --- How it is computed --------------------------------------------------------------------------


def make_loss(config: LossConfig, mesh: Mesh | None = None) -> Callable[..., jax.Array]:
    """The function (image_BE, text_BE, logit_scale, logit_bias, relations) -> scalar loss.

    Row i of both is one matched pair. `relations` has those of RELATIONS that the config names, and
    "labels", float32 [B, K] with rows of norm 1 or 0, for soft_labels; identity needs none.

    Args:
      mesh: over whose data x fsdp the batch is split; the ring goes around all its devices if they
        divide the batch. None: one device, on which the ring is a loop over chunks.
    """
    objective = LOSSES[config.name](config)
    block = functools.partial(make_block, config)

    def loss(image_BE, text_BE, logit_scale, logit_bias, relations: Relations | None = None):
        B = len(image_BE)
        relations = (relations or {}) | {"row": jnp.arange(B, dtype=jnp.int32)[:, None]}
        terms = objective.image_terms, objective.text_terms
        if is_ring(config, B, mesh):
            axes = AXES if mesh and B % mesh.size == 0 else BATCH_AXES
            statistics = ring_statistics(block, *terms, config.chunk_rows, mesh, axes)
        else:
            statistics = dense_statistics(block, *terms)
        return objective.loss(*statistics(image_BE, text_BE, logit_scale, logit_bias, relations))

    return loss


def is_ring(config: LossConfig, batch_size: int, mesh: Mesh | None) -> bool:
    """Whether the ring is taken: see LossConfig.implementation."""
    if config.implementation != "auto":
        return config.implementation == "ring"
    num_devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    # in a dense step about three arrays of the logits' size live at once
    return 3 * 4 * batch_size**2 / num_devices > MAX_DENSE_BYTES


def make_block(config: LossConfig, image: Side, text: Side, logit_scale, logit_bias) -> Block:
    """The logits of all pairs of some images with some texts, and what each pair is."""

    def product(x_RE, y_CE):  # float32 on every backend: near 100, bfloat16 steps by 0.5
        return jnp.matmul(x_RE, y_CE.T, precision="highest", preferred_element_type=jnp.float32)

    def same(relation: str) -> jax.Array:
        # made anew by the compiler in each loop that reads it, never in memory
        ids_RW, ids_CW = image.relations[relation], text.relations[relation]
        words = [ids_RW[:, None, w] == ids_CW[None, :, w] for w in range(ids_RW.shape[1])]
        return functools.reduce(jnp.logical_and, words)

    logits = logit_scale * product(image.embedding, text.embedding)
    if config.name == "sigmoid":  # a softmax does not see it
        logits += logit_bias
    positive = same("row")
    if config.positives != "identity":
        positive |= same(config.positives)
    counted = jnp.ones_like(positive)
    for relation in config.ignore:
        counted &= ~same(relation)
    similarity = None
    if config.name == "soft_labels":
        similarity = product(image.relations["labels"], text.relations["labels"])
    return Block(logits, positive, counted | positive, similarity)
