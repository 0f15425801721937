r"""What does a public model gain from this dataset? Starts from the checkpoint after the colon.

SigLIP, SigLIP 2, MedSigLIP, CLIP, OpenCLIP or BiomedCLIP, as a folder, a file, or a name on the
Hugging Face hub; or a run of ours. Model, preprocessing and tokenizer are the checkpoint's; another
image size resizes the position embeddings. The learning rate is a tenth of that from scratch. To
lock the image tower: --config.optimizer.freeze="('image/.*',)". On images whose captions name their
class this is fine-tuning for classification as in Goyal et al. 2022 (arXiv:2212.00638); equal
captions are each other's matches then, --config.loss.positives=same_caption, and the score is
--config.eval.zero_shot="('PROMPTS',)". Time: that of the model, five epochs.

  python -m jaxclip.train --config=configs/fine_tune.py:CHECKPOINT --config.data.path=DATASET \
      --workdir=RUN
"""

from configs.common import named_model
from jaxclip.config import TrainConfig
from jaxclip.optimizer import Duration


def get_config(checkpoint: str = "") -> TrainConfig:
    family = named_model(checkpoint, "fine_tune")
    config = TrainConfig(batch_size=1024, duration=Duration(amount=5, unit="epochs"))
    config.init = checkpoint
    config.model, config.data.image = family.model, family.image
    config.data.tokenizer = family.tokenizer
    config.model.dtype = "bfloat16"
    if config.model.init_logit_bias:
        config.loss.name = "sigmoid"
    config.optimizer.peak_lr = 5e-5
    config.optimizer.weight_decay = 0.0  # it would pull towards zero, away from the checkpoint
    config.optimizer.warmup = Duration(amount=5, unit="percent")
    return config
