r"""What is better data worth, where the answer is known? The study in small: `make quickstart`.

Three corpora are drawn from the same figures, and differ in what is done to their training pairs:

  clean       every figure once, with its caption: the reference
  repeated    every pair is stored 6 times. The order of subsets goes by content, so a subset of N
              records is the clean one of N / 6, six times; and with copies no negatives of each
              other, the same samples seen train the same model. One clean pair is worth exactly 6.
  mismatched  seven captions of eight are of other figures. Its N records hold N / 8 true pairs,
              and the rest mislead: one clean pair is worth at least 8.

All are scored on the same held-out figures, of other articles, which are clean.

  python -m experiments.sweep experiments/miniature/sweep.py --make_data --workdir=W
"""

import itertools

from configs.common import study_clip
from data_pipelines.subset import SubsetOptions
from experiments.study import Sweep, make_run

COPIES, MISMATCHED = 6, 0.875
SOURCES = {
    "clean": "",
    "repeated": f" --copies={COPIES}",
    "mismatched": f" --swap_fraction={MISMATCHED}",
}
SIZES = (60, 360, 2160)  # steps of COPIES: `repeated` holds what `clean` holds a step below
SEEDS = (0, 1)
SAMPLES = 18_432
DRAW = (
    "python -m data_pipelines.synthetic --size=4800 --image_size=64 --test_fraction=0.48 "
    "--validation_fraction=0.02 --tokenizer_vocab=1024 --out={path}{dials}"
)


def get_sweep(data: str = "datasets/miniature") -> Sweep:
    """data: the folder that the corpora are in, or are drawn into."""
    config = study_clip(context_length=24)
    config.data.tokenizer.path = f"{data}/clean/tokenizer.json"  # one for all
    config.loss.ignore = ("same_image",)  # copies of a pair are no negatives of each other
    runs = []
    for size, source, config.seed in itertools.product(SIZES[::-1], SOURCES, SEEDS):
        subset = SubsetOptions(dataset=f"{data}/{source}", size=size, seed=config.seed)
        runs.append(make_run(config, subset, source=source, samples_seen=SAMPLES, model="tiny"))
    return Sweep(
        name="miniature",
        question="How many repeated or mismatched pairs is one clean pair worth?",
        runs=runs,
        evaluations={"test": (f"--data={data}/clean", "--split=test", "--suite=retrieval")},
        make_data={
            f"{data}/{source}/manifest.json": DRAW.format(path=f"{data}/{source}", dials=dials)
            for source, dials in SOURCES.items()
        }
        | {
            f"{data}/{source}/card.html": f"python -m data_pipelines.card --dataset={data}/{source}"
            for source in SOURCES
        },
        reference="clean",
        metric="clean/test/image_to_text/recall@10",
        planted={"repeated": (COPIES, COPIES), "mismatched": (round(1 / (1 - MISMATCHED)), None)},
    )
