r"""Does the whole path work on real figures? A tiny CLIP on about a thousand PMC figures.

It learns them by heart (loss far below log 128 = 4.85) and generalises little: a check of the path,
not a result. About 6 minutes on 2 CPU cores.

  python -m data_pipelines.table --table=figures.jsonl --images=FOLDER --image=file \
      --caption=caption --group=pmcid --out=DATASET
  python -m jaxclip.train --config=configs/pmc_articles_tiny.py --config.data.path=DATASET \
      --workdir=RUN
"""

from configs.common import tiny_clip
from jaxclip.config import TrainConfig
from jaxclip.optimizer import Duration


def get_config() -> TrainConfig:
    config = tiny_clip(image_size=64, patch_size=16, context_length=64)
    config.duration = Duration(amount=40, unit="epochs")
    return config
