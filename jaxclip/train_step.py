"""The state of training and the one function that advances it.

Shape letters: B pairs of the batch, S image size, T context length, E embedding, W words an id,
L labels a pair.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.config import TrainConfig
from jaxclip.data.pipeline import Batch
from jaxclip.losses import RELATIONS, LossConfig, make_loss
from jaxclip.models import clip
from jaxclip.optimizer import frozen_mask, make_optimizer, update_ema
from jaxclip.pairwise import Relations, share_of_pairs, share_of_union
from jaxclip.sharding import (
    batch_sharding,
    from_parts,
    split_batch,
    to_parts,
    tree_sharding,
    use_mesh,
)

Metrics = dict[str, jax.Array]
StepBatch = dict[str, Any]  # see step_batch
MODEL_INPUTS = ("image", "grid", "tokens")  # grid: for NaFlex


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; what a checkpoint holds besides the data position."""

    step: jax.Array  # int32 scalar: updates done
    params: clip.Params
    opt_state: Any
    ema_params: clip.Params | None  # None: no average is kept


class Training(NamedTuple):
    """Initialisation and step, jitted for a mesh."""

    state: TrainState  # of jax.ShapeDtypeStruct, with shardings
    init: Callable[[], TrainState]  # from config.seed alone
    step: Any  # (state, batch) -> (state, metrics), jitted; gives the state's memory to the new one


def make_training(
    config: TrainConfig, inputs: clip.Inputs, schedule: optax.Schedule, mesh: Mesh
) -> Training:
    """Raises ValueError for a pattern of config.optimizer that matches no parameter."""
    params = jax.eval_shape(lambda: clip.init(config.model, inputs, jax.random.key(0)))
    optimizer = make_optimizer(config.optimizer, schedule, params)

    def init() -> TrainState:
        return init_state(config, inputs, optimizer)

    shapes = jax.eval_shape(init)
    sharding = tree_sharding(shapes, mesh)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding
    )
    step = jax.jit(
        make_train_step(config, inputs, optimizer, schedule, mesh),
        in_shardings=(sharding, batch_sharding(mesh)),
        out_shardings=(sharding, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
    return Training(state, jax.jit(init, out_shardings=sharding), step)


def init_state(
    config: TrainConfig, inputs: clip.Inputs, optimizer: optax.GradientTransformation
) -> TrainState:
    """A fresh state, from config.seed alone."""
    params = clip.init(config.model, inputs, jax.random.key(config.seed))
    # a copy of its own: donated arrays must not be shared
    ema_params = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
    return TrainState(jnp.int32(0), params, optimizer.init(params), ema_params)


def start_from(state: TrainState, params: clip.Params) -> TrainState:
    """A fresh state with other parameters, from which the average starts, too."""
    ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return TrainState(state.step, params, state.opt_state, ema_params)


def step_batch(batch: Batch) -> StepBatch:
    """What the step takes of a batch of the input.

    {"image": uint8 [B, S, S, 3], "tokens": int32 [B, T], "relations": {"same_article": int32
    [B, 2], ..., "labels": int32 [B, L]}}; labels where the data has some, and "grid" for NaFlex,
    see clip.encode_image.
    """
    relations = {}
    for name in RELATIONS:
        key = name.removeprefix("same_") + "_id"
        if key in batch:  # 64 bits in two words, as the device's integers have 32
            relations[name] = np.ascontiguousarray(batch[key]).view(np.int32).reshape(-1, 2)
    if "labels" in batch:
        relations["labels"] = batch["labels"]
    return {name: batch[name] for name in MODEL_INPUTS if name in batch} | {"relations": relations}


def make_train_step(
    config: TrainConfig,
    inputs: clip.Inputs,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, StepBatch], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics), to be jitted by the caller.

    The metrics are scalars of this step, before its update: loss (nats a pair), grad_norm,
    learning_rate, logit_scale, logit_bias, and the shares of pairs of pair_metrics.

    Args:
      mesh: keeps the activations split over its data x fsdp; without it, GSPMD splits as it likes.
    """
    loss_fn = make_loss(config.loss, mesh)
    scale_limit = config.loss.logit_scale_limit()

    def by_contrastive_batch(tree):
        """[B, ...] -> [batches, pairs that are contrasted with each other, ...]"""
        size = config.contrasted
        return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)

    def contrast(params: clip.Params, image_BE, text_BE, relations: Relations) -> jax.Array:
        """The mean loss of the contrastive batches."""
        scale, bias = jnp.exp(params["logit_scale"]), params["logit_bias"]

        def one(batch):
            image_BE, text_BE, relations = jax.tree.map(split_batch, batch)
            return loss_fn(image_BE, text_BE, scale, bias, relations)

        batches = by_contrastive_batch((image_BE, text_BE, relations))
        if len(batches[0]) == 1:
            return loss_fn(image_BE, text_BE, scale, bias, relations)
        # one at a time in the backward pass, too: their logits are computed again
        return jnp.mean(jax.lax.map(jax.checkpoint(one, prevent_cse=False), batches))

    def train_step(state: TrainState, batch: StepBatch) -> tuple[TrainState, Metrics]:
        frozen = frozen_mask(config.optimizer, state.params)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_of(params):
            # XLA drops the backward pass of what is frozen
            params = jax.tree.map(lambda f, p: jax.lax.stop_gradient(p) if f else p, frozen, params)
            embeddings = embed(config, inputs, params, batch, key)
            return contrast(params, *embeddings, batch["relations"])

        with use_mesh(mesh):
            loss, grads = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        if scale_limit and not frozen["logit_scale"]:
            limit = jnp.log(scale_limit)
            params["logit_scale"] = jnp.minimum(params["logit_scale"], limit)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = update_ema(ema_params, params, config.optimizer.ema_decay, state.step)
        metrics = {
            "loss": loss,
            "grad_norm": optax.global_norm(grads),
            "learning_rate": schedule(state.step),
            "logit_scale": jnp.exp(state.params["logit_scale"]),
            "logit_bias": state.params["logit_bias"],
        }
        metrics |= pair_metrics(config.loss, by_contrastive_batch(batch["relations"]))
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return train_step


def pair_metrics(loss: LossConfig, relations: Relations) -> Metrics:
    """Shares of the pairs of different rows; means over contrastive batches.

    Args:
      relations: [batches, B, W] each.
    Returns:
      "pairs_same_article", ... of each relation in the batch; and where the loss is told to do so,
      "pairs_positive", which are matched besides the own pairs, and "pairs_ignored", by any of
      loss.ignore, which are neither positives nor negatives.
    """
    names = [name for name in RELATIONS if name in relations]
    if not names:
        return {}
    # stacked: one sort is compiled, not one a relation
    shares = jax.vmap(jax.vmap(share_of_pairs))(jnp.stack([relations[name] for name in names]))
    metrics = {f"pairs_{name}": share for name, share in zip(names, shares, strict=True)}
    positives = [relations[loss.positives]] if loss.positives != "identity" else []
    if positives:
        metrics["pairs_positive"] = metrics[f"pairs_{loss.positives}"]
    if loss.ignore:
        either = jax.vmap(share_of_union)(positives + [relations[name] for name in loss.ignore])
        metrics["pairs_ignored"] = either - metrics.get("pairs_positive", 0.0)
    return jax.tree.map(jnp.mean, metrics)


def embed(
    config: TrainConfig, inputs: clip.Inputs, params: clip.Params, batch: StepBatch, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both embeddings [B, E] of a batch, with the memory of a micro-batch's activations.

    The gradients are exact, whatever the micro-batches: the towers are run on one after the other,
    of which only the embeddings are kept; the loss sees all of these; and in the backward pass each
    micro-batch is run again, with the dropout masks that it had, and takes its part of the
    gradient. (Gradient cache: Gao et al. 2021, arXiv:2101.06983, by rematerialisation.)
    """

    def encode(part):
        pairs, rows_B = part
        return clip.apply(config.model, inputs, params, pairs, key, rows_B)

    pairs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    B = len(pairs["image"])
    whole = pairs, jnp.arange(B)
    num_parts = B // (config.micro_batch_size or B)
    if num_parts == 1:
        return encode(whole)
    parts = jax.tree.map(lambda x: to_parts(x, num_parts), whole)
    embeddings = jax.lax.map(jax.checkpoint(encode, prevent_cse=False), parts)
    image_BE, text_BE = jax.tree.map(from_parts, embeddings)
    return image_BE, text_BE


def train_flops_per_pair(config: TrainConfig, inputs: clip.Inputs, params: clip.Params) -> float:
    """Matrix-product FLOPs of the model, of one pair in one step; not of what is computed twice.

    Beside the forward pass each product costs one more for the gradient of its weights, and one for
    that of its input: neither is made where everything from there down is frozen.
    """
    frozen = frozen_mask(config.optimizer, params)
    forward = clip.flops_per_pair(config.model, inputs)
    flops = 0.0
    for tower in ("image", "text"):
        parts = dict(frozen[tower])
        fixed_projection = all(jax.tree.leaves(parts.pop("projection", {})))
        fixed = all(jax.tree.leaves(parts))
        flops += forward[tower] * (1 if fixed else 3)
        flops += forward[f"{tower}/projection"] * (3 - fixed - fixed_projection)
    return flops
