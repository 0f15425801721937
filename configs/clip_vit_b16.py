r"""What does CLIP ViT-B/16 reach on this dataset? The baseline at the published corpora's scale.

Open-PMC's optimizer (AdamW 5e-4, betas 0.9/0.98, weight decay 0.2, cosine after 2,000 steps) and
crops (90 to 100 %), from scratch and therefore with gradients clipped at norm 1, which theirs are
not; at the 112 million samples seen of its PMC-OA run, so that datasets of different size get the
same compute. 123 GFLOP a pair and step: about 11 hours on one H100 at 35 % MFU (computed, not
measured). If memory is short: --config.model.image.transformer.remat=dots.

  python -m jaxclip.train --config=configs/clip_vit_b16.py --config.data.path=DATASET \
      --workdir=RUN --config.data.tokenizer.path=bpe_simple_vocab_16e6.txt.gz
"""

from configs.common import open_pmc_optimizer
from jaxclip.config import TrainConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.vit import vit
from jaxclip.optimizer import Duration


def get_config() -> TrainConfig:
    config = TrainConfig(batch_size=2048, duration=Duration(amount=112_000_000, unit="samples"))
    config.model = ClipConfig(image=vit("B", 16))
    open_pmc_optimizer(config)
    config.optimizer.grad_clip_norm = 1.0
    return config
