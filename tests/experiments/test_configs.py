"""The configs of the real corpora: each opens, is valid, and costs what its header says."""

import importlib
import itertools
import re

import pytest

from configs import biomedical, saved
from experiments.cost import device_hours, flops_per_pair
from jaxclip.config import to_dict
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
