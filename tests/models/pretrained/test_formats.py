"""One set of parameters in every way that checkpoints are stored."""

import importlib.util
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxclip.models.pretrained import big_vision, leaves_of, load_params, open_checkpoint
from jaxclip.models.pretrained.table import write
from tests.models.pretrained.fixtures import read_fixture, tensors_of, write_folder


def loaded(path):
    family = open_checkpoint(str(path))
    params, report = load_params(family)
    assert not report.unused and not report.fresh
    return family, leaves_of(params)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def as_bfloat16(x):
    """As np.savez writes it: NumPy has no name for the type."""
    return x.astype(ml_dtypes.bfloat16).view("V2")


@pytest.fixture
def siglip(tmp_path):
    """A family of two towers, and its leaves."""
    return loaded(write_folder(tmp_path / "siglip", read_fixture("hf_siglip")))


@pytest.mark.parametrize("start", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("scanned", [(), ("image", "text"), ("image",)])
def test_big_vision_npz(start, scanned, siglip, tmp_path):
    family, leaves = siglip
    if scanned:  # a scanned tower's blocks are one rule without {i}, on stacked arrays
        rules = big_vision.rules(family.model, scanned=scanned)
    else:
        rules = big_vision.rules(family.model)
    tensors = write(rules, leaves)
    assert any("encoderblock/" in name for name in tensors) == bool(scanned)
    np.savez(tmp_path / "a.npz", **{start + name: x for name, x in tensors.items()})
    again, found = loaded(tmp_path / "a.npz")
    assert again.model == family.model
    assert_same(found, leaves)


def test_big_vision_npz_in_bfloat16(siglip, tmp_path):
    family, leaves = siglip
    tensors = write(big_vision.rules(family.model), leaves)
    np.savez(tmp_path / "a.npz", **{f"params/{k}": as_bfloat16(x) for k, x in tensors.items()})
    assert np.load(tmp_path / "a.npz")["params/t"].dtype == np.dtype("V2")
    _, found = loaded(tmp_path / "a.npz")
    rounded = {k: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)
               for k, x in leaves.items()}  # fmt: skip
    assert_same(found, rounded)


def test_vision_transformers_of_before_2022(tmp_path):
    """AugReg's: an image tower alone, positions with a row for the class token, other names."""
    family, leaves = loaded_image_tower(tmp_path)
    rules = big_vision.rules(family.model, towers=("image",), old=True)
    tensors = {}
    for name, x in write(rules, leaves).items():
        name = name.removeprefix("img/")
        for now, before in (
            ("pos_embedding", "Transformer/posembed_input/pos_embedding"),
            ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
            ("LayerNorm_1", "LayerNorm_2"),
            ("MlpBlock_0", "MlpBlock_3"),
        ):
            name = before if name == now else name.replace(f"/{now}/", f"/{before}/")
        tensors[f"opt/target/{name}"] = x
    assert tensors["opt/target/Transformer/posembed_input/pos_embedding"].shape == (1, 17, 48)
    np.savez(tmp_path / "augreg.npz", **tensors, **{"opt/target/head/kernel": np.zeros((48, 9))})
    again = open_checkpoint(str(tmp_path / "augreg.npz"))
    assert again.towers == ("image",) and again.model.image.pool == "class_token"
    params, report = load_params(again)
    assert report.unused == ["img/head/kernel"]  # of its classes
    assert_same(leaves_of(params["image"]), leaves_of(tree(leaves)["image"]))


def tree(leaves):
    from jaxclip.models.pretrained import tree_of

    return tree_of(leaves)


def loaded_image_tower(tmp_path):
    folder = write_folder(tmp_path / "vit", read_fixture("hf_vit"))
    family = open_checkpoint(str(folder))
    leaves = leaves_of(load_params(family)[0])
    return family, {path: x for path, x in leaves.items() if path.startswith("image/")}


def test_safetensors_in_parts(tmp_path):
    fixture = read_fixture("hf_clip_gelu")
    folder = write_folder(tmp_path / "whole", fixture)
    _, expected = loaded(folder)
    (folder / "model.safetensors").unlink()
    tensors = tensors_of(fixture)
    names = sorted(tensors)
    weight_map = {}
    for i in range(3):
        part = {name: tensors[name] for name in names[i::3]}
        safetensors.numpy.save_file(part, folder / f"model-{i + 1}-of-3.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{i + 1}-of-3.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(loaded(folder)[1], expected)
    (folder / "model-2-of-3.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names model-2-of-3.safetensors, which is not th"):
        loaded(folder)


def test_a_name_on_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    folder = write_folder(tmp_path / "cache", read_fixture("hf_siglip"))
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns[-1]))
        if name == "nobody/nothing":
            raise ConnectionError("404 Client Error\nmore")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    family = open_checkpoint("hf-hub:google/siglip-tiny")
    assert family.source == "hf-hub:google/siglip-tiny" and family.towers == ("image", "text")
    assert asked == [("google/siglip-tiny", "*.safetensors")]  # no pickles where there is one
    with pytest.raises(FileNotFoundError, match="not fetched from the Hugging Face hub: .*404"):
        open_checkpoint("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="does not exist. Name a file, a folder, or"):
        open_checkpoint("./nowhere/at/all")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_a_lightning_checkpoint_with_its_optimizer(tmp_path):
    """mmlearn's, of Open-PMC: what is not the model stays in the file."""
    import torch

    fixture = read_fixture("openclip_biomedclip")
    expected = load_params(open_checkpoint(str(write_folder(tmp_path / "plain", fixture))))[0]
    state = {}
    for name, x in tensors_of(fixture).items():
        tower, _, rest = name.partition(".")
        new = f"encoders.{'rgb' if tower == 'visual' else 'text'}.model.{rest}"
        if name == "logit_scale":
            new = "postprocessors.norm_and_logit_scale.logit_scale.log_logit_scale"
        state[new] = torch.from_numpy(np.array(x))
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(9)}}
    checkpoint = {"epoch": 1, "global_step": 3, "pytorch-lightning_version": "2.4.0",
                  "state_dict": state, "optimizer_states": [{"state": moments}],
                  "hyper_parameters": {"lr": 1e-3}, "callbacks": {}}  # fmt: skip
    torch.save(checkpoint, tmp_path / "last.ckpt")
    params, report = load_params(open_checkpoint(str(tmp_path / "last.ckpt")))
    assert not report.unused and not report.fresh
    jax.tree.map(np.testing.assert_array_equal, params, expected)
