"""What the configs of the biomedical corpora share: towers, recipe, and where they run.

Their argument is MODEL,RECIPE,HARDWARE, each with a default: configs/open_pmc.py:L/14,ours,v6e-64.
"""

from collections.abc import Callable

from configs.common import open_pmc_optimizer
from jaxclip.config import TrainConfig
from jaxclip.models.bert import BertConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.vit import ViTConfig, vit
from jaxclip.optimizer import Duration

MODELS = {"B/16": ("B", 16, 512), "L/14": ("L", 14, 768)}  # ViT, patch, embed_dim
RECIPES = ("paper", "ours")
# pairs whose activations are in memory at a time, on one device, for B/16; L/14 has a quarter
HARDWARE = {"h100x8": (8, 256), "v5e-16": (16, 32), "v5e-64": (64, 32), "v6e-16": (16, 64),
            "v6e-64": (64, 64)}  # fmt: skip
MATCHED_SAMPLES = 112_000_000  # seen by Open-PMC's own runs on Open-PMC and on PMC-OA


def choose(argument: str, paper: Callable[[TrainConfig], None]) -> TrainConfig:
    """The config that MODEL,RECIPE,HARDWARE names; `paper` makes a corpus's recipe of base()'s."""
    model, recipe, hardware = parse(argument)
    if recipe == "ours":
        return on(ours(model), model, hardware)
    config = base(model, context_length=256)
    config.duration = Duration(amount=MATCHED_SAMPLES, unit="samples")
    paper(config)
    return on(config, model, hardware)


def parse(argument: str) -> tuple[str, str, str]:
    """`"L/14,ours"` -> ("L/14", "ours", "h100x8"). Raises ValueError for an unknown one."""
    choices = (tuple(MODELS), RECIPES, tuple(HARDWARE))
    given = [part for part in argument.split(",") if part]
    if len(given) > len(choices):
        raise ValueError(f"argument ({argument!r}) must be MODEL,RECIPE,HARDWARE at most.")
    found = given + [of[0] for of in choices[len(given) :]]
    for name, value, of in zip(("model", "recipe", "hardware"), found, choices, strict=True):
        if value not in of:
            raise ValueError(f"{name} ({value!r}) in {argument!r} must be one of {', '.join(of)}.")
    return found[0], found[1], found[2]


def base(model: str, context_length: int) -> TrainConfig:
    """Open-PMC's towers, which are BiomedCLIP's, and its optimizer.

    From VectorInstitute/pmc-data-extraction, experiment/configs/pmcoa2_matched.yaml and the SLURM
    scripts beside it: timm's ViT, BiomedBERT with an MLP; AdamW 5e-4, 0.9/0.98, 0.2; batches of
    2,048 are contrasted, and of four of them an update is made. From scratch; they start from
    ImageNet's ViT and from BiomedBERT: --config.init_image=..., --config.init_text=...
    """
    size, patch_size, embed_dim = MODELS[model]
    config = TrainConfig(batch_size=8192, contrastive_batch_size=2048)
    config.model = ClipConfig(
        image=timm_vit(size, patch_size),
        text=BertConfig(),
        embed_dim=embed_dim,
        text_projection="mlp",
    )
    config.data.tokenizer.context_length = context_length
    config.data.image.crop_scale = (0.9, 1.0)
    open_pmc_optimizer(config)
    return config


def timm_vit(size: str, patch_size: int) -> ViTConfig:
    """vit("B", 16) as timm has it: no norm before the first block, biases on the patches."""
    tower = vit(size, patch_size)
    tower.pre_norm, tower.patch_bias = False, True
    tower.transformer.norm_epsilon = 1e-6
    return tower


def ours(model: str, context_length: int = 256) -> TrainConfig:
    """The same optimizer and samples for every corpus, and negatives that are none left out.

    8,192 pairs are contrasted with each other; panels of one figure are no negatives of each other;
    a panel is told by its own part of the caption where there is one; the end of the warm-up is a
    share of the run, so that short runs have one, too.
    """
    config = base(model, context_length)
    config.contrastive_batch_size = 0
    config.duration = Duration(amount=MATCHED_SAMPLES, unit="samples")
    config.data.text.fields = ("panel_caption", "caption")
    config.loss.ignore = ("same_figure",)
    config.optimizer.warmup = Duration(amount=5, unit="percent")
    return config


def on(config: TrainConfig, model: str, hardware: str) -> TrainConfig:
    """Where it runs: how much is in memory at a time. The results do not depend on it."""
    devices, pairs = HARDWARE[hardware]
    config.micro_batch_size = devices * (pairs if model == "B/16" else pairs // 4)
    if model == "L/14":
        config.sharding.data, config.sharding.fsdp = 1, -1
    if hardware.startswith("h100"):
        for tower in (config.model.image, config.model.text):
            tower.transformer.attention = "cudnn"
    return config
