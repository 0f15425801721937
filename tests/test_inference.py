"""jaxclip.load and what its model is given: pictures and texts of many kinds, and mistakes."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxclip
from data_pipelines.tokenizer import save_tokenizer, train_tokenizer
from jaxclip.data.image import ImageConfig
from jaxclip.inference import prepared
from tests.models.pretrained.fixtures import read_fixture, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP of 99 token embeddings, without a vocabulary; beside it two vocabularies."""
    root = tmp_path_factory.mktemp("inference")
    words = "red circle blue square green cross and the thorax"
    for name, text, size in (
        ("small", words, 60),
        ("large", f"{words} 0123456789 jk mfypvwz", 120),
    ):
        tokenizer = train_tokenizer([text] * 4, vocab_size=size)
        save_tokenizer(tokenizer, root / f"{name}.json")
    return write_folder(root / "clip", read_fixture("hf_clip_gelu"))


@pytest.fixture(scope="module")
def model(folder):
    return jaxclip.load(str(folder), batch_size=2, tokenizer=str(folder.parent / "small.json"))


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def transparent():
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 16:48] = (200, 30, 30, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)),
        transparent(),
        transparent().convert("LA"),
        transparent().convert("P"),
        Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)),
    ],
    ids=["16 bits", "RGBA", "LA", "P", "L"],
)
def test_a_pillow_image_is_treated_as_its_file_is(picture):
    config = ImageConfig(size=32)
    data = png(picture)
    expected = prepared(data, config)
    np.testing.assert_array_equal(prepared(Image.open(io.BytesIO(data)), config), expected)
    np.testing.assert_array_equal(prepared(picture, config), expected)


def test_pictures_may_come_from_a_generator_in_any_kind(model, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 33, 3)).astype(np.uint8)
    data = png(Image.fromarray(pixels))
    (tmp_path / "a.png").write_bytes(data)
    kinds = [pixels, jnp.asarray(pixels), Image.fromarray(pixels), data, tmp_path / "a.png"]
    found = model.encode_image(kind for kind in kinds)
    assert found.shape == (5, 40)
    np.testing.assert_allclose(found, np.tile(found[:1], (5, 1)), atol=1e-6)
    texts = ["red circle", "blue square", "green cross"]
    np.testing.assert_array_equal(model.encode_text(iter(texts)), model.encode_text(texts))
    assert model.encode_text([]).shape == (0, 40)


def test_mistakes_are_told(model, folder):
    for call, error, said in (
        (lambda: model.encode_image(["nope.png"]), FileNotFoundError, "nope.png.* is not a file"),
        (lambda: model.encode_image([np.zeros((8, 8, 3))]), ValueError, "ndarray of float64"),
        (lambda: model.encode_image([3]), ValueError, r"an image \(int of no pixels\) must be"),
        (lambda: model.encode_text(["a", None]), ValueError, r"a text \(None\) must be a string"),
        (lambda: model.encode_text([float("nan")]), ValueError, r"a text \(nan\) must be"),
        (lambda: jaxclip.load(str(folder), device="gpu"), ValueError, "'gpu'.* not here, only: c"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            call()


def test_a_vocabulary_is_for_checkpoints_without_one(model, folder, tmp_path):
    assert any("60 ids, and the text tower 99 embeddings" in x for x in model.report.assumed)
    with pytest.raises(ValueError, match="has 120 ids, but .* was trained with 99"):
        jaxclip.load(str(folder), tokenizer=str(folder.parent / "large.json"))
    own = write_folder(tmp_path / "clip", read_fixture("hf_clip_gelu"))
    (own / "tokenizer.json").write_bytes((folder.parent / "small.json").read_bytes())
    special = {"pad_token": "[PAD]", "eos_token": "[SEP]"}
    (own / "tokenizer_config.json").write_text(json.dumps(special))
    assert jaxclip.load(str(own)).tokenizer.vocab_size == 60
    with pytest.raises(ValueError, match=r"has its own \(tokenizer.json\). Leave tokenizer empty"):
        jaxclip.load(str(own), tokenizer=str(folder.parent / "small.json"))


def products(jaxpr):
    """The precision of every matrix product and convolution, also of those in loops."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_is_not_rounded_on_any_device(dtype, folder):
    """An accelerator would take TF32 or bfloat16; that a CPU does not, so the program is read."""
    model = jaxclip.load(str(folder), dtype=dtype)
    size, length = model.family.image.size, model.family.inputs.context_length
    for encode, example in (
        (model._encode_image, np.zeros((1, size, size, 3), np.uint8)),
        (model._encode_text, np.zeros((1, length), np.int32)),
    ):
        found = list(products(jax.make_jaxpr(encode)(model.params, example).jaxpr))
        assert len(found) >= 7  # the projection, and six a block
        highest = {(jax.lax.Precision.HIGHEST,) * 2}
        assert set(found) == highest if dtype == "float32" else not highest & set(found)
