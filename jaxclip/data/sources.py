"""What a run reads: datasets, subsets and TFDS datasets, opened and weighted. Imports no jax."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxclip.data.image import ImageConfig
from jaxclip.data.record import Dataset
from jaxclip.data.subset import Subset, open_dataset
from jaxclip.data.text import TextPolicy, TokenizerConfig
from jaxclip.data.tfds import TfdsDataset

MAX_LABELS = 1024  # kinds, as each row of a batch has a number for each


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    """What is read, and how it becomes pixels and tokens."""

    path: tuple[str, ...] = ()  # datasets, subsets, TFDS: --config.data.path=A --config.data.path=B
    weights: tuple[float, ...] = ()  # share of the samples from each; (): by their sizes
    label: str = ""  # metadata column with each record's label or list of labels; for losses that
    # know of classes
    text: TextPolicy = dataclasses.field(default_factory=TextPolicy)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    num_threads: int = 0  # that decode; 0: one a core, shared out over worker processes if any
    num_workers: int = 0  # processes; 0: threads alone, which hold Python's lock for 0.2 ms a pair

    def validate(self, name: str = "data") -> None:
        if not self.path:
            raise ValueError(f"{name}.path is empty. Set it: --config.{name}.path=DATASET.")
        if self.weights and len(self.weights) != len(self.path):
            raise ValueError(
                f"{name}.weights {self.weights} must have one number for each of the "
                f"{len(self.path)} datasets in {name}.path, or be empty."
            )
        if any(not 0 < w < math.inf for w in self.weights):
            raise ValueError(
                f"{name}.weights {self.weights} must be positive. Leave a dataset out of "
                f"{name}.path instead of weighting it 0."
            )
        for field in ("num_threads", "num_workers"):
            if getattr(self, field) < 0:
                raise ValueError(f"{name}.{field} ({getattr(self, field)}) must be 0 or more.")
        self.text.validate()
        self.tokenizer.validate()
        self.image.validate(f"{name}.image")


@dataclasses.dataclass(slots=True)
class Source:
    """The records of one split of a dataset or subset that have a text under the run's policy."""

    dataset: Dataset | TfdsDataset
    positions: np.ndarray  # int64 [N]
    weight: float  # share of the samples; the sources' weights sum to 1
    without_text: int  # records of the split that were left out: no text in the policy's fields
    path: str  # as in config.path: of the dataset, or of the subset
    content_hash: str  # of what is at path
    labels: np.ndarray | None = None  # bool [records of the dataset, kinds of label in all sources]


def open_sources(config: DataConfig, split: str) -> list[Source]:
    """Opens the datasets, subsets and TFDS datasets of config.path.

    Raises:
      FileNotFoundError, ValueError: as open_dataset does; there is no record to use in this split.
    """
    sources = []
    for path in config.path:
        opened = open_dataset(path)
        dataset = opened.dataset if isinstance(opened, Subset) else opened
        positions = opened.positions(split)
        chars = dataset.columns([f"{field}_chars" for field in config.text.fields])
        has_text = np.sum([column.to_numpy() for column in chars.columns], axis=0) > 0
        used = positions[has_text[positions]]
        if not len(used):
            raise ValueError(
                f"data.path ({path}) has {len(positions)} records in its {split} split, and none "
                f"has text in data.text.fields {config.text.fields}. Splits: "
                f"{dataset.manifest['counts']['splits']}."
            )
        without_text = len(positions) - len(used)
        weight = float(len(used))
        sources.append(Source(dataset, used, weight, without_text, path, opened.content_hash))
    weights = config.weights or [source.weight for source in sources]
    for source, weight in zip(sources, weights, strict=True):
        source.weight = weight / sum(weights)
    if config.label:
        _read_labels(sources, config.label)
    return sources


def _read_labels(sources: Sequence[Source], column: str) -> None:
    """Sets source.labels from a column of strings or numbers, or lists of them; null: no label."""
    values = [source.dataset.columns([column])[column].to_pylist() for source in sources]
    lists = [
        [v if isinstance(v, list) else [] if v is None or v == "" else [v] for v in column_values]
        for column_values in values
    ]
    kinds = {kind: i for i, kind in enumerate(sorted({k for of in lists for v in of for k in v}))}
    if not 1 <= len(kinds) <= MAX_LABELS:
        raise ValueError(
            f"data.label ({column!r}) has {len(kinds)} kinds of label; there must be at least 1 "
            f"and at most {MAX_LABELS}. Name a column of classes."
        )
    for source, of_source in zip(sources, lists, strict=True):
        source.labels = np.zeros((len(of_source), len(kinds)), bool)
        for row, labels in zip(source.labels, of_source, strict=True):
            row[[kinds[label] for label in labels]] = True


@dataclasses.dataclass(slots=True, frozen=True)
class Seen:
    """How much of a source a run has seen."""

    samples: int
    unique_pairs: int  # of its records, each once, with whatever text and crop
    epochs: float


def seen_of(sources: Sequence[Source], samples: int) -> list[Seen]:
    """What a run's first samples have of each source, as TrainSamples mixes them.

    A record that two sources share counts in both.
    """
    seen, weights = [], [source.weight for source in sources]
    for i, source in enumerate(sources):
        count = math.floor(samples * (weights[i] / sum(weights[i:])) + 0.5)
        records = len(source.positions)
        seen.append(Seen(count, min(count, records), count / records))
        samples -= count
    return seen
