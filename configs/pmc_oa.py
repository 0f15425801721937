r"""What does PMC-OA give, with the recipe of those who compared with it, and with ours?

Lin et al. 2023 (arXiv:2303.07240) made it; the paper's recipe is that of Open-PMC's baseline on it
(arXiv:2503.14377; configs/biomedical.py): 85 epochs of 1.32 M pairs = 13,685 updates = 112 M
samples, context of 256 tokens. PMC-CLIP itself, a ResNet-50 with masked language modelling, is not
this.

MODEL,RECIPE,HARDWARE after the colon: as configs/open_pmc.py. B/16 2.7 and L/14 7.0 hours on 8
H100: 243 and 624 GFLOP a pair and step, at 35 % MFU; computed, not measured.

  python -m data_pipelines.corpora --layout=pmc_oa --input=pmc_oa.jsonl --images=images.zip \
      --signals --out=DATASET
  python -m jaxclip.train --config=configs/pmc_oa.py:B/16,paper,h100x8 --workdir=RUN \
      --config.data.path=DATASET --config.data.tokenizer.path=BIOMEDBERT_VOCAB_TXT
"""

from configs import biomedical
from jaxclip.config import TrainConfig


def get_config(argument: str = "") -> TrainConfig:
    return biomedical.choose(argument, steps=13_685)
