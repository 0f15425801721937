r"""What does SigLIP ViT-B/16 reach where CLIP ViT-B/16 is the baseline? Same data, same budget.

The sigmoid loss and towers of Zhai et al. 2023 (arXiv:2303.15343): attention pooling, bidirectional
text of 64 tokens, learned bias from -10, temperature from 0.1, pixels in [-1, 1], betas 0.9/0.95.
139 GFLOP a pair and step: about 13 hours on one H100 at 35 % MFU (computed, not measured).

  python -m jaxclip.train --config=configs/siglip_vit_b16.py --config.data.path=DATASET \
      --workdir=RUN --config.data.tokenizer.path=SENTENCEPIECE_MODEL
"""

from configs import clip_vit_b16
from jaxclip.config import TrainConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.text import siglip_text
from jaxclip.models.vit import vit


def get_config() -> TrainConfig:
    config = clip_vit_b16.get_config()
    config.model = ClipConfig(
        image=vit("B", 16, family="siglip"),
        text=siglip_text(width=768, depth=12, num_heads=12),
        embed_dim=768,
        image_projection=False,
        projection_bias=True,
        init_temperature=0.1,
        init_logit_bias=-10.0,
    )
    config.loss.name = "sigmoid"
    config.data.image.mean = config.data.image.std = (0.5, 0.5, 0.5)
    config.data.image.resize = "squash"
    config.data.tokenizer.context_length = 64
    config.data.tokenizer.pad = "</s>"
    config.optimizer.b2 = 0.95
    return config
