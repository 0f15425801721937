"""Transformer blocks: how they are run must not change what they compute."""

import copy
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import clip
from jaxclip.models.bert import BertConfig
from jaxclip.models.layers import Attention, Dropout, MapHead, Transformer, TransformerConfig
from tests.models.test_clip import IMAGES, INPUTS, TOKENS, VARIANTS, random_params

CONFIG = TransformerConfig(width=8, depth=3, num_heads=2, dropout=0.5)


def loss_and_gradients(config):
    """The jitted function of parameters -> (loss, gradients), with dropout on; and parameters."""
    x_BTD = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 8)), jnp.float32)
    module = Transformer(config, jnp.float32, is_causal=True)
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: module.init(key, x_BTD))

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        return jnp.sin(module.apply(params, x_BTD, rows_B=jnp.arange(2), rngs=rngs)).sum()

    function = jax.jit(jax.value_and_grad(loss))
    return function, random_params(params)


@pytest.fixture(scope="module")
def plain():
    function, params = loss_and_gradients(CONFIG)
    return function(params), function.lower(params).as_text().count("dot_general")


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (True, "dots"), (False, "full")])
def test_scan_and_remat_change_no_value_and_no_gradient(plain, scan, remat):
    # Dropout is on: recomputing with another mask, or the same mask in each layer, would show.
    function, params = loss_and_gradients(dataclasses.replace(CONFIG, scan=scan, remat=remat))
    (loss, grads), (expected_loss, expected_grads) = function(params), plain[0]
    # sums of some hundred float32 in another order
    np.testing.assert_allclose(loss, expected_loss, atol=5e-6)
    for grad, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(grad, expected, atol=5e-6 * max(1, np.abs(expected).max()))


def test_remat_policies_recompute_what_they_say(plain):
    def products(remat):
        function, params = loss_and_gradients(dataclasses.replace(CONFIG, remat=remat))
        return function.lower(params).as_text().count("dot_general")

    # A block has 6 products by a kernel and 2 in its attention. The last one, down, is not needed
    # by the backward pass.
    assert plain[1] == 8 + 16
    assert products("dots") == 8 + 16 + 2
    assert products("full") == 8 + 16 + 7


def test_unrolled_blocks_leave_no_loop():
    function, params = loss_and_gradients(dataclasses.replace(CONFIG, scan=False, dropout=0.0))
    assert "stablehlo.while" not in function.lower(params).as_text()


def test_map_head_does_not_see_masked_positions():
    x_BTD = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    mask_BT = np.arange(5) < np.array([[3], [5]])
    head = MapHead(CONFIG, jnp.float32)
    params = random_params(jax.eval_shape(head.init, jax.random.key(0), x_BTD))
    apply = jax.jit(head.apply)
    masked_BD = apply(params, x_BTD, mask_BT)
    np.testing.assert_allclose(masked_BD[0], apply(params, x_BTD[:1, :3])[0], atol=2e-6)
    np.testing.assert_allclose(masked_BD[1], apply(params, x_BTD)[1], atol=2e-6)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="has a GPU")
def test_cudnn_attention_without_a_gpu():
    config = dataclasses.replace(CONFIG, attention="cudnn")
    with pytest.raises(ValueError, match=r"'cudnn'\) needs an NVIDIA GPU, but .* cpu.*to 'xla'"):
        loss_and_gradients(config)


def test_a_part_of_a_batch_is_dropped_as_in_the_whole():
    x = jnp.ones((6, 50, 20))
    rngs = {"dropout": jax.random.key(0)}
    whole = Dropout(0.3).apply({}, x, jnp.arange(6), rngs=rngs)
    part = Dropout(0.3).apply({}, x[2:4], jnp.array([2, 3]), rngs=rngs)
    np.testing.assert_array_equal(part, whole[2:4])
    assert (whole[0] != whole[1]).any()  # each row has a mask of its own
    # 1,000 draws a row, kept with 0.7 and scaled by 1 / 0.7: means within 5 standard deviations
    assert set(np.unique(whole)) == {np.float32(0), np.float32(1 / 0.7)}
    np.testing.assert_allclose(whole.mean((1, 2)), 1, atol=5 * np.sqrt(0.3 / 0.7 / 1000))


# which parameters at 0 leave nothing to drop but in the place
INPUT, ATTENTION, MLP = "embedding|pre_norm", r"attention'\]\['out", r"mlp'\]\['down"
PLACES = {"input": (ATTENTION, MLP), "attention": (INPUT, MLP), "mlp": (INPUT, ATTENTION)}


def zeroed(params, pattern):
    """Those at 0 whose path has the pattern."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (not re.search(pattern, jax.tree_util.keystr(path))), params
    )


@pytest.mark.parametrize("tower", ["image", "text", "bert"])
def test_towers_drop_their_input_and_what_attention_and_mlp_add(tower):
    config = copy.deepcopy(VARIANTS["openai"])  # no patch dropout
    if tower == "bert":
        config.text = BertConfig(transformer=config.text.transformer, max_positions=7)
    for part in (config.image, config.text):
        part.transformer.dropout = 0.5
    encode, rows = clip.encode_text, TOKENS
    if tower == "image":
        encode, rows = clip.encode_image, IMAGES
    shapes = jax.eval_shape(lambda: clip.init(config, INPUTS, jax.random.key(0)))
    evaluate = jax.jit(lambda params: encode(config, INPUTS, params, rows))
    train = jax.jit(lambda params: encode(config, INPUTS, params, rows, jax.random.key(1)))
    for place, zeros in PLACES.items():
        params = zeroed(random_params(shapes), "|".join(zeros))
        moved_BE = np.abs(train(params) - evaluate(params))
        assert (moved_BE.max(axis=1) > 1e-3).all(), place


@pytest.mark.parametrize("implementation", ["xla", "cudnn"])
def test_attention_is_computed_by_the_chosen_implementation(implementation, monkeypatch):
    asked = []

    def attend(query, *_, implementation, **__):
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = dataclasses.replace(CONFIG, attention=implementation)
    x_BTD = jnp.zeros((2, 5, 8))
    jax.eval_shape(Attention(config, jnp.float32).init, jax.random.key(0), x_BTD, x_BTD)
    assert asked == [implementation]
