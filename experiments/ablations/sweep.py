r"""What does each part of the recipe and of the data contribute? One change at a time.

The base and each variant have the same seeds, and are compared pair by pair.

The base: panels of PMC's articles by our own pipeline, which has every signal and text; 300k pairs,
32 M samples, B/16 as configs/biomedical.py's "ours". Each variant is a short function on the config
and the subset of the base. Leave-one-out takes one filter away from all of them, add-one-in has one
alone; what a filter leaves is always 300k pairs, so that quality is compared at one size.

DATA, behind the colon, holds pmc_panels and pmc_figures (data_pipelines.pmc with --panels=panels
and --panels=figures, --summary=...), vocab.txt, BiomedBERT's, biomedclip, OpenCLIP's folder of that
model, and evals, the public sets. Hours: --dry-run.

  python -m experiments.sweep experiments/ablations/sweep.py:DATA --dry-run
  python -m experiments.sweep experiments/ablations/sweep.py:DATA --workdir=W --launcher=slurm \
      --slurm=timeout_min=1440,gpus_per_node=8,slurm_partition=gpu
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable

from configs import biomedical
from data_pipelines.subset import SubsetOptions
from experiments.study import Sweep, make_run
from jaxclip.config import TrainConfig

SIZE, SAMPLES, SEEDS = 300_000, 32_000_000, (0, 1, 2)
FILTERS = {
    "no_charts": "modality <> 'chart' AND modality <> 'other'",
    "large": "short_side >= 224",
    "sharp": "sharpness >= 100",
    "no_text_in_image": "text_share < 0.05",
    "long_captions": "caption_words >= 20",
    "english": "language IS NULL OR language = 'en'",
    "caption_names_modality": "modality_overlap >= 0.5",
}
MODALITIES = ("radiology", "microscopy", "visible light")
THRESHOLDS = (0.3, 0.5, 0.7)  # of the alignment of panels with their part of the caption
SETS = ("mimic_cxr", "deepeyenet", "pathmnist", "organamnist", "dermamnist", "vqa_rad")
Change = Callable[[TrainConfig, SubsetOptions], None]


def context(length: int) -> Change:
    def change(config, data):
        config.data.tokenizer.context_length = length

    return change


def texts(*fields: str, combine: str = "join", length: int = 512) -> Change:
    """Longer texts need a longer context: what they add is told against context_512."""

    def change(config, data):
        config.data.text.fields, config.data.text.combine = fields, combine
        config.data.tokenizer.context_length = length

    return change


def where(*conditions: str) -> Change:
    def change(config, data):
        data.where = " AND ".join(f"({condition})" for condition in conditions)

    return change


def whole_figures(config: TrainConfig, data: SubsetOptions) -> None:
    data.dataset = data.dataset.replace("pmc_panels", "pmc_figures")


def loss(name: str = "softmax", **fields: object) -> Change:
    def change(config, data):
        config.loss = dataclasses.replace(config.loss, name=name, **fields)
        if name == "sigmoid":  # SigLIP's start: Zhai et al. 2023, arXiv:2303.15343
            config.model.init_temperature, config.model.init_logit_bias = 0.1, -10.0
            config.loss.max_logit_scale = 0.0

    return change


def resolution(size: int) -> Change:
    def change(config, data):
        config.data.image.size = size

    return change


def from_public(config: TrainConfig, data: SubsetOptions) -> None:
    """BiomedCLIP, whose towers these are, at a tenth of the learning rate."""
    config.init = data.dataset.replace("pmc_panels", "biomedclip")
    config.optimizer.peak_lr /= 10


VARIANTS: dict[str, Change | None] = {
    "": None,
    "context_77": context(77),
    "context_512": context(512),
    "references": texts("panel_caption", "caption", "references"),
    "summary": texts("panel_caption", "caption", "summary"),
    "one_text_a_step": texts("panel_caption", "caption", "references", combine="sample"),
    "whole_caption": texts("caption", combine="first", length=256),
    "whole_figures": whole_figures,
    "all_filters": where(*FILTERS.values()),
    **{f"without_{n}": where(*(c for m, c in FILTERS.items() if m != n)) for n in FILTERS},
    **{f"only_{name}": where(condition) for name, condition in FILTERS.items()},
    **{f"alignment_{t:g}": where(f"alignment_score >= {t}") for t in THRESHOLDS},
    "deduplicated": where("duplicate_cluster = position"),
    **{m.replace(" ", "_"): where(f"modality = '{m}'") for m in MODALITIES},
    "siblings_are_negatives": loss(ignore=()),
    "articles_are_no_negatives": loss(ignore=("same_figure", "same_article")),
    "same_captions_match": loss(positives="same_caption"),
    "sigmoid": loss("sigmoid"),
    "decoupled": loss("decoupled", hard_negatives=(0.15, 0.15)),
    "size_160": resolution(160),
    "size_384": resolution(384),
    "from_public": from_public,
}


def get_sweep(data: str = "DATA") -> Sweep:
    base = biomedical.on(biomedical.ours("B/16"), "B/16", "h100x8")
    base.data.tokenizer.path = f"{data}/vocab.txt"
    base.eval.split = ""
    runs = []
    for (name, change), seed in itertools.product(VARIANTS.items(), SEEDS):
        config = copy.deepcopy(base)
        config.seed = seed
        subset = SubsetOptions(dataset=f"{data}/pmc_panels", size=SIZE, seed=seed)
        if change:
            change(config, subset)
        runs.append(
            make_run(config, subset, source="pmc", samples_seen=SAMPLES, model="B/16", variant=name)
        )
    return Sweep(
        name="ablations",
        question="What does each part of the recipe and of the data contribute?",
        runs=runs,
        evaluations={
            "public": (f"--sets_dir={data}/evals", *(f"--set={name}" for name in SETS)),
            # as papers do
            "quilt": (f"--sets_dir={data}/evals", "--set=quilt_1m", "--split=validation"),
        },
        reference="pmc",
        metric="quilt_1m/validation/image_to_text/recall@10",
    )  # fmt: skip
