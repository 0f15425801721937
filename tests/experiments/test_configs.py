"""The configs of the real corpora: each opens, is valid, and costs what its header says."""

import importlib
import itertools
import re

import jax
import pytest

from configs import biomedical, saved
from experiments.cost import device_hours, flops_per_pair, params_of
from jaxclip.config import flatten, to_dict
from jaxclip.optimizer import Duration, param_paths
from jaxclip.workdir import write_atomically
from tests import tiny_config

CORPORA = ("open_pmc", "pmc_oa", "biomedica")


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_choice_is_valid(corpus):
    module = importlib.import_module(f"configs.{corpus}")
    seen = set()
    for choice in itertools.product(biomedical.MODELS, biomedical.RECIPES, biomedical.HARDWARE):
        config = module.get_config(",".join(choice))
        config.data.path = ("somewhere",)
        config.validate()
        devices = biomedical.HARDWARE[choice[2]][0]
        assert config.batch_size % config.micro_batch_size == 0
        assert config.micro_batch_size % devices == 0
        if choice[1] == "ours":  # the same budget for every corpus: what the study is about
            assert config.duration.amount == biomedical.MATCHED_SAMPLES
        seen.add(repr(to_dict(config)))
    assert len(seen) >= 2 * 2 * len(biomedical.HARDWARE) - 4  # choices with like micro-batches


@pytest.mark.parametrize(
    "corpus, context_length, updates, fields, append",
    [
        ("open_pmc", 512, 13_619, ("panel_caption", "caption"), ("summary",)),
        ("pmc_oa", 256, 13_685, ("caption",), ()),
        ("biomedica", 256, 48_436, ("caption",), ()),
    ],
)
def test_the_papers_recipe(corpus, context_length, updates, fields, append):
    """Number by number, as Open-PMC's scripts have them."""
    config = importlib.import_module(f"configs.{corpus}").get_config("B/16,paper,h100x8")
    optimizer, image, text = config.optimizer, config.data.image, config.data.text
    assert (optimizer.name, optimizer.peak_lr, optimizer.eps) == ("adamw", 5e-4, 1e-6)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.98, 0.2)
    assert (optimizer.grad_clip_norm, optimizer.final_lr_fraction) == (0.0, 0.0)
    assert (optimizer.schedule, optimizer.warmup) == ("cosine", Duration(amount=2000, unit="steps"))
    assert (config.batch_size, config.contrastive_batch_size) == (8192, 2048)
    assert config.duration == Duration(amount=updates * 8192, unit="samples")
    assert (config.seed, config.model.dtype, config.model.embed_dim) == (0, "bfloat16", 512)
    assert (image.size, image.crop_scale, image.crop_ratio) == (224, (0.9, 1.0), (3 / 4, 4 / 3))
    assert (image.resize, image.interpolation, image.flip_probability) == (
        "center_crop", "bicubic", 0.0,
    )  # fmt: skip
    assert image.mean == (0.48145466, 0.4578275, 0.40821073)  # OpenAI's
    assert config.data.tokenizer.context_length == context_length
    assert (text.fields, text.combine, text.append) == (fields, "first", append)
    assert config.init_image == "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert config.init_text == "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    assert (config.loss.name, config.loss.ignore, config.loss.positives) == (
        "softmax", (), "identity",
    )  # fmt: skip
    assert config.model.init_temperature == 0.07  # the scale is clipped to 100, CLIP's:
    assert (config.loss.max_logit_scale, config.loss.objective().max_logit_scale) == (-1, 100)


def test_what_decays_is_what_has_two_dimensions_in_pytorch():
    config = importlib.import_module("configs.open_pmc").get_config("B/16,paper")
    paths = jax.tree.leaves(param_paths(params_of(config)))
    pattern = config.optimizer.weight_decay_pattern
    rest = {path.split("/")[-1] for path in paths if not re.fullmatch(pattern, path)}
    assert rest == {"bias", "scale", "logit_scale", "logit_bias"}
    others = {path for path in paths if re.fullmatch(pattern, path) and "kernel" not in path}
    assert others == {
        "image/class_token", "image/position_embedding", "text/position_embedding",
        "text/token_embedding/embedding", "text/token_type_embedding",
    }  # fmt: skip


def test_ours_differs_from_the_papers_in_what_it_says():
    ours, paper = (
        flatten(to_dict(importlib.import_module("configs.pmc_oa").get_config(f"B/16,{recipe}")))
        for recipe in ("ours", "paper")
    )
    assert {field for field in ours if ours[field] != paper[field]} == {
        "contrastive_batch_size", "init_image", "init_text", "duration.amount",
        "data.text.fields", "loss.ignore", "optimizer.grad_clip_norm",
        "optimizer.warmup.amount", "optimizer.warmup.unit",
    }  # fmt: skip


def test_hardware_leaves_what_is_computed():
    of_gpu, of_tpu = (
        biomedical.on(biomedical.ours("B/16"), "B/16", h) for h in ("h100x8", "v6e-64")
    )
    for config in (of_gpu, of_tpu):
        config.micro_batch_size = 0
        for tower in (config.model.image, config.model.text):
            tower.transformer.attention = "xla"
    assert of_gpu == of_tpu


def test_an_unknown_choice_is_refused():
    for argument in ("B/32", "B/16,theirs", "B/16,ours,abacus", "B/16,ours,h100x8,x"):
        with pytest.raises(ValueError, match=re.escape(repr(argument))):
            biomedical.parse(argument)


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_header_says_the_hours(corpus):
    """`B/16 2.6 and L/14 7.9 hours on 8 H100`: FLOPs from the shapes, at 35 % MFU."""
    module = importlib.import_module(f"configs.{corpus}")
    said = re.search(r"B/16 ([\d.]+) and L/14\s+([\d.]+) hours\s+on\s+8\s+H100", module.__doc__)
    assert said, module.__doc__
    for model, hours in zip(biomedical.MODELS, said.groups(), strict=True):
        config = module.get_config(f"{model},paper")
        flops = config.duration.amount * flops_per_pair(config)
        assert float(hours) == pytest.approx(device_hours(flops, "H100") / 8, rel=0.06)


def test_a_saved_config_is_the_runs(tmp_path):
    config = tiny_config.get_config()
    import json

    write_atomically(tmp_path / "config.json", json.dumps(to_dict(config)))
    assert saved.get_config(str(tmp_path)) == config
    with pytest.raises(ValueError, match="configs/saved.py:RUN"):
        saved.get_config()
