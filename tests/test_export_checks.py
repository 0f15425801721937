"""Exports that are refused, with what to do instead, and what an export is compared by."""

import importlib

import jax
import pytest

from jaxclip.export import check, export
from jaxclip.export import write_folder as write_folder_of
from jaxclip.models import clip
from jaxclip.models.pretrained import load_params, open_checkpoint
from jaxclip.models.pretrained.folders import formats_with_place
from jaxclip.models.pretrained.table import Report
from jaxclip.models.pretrained.timm_vit import TIMM
from tests.models.pretrained.fixtures import read_fixture, write_folder
from tests.test_export import TINY_TIMM


def siglip_as_trained_here(tmp_path, monkeypatch):
    """(family, parameters) with the tanh GELU in both towers, as configs/siglip_vit_b16.py."""
    for sizes, kind in TINY_TIMM.items():
        monkeypatch.setitem(TIMM, sizes, kind)
    family = open_checkpoint(str(write_folder(tmp_path / "s", read_fixture("openclip_siglip2"))))
    assert family.model.image.transformer.activation == "gelu"  # what timm makes of that name
    family.model.image.transformer.activation = "gelu_tanh"
    return family, load_params(family)[0]


def written(family, params, to, out):
    out.mkdir()
    return write_folder_of(family, params, None, to, out, str(out), "source")


def test_a_siglip_of_ours_is_itself_again_after_openclip(tmp_path, monkeypatch):
    """timm's ViT of these sizes computes another GELU: that is said, and read back as ours."""
    family, params = siglip_as_trained_here(tmp_path, monkeypatch)
    notes = written(family, params, "openclip", tmp_path / "out")
    (note,) = (line for line in notes if "open_clip computes gelu in the image tower" in line)
    assert 1e-6 < float(note.rpartition(" ")[2]) < 1e-3
    (line,) = check(family, params, "openclip", tmp_path / "out")
    assert line == "Read back: parameters equal, embeddings within 0.0e+00"
    assert open_checkpoint(str(tmp_path / "out")).model == family.model


@pytest.mark.parametrize("to", ["hf", "openclip", "big_vision"])
def test_what_reads_back_as_another_model_is_no_export(to, tmp_path, monkeypatch):
    """Parameters or function: check() reads the folder, and not what it was made of."""
    for sizes, kind in TINY_TIMM.items():
        monkeypatch.setitem(TIMM, sizes, kind)
    name = "openclip_siglip2" if to == "openclip" else "hf_siglip"
    family = open_checkpoint(str(write_folder(tmp_path / "s", read_fixture(name))))
    params = load_params(family)[0]
    written(family, params, to, tmp_path / "out")
    other = jax.tree.map(lambda x: x, params)
    other["text"]["final_norm"]["bias"] = params["text"]["final_norm"]["bias"] + 1e-6
    with pytest.raises(ValueError, match="does not read back .*: text/final_norm/bias differs"):
        check(family, other, to, tmp_path / "out")
    if to != "hf":
        return  # one format is enough for the rest, which compiles two models
    family.model.text.transformer.norm_epsilon = 1e-2
    with pytest.raises(ValueError, match="does not read back .*: embeddings differ by 0.0"):
        check(family, params, to, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("openclip_biomedclip", "hf", r"model.text \(BertConfig\) has no place in --to=hf"),
        ("hf_clip_gelu", "big_vision", r"model.image.pre_norm \(True\) cannot be exported with"),
        ("hf_siglip2_naflex", "openclip", r"model.image.naflex \(True\) cannot be exported"),
        ("hf_siglip", "openclip", r"image size 32, pool 'map'\) cannot be .* timm has no such ViT"),
        ("hf_siglip", "openclip", "It can go to --to=hf and --to=big_vision"),
        ("hf_clip_gelu", "big_vision", "It can go to --to=hf and --to=openclip"),
        ("hf_clip_gelu", "onnx", r"--to \('onnx'\) must be one of hf, openclip, big_vision"),
    ],
)
def test_a_model_without_place_in_a_format_is_named(name, to, message, tmp_path):
    source = write_folder(tmp_path / name, read_fixture(name))
    with pytest.raises(ValueError, match=message):
        export(str(source), to, str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [source]  # nothing half-made


@pytest.mark.parametrize("name", ["synthetic_tiny", "mednist_tiny", "pmc_articles_tiny"])
def test_what_a_newcomer_trains_can_be_handed_on(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    image = config.data.image
    inputs = clip.Inputs(image_size=image.size, mean=image.mean, std=image.std, vocab_size=1000,
                         context_length=24, pad_id=0, eos_id=3)  # fmt: skip
    assert formats_with_place(config.model, config.data.image, inputs) == ["hf", "openclip"]


def test_a_model_that_only_jaxclip_has_is_told_so(tmp_path, monkeypatch):
    family = open_checkpoint(str(write_folder(tmp_path / "a", read_fixture("openclip_resnet"))))
    family.model.image.norm = "group"
    monkeypatch.setattr("jaxclip.export.open_model", lambda _: family)
    monkeypatch.setattr("jaxclip.export.load_params", lambda _: ({"logit_bias": 0.0}, Report()))
    with pytest.raises(ValueError, match=r"image.norm \('group'\) .* No format here has a place"):
        export("RUN", "openclip", str(tmp_path / "out"))
