r"""What does Open-PMC give, with its authors' recipe and with ours?

Baghbanzadeh et al. 2025 (arXiv:2503.14377); recipe: configs/biomedical.py. The paper's: context of
512 tokens; the panel's caption (where it has none of its own, the figure's) with the summary of the
references behind it; 64 epochs of 1.74 M pairs = 13,619 updates = 112 M samples.

MODEL,RECIPE,HARDWARE after the colon: B/16 or L/14; paper or ours; h100x8, h100, v5e-8, v5e-16,
v5e-64, v6e-8, v6e-16, v6e-64. paper: B/16 4.4 and L/14 8.7 hours on 8 H100, 2.8 and 5.5 on 64 v5e,
0.6 and 1.2 on 64 v6e, at 395 and 776 GFLOP a pair and step; ours, of 256 tokens: 2.7 and 7.0 hours
on 8 H100, at 243 and 624 GFLOP. At 35 % MFU; computed, not measured.

  python -m data_pipelines.corpora --layout=open_pmc --input='train-*.tar' --signals --out=DATASET
  pip install -e '.[cuda,pipelines,torch]'  # the paper's BiomedBERT is a PyTorch pickle
  python -m jaxclip.train --config=configs/open_pmc.py:B/16,paper,h100x8 --workdir=RUN \
      --config.data.path=DATASET --config.data.tokenizer.path=BIOMEDBERT_VOCAB_TXT
"""

from configs import biomedical
from jaxclip.config import TrainConfig
from jaxclip.data.text import TextPolicy


def get_config(argument: str = "") -> TrainConfig:
    text = TextPolicy(fields=("panel_caption", "caption"), append=("summary",))
    return biomedical.choose(argument, steps=13_619, context_length=512, text=text)
