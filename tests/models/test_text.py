"""What is the text tower's own: which tokens an embedding may depend on, and how sums round.

Shape letters: B texts, T context length, D width, V vocabulary.
"""

import copy
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import clip
from jaxclip.models.text import TextTower
from tests.models.test_clip import INPUTS, VARIANTS, random_params, shapes

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
    # A bfloat16 sum stands still when it is 256 times a summand, and a token stands in a batch many
    # thousands of times. Read from the program: a CPU would sum in float32 whatever it says.
    tokens = np.full((8, 7), 2)
    tower = TextTower(VARIANTS["openai"].text, 20, 0, 1, jnp.bfloat16)

    def loss(params):
        features_BD = tower.apply({"params": params}, tokens)
        return features_BD.astype(jnp.float32).sum()

    program = jax.jit(jax.grad(loss)).lower(shapes("openai")["text"]).as_text()
    scatters = re.findall(r'"stablehlo.scatter".*?-> (tensor<\S+>)', program, re.DOTALL)
    assert "tensor<20x8xf32>" in scatters and "tensor<20x8xbf16>" not in scatters
    of_positions = re.findall(r"across dimensions = \[0\] : \(tensor<8x7x8x(\w+)>", program)
    assert of_positions == ["f32"]
