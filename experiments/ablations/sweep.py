r"""What does each part of the recipe and of the data contribute? One change at a time.

A variant is its base and one change, a short function on config and subset; it has its base's
seeds, and is compared with it pair by pair. The base of most has no name: panels of PMC's articles
by our own pipeline, which has every signal and text; 300k pairs, 32 M samples, B/16 as "ours" of
configs/biomedical.py. Leave-one-out takes one filter away from all_filters, add-one-in has one
alone; what a filter leaves is always 300k pairs, so that quality is compared at one size. Longer
texts need a longer context, so references and summary are told against context_512. from_public
has a tenth of the learning rate besides, without which it would not stay what it starts from.

DATA, behind the colon, holds pmc_panels and pmc_figures (data_pipelines.pmc with --panels=panels
and --panels=figures, --summary=...), overlap of `python -m data_pipelines.overlap --dataset=...
--eval=...` of both, vocab.txt, BiomedBERT's, biomedclip, OpenCLIP's folder of that model (a PyTorch
pickle: pip install 'jaxclip[torch]', or --extras=pipelines,torch with --launcher=skypilot), and
evals, the public sets (jaxclip/evals/declared.py says where to get each). A comma and the hardware
may follow: DATA,v6e-8; see configs/biomedical.py. Hours: --dry-run.

  python -m experiments.sweep experiments/ablations/sweep.py:DATA --dry-run
  python -m experiments.sweep experiments/ablations/sweep.py:DATA --workdir=W --launcher=slurm \
      --slurm=timeout_min=1440,gpus_per_node=8,slurm_partition=gpu
"""

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable

from configs import biomedical
from data_pipelines.subset import SubsetOptions
from experiments import designs
from experiments.study import Sweep, make_run
from jaxclip.config import TrainConfig

SIZE, SAMPLES, SEEDS = 300_000, 32_000_000, (0, 1, 2)
FILTERS = {name: rule for name, rule in designs.FILTERS.items() if name != "single_panels"}
MODALITIES = ("radiology", "microscopy", "visible light")
THRESHOLDS = (0.3, 0.5, 0.7)  # of the alignment of panels with their part of the caption
SETS = ("mimic_cxr", "deepeyenet", "pathmnist", "organamnist", "dermamnist", "vqa_rad")
Change = Callable[[TrainConfig, SubsetOptions], None]


def context(length: int) -> Change:
    def change(config, data):
        config.data.tokenizer.context_length = length

    return change


def text(**fields: object) -> Change:
    def change(config, data):
        config.data.text = dataclasses.replace(config.data.text, **fields)

    return change


def where(*conditions: str) -> Change:
    def change(config, data):
        data.where = " AND ".join(f"({condition})" for condition in conditions)

    return change


def whole_figures(config: TrainConfig, data: SubsetOptions) -> None:
    data.dataset, data.exclude = of_dataset(os.path.dirname(data.dataset), "pmc_figures")


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


VARIANTS: dict[str, Change] = {
    "context_77": context(77),
    "context_512": context(512),
    "references": text(append=("references",)),
    "summary": text(append=("summary",)),
    "one_text_a_step": text(combine="sample"),  # the panel's own caption, or the figure's
    "whole_caption": text(fields=("caption",)),
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
BASES = {"references": "context_512", "summary": "context_512"}  # of others ""
BASES |= {f"without_{name}": "all_filters" for name in FILTERS}


def of_dataset(data: str, name: str) -> tuple[str, tuple[str, ...]]:
    """A dataset, and the list of what evaluation sets have of it."""
    return f"{data}/{name}", (f"{data}/overlap/exclude/{name}-in-evals.npy",)


def apply(name: str, config: TrainConfig, data: SubsetOptions) -> None:
    """Makes the variant of the nameless base: its own base first, then its change."""
    if name:
        apply(BASES.get(name, ""), config, data)
        VARIANTS[name](config, data)


def get_sweep(argument: str = "DATA") -> Sweep:
    data, hardware = biomedical.data_and_hardware(argument)
    base = biomedical.on(biomedical.ours("B/16"), "B/16", hardware)
    base.data.tokenizer.path = f"{data}/vocab.txt"
    base.eval.split = ""
    dataset, exclude = of_dataset(data, "pmc_panels")
    runs = []
    for name, seed in itertools.product(("", *VARIANTS), SEEDS):
        config = copy.deepcopy(base)
        config.seed = seed
        subset = SubsetOptions(dataset=dataset, exclude=exclude, size=SIZE, seed=seed)
        apply(name, config, subset)
        runs.append(
            make_run(
                config,
                subset,
                source="pmc",
                samples_seen=SAMPLES,
                model="B/16",
                variant=name,
                base=BASES.get(name, ""),
            )
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
