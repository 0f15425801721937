r"""What does BIOMEDICA give, trained as Open-PMC's authors compared with it, and as we would?

Lozano et al. 2025 (arXiv:2501.07171) made it. paper: Open-PMC-18M's baseline on it (recipe:
configs/biomedical.py): 64 epochs of 6.20 M pairs = 48,436 updates = 397 M samples, 3.5 times what
Open-PMC's own runs see; that is the confound which "ours" (112 M samples, as for all other corpora)
takes away.

BMCA-CLIP itself continues from a general ViT-L/14, for 36 epochs after concept filtering; these
numbers are quoted from memory of the paper, and its code has others:

  python -m jaxclip.train --config=configs/fine_tune.py:OPENCLIP_VIT_L_14 --config.batch_size=8192 \
      --config.optimizer.peak_lr=1e-6 --config.optimizer.b2=0.95 \
      --config.optimizer.weight_decay=0.2 --config.duration.amount=36 \
      --config.data.path=DATASET --workdir=RUN

MODEL,RECIPE,HARDWARE after the colon: as configs/open_pmc.py. paper: B/16 9.7 and L/14 24.8 hours
on 8 H100, ours: 2.7 and 7.0; 243 and 624 GFLOP a pair and step, at 35 % MFU; computed, not
measured.

  python -m data_pipelines.corpora --layout=biomedica --input='gs://BUCKET/*.tar' --signals \
      --out=DATASET
  python -m jaxclip.train --config=configs/biomedica.py:L/14,ours,v6e-64 --workdir=RUN \
      --config.data.path=DATASET --config.data.tokenizer.path=BIOMEDBERT_VOCAB_TXT
"""

from configs import biomedical
from jaxclip.config import TrainConfig


def get_config(argument: str = "") -> TrainConfig:
    return biomedical.choose(argument, steps=48_436)
