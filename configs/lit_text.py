r"""How far does a locked text tower carry? LiT (arXiv:2111.07991) the other way round.

Starts from the BERT or CLIP text tower named after the colon and keeps it as it is; a small image
tower and both projections learn to meet it. Sized for a thousand PMC figures on 2
CPU cores; tried there for 8 steps only (loss 5.20 -> 5.05): what it reaches is not measured yet.

  python -m jaxclip.train --config=configs/lit_text.py:CHECKPOINT --config.data.path=DATASET \
      --workdir=RUN
"""

from configs.common import named_model, tiny_clip
from jaxclip.config import TrainConfig
from jaxclip.optimizer import Duration


def get_config(checkpoint: str = "") -> TrainConfig:
    family = named_model(checkpoint, "lit_text")
    config = tiny_clip(image_size=64, patch_size=16, context_length=64)
    config.duration = Duration(amount=20, unit="epochs")
    config.init_text = checkpoint
    config.model.text = family.model.text
    config.data.tokenizer = family.tokenizer
    config.data.tokenizer.context_length = min(64, family.tokenizer.context_length)
    config.optimizer.freeze = ("text/(?!projection).*",)
    return config
