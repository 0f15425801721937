"""Parts that several configs share."""

from jaxclip.config import TrainConfig
from jaxclip.data.image import ImageConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.pretrained.family import Family
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig
from jaxclip.optimizer import Duration
from jaxclip.start import open_model


def tiny_clip(*, image_size: int, patch_size: int, context_length: int) -> TrainConfig:
    """A CLIP of about 2 M parameters for 2 CPU cores: 4 layers of width 128 a tower, float32."""
    config = TrainConfig(batch_size=128)
    config.data.image = ImageConfig(
        size=image_size, crop_scale=(0.7, 1.0), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    config.data.tokenizer.context_length = context_length
    config.model = ClipConfig(
        image=ViTConfig(patch_size=patch_size, transformer=tiny_transformer()),
        text=TextConfig(transformer=tiny_transformer()),
        embed_dim=128,
        dtype="float32",
    )
    config.optimizer.peak_lr = 1e-3
    config.optimizer.warmup = Duration(amount=5, unit="percent")
    config.checkpoint.every = 200
    config.eval.every = 200
    config.log.every = 20
    return config


def study_clip(*, context_length: int) -> TrainConfig:
    """Half of that width and depth, for studies of many runs: half a minute each on one core."""
    config = tiny_clip(image_size=64, patch_size=16, context_length=context_length)
    config.model.image.pool = "mean"  # as the studies were run; it has no place in other formats
    for tower in (config.model.image, config.model.text):
        tower.transformer.width, tower.transformer.depth, tower.transformer.num_heads = 64, 2, 2
    config.model.embed_dim = 64
    config.eval.split = ""  # a study scores its runs when they are done
    config.log.tensorboard = False
    return config


def open_pmc_optimizer(config: TrainConfig) -> None:
    """AdamW as Open-PMC ran it: VectorInstitute/pmc-data-extraction, pmcoa2_matched.yaml.

    Gradients are not clipped. All that has two dimensions or more in PyTorch decays (mmlearn,
    tasks/base.py): of what has no kernel, the class token and all embeddings.
    """
    config.optimizer.peak_lr = 5e-4
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.weight_decay_pattern = r"(.*/)?(kernel|class_token|(\w+_)?embedding)"
    config.optimizer.grad_clip_norm = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = Duration(amount=2000, unit="steps")


def tiny_transformer() -> TransformerConfig:
    # unrolled, and without erf or tanh: faster on a CPU
    return TransformerConfig(width=128, depth=4, num_heads=4, activation="quick_gelu", scan=False)


def named_model(checkpoint: str, config: str) -> Family:
    """What stands after the colon of --config=configs/CONFIG.py:CHECKPOINT."""
    if not checkpoint:
        raise ValueError(
            f"--config=configs/{config}.py must name a checkpoint: "
            f"--config=configs/{config}.py:CHECKPOINT."
        )
    return open_model(checkpoint)
