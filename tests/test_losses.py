"""Both losses against float64 NumPy, pair by pair, as their papers have them.

Shape letters: B pairs, E embedding.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip.losses import LOSSES, LossConfig
from jaxclip.sharding import ShardingConfig, batch_sharding, make_mesh

NAMES = tuple(LOSSES)
GRADIENT = {name: jax.jit(jax.value_and_grad(LOSSES[name], argnums=(0, 1, 2, 3))) for name in NAMES}


def softmax_reference(image_BE, text_BE, scale, bias):
    """CLIP, Fig. 3: cross-entropy of each row and of each column, in two means."""
    logits = scale * image_BE @ text_BE.T
    B = len(logits)

    def cross_entropy(row, right):
        return math.log(sum(math.exp(x - max(row)) for x in row)) + max(row) - row[right]

    rows = sum(cross_entropy(logits[i], i) for i in range(B)) / B
    columns = sum(cross_entropy(logits[:, i], i) for i in range(B)) / B
    return (rows + columns) / 2


def sigmoid_reference(image_BE, text_BE, scale, bias):
    """SigLIP, Alg. 1: -log sigmoid(+-logit) over all pairs, divided by B."""
    logits = scale * image_BE @ text_BE.T + bias
    B, total = len(logits), 0.0
    for i in range(B):
        for j in range(B):
            x = logits[i, j] if i == j else -logits[i, j]
            total += math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x
    return total / B


REFERENCES = {"softmax": softmax_reference, "sigmoid": sigmoid_reference}


def unit_rows(B=6, E=5, seed=0):
    x = np.random.default_rng(seed).standard_normal((2, B, E))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, 3.0)])
def test_value_and_gradients(name, scale, bias):
    arguments = [*unit_rows(), np.float32(scale), np.float32(bias)]
    loss, grads = GRADIENT[name](*arguments)
    arguments = [np.float64(x) for x in arguments]
    # logits of 100 are off by 1e-7 of themselves, whatever the loss is
    np.testing.assert_allclose(loss, REFERENCES[name](*arguments), rtol=1e-6, atol=1e-7 * scale)
    for i, grad in enumerate(grads):
        expected = np.zeros_like(arguments[i])
        for index in np.ndindex(expected.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [np.array(x) for x in arguments]
                moved[i][index] += step
                ends.append(REFERENCES[name](*moved))
            expected[index] = (ends[0] - ends[1]) / 2e-5
        # differences are good to 1e-5**2 * scale**3; float32 to 1e-6 of the largest entry
        tolerance = 2e-6 * max(1.0, np.abs(expected).max()) + 1e-10 * scale**3
        np.testing.assert_allclose(grad, expected, atol=tolerance)


def test_chance():
    same_BE = jnp.ones((8, 4)) / 2
    np.testing.assert_allclose(LOSSES["softmax"](same_BE, same_BE, 14.0), math.log(8), rtol=1e-6)
    # orthogonal: every logit is 0 and every pair a coin toss
    image_BE, text_BE = jnp.eye(8, 16), jnp.eye(8, 16, k=8)
    coins = LOSSES["sigmoid"](image_BE, text_BE, 14.0, 0.0)
    np.testing.assert_allclose(coins, 8 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_pairs_does_not_matter(name):
    image_BE, text_BE = unit_rows()
    order = np.random.default_rng(1).permutation(6)
    loss, grads = GRADIENT[name](image_BE, text_BE, 10.0, -3.0)
    shuffled_loss, shuffled = GRADIENT[name](image_BE[order], text_BE[order], 10.0, -3.0)
    np.testing.assert_allclose(shuffled_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(shuffled[0], grads[0][order], atol=1e-6)
    other_loss, _ = GRADIENT[name](image_BE, text_BE[order], 10.0, -3.0)
    assert abs(other_loss - loss) > 0.1  # but which row is matched with which does


@pytest.mark.parametrize("name", NAMES)
def test_learned_and_wrong_batches_at_a_large_scale(name):
    right_BE = jnp.eye(6)
    loss, grads = GRADIENT[name](right_BE, right_BE, 100.0, -50.0)
    assert 0 <= loss < 1e-6  # never below 0
    wrong_loss, wrong_grads = GRADIENT[name](-right_BE, right_BE, 1000.0, 0.0)
    expected = REFERENCES[name](-np.eye(6), np.eye(6), 1000.0, 0.0)
    np.testing.assert_allclose(wrong_loss, expected, rtol=1e-6)
    for leaf in jax.tree.leaves((grads, wrong_grads)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_embeddings_give_float32_logits(name):
    image_BE, text_BE = unit_rows().astype(jnp.bfloat16)
    loss = LOSSES[name](image_BE, text_BE, jnp.float32(100), jnp.float32(-10))
    assert loss.dtype == jnp.float32
    arguments = [np.float64(image_BE.astype(np.float32)), np.float64(text_BE.astype(np.float32))]
    np.testing.assert_allclose(loss, REFERENCES[name](*arguments, 100.0, -10.0), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_compute_what_one_does(name):
    mesh = make_mesh(ShardingConfig(data=2, fsdp=4), jax.devices()[:8])
    arguments = (*unit_rows(B=32, E=3), np.float32(10), np.float32(-10))
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    split = jax.jit(
        jax.value_and_grad(LOSSES[name], argnums=(0, 1, 2, 3)),
        in_shardings=(rows, rows, whole, whole),
    )
    compiled = split.lower(*arguments).compile()
    loss, grads = GRADIENT[name](*arguments)
    split_loss, split_grads = compiled(
        *(jax.device_put(x, s) for x, s in zip(arguments, compiled.input_shardings[0], strict=True))
    )
    np.testing.assert_allclose(split_loss, loss, rtol=1e-6)
    for grad, split_grad in zip(grads, split_grads, strict=True):
        np.testing.assert_allclose(split_grad, grad, rtol=1e-5, atol=1e-6)
    # Each device has 4 rows of logits, and neither they nor their gradient are ever gathered.
    program = compiled.as_text()
    assert re.search(r"f32\[4,32\]", program)
    assert not re.search(r"\[32,32\]|\[4,32\]\S* all-|s32\[32,2\]", program)


def test_validate():
    LossConfig(name="sigmoid", max_logit_scale=0).validate()
    with pytest.raises(ValueError, match=r"loss.name \('clip'\) must be one of \('softmax', 'sig"):
        LossConfig(name="clip").validate()
    with pytest.raises(ValueError, match=r"loss.max_logit_scale \(-1\) must be positive, or 0"):
        LossConfig(max_logit_scale=-1).validate()
