"""The state of training and the one function that advances it."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxclip.config import TrainConfig
from jaxclip.losses import LOSSES
from jaxclip.models import clip
from jaxclip.optimizer import frozen_mask, update_ema
from jaxclip.sharding import use_mesh

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; what a checkpoint holds besides the data position."""

    step: jax.Array  # int32 scalar: updates done
    params: clip.Params
    opt_state: Any
    ema_params: clip.Params | None  # None: no average is kept


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


def make_train_step(
    config: TrainConfig,
    inputs: clip.Inputs,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics), to be jitted by the caller.

    A batch is {"image": uint8 [B, S, S, 3], "tokens": int32 [B, T]}. The metrics are scalars of
    this step, before its update: loss (nats a pair), grad_norm, learning_rate, logit_scale and
    logit_bias.

    Args:
      mesh: keeps the activations split over its data x fsdp; without it, GSPMD splits as it likes.
    """
    loss_fn = LOSSES[config.loss.name]

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        frozen = frozen_mask(config.optimizer, state.params)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_of(params):
            # XLA drops the backward pass of what is frozen
            params = jax.tree.map(lambda f, p: jax.lax.stop_gradient(p) if f else p, frozen, params)
            image_BE, text_BE = clip.apply(config.model, inputs, params, batch, key)
            scale = jnp.exp(params["logit_scale"])
            return loss_fn(image_BE, text_BE, scale, params["logit_bias"])

        with use_mesh(mesh):
            loss, grads = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        if config.loss.max_logit_scale:
            limit = jnp.log(config.loss.max_logit_scale)
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
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return train_step
