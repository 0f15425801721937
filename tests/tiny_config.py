"""A run of 24 steps that takes seconds: what the tests of the trainer train."""

from jaxclip.config import TrainConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig
from jaxclip.optimizer import Duration


def get_config() -> TrainConfig:
    config = TrainConfig(batch_size=16, duration=Duration(amount=24, unit="steps"))
    config.data.image.size = 16
    config.data.image.crop_scale = (0.5, 1.0)
    config.data.tokenizer.context_length = 12
    config.data.num_threads = 2
    # dropout: a resumed run must draw the same masks
    transformer = TransformerConfig(width=16, depth=2, num_heads=2, dropout=0.1)
    config.model = ClipConfig(
        image=ViTConfig(patch_size=8, transformer=transformer, pool="mean"),
        text=TextConfig(transformer=transformer),
        embed_dim=8,
        dtype="float32",
    )
    config.optimizer.ema_decay = 0.9
    config.checkpoint.every = 4
    config.eval.every = 8
    config.log.every = 4
    config.log.tensorboard = False
    return config
