r"""What does a convolutional image tower reach on the data and budget of configs/clip_vit_b16.py?

CLIP's ResNet-50 (Radford et al. 2021, arXiv:2103.00020, section 2.4), which PMC-CLIP, ConVIRT and
MedCLIP build on, from scratch with group normalisation in place of batch normalisation: see
models/resnet.py. 18 GFLOP a pair forward: about half of ViT-B/16's (computed, not measured).

  python -m jaxclip.train --config=configs/clip_resnet50.py --config.data.path=DATASET --workdir=RUN

To start from PMC-CLIP or OpenAI's weights: --config=configs/fine_tune.py:CHECKPOINT.
"""

from configs import clip_vit_b16
from jaxclip.config import TrainConfig
from jaxclip.models.resnet import ResNetConfig


def get_config() -> TrainConfig:
    config = clip_vit_b16.get_config()
    config.model.image = ResNetConfig(norm="group")
    config.model.embed_dim = 1024
    return config
