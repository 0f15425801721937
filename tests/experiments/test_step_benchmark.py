"""The step benchmark times every kind of image tower."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import xla

ROOT = Path(__file__).parent.parent.parent
# in a process of its own: its flags are also those of other programs
PROGRAM = """
import json
from configs import clip_resnet50, clip_vit_b16
from experiments.benchmarks import step
from jaxclip.models import clip
from jaxclip.models.resnet import ResNetConfig
from tests import tiny_config

inputs = clip.Inputs(image_size=224, mean=(0.5,) * 3, std=(0.5,) * 3, vocab_size=9,
                     context_length=77, pad_id=0, eos_id=1)
sizes = [step.product_sizes(c.get_config().model, inputs, tower) for c, tower in (
    (clip_vit_b16, "image"), (clip_vit_b16, "text"), (clip_resnet50, "image"))]

resnet, naflex = tiny_config.get_config(), tiny_config.get_config()
resnet.model.image = ResNetConfig(stages=(1, 1), stem_width=8, num_heads=2, norm="group")
naflex.model.image.naflex, naflex.model.image.pre_norm = True, False
naflex.data.image.naflex_patch_size = 8
for config in (resnet, naflex):
    config.model.text.transformer.dropout = config.optimizer.ema_decay = 0.0  # compiles sooner
found = [step.benchmark(config, vocab_size=9, steps=1, repeats=1) for config in (resnet, naflex)]
print(json.dumps([sizes, found]))
"""


def test_every_image_tower_is_timed():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(devices=1)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    sizes, found = json.loads(done.stdout.splitlines()[-1])
    # ViT-B/16: 14 x 14 patches; CLIP's text; ResNet-50: 7 x 7 positions of 2048 channels
    assert sizes == [[196, 768, 3072], [77, 512, 2048], [49, 2048, 512]]
    for one in found:
        assert one["pairs_per_second"]["median"] > 0
        assert 0 < one["mfu_of_limit"] < 1
