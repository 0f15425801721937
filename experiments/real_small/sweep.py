r"""Do filters help on real articles? Two thousand panels of PMC's figures, on 2 CPU cores.

301 articles (../shared/data/pmc_articles; or DATA/pmc_articles with DATA behind the colon) become a
dataset of panels with every signal. As many panels are drawn after each filter, and trained on for
the same number of samples; all panels, unfiltered, are there too. Scored on articles never seen,
and without further training on VQA-RAD's organs and MedNIST's classes. So few teach little: most
differences will not be told apart from none, and the report says so.

  python -m experiments.sweep experiments/real_small/sweep.py --make_data --workdir=W
"""

import itertools
import os

from configs.common import study_clip
from data_pipelines.subset import SubsetOptions
from experiments.study import Sweep, make_run

FILTERS = {
    "": "true",
    "no_charts": "modality NOT IN ('chart', 'other')",
    "long_captions": "caption_words >= 30",
    "no_text_in_image": "text_share < 0.05",
    "single_panels": "compound_probability < 0.5",
}
SIZE, SEEDS, SAMPLES = 192, (0, 1), 12_800
BUILT = "datasets/real_small"


def get_sweep(data: str = "../shared/data") -> Sweep:
    """data: the folder with pmc_articles, vqa_rad and mednist."""
    dataset, sets = f"{BUILT}/pmc", f"{BUILT}/sets"
    config = study_clip(context_length=64)
    config.data.tokenizer.path = f"{dataset}/tokenizer.json"
    config.data.text.fields = ("panel_caption", "caption")
    config.loss.ignore = ("same_figure",)
    runs = []
    for (name, where), config.seed in itertools.product(FILTERS.items(), SEEDS):
        for size in (SIZE,) if name else (SIZE, 0):
            subset = SubsetOptions(dataset=dataset, size=size, seed=config.seed, where=where)
            runs.append(
                make_run(
                    config, subset, source="pmc", samples_seen=SAMPLES, model="tiny", variant=name
                )
            )
    return Sweep(
        name="real_small",
        question="Do filters help, at one number of pairs, on two thousand panels of real figures?",
        runs=runs,
        evaluations={
            "own": (f"--data={dataset}", "--split=test", "--suite=retrieval"),
            "organs": (f"--sets_dir={sets}", "--set=vqa_rad", "--split=all", "--suite=zero_shot"),
            "mednist": (f"--sets_dir={sets}", "--set=mednist", "--suite=zero_shot,probe"),
        },
        make_data={
            f"{dataset}/manifest.json": f"python -m data_pipelines.pmc --out={dataset} "
            f"--input={data}/pmc_articles --panels=panels --split=0.75,0.05,0.2"
        }
        | _links(data, sets),
        reference="pmc",
        metric="pmc/test/image_to_text/recall@10",
    )  # fmt: skip


def _links(data: str, sets: str) -> dict[str, str]:
    """The public sets, at the places where their declarations expect them."""
    links = {"vqa_rad": "vqa_rad", "mednist/mednist.zip": "mednist/mednist_1500_per_class.zip"}
    commands = {}
    for link, target in links.items():
        place, target = f"{sets}/{link}", os.path.abspath(f"{data}/{target}")
        commands[place] = f'sh -c "mkdir -p {os.path.dirname(place)} && ln -sfn {target} {place}"'
    return commands
