"""The compiled step in parts: the gradient of the whole, in bounded memory, no logits moved.

All losses are one program here, in which weights, given when it runs, choose one of them: so each
mesh and number of parts is compiled once.

Shape letters: B pairs of the batch.
"""

import contextlib
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip.config import TrainConfig
from jaxclip.losses import LOSSES, OPTIONS, LossConfig, Objective, make_loss
from jaxclip.models import clip
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig
from jaxclip.sharding import ShardingConfig, batch_sharding, make_mesh, put_batch, tree_sharding
from jaxclip.train_step import TrainState, make_train_step, step_batch

B, T, S = 96, 5, 8  # no size of the model is 96, a device's 24 or 12, or the 7 rows of a chunk
CHUNK = 7
INPUTS = clip.Inputs(
    image_size=S, mean=(0.5,) * 3, std=(0.25,) * 3, vocab_size=26, context_length=T, pad_id=0,
    eos_id=1,
)  # fmt: skip
MODEL = clip.ClipConfig(  # patches of the images and units of the texts drop out
    image=ViTConfig(
        patch_size=4,
        patch_dropout=0.3,
        pool="mean",
        transformer=TransformerConfig(width=8, depth=1, num_heads=2, mlp_width=16, scan=False),
    ),
    text=TextConfig(
        transformer=TransformerConfig(
            width=8, depth=1, num_heads=2, mlp_width=16, dropout=0.3, scan=False
        )
    ),
    embed_dim=8,
    dtype="float32",
    init_logit_bias=-1.0,
)
LOSS = LossConfig(positives="same_article", ignore=("same_figure",), chunk_rows=CHUNK)
NAMES = tuple(LOSSES)
DATA, DATA_FSDP, ALL = (4, 1, 1), (2, 2, 1), (2, 2, 2)


def make_config(implementation, parts, rows=B) -> TrainConfig:
    config = TrainConfig(batch_size=rows, micro_batch_size=rows // parts, model=MODEL)
    config.loss = dataclasses.replace(LOSS, name="any", implementation=implementation)
    return config


def batch(rows=B):
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 26, (rows, T)).astype(np.int32)
    tokens[:, -1] = 1
    image = rng.integers(0, 256, (rows, S, S, 3)).astype(np.uint8)
    ids = {f"{name}_id": rng.integers(0, 9, rows) << 32 for name in ("article", "figure")}
    labels = np.stack([rng.integers(0, 3, rows), rng.integers(-1, 1, rows)], axis=1)
    labels[labels[:, 0] == labels[:, 1], 1] = -1
    return step_batch({"image": image, "tokens": tokens, "labels": labels.astype(np.int32), **ids})


def any_loss(weights):
    """The sum of all losses, weighted, as one Objective."""

    def objective(config):
        parts = {name: LOSSES[name](dataclasses.replace(config, name=name)) for name in NAMES}

        def terms(side):
            return {
                f"{name}/{key}": term
                for name, part in parts.items()
                for key, term in getattr(part, side).items()
            }

        def own(stats, name):
            return {key.partition("/")[2]: x for key, x in stats.items() if key.startswith(name)}

        def loss(image, text):
            each = [part.loss(own(image, name), own(text, name)) for name, part in parts.items()]
            return jnp.dot(weights, jnp.stack(each))

        sides = terms("image_terms"), terms("text_terms")
        return Objective(*sides, loss, OPTIONS, uses_bias=True, uses_labels=True)

    return objective


KEEP_GRADIENTS = optax.GradientTransformation(  # as its state; the parameters stay
    lambda params: params, lambda grads, _, params: (jax.tree.map(jnp.zeros_like, params), grads)
)


@functools.cache
def initial_params():
    return jax.device_get(jax.jit(lambda: clip.init(MODEL, INPUTS, jax.random.key(0)))())


@contextlib.contextmanager
def choice_of(weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOSSES, "any", any_loss(weights))
        yield


def weights_of(name):
    return np.float32([name == other for other in NAMES])


@functools.cache
def compiled_step(implementation, sizes, parts, rows=B):
    """The step of jaxclip.train, whose optimizer keeps gradients, and a state to call it with."""
    config = make_config(implementation, parts, rows)
    sharding = ShardingConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    mesh = make_mesh(sharding, jax.devices()[: math.prod(sizes)])

    def step(state, pairs, weights):
        with choice_of(weights):
            train_step = make_train_step(config, INPUTS, KEEP_GRADIENTS, lambda _: 0.0, mesh)
            return train_step(state, pairs)

    params = initial_params()
    state = TrainState(np.int32(0), params, params, None)
    shardings = tree_sharding(state, mesh)
    state = jax.device_put(state, shardings)
    step = jax.jit(step, in_shardings=(shardings, batch_sharding(mesh), None))
    shapes = jax.eval_shape(lambda: batch(rows))
    return step.lower(state, shapes, weights_of("none")).compile(), state, mesh


@pytest.fixture(scope="module")
def one_shot():
    """name -> loss and gradient of the whole batch at once, on one device, by autodiff."""
    config, pairs = make_config("dense", 1), batch()
    key = jax.random.fold_in(jax.random.key(config.seed), 0)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_of(params, weights):
        embeddings = clip.apply(MODEL, INPUTS, params, pairs, key)
        arguments = *embeddings, jnp.exp(params["logit_scale"]), params["logit_bias"]
        with choice_of(weights):
            return make_loss(config.loss)(*arguments, pairs["relations"]), arguments

    found = {}
    for name in NAMES:
        (loss, arguments), grads = jax.device_get(loss_of(initial_params(), weights_of(name)))
        chosen = make_loss(dataclasses.replace(config.loss, name=name))
        np.testing.assert_allclose(loss, chosen(*arguments, pairs["relations"]), rtol=1e-6)
        found[name] = loss, grads
    return found


# Each implementation on each mesh, in 1, 2, 4 and 8 parts.
PROGRAMS = [("dense", DATA, 8), ("dense", DATA_FSDP, 4), ("dense", ALL, 2), ("ring", DATA, 1)]
PROGRAMS += [("ring", DATA, 4), ("ring", DATA_FSDP, 8), ("ring", ALL, 2)]


@pytest.mark.parametrize(("implementation", "sizes", "parts"), PROGRAMS)
def test_micro_batches_have_the_gradient_of_the_whole(implementation, sizes, parts, one_shot):
    compiled, state, mesh = compiled_step(implementation, sizes, parts)
    for name in NAMES:
        expected_loss, expected = one_shot[name]
        new_state, metrics = compiled(state, put_batch(batch(), mesh), weights_of(name))
        found = jax.device_get(new_state.opt_state)
        np.testing.assert_allclose(metrics["loss"], expected_loss, rtol=1e-5)
        assert expected["logit_scale"] != 0  # once, not once a part
        assert (abs(expected["logit_bias"]) > 1e-3) == (name == "sigmoid")
        assert_gradients_close(found, expected)


def assert_gradients_close(found, expected):
    """Within 1e-5 of each parameter's; but the keys' biases have none, only rounding."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-6 * largest)


COLLECTIVE = re.compile(
    r"= (.*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|"
    r"collective-permute|collective-broadcast)(?:-start)?\("
)


def float_shapes(text):
    found = re.findall(r"\b(?:f64|f32|bf16|f16|pred)\[([\d,]+)\]", text)
    return {tuple(map(int, shape.split(","))) for shape in found}


def of_logits(shape, sizes):
    """Whether two dimensions are numbers of pairs: of all, of a device, of a chunk."""
    pairs = {B, B // (sizes[0] * sizes[1]), B // math.prod(sizes), CHUNK}
    return sum(size in pairs for size in shape) >= 2


@pytest.mark.parametrize(("implementation", "sizes", "parts"), PROGRAMS)
def test_no_logits_move_between_devices(implementation, sizes, parts):
    """In the whole compiled step, in micro-batches, with all losses in it."""
    program = compiled_step(implementation, sizes, parts)[0].as_text()
    moved = float_shapes(" ".join(COLLECTIVE.findall(program)))
    assert moved and not [shape for shape in moved if of_logits(shape, sizes)]
    present = {shape for shape in float_shapes(program) if of_logits(shape, sizes)}
    n = B // (sizes[0] * sizes[1])
    assert not [shape for shape in present if min(shape) > n]  # nobody has all of them
    if implementation == "dense":  # of which each device has the rows of its own images
        assert {(n, B)} <= present
    else:  # a chunk of rows, and no whole block
        n = B // math.prod(sizes)
        assert {(CHUNK, n)} <= present
        assert not [shape for shape in present if B in shape or sorted(shape) == [n, n]]


def test_memory_grows_with_the_embeddings_and_not_with_the_activations():
    steps = compiled_step("ring", DATA, 4), compiled_step("ring", DATA, 16, rows=4 * B)
    small, large = (step[0].memory_analysis().temp_size_in_bytes for step in steps)
    rows = 3 * B // 4  # more of them on a device, in micro-batches of 24
    # embeddings of 8 numbers of image and text, their gradients, and both on their way: 687 bytes;
    # what the towers keep for their backward pass is several times as much
    assert 0 < large - small < rows * 16 * 2 * 8 * 4
