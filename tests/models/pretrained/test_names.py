"""Every tensor of the published models, by lists of their names and shapes alone; no weights."""

import ast
import functools
import json
import pathlib

import numpy as np
import pytest

from jaxclip.models.bert import BertConfig
from jaxclip.models.pretrained import big_vision, huggingface, openclip, param_shapes
from jaxclip.models.pretrained.files import Tensor, Weights
from jaxclip.models.pretrained.table import match
from jaxclip.models.resnet import ResNetConfig

LISTS = pathlib.Path(__file__).parents[3] / "../shared/reference/state_dicts"
FORMATS = {"bv": big_vision, "openclip": openclip, "hf": huggingface}
CONFIGS = {  # of Hugging Face's: what is none of the class's defaults
    "hf_clip_vitb16": {"model_type": "clip", "vision_config": {"patch_size": 16}},
    "hf_siglip_b16": {"model_type": "siglip"},
    "hf_siglip2_naflex_b16": {"model_type": "siglip2"},
}
# name of a list: the kind of model that the names and shapes must lead to, its million parameters
STATE_DICTS = {
    "bv_siglip_b16_224": ("siglip", 203.16),
    "bv_siglip2_b16_256": ("siglip", 375.23),
    "bv_siglip2_b16_naflex": ("naflex", 375.23),
    "bv_siglip2_so400m14_224": ("siglip", 1135.5),
    "bv_siglip2_gopt16_256": ("siglip", 1871.4),
    "openclip_ViT-B-16": ("clip", 149.62),
    "openclip_ViT-L-14": ("clip", 427.62),
    "openclip_ViT-B-16-SigLIP": ("siglip", 203.16),
    "openclip_ViT-B-16-SigLIP2": ("siglip", 375.19),
    "openclip_RN50": ("resnet", 102.06),  # 53,120 are statistics of batch norm
    "openclip_BiomedCLIP_recipe": ("bert", 195.9),
    "hf_clip_vitb16": ("clip", 149.62),
    "hf_siglip_b16": ("siglip", 203.16),
    "hf_siglip2_naflex_b16": ("naflex", 203.2),  # the list is of SigLIP's vocabulary
}


def described(name, folder):
    """The family of a list; zeros that take no memory."""
    file = LISTS / f"{name}.txt"
    if not file.exists():
        pytest.skip(f"needs ../shared/reference/state_dicts/{name}.txt")
    rows = (line.split("\t") for line in file.read_text().splitlines() if "\t" in line)
    shapes = {row[0]: ast.literal_eval(row[1]) for row in rows}
    zeros = functools.partial(np.broadcast_to, np.float32(0))
    weights = Weights({k: Tensor(s, functools.partial(zeros, s)) for k, s in shapes.items()})
    (folder / "config.json").write_text(json.dumps(CONFIGS.get(name, {})))
    module = FORMATS[name.split("_")[0]]
    return module.describe(module.recognise(weights), folder)


def kinds_of(model):
    image = model.image
    found = {
        "resnet": isinstance(image, ResNetConfig),
        "bert": isinstance(model.text, BertConfig),
        "naflex": getattr(image, "naflex", False),
        "siglip": getattr(image, "pool", "") == "map" and not getattr(image, "naflex", False),
        "clip": getattr(image, "pre_norm", False),
    }
    return [kind for kind, is_so in found.items() if is_so]


@pytest.mark.parametrize("name", STATE_DICTS)
def test_every_tensor_of_a_published_model_has_its_place(name, tmp_path):
    family = described(name, tmp_path)
    kind, millions = STATE_DICTS[name]
    assert kinds_of(family.model) == [kind]
    family.model.validate(family.image.size)
    wanted = param_shapes(family.model, family.inputs)
    matched, missing, unused = match(family.rules, family.weights, wanted)
    assert not missing
    assert all("num_batches_tracked" in name for name in unused)
    ours = {path for rule, _ in matched for path in rule.ours}
    assert set(wanted) - ours <= {"logit_bias"}
    for rule, blocks in matched:
        for names in blocks:
            values = rule.read(*(family.weights[name] for name in names))
            for path, value in zip(rule.ours, values, strict=True):
                expected = wanted[path][1:] if "{i}" in rule.theirs[0] else wanted[path]
                assert value.shape == expected, path
    total = sum(int(np.prod(shape)) for shape in wanted.values()) / 1e6
    assert total == pytest.approx(millions, abs=0.06)


def test_giant_opt_has_an_image_and_a_text_tower_of_different_sizes(tmp_path):
    model = described("bv_siglip2_gopt16_256", tmp_path).model
    image, text = model.image.transformer, model.text.transformer
    assert (image.width, image.depth, image.num_heads) == (1536, 40, 16)
    assert (text.width, text.depth, text.num_heads, text.mlp_width) == (1152, 27, 16, 4304)


def test_coca_is_refused(tmp_path):
    with pytest.raises(ValueError, match="it is a CoCa model"):
        described("openclip_coca_ViT-B-32", tmp_path)
