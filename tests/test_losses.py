"""The family of losses against float64 NumPy, pair by pair; the ring against dense, everywhere.

Shape letters: B pairs, E embedding, K kinds of label.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip.losses import LOSSES, RELATIONS, LossConfig, is_ring, make_loss
from jaxclip.pairwise import share_of_pairs
from jaxclip.sharding import ShardingConfig, batch_sharding, make_mesh

NAMES = tuple(LOSSES)
SETTINGS = [{"positives": relation} for relation in RELATIONS]
SETTINGS += [{"ignore": (relation,)} for relation in RELATIONS]
SETTINGS += [{"positives": "same_caption", "ignore": ("same_figure", "same_article")}]


def config_of(name, **fields) -> LossConfig:
    if name == "decoupled":
        fields = {"hard_negatives": (0.15, 0.3)} | fields
    config = LossConfig(name=name, **fields)
    config.validate()
    return config


def unit_rows(B=6, E=5, seed=0):
    x = np.random.default_rng(seed).standard_normal((2, B, E))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def relations_of(B, seed=0):
    """Two words an id, of which either may differ; two kinds of label of three."""
    rng = np.random.default_rng(seed)
    relations = {name: rng.integers(0, 2, (B, 2)).astype(np.int32) for name in RELATIONS}
    labels = rng.integers(0, 2, (B, 3)).astype(np.float32)
    norm = np.maximum(np.linalg.norm(labels, axis=1, keepdims=True), 1)
    return relations | {"labels": labels / norm}


def reference(config, image_BE, text_BE, scale, bias, relations):
    """The loss as its paper has it, in float64, one pair after another."""
    x = np.float64(scale) * np.float64(image_BE) @ np.float64(text_BE).T
    B = len(x)

    def related(relation, i, j):
        return relation != "identity" and (relations[relation][i] == relations[relation][j]).all()

    positive = [[i == j or related(config.positives, i, j) for j in range(B)] for i in range(B)]
    counted = [
        [positive[i][j] or not any(related(r, i, j) for r in config.ignore) for j in range(B)]
        for i in range(B)
    ]
    if config.name == "sigmoid":
        total = 0.0
        for i, j in np.ndindex(B, B):
            target = (1 - config.label_smoothing) * positive[i][j] + config.label_smoothing / 2
            logit = x[i, j] + bias
            if counted[i][j]:  # -target log sigmoid(x) - (1 - target) log sigmoid(-x)
                total += target * np.logaddexp(0, -logit) + (1 - target) * np.logaddexp(0, logit)
        return total / B

    def one(i, x, positive, counted, beta):
        """Of the query i, whose logits with all keys are x[i]."""
        keys = [j for j in range(B) if counted[i][j]]
        weight = {j: float(positive[i][j]) for j in keys}
        if config.name == "soft_labels":
            labels = np.float64(relations["labels"])
            weight = {j: math.exp(labels[i] @ labels[j]) for j in keys}
        target = {j: weight[j] / sum(weight.values()) for j in keys}
        e = config.label_smoothing
        target = {j: (1 - e) * target[j] + e / len(keys) for j in keys}
        negatives = [j for j in keys if not positive[i][j]]
        if config.name != "decoupled":
            log_sum = np.logaddexp.reduce([x[i, j] for j in keys])
        elif negatives:
            hardness = np.array([math.exp(beta * (x[i, j] - x[i].max())) for j in negatives])
            factors = len(negatives) * hardness / hardness.sum()
            log_sum = np.logaddexp.reduce([x[i, j] for j in negatives] + np.log(factors))
        else:
            log_sum = 0.0
        return log_sum - sum(target[j] * x[i, j] for j in keys)

    betas = config.hard_negatives
    transposed = [list(zip(*rows, strict=True)) for rows in (positive, counted)]
    image = np.mean([one(i, x, positive, counted, betas[0]) for i in range(B)])
    text = np.mean([one(i, x.T, *transposed, betas[1]) for i in range(B)])
    return config.image_weight * image + (1 - config.image_weight) * text


@functools.cache
def compiled(config_items, mesh_sizes=None):
    config = LossConfig(**dict(config_items))
    mesh = None
    if mesh_sizes:
        sizes = dict(zip(("data", "fsdp", "tensor"), mesh_sizes, strict=True))
        mesh = make_mesh(ShardingConfig(**sizes), jax.devices()[: math.prod(mesh_sizes)])
    function = jax.value_and_grad(make_loss(config, mesh), argnums=(0, 1, 2, 3))
    return jax.jit(function), mesh


def value_and_gradients(config, arguments, mesh_sizes=None):
    function, mesh = compiled(tuple(dataclasses.asdict(config).items()), mesh_sizes)
    if mesh:
        rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
        arguments = jax.device_put(arguments, (rows, rows, whole, whole, rows))
    return function(*arguments)


def arguments_of(B=6, E=5, scale=10.0, bias=-3.0, seed=0):
    return *unit_rows(B, E, seed), np.float32(scale), np.float32(bias), relations_of(B, seed)


VARIANTS = [
    *(config_of(name) for name in NAMES),
    *(config_of(name, label_smoothing=0.2) for name in NAMES),
    *(config_of(name, image_weight=0.75) for name in NAMES if name != "sigmoid"),
    config_of("decoupled", hard_negatives=(0.0, 0.0)),
    *(config_of(name, **s) for name in ("softmax", "sigmoid", "decoupled") for s in SETTINGS),
    *(config_of("soft_labels", **s) for s in SETTINGS if "positives" not in s),
]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_value(config):
    for scale, bias in ((1.0, 0.0), (10.0, -10.0), (100.0, 3.0)):
        image, text, *_, relations = arguments_of()
        expected = reference(config, image, text, scale, bias, relations)
        loss = make_loss(config)(image, text, np.float32(scale), np.float32(bias), relations)
        # logits of 100 are off by 1e-7 of themselves, whatever the loss is
        np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-7 * scale)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("config", VARIANTS[: 2 * len(NAMES)], ids=str)
def test_gradients(config, scale):
    arguments = arguments_of(scale=scale)
    _, grads = value_and_gradients(config, arguments)
    *arguments, relations = (np.float64(x) if i < 4 else x for i, x in enumerate(arguments))
    for i, grad in enumerate(grads):
        expected = np.zeros_like(arguments[i])
        for index in np.ndindex(expected.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [np.array(x) for x in arguments]
                moved[i][index] += step
                ends.append(reference(config, *moved, relations))
            expected[index] = (ends[0] - ends[1]) / 2e-5
        # differences are good to 1e-5**2 * scale**3; float32 to 1e-6 of the largest entry
        tolerance = 2e-6 * max(1.0, np.abs(expected).max()) + 1e-10 * scale**3
        np.testing.assert_allclose(grad, expected, atol=tolerance)


def assert_ring_is_dense(config, arguments, mesh_sizes, chunk_rows):
    dense = dataclasses.replace(config, implementation="dense")
    ring = dataclasses.replace(config, implementation="ring", chunk_rows=chunk_rows)
    expected = value_and_gradients(dense, arguments)
    found = value_and_gradients(ring, arguments, mesh_sizes)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for grad, right in zip(found[1], expected[1], strict=True):
        assert grad.shape == right.shape
        np.testing.assert_allclose(grad, right, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("mesh_sizes", "chunk_rows"),
    # 24 pairs: 24, 12, 6 or 3 on a device, in chunks that divide them or not
    [(None, 5), (None, 24), ((2, 1, 1), 5), ((1, 4, 1), 4), ((8, 1, 1), 2), ((2, 2, 2), 0)],
)
@pytest.mark.parametrize("name", NAMES)
def test_ring_is_dense_on_every_mesh(name, mesh_sizes, chunk_rows):
    config = config_of(name, label_smoothing=0.1, ignore=("same_figure",))
    assert_ring_is_dense(config, arguments_of(B=24), mesh_sizes, chunk_rows)


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_ring_is_dense_for_all_positives_and_ignored(name, fields):
    assert_ring_is_dense(config_of(name, **fields), arguments_of(B=8), (2, 1, 1), 3)


def test_ring_around_data_and_fsdp_where_all_devices_do_not_divide_the_batch():
    assert_ring_is_dense(config_of("softmax"), arguments_of(B=12), (2, 2, 2), 0)


@pytest.mark.parametrize("implementation", ["dense", "ring"])
def test_all_rows_are_related(implementation):
    image, text, scale, bias, relations = arguments_of()
    same = {"same_figure": np.zeros((6, 2), np.int32)}
    config = config_of("decoupled", ignore=("same_figure",), implementation=implementation)
    loss, grads = value_and_gradients(config, (image, text, scale, bias, relations | same))
    # nobody has a negative: what is left is the mean of the matched pairs' logits
    np.testing.assert_allclose(loss, -10 * (image * text).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(grads[0], -10 / 6 * text, rtol=1e-5)
    config = config_of("softmax", ignore=("same_figure",), implementation=implementation)
    loss, grads = value_and_gradients(config, (image, text, scale, bias, relations | same))
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(grads[0], 0, atol=1e-6)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize("implementation", ["dense", "ring"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_logits_are_never_gathered(name, implementation, sizes):
    config = config_of(name, implementation=implementation, chunk_rows=2, ignore=("same_figure",))
    function, mesh = compiled(tuple(dataclasses.asdict(config).items()), sizes)
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    arguments = jax.device_put(arguments_of(B=32, E=3), (rows, rows, whole, whole, rows))
    program = function.lower(*arguments).compile().as_text()
    moved = re.findall(
        r"= (.*?) (?:all-gather|all-to-all|collective-permute|all-reduce)\(", program
    )
    assert moved
    for shape in re.findall(r"\[([\d,]+)\]", " ".join(moved)):
        # embeddings are 3 wide and ids 2; a block of logits has at least 4 both ways
        assert sum(int(size) > 3 for size in shape.split(",")) <= 1, shape
    if implementation == "dense":
        assert re.search(rf"f32\[{32 // (sizes[0] * sizes[1])},32\]", program)
    else:  # of logits, 2 rows of a block of 4 x 4 are all there is
        assert re.search(r"f32\[2,4\]", program)
        assert not re.search(r"f32\[\d+,32\]|f32\[4,4\]", program)


@pytest.mark.parametrize("name", NAMES)
def test_memory_of_a_large_batch(name):
    """At N = 32,768 on 8 devices; dense logits alone are 512 MiB a device."""
    mesh = make_mesh(ShardingConfig(), jax.devices()[:8])
    rows = batch_sharding(mesh)
    config = config_of(name, ignore=("same_figure",))
    assert is_ring(config, 32768, mesh)
    x = jax.ShapeDtypeStruct((32768, 512), jnp.float32, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    ids = jax.ShapeDtypeStruct((32768, 2), jnp.int32, sharding=rows)
    labels = jax.ShapeDtypeStruct((32768, 14), jnp.float32, sharding=rows)
    relations = {"same_figure": ids, "labels": labels}
    step = jax.jit(jax.value_and_grad(make_loss(config, mesh), argnums=(0, 1, 2, 3)))
    plan = step.lower(x, x, scalar, scalar, relations).compile().memory_analysis()
    # text, its gradient and ids on their way; 16 MiB of logits a few times over
    assert plan.temp_size_in_bytes < 200 << 20


def test_auto_takes_the_ring_where_dense_logits_are_large():
    config = LossConfig()
    assert not is_ring(config, 4096, None)  # 3 x 64 MiB
    assert is_ring(config, 8192, None)
    eight = make_mesh(ShardingConfig(fsdp=4), jax.devices()[:8])
    assert not is_ring(config, 8192, eight)
    assert is_ring(config, 32768, eight)
    assert not is_ring(dataclasses.replace(config, implementation="dense"), 1 << 20, eight)


def test_chance():
    same_BE = jnp.ones((8, 4)) / 2
    softmax, sigmoid = make_loss(LossConfig()), make_loss(LossConfig(name="sigmoid"))
    np.testing.assert_allclose(softmax(same_BE, same_BE, 14.0, 0.0), math.log(8), rtol=1e-6)
    # orthogonal: every logit is 0 and every pair a coin toss
    coins = sigmoid(jnp.eye(8, 16), jnp.eye(8, 16, k=8), 14.0, 0.0)
    np.testing.assert_allclose(coins, 8 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_learned_and_wrong_batches_at_a_large_scale(name):
    right_BE = np.eye(6, dtype=np.float32)
    relations = relations_of(6)
    config = config_of(name)
    for implementation in ("dense", "ring"):
        config = dataclasses.replace(config, implementation=implementation, chunk_rows=4)
        arguments = (right_BE, right_BE, np.float32(100), np.float32(-50), relations)
        loss, grads = value_and_gradients(config, arguments)
        if name in ("softmax", "sigmoid"):  # decoupled has no least value; soft labels want others
            assert 0 <= loss < 1e-6
        arguments = (-right_BE, right_BE, np.float32(1000), np.float32(0), relations)
        wrong_loss, wrong_grads = value_and_gradients(config, arguments)
        np.testing.assert_allclose(wrong_loss, reference(config, *arguments), rtol=1e-6)
        for leaf in jax.tree.leaves((grads, wrong_grads)):
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_embeddings_give_float32_logits(name):
    image_BE, text_BE = unit_rows().astype(jnp.bfloat16)
    relations = relations_of(6)
    config = config_of(name)
    loss = make_loss(config)(image_BE, text_BE, jnp.float32(100), jnp.float32(-10), relations)
    assert loss.dtype == jnp.float32
    embeddings = image_BE.astype(np.float32), text_BE.astype(np.float32)
    expected = reference(config, *embeddings, 100.0, -10.0, relations)
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-5)


def test_values_and_gradients_are_those_of_open_clip():
    path = pathlib.Path(__file__).parent / "fixtures" / "open_clip_losses.json"
    for case in json.loads(path.read_text())["cases"]:
        arguments = [np.array(case[k], np.float32) for k in ("image", "text", "scale", "bias")]
        for implementation in ("dense", "ring"):
            config = LossConfig(name=case["name"], implementation=implementation, chunk_rows=5)
            loss, grads = value_and_gradients(config, (*arguments, {}))
            np.testing.assert_allclose(loss, case["loss"], rtol=2e-6)
            for grad, key in zip(grads, ("image", "text", "scale", "bias"), strict=True):
                np.testing.assert_allclose(grad, case["gradients"][key], rtol=2e-6, atol=2e-6)


def test_share_of_pairs():
    ids = jnp.array([[1, 5], [2, 5], [1, 5], [1, 6], [1, 5]])  # three are one, both words equal
    np.testing.assert_allclose(share_of_pairs(ids), 6 / 20)
    assert share_of_pairs(jnp.arange(8).reshape(4, 2)) == 0
    assert share_of_pairs(jnp.zeros((3, 2), jnp.int32)) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "clip"}, r"loss.name \('clip'\) must be one of \('softmax', 'sig"),
        ({"max_logit_scale": -1}, r"loss.max_logit_scale \(-1\) must be positive, or 0"),
        ({"positives": "same"}, r"loss.positives \('same'\) must be one of \('identity', "),
        ({"ignore": ("identity",)}, r"loss.ignore \('identity'\) must be one of \('same_caption"),
        ({"implementation": "fast"}, r"loss.implementation \('fast'\) must be one of"),
        ({"label_smoothing": 1.0}, r"loss.label_smoothing \(1.0\) must be in \[0, 1\)"),
        ({"name": "sigmoid", "image_weight": 0.75}, r"loss.image_weight \(0.75\) must be 0.5"),
        ({"hard_negatives": (0.1, 0.1)}, r"loss.hard_negatives .* is of loss.name='decoupled'"),
        ({"name": "soft_labels", "positives": "same_label"}, r"loss.positives .* has no effect"),
        ({"chunk_rows": -1}, r"loss.chunk_rows \(-1\) must be 0 or more"),
    ],
)  # fmt: skip
def test_validate(fields, message):
    LossConfig(name="sigmoid", max_logit_scale=0).validate()
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields).validate()
