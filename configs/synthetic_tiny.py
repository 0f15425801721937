r"""Does everything work here? A tiny CLIP on drawn figures whose captions say what is on them.

About 3 minutes on 2 CPU cores; recall@1 is many times chance.

  python -m data_pipelines.synthetic --out=DATASET --size=8000
  python -m jaxclip.train --config=configs/synthetic_tiny.py --config.data.path=DATASET \
      --workdir=RUN
"""

from configs.common import tiny_clip
from jaxclip.config import TrainConfig
from jaxclip.optimizer import Duration


def get_config() -> TrainConfig:
    config = tiny_clip(image_size=64, patch_size=16, context_length=24)
    config.duration = Duration(amount=32_000, unit="samples")
    return config
