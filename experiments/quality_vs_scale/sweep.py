r"""How many pairs of one corpus is one pair of another worth? Open-PMC, PMC-OA and BIOMEDICA.

The published comparison gave the corpora different numbers of samples, repeated them differently
and had one seed. Here every axis is on its own:

  fixed_samples  112 M samples seen (Open-PMC's own budget) of 100k to all pairs: scale alone
  fixed_epochs   32 passes over 100k to 1M pairs: scale with the compute it usually gets
  fixed_compute  the FLOPs of B/16's 112 M samples spent on S/16 and L/14, on 1M pairs
  variants       300k pairs after each filter, and with the corpus's own mix: quality alone

Subsets are nested, have the same mix of modalities in every corpus (MIX, by our own classifier, as
the releases' labels are not comparable), and hold nothing that is in an evaluation set. The mix is
matched as far as that classifier goes: of 133 figures that it had not learned from, it gets 75 % by
their pixels and 84 % with their captions, and of visible light half (data_pipelines/modality.json);
own_mix tells what matching does. One tokenizer, one recipe ("ours" of configs/biomedical.py), 3
seeds; models of other sizes take their learning rate by experiments.designs.transfer.

DATA, behind the colon, holds open_pmc, pmc_oa and biomedica, made as configs/*.py say; DATA/overlap
of `python -m data_pipelines.overlap --dataset=... --eval=...`; DATA/vocab.txt, BiomedBERT's; and
DATA/evals, the public sets (jaxclip/evals/declared.py says where to get each; pcam needs
jaxclip[tfds]). A comma and the hardware may follow: DATA,v6e-8; see configs/biomedical.py. Hours:
--dry-run.

  python -m experiments.sweep experiments/quality_vs_scale/sweep.py:DATA --dry-run
  python -m experiments.sweep experiments/quality_vs_scale/sweep.py:DATA --workdir=W \
      --launcher=slurm --slurm=timeout_min=2880,gpus_per_node=8,slurm_partition=gpu
"""

import itertools
from collections.abc import Iterator

from configs import biomedical
from data_pipelines.subset import SubsetOptions
from experiments import designs
from experiments.cost import flops_per_pair
from experiments.designs import fixed_compute, fixed_epochs, transfer
from experiments.study import Run, Sweep, make_run
from jaxclip.config import TrainConfig

SOURCES = ("open_pmc", "pmc_oa", "biomedica")
SIZES = (100_000, 300_000, 1_000_000)
LARGER = {"open_pmc": (1_600_000,), "pmc_oa": (), "biomedica": (5_000_000,)}  # as far as each goes
SEEDS = (0, 1, 2)
SAMPLES, EPOCHS = biomedical.MATCHED_SAMPLES, 32
MIX = ("radiology=0.35", "microscopy=0.45", "visible light=0.2")
FILTERS = ("single_panels", "long_captions", "no_text_in_image", "caption_names_modality", "sharp")
PROBED = ("pathmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist",
          "bloodmnist", "organamnist", "pcam", "bach", "nct_crc_he", "ham10000")  # fmt: skip
SETS = (*PROBED, "mimic_cxr", "deepeyenet", "roco", "sicapv2", "vqa_rad")


def get_config(data: str, hardware: str = "h100x8", model: str = "B/16") -> TrainConfig:
    """Ours at this size; S/16 and L/14 with B/16's learning rate, transferred."""
    config = biomedical.ours("L/14" if model == "L/14" else "B/16")
    if model == "S/16":
        config.model.image = biomedical.timm_vit("S", 16)
    if model != "B/16":
        transfer(config, tuned=biomedical.ours("B/16"))
    config = biomedical.on(config, "L/14" if model == "L/14" else "B/16", hardware)
    config.data.tokenizer.path = f"{data}/vocab.txt"
    config.eval.split = ""
    return config


def subset(
    data: str, source: str, size: int, seed: int, where: str = "true", mix: tuple[str, ...] = MIX
) -> SubsetOptions:
    return SubsetOptions(
        dataset=f"{data}/{source}", size=size, seed=seed, where=where, mix=mix,
        stratify="modality" if mix else "",
        exclude=(f"{data}/overlap/exclude/{source}-in-evals.npy",),
    )  # fmt: skip


def scale_runs(data: str, hardware: str) -> Iterator[Run]:
    """Samples fixed, then epochs fixed, for each corpus as far as it goes."""
    config = get_config(data, hardware)
    for source, config.seed in itertools.product(SOURCES, SEEDS):
        for size in (*SIZES, *LARGER[source]):
            chosen = subset(data, source, size, config.seed)
            yield make_run(config, chosen, source=source, samples_seen=SAMPLES, model="B/16")
        for size in SIZES:
            yield make_run(
                config, subset(data, source, size, config.seed), source=source, model="B/16",
                samples_seen=fixed_epochs(size, EPOCHS), design="fixed_epochs",
            )  # fmt: skip


def compute_runs(data: str, hardware: str) -> Iterator[Run]:
    """The compute of B/16's samples, spent on a smaller and on a larger model."""
    budget = SAMPLES * flops_per_pair(get_config(data))
    for model in ("S/16", "L/14"):
        config = get_config(data, hardware, model)
        samples = fixed_compute(budget, config)
        for source, config.seed in itertools.product(SOURCES, SEEDS):
            yield make_run(
                config, subset(data, source, SIZES[-1], config.seed), source=source, model=model,
                samples_seen=samples, design="fixed_compute",
            )  # fmt: skip


def quality_runs(data: str, hardware: str) -> Iterator[Run]:
    """One size, one filter at a time; scale_runs has it without any."""
    config = get_config(data, hardware)
    variants = {"own_mix": ("true", ())} | {name: (designs.FILTERS[name], MIX) for name in FILTERS}
    for source, name, config.seed in itertools.product(SOURCES, variants, SEEDS):
        chosen = subset(data, source, 300_000, config.seed, *variants[name])
        yield make_run(
            config, chosen, source=source, samples_seen=SAMPLES, model="B/16", variant=name
        )


def get_sweep(argument: str = "DATA") -> Sweep:
    data, hardware = biomedical.data_and_hardware(argument)
    parts = (scale_runs, compute_runs, quality_runs)
    return Sweep(
        name="quality_vs_scale",
        question="How many pairs of PMC-OA or BIOMEDICA is one pair of Open-PMC worth?",
        runs=[run for part in parts for run in part(data, hardware)],
        evaluations={
            "public": (f"--sets_dir={data}/evals", *(f"--set={name}" for name in SETS)),
            "probes": (
                f"--sets_dir={data}/evals", "--suite=probe", *(f"--set={name}" for name in PROBED)
            ),
            # as papers do
            "quilt": (f"--sets_dir={data}/evals", "--set=quilt_1m", "--split=validation"),
        },
        reference="open_pmc",
        metric="roco/test/image_to_text/recall@10",
    )  # fmt: skip
