"""What the configs of the biomedical corpora share: towers, recipe, and where they run.

Their argument is MODEL,RECIPE,HARDWARE, each with a default: configs/open_pmc.py:L/14,ours,v6e-64.

paper is what Open-PMC's authors ran, on their corpus and on those they compared with: from a ViT of
ImageNet and from BiomedBERT, in batches of 4 x 2,048, gradients not clipped, for the samples that
their scripts' t_max makes. What it leaves out, as they do not say: dropout (Hugging Face's BERT has
0.1 while it is trained: --config.model.text.transformer.dropout=0.1). They ran B/16 alone; L/14 is
its recipe on a larger model, whose image tower starts from scratch: timm has no such ViT of
ImageNet.
"""

from configs.common import open_pmc_optimizer
from jaxclip.config import TrainConfig
from jaxclip.data.text import TextPolicy
from jaxclip.models.bert import BertConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.vit import ViTConfig, vit
from jaxclip.optimizer import Duration

MODELS = {"B/16": ("B", 16, 512), "L/14": ("L", 14, 768)}  # ViT, patch, embed_dim
RECIPES = ("paper", "ours")
# devices, and pairs whose activations are in memory at a time on one of them, for B/16; L/14 has a
# quarter. Not tried: if memory is short, --config.micro_batch_size.
HARDWARE = {"h100x8": (8, 256), "h100": (1, 256), "v5e-8": (8, 32), "v5e-16": (16, 32),
            "v5e-64": (64, 32), "v6e-8": (8, 64), "v6e-16": (16, 64),
            "v6e-64": (64, 64)}  # fmt: skip
HOST = 8  # the most devices of one host
MATCHED_SAMPLES = 112_000_000  # about what Open-PMC's own runs on Open-PMC and on PMC-OA saw
IMAGENET = {"B/16": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", "L/14": ""}
BIOMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"


def choose(
    argument: str, *, steps: int, context_length: int = 256, text: TextPolicy | None = None
) -> TrainConfig:
    """The config that MODEL,RECIPE,HARDWARE names; all else is of the paper's recipe."""
    model, recipe, hardware = parse(argument)
    if recipe == "ours":
        return on(ours(model), model, hardware)
    config = base(model, context_length)
    config.contrastive_batch_size = 2048
    config.data.text = text or config.data.text
    config.init_image, config.init_text = IMAGENET[model], BIOMEDBERT
    config.duration = Duration(amount=steps * config.batch_size, unit="samples")
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


def data_and_hardware(argument: str) -> tuple[str, str]:
    """What stands behind a study's colon: `"DATA,v6e-8"` -> ("DATA", "v6e-8"); else h100x8.

    Raises:
      ValueError: unknown, or of several hosts.
    """
    data, _, hardware = argument.rpartition(",") if "," in argument else (argument, "", "h100x8")
    of_one_host = [name for name, (devices, _) in HARDWARE.items() if devices <= HOST]
    if hardware not in of_one_host:
        raise ValueError(
            f"hardware ({hardware!r}) in {argument!r} must be one of {', '.join(of_one_host)}: a "
            "run of a study is one host's. For a larger slice start jaxclip.train on its hosts."
        )
    return data, hardware


def base(model: str, context_length: int) -> TrainConfig:
    """Open-PMC's towers, which are BiomedCLIP's, and its optimizer.

    From VectorInstitute/pmc-data-extraction, experiment/configs/pmcoa2_matched.yaml and the SLURM
    scripts beside it: timm's ViT, BiomedBERT with an MLP; AdamW 5e-4, 0.9/0.98, 0.2; crops of 90 to
    100 %; updates of 8,192 pairs.
    """
    size, patch_size, embed_dim = MODELS[model]
    config = TrainConfig(batch_size=8192)
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

    From scratch, so that the corpus is all that a model knows; gradients are clipped at norm 1.
    8,192 pairs are contrasted with each other; panels of one figure are no negatives of each other;
    a panel is told by its own part of the caption where there is one; the end of the warm-up is a
    share of the run, so that short runs have one, too.
    """
    config = base(model, context_length)
    config.optimizer.grad_clip_norm = 1.0
    config.duration = Duration(amount=MATCHED_SAMPLES, unit="samples")
    config.data.text.fields = ("panel_caption", "caption")
    config.loss.ignore = ("same_figure",)
    config.optimizer.warmup = Duration(amount=5, unit="percent")
    return config


def on(config: TrainConfig, model: str, hardware: str) -> TrainConfig:
    """Where it runs: what is in memory at a time. Results depend on it by rounding alone."""
    devices, pairs = HARDWARE[hardware]
    config.micro_batch_size = devices * (pairs if model == "B/16" else pairs // 4)
    if model == "L/14":
        config.sharding.data, config.sharding.fsdp = 1, -1
    if hardware.startswith("h100"):
        for tower in (config.model.image, config.model.text):
            tower.transformer.attention = "cudnn"
    return config
