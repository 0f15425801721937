r"""Does it help that panels of one figure are no negatives of each other?

Open-PMC-18M gives every panel the caption of its whole figure, so the plain loss pushes each panel
away from the very text that it is pulled to. Here pairs of one figure, one caption or one image are
left out of the loss; a run logs their share as pairs_ignored. The baseline is clip_vit_b16: same
data, budget and time. Not yet run.

  python -m jaxclip.train --config=configs/clip_vit_b16_panels.py --config.data.path=DATASET \
      --workdir=RUN
"""

from configs import clip_vit_b16
from jaxclip.config import TrainConfig


def get_config() -> TrainConfig:
    config = clip_vit_b16.get_config()
    config.loss.ignore = ("same_figure", "same_caption", "same_image")
    return config
