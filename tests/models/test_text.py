"""What is the text tower's own: which tokens an embedding may depend on, and rounding of sums.

Shape letters: B texts, T context length, D width, V vocabulary.
"""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import clip
from jaxclip.models.text import TextConfig, TextTower
from tests.models.test_clip import INPUTS, VARIANTS, random_params, shapes, tiny

ENDS_AT_3 = np.array([[2, 3, 4, 1, 0, 0, 0], [9, 19, 5, 1, 0, 0, 0]])


def encode(variant, params, tokens, inputs=INPUTS):
    function = jax.jit(lambda p, t: clip.encode_text(VARIANTS[variant], inputs, p, t))
    return np.asarray(function(params, tokens))


@pytest.mark.parametrize(("variant", "pad_id"), [("openai", 0), ("mean", 0), ("mean", 1)])
def test_padding_does_not_change_an_embedding(variant, pad_id):
    # openai: causal and pooled at the end of text; mean: padding is masked, also where its id is
    # that of the end of text (1), of which the first one belongs to the text.
    params = random_params(shapes(variant))
    tokens = np.where(ENDS_AT_3 == 0, pad_id, ENDS_AT_3)
    padded = encode(variant, params, tokens, dataclasses.replace(INPUTS, pad_id=pad_id))
    params = copy.deepcopy(params)
    params["text"]["position_embedding"] = params["text"]["position_embedding"][:4]
    short = dataclasses.replace(INPUTS, context_length=4, pad_id=pad_id)
    np.testing.assert_allclose(encode(variant, params, tokens[:, :4], short), padded, atol=1e-6)


def test_what_follows_the_end_of_text_changes_nothing():
    params, changed = random_params(shapes("openai")), ENDS_AT_3.copy()
    changed[:, 4:] = [[7, 1, 9], [1, 1, 2]]  # other ends of text too: the first one counts
    embedding_BE = encode("openai", params, ENDS_AT_3)
    np.testing.assert_array_equal(encode("openai", params, changed), embedding_BE)
    changed = ENDS_AT_3.copy()
    changed[:, 0] = 8
    moved = np.abs(encode("openai", params, changed) - embedding_BE)
    assert (moved.max(axis=1) > 1e-3).all()


def test_siglip_sees_padding_as_it_was_trained_to():
    params, padded = random_params(shapes("siglip")), ENDS_AT_3.copy()
    padded[:, 4] = 7
    moved = np.abs(encode("siglip", params, padded) - encode("siglip", params, ENDS_AT_3))
    assert (moved.max(axis=1) > 1e-3).all()


def test_unknown_token_is_not_taken_for_another():
    params, tokens = random_params(shapes("openai")), ENDS_AT_3.copy()
    tokens[0, 1] = INPUTS.vocab_size
    assert np.isnan(encode("openai", params, tokens)[0]).all()


def test_gradient_of_a_frequent_token_is_summed_in_float32():
    # 4,096 summands of one sign: a bfloat16 sum stands still when it is 256 times a summand.
    B, T, V, D = 256, 16, 3, 4
    config = TextConfig(
        transformer=dataclasses.replace(tiny(width=D), depth=1), is_causal=False, pool="mean"
    )
    tokens = np.full((B, T), 2)
    module, key = TextTower(config, V, 0, 1, jnp.bfloat16), jax.random.key(0)
    params = jax.eval_shape(lambda: module.init(key, tokens, deterministic=True))["params"]
    params = random_params(params)
    # only the final norm between the table and the loss
    params["transformer"] = jax.tree.map(np.zeros_like, params["transformer"])

    def gradients(dtype):
        tower = TextTower(config, V, 0, 1, dtype)

        def loss(params):
            features_BD = tower.apply({"params": params}, tokens, deterministic=True)
            return (features_BD.astype(jnp.float32) @ jnp.arange(1.0, D + 1)).sum()

        grads = jax.jit(jax.grad(loss))(params)
        return grads["token_embedding"]["embedding"][2], grads["position_embedding"].sum(axis=0)

    for rounded_D, exact_D in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        # each summand is rounded to 0.4 %
        np.testing.assert_allclose(rounded_D, exact_D, atol=0.02 * np.abs(exact_D).max())
