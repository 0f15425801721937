r"""What does Open-PMC give, with its authors' recipe and with ours?

Baghbanzadeh et al. 2025 (arXiv:2503.14377); recipe: configs/biomedical.py. The paper's: context of
256 tokens, caption and summary of the references joined, 64 epochs of 1.74 M pairs = 112 M samples.

MODEL,RECIPE,HARDWARE after the colon: B/16 or L/14; paper or ours; h100x8, v5e-16, v5e-64, v6e-16,
v6e-64. B/16 2.7 and L/14 7.0 hours on 8 H100, 1.7 and 4.4 on 64 v5e, 0.4 and 0.9 on 64 v6e:
243 and 624 GFLOP a pair and step, at 35 % MFU; computed, not measured.

  python -m data_pipelines.corpora --layout=open_pmc --input='train-*.tar' --signals --out=DATASET
  python -m jaxclip.train --config=configs/open_pmc.py:B/16,paper,h100x8 --workdir=RUN \
      --config.data.path=DATASET --config.data.tokenizer.path=BIOMEDBERT_VOCAB_TXT
"""

from configs import biomedical
from jaxclip.config import TrainConfig


def paper(config: TrainConfig) -> None:
    config.data.text.fields = ("panel_caption", "caption", "summary")
    config.data.text.combine = "join"


def get_config(argument: str = "") -> TrainConfig:
    return biomedical.choose(argument, paper)
