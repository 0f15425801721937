r"""Fine-tuning for classification: goes on with a contrastive loss, captions made of class names.

"Finetune like you pretrain" (Goyal et al. 2022, arXiv:2212.00638): both towers are trained as they
were, on images whose captions say their class, and then scored zero-shot with the class prompts;
it beat training a new head there. Not measured here beyond a smoke run. The dataset is any whose
captions name the class, as data_pipelines.mednist writes them; init is the run to start from, and
the model has to be the run's.

  python -m jaxclip.train --config=configs/finetune.py --config.init=RUN \
      --config.data.path=DATASET --config.data.tokenizer.path=RUN/tokenizer/FILE --workdir=TUNED
"""

from configs.common import tiny_clip
from jaxclip.config import TrainConfig
from jaxclip.optimizer import Duration


def get_config() -> TrainConfig:
    config = tiny_clip(image_size=64, patch_size=16, context_length=24)
    config.duration = Duration(amount=2, unit="epochs")
    config.optimizer.peak_lr = 1e-5
    config.optimizer.warmup = Duration(amount=10, unit="percent")
    config.eval.zero_shot = ("mednist",)
    return config
