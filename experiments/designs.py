"""Budgets that make runs of different size comparable, optimizers that go with them, and filters.

Three designs, which answer different questions: fixed_samples gives every size the same samples
seen, so that small sets are repeated more often; fixed_epochs repeats every set equally often, so
that small sets get less compute; fixed_compute gives models of different size the same FLOPs.
"""

import dataclasses
import math

from experiments.cost import flops_per_pair
from jaxclip.config import TrainConfig

# Over the columns of data_pipelines.signals; each keeps what it says. One threshold each for all
# studies of whole corpora, so that a filter's name means one thing.
FILTERS = {
    "single_panels": "compound_probability < 0.5",
    "no_charts": "modality NOT IN ('chart', 'other')",
    "large": "short_side >= 224",
    "sharp": "sharpness >= 100",
    "no_text_in_image": "text_share < 0.05",
    "long_captions": "caption_words >= 20",
    "english": "language IS NULL OR language = 'en'",
    "caption_names_modality": "modality_overlap >= 0.5",
}


def fixed_epochs(unique_pairs: int, epochs: float) -> int:
    """Samples seen in so many passes over so many pairs."""
    return round(unique_pairs * epochs)


def fixed_compute(flops: float, config: TrainConfig) -> int:
    """Samples seen for a budget of training FLOPs, in whole batches."""
    batches = flops / flops_per_pair(config) / config.batch_size
    return max(1, math.floor(batches)) * config.batch_size


def transfer(config: TrainConfig, tuned: TrainConfig) -> None:
    """Gives `config` the optimizer that was tuned in `tuned`, for its own batch and widths.

    Batch size, by a factor k: learning rate times sqrt(k), 1 - b1 and 1 - b2 times k, eps divided
    by sqrt(k): the square-root rule of Adam (Malladi et al. 2022, arXiv:2205.10287).
    Width, by a factor m: the learning rate of hidden matrices is divided by m, that of all else
    stays (Yang et al. 2022, arXiv:2203.03466; Everett et al. 2024, arXiv:2407.05872, for
    the standard initialisation, which this is). Both are rules to start from: where a study's
    answer depends on it, the rate is an axis.

    Raises:
      ValueError: the batch is so much larger that a decay would be 0.
    """
    k = config.batch_size / tuned.batch_size
    old = tuned.optimizer
    b1, b2 = (1 - k * (1 - b) for b in (old.b1, old.b2))
    if b2 <= 0 or b1 < 0:
        raise ValueError(
            f"batch_size ({config.batch_size}) is {k:g} times that of the tuned config: "
            f"the square-root rule would make b1 {b1:.3g} and b2 {b2:.3g}. Tune nearer to it."
        )
    multipliers = []
    for tower in ("image", "text"):
        m = _width(config, tower) / _width(tuned, tower)
        if m != 1:
            multipliers.append((rf"{tower}/.*blocks/.*/kernel", 1 / m))
    config.optimizer = dataclasses.replace(
        old,
        peak_lr=old.peak_lr * math.sqrt(k),
        b1=b1,
        b2=b2,
        eps=old.eps / math.sqrt(k),
        lr_multipliers=(*multipliers, *old.lr_multipliers),
    )


def _width(config: TrainConfig, tower: str) -> int:
    part = getattr(config.model, tower)
    if not hasattr(part, "transformer"):
        raise ValueError(f"model.{tower} is no transformer: the rule for widths is for these.")
    return part.transformer.width
