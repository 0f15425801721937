"""A file that is not all of what its config describes is told, and so is what is assumed."""

import functools
import importlib.util
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxclip
from jaxclip.models.pretrained import (
    FORMATS,
    load_params,
    open_checkpoint,
    openclip,
    param_shapes,
)
from jaxclip.models.pretrained.files import Tensor, Weights, open_weights
from jaxclip.models.pretrained.table import match
from tests.models.pretrained.fixtures import (
    NAMES,
    embeddings,
    read_fixture,
    tensors_of,
    write_folder,
)


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_can_be_missing_unnoticed(name, tmp_path):
    """Each single one: a smaller model is not what was asked for."""
    folder = write_folder(tmp_path / name, read_fixture(name))
    weights = open_weights(folder)
    module = next(m for m in FORMATS if m.recognise(weights) is not None)
    whole = module.describe(module.recognise(weights), folder)
    wanted = param_shapes(whole.model, whole.inputs)
    wanted = {path: s for path, s in wanted.items() if path.split("/")[0] in whole.towers}
    used = [n for n in whole.weights if n not in match(whole.rules, whole.weights, wanted)[2]]
    for left_out in used:
        rest = {n: Tensor(whole.weights.shape(n), functools.partial(whole.weights.__getitem__, n))
                for n in whole.weights if n != left_out}  # fmt: skip
        try:
            family = module.describe(Weights(rest), folder)
        except ValueError:
            continue
        assert family.model == whole.model and family.towers == whole.towers, left_out
        assert match(family.rules, rest, wanted)[1] == [left_out]


def rewritten(folder, change):
    """The folder with other tensors."""
    (file,) = folder.glob("*.safetensors")
    tensors = change(safetensors.numpy.load_file(file))
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    return str(folder)


def without(*parts):
    return lambda tensors: {k: v for k, v in tensors.items() if not any(p in k for p in parts)}


@pytest.mark.parametrize(
    ("name", "left_out", "said"),
    [
        ("hf_clip_gelu", ["vision_model.encoder.layers.2."],
         "num_hidden_layers is 3 in the config and 2 in the weights"),
        ("hf_clip_gelu", ["text_projection"], "no tensor 'text_projection.weight'"),
        ("hf_clip_gelu", ["text_model", "text_projection"], "have only the image tower"),
        ("hf_siglip", ["vision_model.head."], "lacks 11 tensors .*: vision_model.head.probe"),
        ("hf_bert", ["encoder.layer.1."], "num_hidden_layers is 2 in the config and 1 in"),
        ("hf_vit", ["encoder.layer.2."], "num_hidden_layers is 3 in the config and 2 in"),
        ("openclip_vit", ["visual.transformer.resblocks.2."],
         "vision_cfg.layers is 3 in the config and 2 in the weights"),
        ("openclip_vit", ["resblocks.1."], "text_cfg.layers is 2 in the config and 1 in"),
        ("openclip_siglip2", ["text.text_projection"], "lacks 2 tensors"),
        ("openclip_siglip2", ["text.transformer.resblocks.1."], "text_cfg.layers is 2 in the"),
        ("openclip_siglip2", ["visual.trunk.attn_pool"], "timm_pool|isqrt|no tensor"),
        ("openclip_biomedclip", ["text.proj."], "lacks 2 tensors .*text.proj.0.weight"),
        ("openclip_biomedclip", ["visual.head"], "no tensor 'visual.head.proj.weight'"),
        ("openclip_resnet", ["visual.layer4.1."], r"vision_cfg.layers is \[2, 1, 2, 2\] in the"),
    ],
)  # fmt: skip
def test_a_smaller_model_than_its_config_is_refused(name, left_out, said, tmp_path):
    folder = rewritten(write_folder(tmp_path / name, read_fixture(name)), without(*left_out))
    with pytest.raises(ValueError, match=said):
        load_params(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("name", "file", "change", "said"),
    [
        ("hf_clip_gelu", "config.json", {"projection_dim": 41},
         "projection_dim is 41 in the config and 40 in the weights"),
        ("hf_bert", "config.json", {"vocab_size": 100}, "vocab_size is 100 in the config and 99"),
        ("hf_vit", "config.json", {"image_size": 64}, "image_size is 64 in the config and 32"),
        ("openclip_vit", "open_clip_config.json", {"model_cfg.embed_dim": 41},
         "embed_dim is 41 in the config and 40"),
        ("openclip_vit", "open_clip_config.json", {"model_cfg.text_cfg.context_length": 77},
         "text_cfg.context_length is 77 in the config and 12"),
        ("openclip_siglip2", "open_clip_config.json",
         {"model_cfg.vision_cfg.timm_model_name": "vit_base_patch16_siglip_224"},
         r"are \('map', 768, 12\), and the weights have \('map', 128, 2\)"),
        ("openclip_vit", "open_clip_config.json", {"model_cfg.vision_cfg.ls_init_value": 0.1},
         r"vision_cfg.ls_init_value \(0.1\) is not supported"),
    ],
)  # fmt: skip
def test_a_config_of_another_model_is_refused(name, file, change, said, tmp_path):
    folder = write_folder(tmp_path / name, read_fixture(name))
    values = json.loads((folder / file).read_text())
    for path, value in change.items():
        *owners, field = path.split(".")
        functools.reduce(dict.__getitem__, owners, values)[field] = value
    (folder / file).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=said):
        load_params(open_checkpoint(str(folder)))


def test_parts_of_a_block_that_are_not_built_here_are_refused(tmp_path):
    """Layer scale without a config that says so: the model would compute something else."""
    folder = write_folder(tmp_path / "clip", read_fixture("openclip_vit"))
    (folder / "open_clip_config.json").unlink()
    name = "visual.transformer.resblocks.0.ls_1.gamma"
    rewritten(folder, lambda tensors: tensors | {name: np.zeros(96, np.float32)})
    with pytest.raises(ValueError, match=f"1 tensors in its blocks .*: {name}"):
        load_params(open_checkpoint(str(folder)))


# --- What a file does not say


def openclip_file(tmp_path, name="openclip_vit", file="model.safetensors", **more):
    """The weights alone, without a config."""
    path = tmp_path / file
    safetensors.numpy.save_file(tensors_of(read_fixture(name)) | more, path)
    return open_checkpoint(str(path))


def test_activation_of_openclip_weights_without_config(tmp_path):
    def activation(family):
        found = {t.transformer.activation for t in (family.model.image, family.model.text)}
        assert len(found) == 1
        return found.pop()

    plain = openclip_file(tmp_path)
    assert activation(plain) == "gelu" and "the file does not say" in plain.assumed[0]
    named = openclip_file(tmp_path, file="vit_b_32-quickgelu-laion400m.safetensors")
    assert activation(named) == "quick_gelu" and "as the name" in named.assumed[0]
    # a folder's name says nothing
    (tmp_path / "quickgelu").mkdir()
    assert activation(openclip_file(tmp_path / "quickgelu")) == "gelu"
    openai = openclip_file(tmp_path, file="openai.safetensors", input_resolution=np.array(32))
    assert activation(openai) == "quick_gelu"
    assert not any("activation" in line for line in openai.assumed)
    config = {"model_cfg": {"quick_gelu": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert activation(openclip_file(tmp_path)) == "quick_gelu"


def test_a_clip_with_logit_bias_is_no_siglip(tmp_path):
    """Trained by OpenCLIP with its sigmoid loss: --siglip with CLIP's towers."""
    fixture = read_fixture("openclip_vit")
    fixture["tensors"]["logit_bias"] = []
    fixture["files"]["open_clip_config.json"]["model_cfg"]["init_logit_bias"] = -10
    folder = write_folder(tmp_path / "clip", fixture)
    for path in (folder, folder / "open_clip_model.safetensors"):  # with the config, and without
        if path != folder:
            (folder / "open_clip_config.json").unlink()
        family = open_checkpoint(str(path))
        assert family.model.text.is_causal and family.model.text.pool == "eot"
        assert family.model.text.transformer.norm_epsilon == 1e-5
        params, report = load_params(family)
        assert "logit_bias" in report.loaded and family.tokenizer.clean == "auto"
        assert family.image.resize == "center_crop"


def test_what_was_assumed_or_left_out_is_said_on_loading(tmp_path, caplog):
    openclip_file(tmp_path, more=np.zeros(3, np.float32))
    model = jaxclip.load(str(tmp_path / "model.safetensors"))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in (
        "(OpenCLIP): Loaded",
        "In the file, but not used (1): more",
        "Assumed: activation",
    ):
        assert part in record.message
    assert model.report.unused == ["more"]


# Of OpenCLIP's model configs, as width / head_width and as heads.
@pytest.mark.parametrize(
    ("name", "image", "text"),
    [
        ("ViT-S-16", (384, 6), (384, 6)),
        ("ViT-B-16", (768, 12), (512, 8)),
        ("ViT-L-14", (1024, 16), (768, 12)),
        ("ViT-H-14", (1280, 16), (1024, 16)),  # 80 a head
        ("ViT-g-14", (1408, 16), (1024, 16)),
        ("ViT-bigG-14", (1664, 16), (1280, 20)),
    ],
)
def test_heads_of_a_file_without_config(name, image, text):
    """Their number is in no shape."""
    (D, image_heads), (W, text_heads) = image, text
    block = "transformer.resblocks.0.mlp.c_fc.weight"
    shapes = {
        "visual.conv1.weight": (D, 3, 14, 14), "visual.positional_embedding": (257, D),
        "visual.proj": (D, 64), f"visual.{block}": (4 * D, D), "logit_scale": (),
        "positional_embedding": (77, W), "token_embedding.weight": (99, W),
        "text_projection": (W, 64), block: (4 * W, W),
    }  # fmt: skip
    model = openclip.describe(Weights({k: Tensor(s, dict) for k, s in shapes.items()}), None).model
    assert model.image.transformer.num_heads == image_heads
    assert model.text.transformer.num_heads == text_heads
    if importlib.util.find_spec("open_clip"):
        import open_clip

        said = open_clip.get_model_config(name)
        assert D // said["vision_cfg"].get("head_width", 64) == image_heads
        assert (said["text_cfg"]["width"], said["text_cfg"]["heads"]) == text


# --- One tower


def test_a_vit_of_timm_alone(tmp_path):
    """Saved by timm itself: the names of its trunk, and nothing else."""
    fixture = read_fixture("openclip_biomedclip")
    whole = load_params(open_checkpoint(str(write_folder(tmp_path / "whole", fixture))))[0]
    start = "visual.trunk."
    trunk = {k.removeprefix(start): x for k, x in tensors_of(fixture).items() if start in k}
    trunk["head.weight"] = np.zeros((9, 128), np.float32)  # of its classes
    safetensors.numpy.save_file(trunk, tmp_path / "model.safetensors")
    family = open_checkpoint(str(tmp_path / "model.safetensors"))
    assert family.towers == ("image",) and not family.model.image_projection
    params, report = load_params(family)
    assert report.unused == [f"{start}head.weight"]
    del whole["image"]["projection"]
    jax.tree.map(np.testing.assert_array_equal, params["image"], whole["image"])


@pytest.mark.parametrize(
    ("name", "tower", "architecture"),
    [("hf_clip_gelu", "image", "CLIPVisionModel"), ("hf_clip_gelu", "text", "CLIPTextModel"),
     ("hf_siglip", "image", "SiglipVisionModel"), ("hf_siglip", "text", "SiglipTextModel")],
)  # fmt: skip
def test_one_tower_alone_is_loaded_and_embeds(name, tower, architecture, tmp_path):
    fixture = read_fixture(name)
    start = {"image": "vision", "text": "text"}[tower]
    config = fixture["files"]["config.json"]
    kind = {"model_type": f"{config['model_type']}_{start}_model", "architectures": [architecture]}
    fixture["files"] = {"config.json": config[f"{start}_config"] | kind}
    fixture["tensors"] = {
        k: v for k, v in fixture["tensors"].items() if k.startswith(f"{start}_model.")
    }
    model = jaxclip.load(str(write_folder(tmp_path / "tower", fixture)))
    assert model.family.towers == (tower,) and not model.report.fresh and not model.report.unused
    if name == "hf_siglip":  # its towers have all that embeddings need
        other = {"image": "text", "text": "image"}[tower]
        del fixture[f"{other}_embedding"]
        for key, ours in embeddings(model.family, model.params, fixture).items():
            # unit vectors; float32 on both sides, sums in another order
            np.testing.assert_allclose(ours, fixture[key], atol=1e-5)
    elif tower == "image":
        assert model.encode_image([np.zeros((9, 7, 3), np.uint8)]).shape == (1, 48)


def test_pixels_beyond_the_last_whole_patch_are_told(tmp_path):
    """As in siglip-so400m-patch14-384."""
    fixture = read_fixture("hf_siglip")
    fixture["files"]["config.json"]["vision_config"]["image_size"] = 37
    family = open_checkpoint(str(write_folder(tmp_path / "siglip", fixture)))
    assert family.image.size == 32 and "transformers resizes to 37" in family.assumed[0]


def with_preprocessor(tmp_path, **values):
    fixture = read_fixture("hf_clip_gelu")
    before = fixture["files"].get("preprocessor_config.json", {})
    fixture["files"]["preprocessor_config.json"] = before | values
    return open_checkpoint(str(write_folder(tmp_path / "clip", fixture))).image


def test_what_a_preprocessor_leaves_out_is_left_out_here(tmp_path):
    """(x * factor - mean) / std, of x in 0..255, each step if it is done."""
    x = np.array([[0.0, 51, 255]])
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def normalised(**values):
        image = with_preprocessor(tmp_path, image_mean=mean, image_std=std, **values)
        return (x / 255 - image.mean) / image.std

    for values, expected in (
        ({}, (x / 255 - mean) / std),
        ({"do_normalize": False}, x / 255),
        ({"do_rescale": False}, (x - mean) / std),
        ({"do_rescale": False, "do_normalize": False}, x),
        ({"rescale_factor": 1 / 127.5}, (x / 127.5 - mean) / std),
    ):
        np.testing.assert_allclose(normalised(**values), expected, rtol=1e-6, err_msg=str(values))
    assert with_preprocessor(tmp_path, image_mean=mean).mean == mean  # and no rounding by the way


def test_sizes_of_a_preprocessor(tmp_path):
    plain = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    image = with_preprocessor(tmp_path, **plain, size={"shortest_edge": 32})
    assert image.resize == "center_crop" and image.size == 32
    # until 2022: numbers, of the short side where there is a crop
    image = with_preprocessor(tmp_path, size=32, crop_size=32, do_center_crop=True)
    assert image.resize == "center_crop"
    assert with_preprocessor(tmp_path, size=32).resize == "squash"
    both = {"height": 32, "width": 32}
    assert with_preprocessor(tmp_path, size=both).resize == "squash"
    assert with_preprocessor(tmp_path, **plain, size=both).resize == "squash"
    said = r"size \(48\) of preprocessor_config.json must be crop_size \(32\)"
    with pytest.raises(ValueError, match=said):
        with_preprocessor(tmp_path, **plain, size={"shortest_edge": 48})
    with pytest.raises(ValueError, match=r"do_resize \(False\)"):
        with_preprocessor(tmp_path, do_resize=False)
