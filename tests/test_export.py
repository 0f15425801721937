"""Exports: exactly back through our import, and into the original libraries, with torch."""

import importlib
import importlib.util
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from PIL import Image

import jaxclip
from jaxclip.checkpoint import Checkpoints
from jaxclip.config import TrainConfig
from jaxclip.data.sources import open_sources
from jaxclip.evals import results
from jaxclip.evals.base import Measured
from jaxclip.export import embed_examples, example_batch, export
from jaxclip.export import write_folder as write_folder_of
from jaxclip.model_card import model_card
from jaxclip.models import clip
from jaxclip.models.pretrained import leaves_of, load_params, open_checkpoint
from jaxclip.models.pretrained.timm_vit import TIMM, TimmViT, timm_activation, timm_sizes
from jaxclip.start import model_inputs, open_model
from jaxclip.train_step import TrainState
from jaxclip.workdir import claim_workdir, open_tokenizer
from tests import tiny_config
from tests.models.pretrained.fixtures import read_fixture, write_folder

# timm has no ViT as small as those of make_fixtures.py, which registers these names
TINY_TIMM = {
    ("map", 128, 2): TimmViT("vit_fixture_siglip", {8: (32,)}, 2, 512),
    ("class_token", 128, 2): TimmViT("vit_fixture_class_token", {8: (32,)}, 2, 512),
}
needs_torch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "open_clip")),
    reason="needs torch, transformers, open_clip_torch and timm",
)


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """The function (fixture, format) -> (folder of the fixture, folder of its export)."""
    for sizes, kind in TINY_TIMM.items():
        monkeypatch.setitem(TIMM, sizes, kind)

    def make(name: str, to: str):
        source = write_folder(tmp_path / name, read_fixture(name))
        out = tmp_path / f"{name}_{to}"
        out.mkdir()
        family = open_checkpoint(str(source))
        # what export() does before it compares embeddings, which would compile two models more
        write_folder_of(family, load_params(family)[0], None, to, out, str(out), str(source))
        return source, out

    return make


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("hf_clip_gelu", "openclip"),
        ("hf_clip_quick_gelu", "hf"),
        ("hf_siglip", "big_vision"),
        ("hf_siglip2_fixed", "hf"),
        ("hf_siglip2_naflex", "big_vision"),
        ("hf_siglip2_naflex", "hf"),
        ("openclip_vit", "hf"),
        ("openclip_vit_quickgelu", "openclip"),
        ("openclip_siglip2", "openclip"),
        ("openclip_biomedclip", "openclip"),
        ("openclip_resnet", "openclip"),
    ],
)
def test_what_is_exported_is_imported_again_exactly(name, to, exported):
    source, out = exported(name, to)
    before = open_checkpoint(str(source))
    path = out / "checkpoint.npz" if to == "big_vision" else out
    after = open_checkpoint(str(path))
    assert after.model == before.model
    assert after.inputs.image_size == before.inputs.image_size
    assert after.inputs.vocab_size == before.inputs.vocab_size
    a, b = (leaves_of(load_params(family)[0]) for family in (before, after))
    assert a.keys() == b.keys()
    for leaf in a:
        np.testing.assert_array_equal(a[leaf], b[leaf], err_msg=leaf)
    if name.startswith(to):  # the original's tensors, by name and shape
        (file,) = out.glob("*.safetensors")
        written = {k: list(v.shape) for k, v in safetensors.numpy.load_file(file).items()}
        used = {k: v for k, v in read_fixture(name)["tensors"].items() if "pooler" not in k}
        assert written == used
    if to != "big_vision":  # its npz has no place for preprocessing
        assert after.image == before.image


def our_embeddings(folder):
    family = open_checkpoint(str(folder))
    model, inputs = family.model, family.inputs
    ours = embed_examples(model, inputs, load_params(family)[0])
    return family, example_batch(model, inputs), ours


def normalised(family, image):
    x = (image / 255 - family.image.mean) / family.image.std
    return np.ascontiguousarray(np.moveaxis(x, -1, 1).astype(np.float32))


@needs_torch
@pytest.mark.parametrize("name", ["openclip_vit", "hf_clip_quick_gelu", "hf_siglip2_fixed"])
def test_transformers_opens_an_export(name, exported):
    import torch
    import transformers

    _, out = exported(name, "hf")
    family, batch, ours = our_embeddings(out)
    model = transformers.AutoModel.from_pretrained(out).eval()
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(batch["tokens"]),
            pixel_values=torch.from_numpy(normalised(family, batch["image"])),
        )
    np.testing.assert_allclose(ours[0], theirs.image_embeds, atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs.text_embeds, atol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    pixels = processor(Image.fromarray(batch["image"][0]), return_tensors="np")["pixel_values"]
    # no resizing is left to do
    np.testing.assert_allclose(pixels[0], normalised(family, batch["image"])[0], atol=1e-5)


@needs_torch
@pytest.mark.parametrize(
    "name",
    ["hf_clip_gelu", "openclip_vit_quickgelu", "openclip_siglip2", "openclip_biomedclip",
     "openclip_resnet"],
)  # fmt: skip
def test_open_clip_opens_an_export(name, exported):
    import open_clip
    import torch

    importlib.import_module("tests.models.pretrained.make_fixtures")  # registers the tiny ViTs
    _, out = exported(name, "openclip")
    family, batch, ours = our_embeddings(out)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    model.eval()
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(normalised(family, batch["image"])), True)
        text = model.encode_text(torch.from_numpy(batch["tokens"]), True)
    np.testing.assert_allclose(ours[0], image, atol=1e-5)
    np.testing.assert_allclose(ours[1], text, atol=1e-5)
    pixels = preprocess(Image.fromarray(batch["image"][0])).numpy()
    np.testing.assert_allclose(pixels, normalised(family, batch["image"])[0], atol=1e-5)


@pytest.fixture(scope="module")
def clip_run(tiny_dataset, tmp_path_factory):
    """A workdir of a tiny CLIP of the kind that every format knows, as after two steps."""
    config: TrainConfig = tiny_config.get_config()
    config.data.path = (str(tiny_dataset),)
    config.optimizer.ema_decay = 0.0
    config.optimizer.warmup.amount = 0
    config.model.image.pool = "class_token"
    config.data.image.interpolation = "pillow_bicubic"
    workdir = tmp_path_factory.mktemp("clip_run")
    sources = open_sources(config.data, "train")
    tokenizer = open_tokenizer(config, sources)
    claim_workdir(epath.Path(workdir), config, sources, tokenizer)
    params = clip.init(config.model, model_inputs(config, tokenizer), jax.random.key(0))
    state = TrainState(jax.numpy.int32(2), params, None, None)
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoints.save(2, state, 32)
    scores = {"step": 2, "validation/image_to_text/recall@1": 0.25}
    (workdir / "metrics.jsonl").write_text(json.dumps(scores) + "\n")
    return workdir


def test_a_run_is_exported_with_its_tokenizer_and_preprocessing(clip_run, tmp_path):
    """The run and its export embed the same strings and pictures alike."""
    out = tmp_path / "export"
    lines = export(str(clip_run), "hf", str(out))
    assert "Read back: parameters equal, embeddings within 0.0e+00" in lines
    run, again = jaxclip.load(str(clip_run)), jaxclip.load(str(out))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (height, 31, 3), np.uint8) for height in (20, 40)]
    texts = ["A red circle.", "A blue square; it is number 7 of the series. " * 9]
    np.testing.assert_allclose(run.encode_image(pictures), again.encode_image(pictures), atol=1e-6)
    np.testing.assert_allclose(run.encode_text(texts), again.encode_text(texts), atol=1e-6)
    assert run.logit_scale == pytest.approx(again.logit_scale, rel=1e-6)
    card = (out / "README.md").read_text()
    assert "samples seen: 32" in card and "image_to_text/recall@1" in card
    assert "42 training pairs, 32 samples seen (0.76 epochs)" in card
    assert "the images and texts of tiny_dataset0: CC0 (42)" in card
    assert "16 px, center_crop, pillow_bicubic" in card and "padded with" in card
    with pytest.raises(FileExistsError, match="Name a folder to be made"):
        export(str(clip_run), "hf", str(out))


def test_the_card_has_the_scores_of_evaluations_wherever_the_run_is(clip_run):
    """jaxclip.evaluate writes them to the run's folder, of it and what it was compared with."""

    def rows(model, value):
        accuracy = Measured(
            name="zero_shot/organs", metrics=lambda units: {"accuracy": value}, num_units=8,
            group_U=np.arange(8), chance={"accuracy": 1 / 6},
        )  # fmt: skip
        return results.rows_of([accuracy], model=model, set_name="vqa_rad", split="test",
                               identity="x", draws=10)  # fmt: skip

    folder = epath.Path(clip_run) / "evaluation" / "test"
    both = rows(f"{clip_run.name} step 2", 0.75) + rows("another", 0.625)
    results.write(both, [], folder, {})
    family = open_model(str(clip_run))
    params = load_params(family)[0]

    def on_disk(function, path, *args):
        return function(str(path).replace("gs://bucket", str(clip_run.parent)), *args)

    with epath.testing.mock_epath(open=on_disk, exists=on_disk, glob=on_disk, isdir=on_disk):
        card = model_card(family, params, None, "hf", f"gs://bucket/{clip_run.name}", [])
    assert f"# {clip_run.name}\n" in card and "samples seen: 32" in card
    assert "- validation/image_to_text/recall@1: 0.2500" in card
    assert "## Evaluation: test" in card and "step 2 on vqa_rad/test: zero_shot/organs" in card
    assert "  - accuracy: 0.7500 [0.7500, 0.7500] (chance 0.1667)" in card
    assert "0.6250" not in card


@needs_torch
def test_the_exported_tokenizer_gives_our_ids(clip_run, tmp_path):
    import open_clip
    import transformers

    texts = ["A red circle.", "[SEP] is plain; " * 20, "été: a [CLS] 5 µm ﬁbre"]
    ours = jaxclip.load(str(clip_run)).tokenizer.encode(texts)
    export(str(clip_run), "hf", str(tmp_path / "hf"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = theirs(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(ids, ours)
    export(str(clip_run), "openclip", str(tmp_path / "openclip"))
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'openclip'}")
    # but for the last, whose ligature open_clip repairs before
    np.testing.assert_array_equal(theirs(texts[:2]).numpy(), ours[:2])


@needs_torch
def test_every_timm_vit_is_as_the_table_has_it():
    """Built without memory: sizes, heads and activation of each name that OpenCLIP may be given."""
    import timm
    import torch

    for (pool, width, depth), kind in TIMM.items():
        for patch_size, sizes in kind.sizes.items():
            name = kind.name.format(patch_size, sizes[-1])
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
            block = model.blocks[0]
            found = (model.embed_dim, len(model.blocks), block.attn.num_heads,
                     block.mlp.fc1.out_features, model.patch_embed.patch_size[0])  # fmt: skip
            assert found == (width, depth, kind.num_heads, kind.mlp_width, patch_size), name
            is_tanh = "tanh" in f"{type(block.mlp.act).__name__} {block.mlp.act}".lower()
            assert is_tanh == (timm_activation(name) == "gelu_tanh"), name
            assert (model.attn_pool is not None) == (pool == "map"), name
            assert (model.cls_token is not None) == (pool == "class_token"), name
            assert timm_sizes(name) == (pool, width, depth)
            for size in sizes:
                assert timm.is_model(kind.name.format(patch_size, size))


@needs_torch
def test_an_export_with_a_bert_needs_nothing_else(tmp_path, monkeypatch):
    """No hub, no folder beside it: its own config.json, by --bert's default."""
    import open_clip

    importlib.import_module("tests.models.pretrained.make_fixtures")
    for sizes, kind in TINY_TIMM.items():
        monkeypatch.setitem(TIMM, sizes, kind)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = write_folder(tmp_path / "biomedclip", read_fixture("openclip_biomedclip"))
    lines = export(str(source), "openclip", str(tmp_path / "out"))
    assert any("Read back: parameters equal" in line for line in lines)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    assert model.text.config.hidden_size == 128
