"""Contrastive losses between image and text embeddings: one family, dense or in a ring.

A loss is told by an Objective: which sums over the texts each image needs, which sums over the
images each text needs, and the scalar made of these statistics. How the statistics are taken from
the pairs, all at once or block by block, is pairwise.py's.

Shape letters: B pairs of the batch, E embedding, R images x C texts of a block of pairs, W words an
id, L labels a pair. Embeddings are unit-norm float32; `logit_scale` is after exp. Losses are in
nats a pair.
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
    Pairs,
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
OPTIONS = ("positives", "label_smoothing", "image_weight", "hard_negatives")  # not of every loss
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
    hard_negatives: tuple[float, float] = (0.0, 0.0)  # decoupled: beta of images, of texts; how
    # much more a negative weighs the more it resembles (DHN-NCE: 0.15)
    max_logit_scale: float = -1.0  # the scale is clipped to this after each update; 0: never; -1:
    # as its paper has it: 100 (CLIP, section 2.5), sigmoid never. A fixed temperature:
    # optimizer.freeze=logit_scale
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
        rules = [
            ("label_smoothing", 0 <= self.label_smoothing < 1, "must be in [0, 1)"),
            ("image_weight", 0 <= self.image_weight <= 1, "must be in [0, 1]"),
            ("hard_negatives", min(self.hard_negatives) >= 0, "must be 0 or more"),
            ("max_logit_scale", self.max_logit_scale == -1 or self.max_logit_scale >= 0,
             "must be positive, 0 for no limit, or -1 for that of the loss's paper"),
            ("chunk_rows", self.chunk_rows >= 0, "must be 0 or more"),
        ]  # fmt: skip
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name}.{field} ({getattr(self, field)!r}) {rule}.")
        default = LossConfig()
        for field in set(OPTIONS) - set(self.objective().options):
            if getattr(self, field) != getattr(default, field):
                raise ValueError(
                    f"{name}.{field} ({getattr(self, field)!r}) has no effect on {name}.name "
                    f"({self.name!r}). Leave it at {getattr(default, field)!r}."
                )

    def objective(self) -> "Objective":
        return LOSSES[self.name](self)

    def needs_labels(self) -> bool:
        return self.objective().uses_labels or "same_label" in (self.positives, *self.ignore)

    def logit_scale_limit(self) -> float:
        """0: none."""
        given = self.max_logit_scale
        return self.objective().max_logit_scale if given == -1 else given


# --- The family ----------------------------------------------------------------------------------


class Objective(NamedTuple):
    image_terms: dict[str, Term]
    text_terms: dict[str, Term]
    loss: Callable[[Statistics, Statistics], jax.Array]  # of images [B], of texts [B] -> scalar
    options: tuple[str, ...]  # those of OPTIONS that it heeds
    uses_bias: bool = False  # a softmax does not see it
    uses_labels: bool = False  # Block.similarity
    max_logit_scale: float = 100.0  # by default; 0: no limit

    @property
    def dense_arrays(self) -> int:
        """Of the logits' size that a dense step holds at once: they, and one a term, about."""
        return 1 + len(self.image_terms) + len(self.text_terms)


def softmax(config: LossConfig) -> Objective:
    """Symmetric InfoNCE of CLIP (Radford et al. 2021, arXiv:2103.00020, Fig. 3); log(B) at chance.

    With several positives: the mean over them of -log softmax, as UniCL (Yang et al. 2022,
    arXiv:2204.03610, eq. 2-3), which MedImageInsight uses. The two directions are weighted as in
    ConVIRT (Zhang et al. 2020, arXiv:2010.00747, eq. 4).
    """
    several = config.positives != "identity"
    options = ("positives", "label_smoothing", "image_weight")
    return _cross_entropy(config, _is_positive if several else None, options)


def soft_labels(config: LossConfig) -> Objective:
    """Cross-entropy to a softmax over the cosine similarities of the pairs' labels.

    The semantic matching loss of MedCLIP (Wang et al. 2022, arXiv:2210.10163, eq. 3-6). A pair
    without labels is similar to itself alone, as one whose labels no other has.
    """

    def weight(b: Block) -> jax.Array:
        assert b.similarity is not None
        return jnp.where(b.counted, jnp.exp(b.similarity), 0)

    objective = _cross_entropy(config, weight, ("label_smoothing", "image_weight"))
    return objective._replace(uses_labels=True)


def decoupled(config: LossConfig) -> Objective:
    """The positive is not in the denominator, and negatives weigh more the harder they are.

    DHN-NCE of MedCLIP-SAM (Koleilat et al. 2024, arXiv:2403.20253, eq. 1-4); without weights, the
    decoupled InfoNCE of Yeh et al. 2021 (arXiv:2110.06848, eq. 6). With weights
    w = M exp(beta s) / sum exp(beta s) over the M negatives, log sum w exp(s) is
    log M + logsumexp((1 + beta) s) - logsumexp(beta s).
    """
    weight = None if config.positives == "identity" else _is_positive

    def direction(beta):
        terms = _target_terms(config, weight)
        terms["negatives"] = _sum(lambda b: _is_negative(b).astype(jnp.float32))
        terms["weighted"] = _logsumexp(_is_negative, MASKED, 1 + beta)
        terms["weights"] = _logsumexp(_is_negative, MASKED, beta)

        def loss(stats):
            log_sum = jnp.log(jnp.maximum(stats["negatives"], 1))
            log_sum += stats["weighted"] - stats["weights"]
            return jnp.where(stats["negatives"] > 0, log_sum, 0) - _target_margin(stats, config)

        return terms, loss

    beta_image, beta_text = config.hard_negatives
    return _both_directions(config, direction(beta_image), direction(beta_text), OPTIONS)


def sigmoid(config: LossConfig) -> Objective:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, Alg. 1).

    The sum over all pairs of -log sigmoid(+-logit), divided by B. Label smoothing moves the targets
    0 and 1 by half of it.
    """

    def value(b: Block) -> jax.Array:
        signed = jnp.where(b.positive, -b.logits, b.logits)  # -log sigmoid(x) = softplus(-x)
        loss = jax.nn.softplus(signed)
        if config.label_smoothing:  # a product with 0 would double the memory of dense logits
            loss -= config.label_smoothing / 2 * signed
        return jnp.where(b.counted, loss, 0)

    return Objective(
        {"loss": _sum(value)}, {}, lambda image, text: jnp.mean(image["loss"]),
        ("positives", "label_smoothing"), uses_bias=True, max_logit_scale=0.0,
    )  # fmt: skip


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


def _is_other(b: Block) -> jax.Array:
    return b.counted & ~b.own


def _sum(value: Callable[[Block], jax.Array]) -> Term:
    return Term("sum", value, 0.0)


def _logsumexp(mask: Callable[[Block], jax.Array], start: float, factor: float = 1.0) -> Term:
    return Term("logsumexp", lambda b: jnp.where(mask(b), factor * b.margins, MASKED), start)


def _cross_entropy(config: LossConfig, weight, options: tuple[str, ...]) -> Objective:
    """Of softmax over all that counts to the targets of _target_terms."""
    # log(1 + sum exp(margins of the others)), which is small where the loss is
    terms = _target_terms(config, weight) | {"log_sum": _logsumexp(_is_other, 0.0)}

    def loss(stats):
        return stats["log_sum"] - _target_margin(stats, config)

    return _both_directions(config, (terms, loss), (terms, loss), options)


def _target_terms(config: LossConfig, weight: Callable[[Block], jax.Array] | None):
    """What _target_margin needs; weight [R, C] of each pair as a target, None: the own pair's 1."""
    terms = {}
    if weight:
        terms["target"] = _sum(lambda b: weight(b) * b.margins)
        terms["weight"] = _sum(weight)
    if config.label_smoothing:
        terms["all"] = _sum(lambda b: jnp.where(b.counted, b.margins, 0))
        terms["count"] = _sum(lambda b: b.counted.astype(jnp.float32))
    return terms


def _target_margin(stats: Statistics, config: LossConfig) -> jax.Array | float:
    """The mean margin under the target distribution; 0 where the own pair is the only target."""
    # the weight is never 0: the own pair has some
    target = stats["target"] / stats["weight"] if "target" in stats else 0.0
    if not config.label_smoothing:
        return target
    smooth = config.label_smoothing
    return (1 - smooth) * target + smooth * stats["all"] / stats["count"]


def _both_directions(config: LossConfig, image_to_text, text_to_image, options) -> Objective:
    """Objective from (terms, function of their statistics to a loss an image or text) twice."""
    (image_terms, image_loss), (text_terms, text_loss) = image_to_text, text_to_image
    w = config.image_weight

    def loss(image, text):
        return w * jnp.mean(image_loss(image)) + (1 - w) * jnp.mean(text_loss(text))

    return Objective(image_terms, text_terms, loss, options)


# --- How it is computed --------------------------------------------------------------------------


def make_loss(config: LossConfig, mesh: Mesh | None = None) -> Callable[..., jax.Array]:
    """The function (image_BE, text_BE, logit_scale, logit_bias, relations) -> scalar loss.

    Row i of both is one matched pair. `relations` has those of RELATIONS that the config names,
    int32 [B, W], and for soft_labels "labels", int32 [B, L] of different ids, filled up with -1;
    identity needs none. The value has the logits' precision, that of float32: where the loss is
    small, errors of 1e-7 of the scale are relative ones.

    Args:
      mesh: over whose data x fsdp the batch is split; the ring goes around all its devices if they
        divide the batch. None: one device, on which the ring is a loop over chunks.
    """
    objective = config.objective()
    block = functools.partial(make_block, config, objective)
    pairs = Pairs(block, objective.image_terms, objective.text_terms)

    def loss(image_BE, text_BE, logit_scale, logit_bias, relations: Relations | None = None):
        B = len(image_BE)
        relations = (relations or {}) | {"row": jnp.arange(B, dtype=jnp.int32)[:, None]}
        if is_ring(config, B, mesh):
            axes = AXES if mesh and B % mesh.size == 0 else BATCH_AXES
            statistics = ring_statistics(pairs, config.chunk_rows, mesh, axes)
        else:
            statistics = dense_statistics(pairs)
        bias = jnp.float32(logit_bias if objective.uses_bias else 0)
        image_BE, text_BE = logit_scale * image_BE.astype(jnp.float32), text_BE.astype(jnp.float32)
        own_B = jnp.sum(image_BE * text_BE, axis=1) + bias
        sides = [Side(x_BE, own_B, relations) for x_BE in (image_BE, text_BE)]
        return objective.loss(*statistics(*sides, bias))

    return loss


def is_ring(config: LossConfig, batch_size: int, mesh: Mesh | None) -> bool:
    """Whether the ring is taken: see LossConfig.implementation."""
    if config.implementation != "auto":
        return config.implementation == "ring"
    num_devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    arrays = config.objective().dense_arrays
    return arrays * 4 * batch_size**2 / num_devices > MAX_DENSE_BYTES


def make_block(
    config: LossConfig, objective: Objective, products_RC, image: Side, text: Side, bias
) -> Block:
    """The logits of all pairs of some images with some texts, and what each pair is."""

    def same(relation: str) -> jax.Array:
        # made anew by the compiler in each loop that reads it, never in memory
        ids_RW, ids_CW = image.relations[relation], text.relations[relation]
        words = [ids_RW[:, None, w] == ids_CW[None, :, w] for w in range(ids_RW.shape[1])]
        return functools.reduce(jnp.logical_and, words)

    logits = products_RC + bias if objective.uses_bias else products_RC
    own = same("row")
    positive = own if config.positives == "identity" else own | same(config.positives)
    counted = jnp.ones_like(own)
    for relation in config.ignore:
        counted &= ~same(relation)
    similarity = None
    if objective.uses_labels:
        similarity = label_similarity(image.relations["labels"], text.relations["labels"])
        similarity = jnp.where(own, 1.0, similarity)
    return Block(logits, own, positive, counted | positive, similarity)


def label_similarity(labels_RL: jax.Array, labels_CL: jax.Array) -> jax.Array:
    """Cosine of the sets of labels, |A and B| / sqrt(|A| |B|), float32 [R, C]; of an empty one 0.

    Without a number for each kind of label, of which there may be many.
    """
    num_R, num_C = (jnp.sum(labels >= 0, axis=1) for labels in (labels_RL, labels_CL))
    other_CL = jnp.where(labels_CL < 0, -2, labels_CL)  # what fills up is no common label
    same_RCLL = labels_RL[:, None, :, None] == other_CL[None, :, None, :]  # never in memory
    shared_RC = jnp.sum(same_RCLL, axis=(2, 3)).astype(jnp.float32)
    return shared_RC / jnp.sqrt(jnp.maximum(num_R[:, None] * num_C[None, :], 1))
