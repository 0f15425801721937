"""Budgets and the transfer of learning rates, against numbers one can check by hand."""

import pytest

from configs import biomedical
from experiments.cost import device_hours, flops_per_pair
from experiments.designs import fixed_compute, fixed_epochs, transfer
from jaxclip.models.vit import vit
from tests import tiny_config


def test_budgets():
    config = tiny_config.get_config()
    assert fixed_epochs(300, 32) == 9600
    flops = flops_per_pair(config)
    assert fixed_compute(flops * 16 * 10.7, config) == 160  # 10 whole batches of 16


def test_flops_of_a_vit_by_the_book():
    # ViT-B/16: 196 patches and a class token, 12 blocks of 12 D^2 a token and 2 T^2 D, the patches'
    # embedding and the projection; BERT at 256 positions and an MLP of (768 + 512) / 2
    T, D = 197, 768
    image = 196 * D * D + 12 * (T * 12 * D**2 + 2 * T**2 * D) + D * 512
    text = 12 * (256 * 12 * D**2 + 2 * 256**2 * D) + (D + 512) ** 2 // 2
    assert flops_per_pair(biomedical.base("B/16", 256)) == pytest.approx(3 * 2 * (image + text))


def test_hours_of_a_device():
    assert device_hours(989e12 * 3600, "H100", mfu=0.5) == pytest.approx(2.0)


def test_transfer_to_another_batch_is_the_square_root_rule():
    tuned, config = tiny_config.get_config(), tiny_config.get_config()
    tuned.optimizer.b1, tuned.optimizer.b2 = 0.9, 0.98
    config.batch_size = 4 * tuned.batch_size
    transfer(config, tuned)
    found = config.optimizer
    assert found.peak_lr == pytest.approx(2 * tuned.optimizer.peak_lr)
    assert (found.b1, found.b2) == (pytest.approx(0.6), pytest.approx(0.92))
    assert found.eps == pytest.approx(tuned.optimizer.eps / 2) and not found.lr_multipliers
    config.batch_size = 100 * tuned.batch_size
    with pytest.raises(ValueError, match="100 times"):
        transfer(config, tuned)


def test_transfer_to_another_width_slows_hidden_matrices_alone():
    tuned, config = biomedical.base("B/16", 64), biomedical.base("B/16", 64)
    config.model.image = vit("L", 16)  # 1024 wide, for 768; the text tower stays
    transfer(config, tuned)
    assert config.optimizer.lr_multipliers == ((r"image/.*blocks/.*/kernel", 0.75),)
    assert config.optimizer.peak_lr == tuned.optimizer.peak_lr
    flops_per_pair(config)  # whose check of patterns needs the parameters to have them
