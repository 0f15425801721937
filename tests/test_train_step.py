"""The train step: the same on every mesh, frozen where told, and able to learn.

Shape letters: B pairs, T context length, S image size.
"""

import copy
import dataclasses
import functools
import json
import math
import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip.config import TrainConfig
from jaxclip.data.sources import Source
from jaxclip.losses import RELATIONS, LossConfig, make_loss
from jaxclip.models import clip
from jaxclip.models.clip import ClipConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig
from jaxclip.optimizer import make_optimizer
from jaxclip.sharding import ShardingConfig, make_mesh, put_batch, tree_sharding
from jaxclip.train_step import (
    TrainState,
    init_state,
    make_train_step,
    make_training,
    pair_metrics,
    step_batch,
    train_flops_per_pair,
)
from jaxclip.workdir import describe, summarize

B, T, S = 16, 5, 8
INPUTS = clip.Inputs(
    image_size=S, mean=(0.5,) * 3, std=(0.25,) * 3, vocab_size=24, context_length=T, pad_id=0,
    eos_id=1,
)  # fmt: skip
MESHES = [(2, 1, 1), (4, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1)]
EMA_DECAY = 0.5


def make_config(dropout=0.0, **optimizer) -> TrainConfig:
    transformer = TransformerConfig(width=8, depth=2, num_heads=2, mlp_width=16, dropout=dropout)
    config = TrainConfig(batch_size=B)
    config.model = ClipConfig(
        image=ViTConfig(patch_size=2, transformer=transformer, patch_dropout=dropout),
        text=TextConfig(transformer=transformer),
        embed_dim=8,
        dtype="float32",
    )
    for field, value in optimizer.items():
        setattr(config.optimizer, field, value)
    return config


def batch(rows=B, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 24, (rows, T)).astype(np.int32)
    tokens[:, -1] = 1
    image = rng.integers(0, 256, (rows, S, S, 3)).astype(np.uint8)
    ids = {f"{name}_id": rng.integers(0, 4, rows) << 32 for name in ("article", "figure")}
    return step_batch({"image": image, "tokens": tokens, **ids})


@dataclasses.dataclass
class Step:
    """A train step, jitted as train.py does it, and the state that every run begins with."""

    jitted: Any
    state: TrainState  # in NumPy
    sharding: Any
    mesh: jax.sharding.Mesh
    rows: int

    @functools.cached_property
    def compiled(self):
        shapes = jax.eval_shape(lambda: batch(self.rows))
        return self.jitted.lower(self.state, shapes).compile()

    def fresh(self) -> TrainState:
        return jax.device_put(self.state, self.sharding)

    def __call__(self, state, rows):
        return self.compiled(state, put_batch(rows, self.mesh))


def learning_rate(step):
    return jnp.full_like(step, 0.01, dtype=jnp.float32)


@functools.cache
def initial_params():
    optimizer = make_optimizer(RANDOM.optimizer, learning_rate, shapes(RANDOM))
    init = jax.jit(lambda: init_state(RANDOM, INPUTS, optimizer))
    return jax.device_get(init.lower().compile()().params)


def shapes(config):
    return jax.eval_shape(lambda: clip.init(config.model, INPUTS, jax.random.key(0)))


def make_step(config, sizes=(1, 1, 1), rows=B) -> Step:
    data, fsdp, tensor = sizes
    mesh = make_mesh(
        ShardingConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor]
    )
    training = make_training(config, INPUTS, learning_rate, mesh)
    params = initial_params() | {"logit_bias": np.float32(config.model.init_logit_bias)}
    optimizer = make_optimizer(config.optimizer, learning_rate, params)
    state = TrainState(
        step=np.int32(0),
        params=params,
        opt_state=jax.device_get(optimizer.init(params)),
        ema_params=params if config.optimizer.ema_decay else None,
    )
    sharding = jax.tree.map(lambda x: x.sharding, training.state)
    return Step(training.step, state, sharding, mesh, rows)


def run(step: Step, steps=5):
    """What each step reports, the parameters before, between and after them, the last state."""
    state, metrics, params = step.fresh(), [], [step.state.params]
    for i in range(steps):
        state, scalars = step(state, batch(seed=i))
        metrics.append(jax.device_get(scalars))
        params.append(jax.device_get(state.params))
    return metrics, params, state


# A larger eps, so that Adam does not blow rounding up where a gradient is almost 0.
RANDOM = make_config(dropout=0.3, eps=1e-3, ema_decay=EMA_DECAY)


@pytest.fixture(scope="module")
def one_device():
    return make_step(RANDOM)


@pytest.fixture(scope="module")
def history(one_device):
    return run(one_device)


@pytest.mark.parametrize("sizes", MESHES)
def test_every_mesh_trains_the_same_model(sizes, history):
    step = make_step(RANDOM, sizes)
    metrics, params, _ = run(step)
    for name in ("loss", "grad_norm", "logit_scale", "learning_rate"):
        np.testing.assert_allclose(
            [m[name] for m in metrics], [m[name] for m in history[0]], rtol=2e-5, err_msg=name
        )
    # five updates of 0.01; sums in another order
    assert_trees_close(params[-1], history[1][-1], atol=2e-5)
    if sizes[1] > 1:
        check_that_parameters_travel_rather_than_activations(step.compiled.as_text())


KEEP_GRADIENTS = optax.GradientTransformation(  # as its state; the parameters stay
    lambda params: params, lambda grads, _, params: (jax.tree.map(jnp.zeros_like, params), grads)
)


@functools.cache
def gradients(sizes, **fields):
    """Loss and gradient of one batch, with dropout and patch dropout."""
    config = dataclasses.replace(RANDOM, **fields)
    ring = math.prod(sizes) > 1
    config.loss = LossConfig(  # ids that were out of step with the embeddings would show
        implementation="ring" if ring else "dense",
        chunk_rows=3,
        ignore=("same_figure",),
        positives="same_article",
    )
    mesh = make_mesh(
        ShardingConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))),
        jax.devices()[: math.prod(sizes)],
    )
    step = make_train_step(config, INPUTS, KEEP_GRADIENTS, learning_rate, mesh)
    params = initial_params()
    state = TrainState(np.int32(0), params, params, params)
    state = jax.device_put(state, tree_sharding(state, mesh))
    rows = put_batch(batch(), mesh)
    state, metrics = jax.jit(step).lower(state, rows).compile()(state, rows)
    return jax.device_get((metrics["loss"], state.opt_state))


def assert_gradients_close(found, expected):
    """Within 1e-5 of each parameter's; but the keys' biases have none, only rounding."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-6 * largest)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 1)])
def test_contrastive_batches_are_rows_in_order(sizes):
    micro = {} if sizes == (1, 1, 1) else {"micro_batch_size": 4}  # the two together
    found_loss, found = gradients(sizes, contrastive_batch_size=8, **micro)
    config = copy.deepcopy(RANDOM)
    rows, key = batch(), jax.random.fold_in(jax.random.key(config.seed), 0)

    def two_halves(params):
        image_BE, text_BE = clip.apply(config.model, INPUTS, params, rows, key)
        losses = [
            make_loss(LossConfig(ignore=("same_figure",), positives="same_article"))(
                image_BE[half],
                text_BE[half],
                jnp.exp(params["logit_scale"]),
                0,
                {name: ids[half] for name, ids in rows["relations"].items()},
            )
            for half in (slice(8), slice(8, 16))
        ]
        return sum(losses) / 2

    expected_loss, expected = jax.jit(jax.value_and_grad(two_halves))(initial_params())
    np.testing.assert_allclose(found_loss, expected_loss, rtol=2e-6)
    assert_gradients_close(found, expected)


def test_related_pairs_are_counted(history):
    for metrics, seed in zip(history[0], range(5), strict=True):
        for name, ids in batch(seed=seed)["relations"].items():
            same = (ids[:, None] == ids[None]).all(-1).sum() - B
            np.testing.assert_allclose(metrics[f"pairs_{name}"], same / (B * (B - 1)), rtol=1e-6)


def test_each_relation_is_of_its_own_ids():
    ids = {
        "same_caption": "caption_id",
        "same_image": "image_id",
        "same_figure": "figure_id",
        "same_article": "article_id",
        "same_label": "label_id",
    }
    assert set(ids) == set(RELATIONS)
    low, high = 1 + np.arange(5)[:, None], 10 + np.arange(5)[:, None]
    rows = {name: low[i] + (high[i] << 32) for i, name in enumerate(ids.values())}
    relations = step_batch(rows)["relations"]
    expected = {name: [[1 + i, 10 + i]] for i, name in enumerate(ids)}  # of 64 bits both halves
    assert {name: words.tolist() for name, words in relations.items()} == expected


def test_pairs_that_the_loss_takes_apart_are_counted():
    """In two contrastive batches of 8; a pair that is ignored twice counts once, a positive not."""
    rng = np.random.default_rng(0)
    names = ("same_caption", "same_figure", "same_article")
    relations = {name: rng.integers(0, 2, (2, 8, 2)).astype(np.int32) for name in names}
    other = ~np.eye(8, dtype=bool)
    caption, figure, article = (
        (ids[:, :, None] == ids[:, None]).all(-1) & other for ids in relations.values()
    )
    found = pair_metrics(LossConfig(), relations)
    assert found.keys() == {f"pairs_{name}" for name in names}
    loss = LossConfig(positives="same_caption", ignore=("same_figure", "same_article"))
    found = pair_metrics(loss, relations)
    pairs = 2 * 8 * 7
    np.testing.assert_allclose(found["pairs_positive"], caption.sum() / pairs, rtol=1e-6)
    ignored = (figure | article) & ~caption
    np.testing.assert_allclose(found["pairs_ignored"], ignored.sum() / pairs, rtol=1e-6)


def test_both_batch_sizes_are_told(tmp_path):
    config = make_config()
    config.contrastive_batch_size = 8
    source = Source(None, np.arange(40), 1.0, 0, "DATASET", "")
    tokenizer = types.SimpleNamespace(file_name="t.json", vocab_size=24, context_length=T)
    lines = describe(config, [source], tokenizer, shapes(config), 3, 1.0)
    assert f"Batches: optimizer {B}, contrastive 8, in memory {B} pairs at a time" in lines
    assert not any("Warning" in line for line in lines)
    few = dataclasses.replace(source, positions=np.arange(7))
    (told,) = [x for x in describe(config, [few], tokenizer, shapes(config), 3, 1.0) if "Warn" in x]
    assert "8 pairs are contrasted and there are 7" in told
    line = {"step": 3, "loss": 1.0, "pairs_per_second": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    summary = summarize(tmp_path, config, 3, [source], 1.0)
    assert f"Batches: optimizer {B}, contrastive 8 pairs." in summary


def assert_trees_close(found, expected, atol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def check_that_parameters_travel_rather_than_activations(program):
    """No collective has the whole batch's activations [B, T, D] among its results."""
    collectives = re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all)\(", program)
    assert any(re.search(r"f32\[8,16\]", shapes) for shapes in collectives)  # an MLP's kernel
    assert not any(re.search(rf"\[{B},\d+,\d+\]", shapes) for shapes in collectives)


def test_dropout_is_drawn_from_seed_and_step_alone(one_device, history):
    again = one_device(one_device.fresh(), batch())[1]["loss"]
    assert again == history[0][0]["loss"]
    later = one_device(one_device.fresh().replace(step=jnp.int32(7)), batch())[1]["loss"]
    assert abs(float(later - again)) > 1e-4


def test_step_is_counted_and_the_state_donated(one_device, history):
    given = one_device.fresh()
    new, _ = one_device(given, batch())
    assert int(new.step) == 1 and int(history[2].step) == 5
    # nothing is held twice: parameters, both moments and the average
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given.params, given.opt_state)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.ema_params))
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}


def test_average_of_the_parameters(history):
    _, params, state = history
    average = params[0]
    for step in range(5):
        # a warm-up: 1/10, 2/11, 3/12, ... until it reaches the decay
        d = min(EMA_DECAY, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, average, params[step + 1])
    assert_trees_close(state.ema_params, average, atol=1e-6)


def test_frozen_tower_stays_bitwise_and_costs_no_backward_pass(one_device):
    config = copy.deepcopy(RANDOM)
    config.optimizer.freeze = ("image/.*",)
    config.optimizer.weight_decay = 0.5  # must not decay either
    step = make_step(config)
    _, params, state = run(step, steps=2)
    jax.tree.map(np.testing.assert_array_equal, params[-1]["image"], params[0]["image"])
    for before, after in zip(
        jax.tree.leaves(params[0]["text"]), jax.tree.leaves(params[-1]["text"]), strict=True
    ):
        assert not np.array_equal(before, after)
    # State of both moments for the text alone.
    of_moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in of_moments) == 2 * sum(
        x.size for tower in ("text", "logit_scale", "logit_bias")
        for x in jax.tree.leaves(params[0][tower]) if x.ndim
    )  # fmt: skip

    # In the compiled program the image tower has no product left but those of its forward pass.
    def products(program, where):
        return len(re.findall(rf'(?:dot|fusion)\(.*op_name="[^"]*{where}[^"]*dot_general', program))

    full, frozen = one_device.compiled.as_text(), step.compiled.as_text()
    assert products(full, r"transpose\(jvp\(ViT\)\)") > 5
    assert products(frozen, r"transpose\(jvp\(ViT\)\)") == 0
    assert products(frozen, r"transpose\(jvp\(TextTower\)\)") > 5
    flops = [s.compiled.cost_analysis()["flops"] for s in (one_device, step)]
    assert flops[1] < 0.8 * flops[0]


def test_flops_of_a_frozen_tower_are_those_that_xla_counts():
    config = make_config()
    for tower in (config.model.image, config.model.text):
        tower.transformer = TransformerConfig(width=64, depth=2, num_heads=2, scan=False)
    counted, compiled = [], []
    for freeze in ((), ("text/(?!projection).*",)):  # the second is LiT
        config.optimizer.freeze = freeze
        mesh = make_mesh(ShardingConfig(), jax.devices()[:1])
        training = make_training(config, INPUTS, learning_rate, mesh)
        program = training.step.lower(training.state, jax.eval_shape(batch)).compile()
        compiled.append(program.cost_analysis()["flops"])
        counted.append(train_flops_per_pair(config, INPUTS, training.state.params))
    assert counted[1] / counted[0] < 0.9
    # XLA also counts what is no matrix product, of which a frozen tower has less, too
    assert compiled[1] / compiled[0] == pytest.approx(counted[1] / counted[0], rel=0.05)


@pytest.mark.parametrize(("loss", "bias"), [("softmax", 0.0), ("sigmoid", -10.0)])
def test_learns_one_batch_by_heart(loss, bias):
    config = make_config(weight_decay=0.0)
    config.loss.name, config.model.init_logit_bias = loss, bias
    config.batch_size = 8
    config.loss.max_logit_scale = 20.0
    step = make_step(config, rows=8)
    state, first = step(step.fresh(), batch(rows=8))
    for _ in range(250):
        state, metrics = step(state, batch(rows=8))
    if loss == "softmax":  # untrained: close to chance, log(8) = 2.08
        assert 1.5 < first["loss"] < 6
    assert metrics["loss"] < 0.02
    # the temperature is learned, from 0.07, and clipped
    assert first["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-6)
    if loss == "softmax":
        assert metrics["logit_scale"] == pytest.approx(20, rel=1e-6)
        assert state.params["logit_bias"] == 0
    else:
        assert metrics["logit_bias"] != bias


def test_products_of_a_bfloat16_step():
    config = make_config()
    config.model.dtype = "bfloat16"
    step = make_step(config)
    products = re.findall(
        r"dot_general.*: \((tensor<\S+>), (tensor<\S+>)\) -> (tensor<\S+>)",
        step.jitted.lower(step.state, batch()).as_text(),
    )
    in_float32 = [p for p in products if not (p[0].endswith("bf16>") and p[1].endswith("bf16>"))]
    # The logits and their two gradients, all float32; and in each tower the gradients of query and
    # key, for which jax keeps the gradient of the scores in float32.
    logits = [p for p in in_float32 if f"tensor<{B}x{B}xf32>" in p]
    assert len(logits) == 3 and all(x.endswith("xf32>") for p in logits for x in p)
    assert len(in_float32) == 3 + 4
