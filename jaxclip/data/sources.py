"""What a run reads: datasets, subsets and TFDS datasets, opened and weighted. Imports no jax."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxclip.data.dataset import Dataset
from jaxclip.data.image import ImageConfig
from jaxclip.data.subset import Subset, open_dataset
from jaxclip.data.text import TextPolicy, TokenizerConfig
from jaxclip.data.tfds import TfdsDataset

NO_TRAIN = "Set data.path or data.text.fields to what has records with text."
NO_EVAL = "Set --config.eval.split='' to train without evaluation, or make the dataset with splits."
MAX_LABELS = 64  # of a record, as each row of a batch has room for as many


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


class Labels(NamedTuple):
    """Which labels each record of a dataset has, without a number for each kind."""

    starts: np.ndarray  # int64 [N + 1]
    kinds: np.ndarray  # int32 [labels of all records]: numbers of the kinds, ascending in a record

    def of(self, position: int) -> np.ndarray:
        return self.kinds[self.starts[position] : self.starts[position + 1]]

    @property
    def most(self) -> int:
        """Labels of a record, at most."""
        return int(np.diff(self.starts).max())


@dataclasses.dataclass(slots=True)
class Source:
    """The records of one split of a dataset or subset that have a text under the run's policy."""

    dataset: Dataset | TfdsDataset
    positions: np.ndarray  # int64 [N]
    weight: float  # share of the samples; the sources' weights sum to 1
    without_text: int  # records of the split that were left out: no text in the policy's fields
    path: str  # as in config.path: of the dataset, or of the subset
    content_hash: str  # of what is at path
    labels: Labels | None = None  # of all records of the dataset; kinds as in the other sources


def open_sources(config: DataConfig, split: str | None) -> list[Source]:
    """Opens the datasets, subsets and TFDS datasets of config.path; None: all splits.

    Raises:
      FileNotFoundError, ValueError: as open_dataset does; there is no record to use in this split.
    """
    sources = []
    for path in config.path:
        opened = open_dataset(path)
        dataset = opened.dataset if isinstance(opened, Subset) else opened
        positions = opened.positions(split)
        fields = (*config.text.fields, *config.text.append)
        chars = dataset.columns([f"{field}_chars" for field in fields])
        has_text = np.sum([column.to_numpy() for column in chars.columns], axis=0) > 0
        used = positions[has_text[positions]]
        if not len(used):
            where = f"its {split} split" if split else "all"
            why = f", and none has text in data.text.fields {fields}"
            raise ValueError(
                f"data.path ({path}) has {len(positions)} records in {where}"
                f"{why if len(positions) else ''}. Splits: {dataset.manifest['counts']['splits']}. "
                f"{NO_TRAIN if split == 'train' else NO_EVAL}"
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
    """Sets source.labels from a column of strings or numbers, or lists of them.

    Null, NaN, "" and [] are no label. Kinds are numbered over all sources.
    """
    found = [_rows_and_labels(source, column) for source in sources]
    kinds = {kind for *_, own_kinds in found for kind in own_kinds}
    kinds = {kind for kind in kinds if kind not in ("", None) and kind == kind}  # but NaN
    if not kinds:
        raise ValueError(f"data.label ({column!r}) has no label. Name a column of classes.")
    if len({isinstance(kind, str) for kind in kinds}) > 1:
        raise ValueError(
            f"data.label ({column!r}) has strings in one and numbers in another dataset of "
            "data.path: no label would be in both. Give the column one type."
        )
    number = {kind: i for i, kind in enumerate(sorted(kinds))}
    for source, (rows, indices, own_kinds) in zip(sources, found, strict=True):
        numbers = np.array([number.get(kind, -1) for kind in (*own_kinds, None)])[indices]
        known = numbers >= 0
        # each label of a record once, in order
        rows, numbers = np.divmod(np.unique(rows[known] * len(kinds) + numbers[known]), len(kinds))
        starts = np.searchsorted(rows, np.arange(len(source.dataset) + 1))
        source.labels = Labels(starts, numbers.astype(np.int32))
        if source.labels.most > MAX_LABELS:
            raise ValueError(
                f"data.label ({column!r}) has {source.labels.most} labels in a record of "
                f"{source.path}; there may be {MAX_LABELS}. Name a column of fewer, coarser ones."
            )


def _rows_and_labels(source: Source, column: str) -> tuple[np.ndarray, np.ndarray, list]:
    """Of each label the position of its record and its index among the kinds, -1: null; kinds."""
    values = source.dataset.columns([column])[column].combine_chunks()
    rows = np.arange(len(values))
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        rows = values.value_parent_indices().to_numpy().astype(np.int64)
        values = values.flatten()
    if pa.types.is_nested(values.type):
        raise ValueError(
            f"data.label ({column!r}) is of type {values.type} in {source.path}; it must be of "
            "strings or numbers, or of lists of them. Name another column."
        )
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    return rows, values.indices.fill_null(-1).to_numpy(), values.dictionary.to_pylist()


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
