"""Records -> batches: a Grain input whose position is one integer.

The stream is an endless sequence of samples, fixed by the config, the seed and the datasets alone:
sample i is a (source, epoch, record), and its augmentation is drawn from (seed, source, epoch,
record). Batch size, threads, worker processes and hosts only cut the sequence up, so a run may be
resumed with others of them, from "the next sample is number i". Imports no jax.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from grain.experimental import index_shuffle

from jaxclip.data.image import ImageConfig, ImageError, eval_image, train_image
from jaxclip.data.record import Dataset, Record, hash64
from jaxclip.data.subset import Subset, open_dataset
from jaxclip.data.text import TextPolicy, Tokenizer, TokenizerConfig, choose_text
from jaxclip.data.tfds import TfdsDataset

MAX_CHUNK = 64  # samples that one thread turns into a piece of a batch
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    """What is read, and how it becomes pixels and tokens."""

    path: tuple[str, ...] = ()  # datasets, subsets, TFDS: --config.data.path=A --config.data.path=B
    weights: tuple[float, ...] = ()  # share of the samples from each; (): by their sizes
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
    return sources


@dataclasses.dataclass(slots=True, frozen=True)
class Seen:
    """How much of a source a run has seen."""

    samples: int
    unique_pairs: int  # of its records, each once, with whatever text and crop
    epochs: float


def seen_of(sources: Sequence[Source], samples: int) -> list[Seen]:
    """What a run's first samples have of each source, as _TrainSamples mixes them.

    A record that two sources share counts in both.
    """
    seen, weights = [], [source.weight for source in sources]
    for i, source in enumerate(sources):
        count = math.floor(samples * (weights[i] / sum(weights[i:])) + 0.5)
        records = len(source.positions)
        seen.append(Seen(count, min(count, records), count / records))
        samples -= count
    return seen


def num_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Ref(NamedTuple):
    """One sample, not yet read."""

    source: int
    epoch: int
    position: int


class _TrainSamples:
    """The endless sequence of a run: `samples[i] -> _Ref`.

    Each source is in a new order every epoch. The sources are mixed in even strides: of the first
    n samples each has its share of n, rounded, so those with weights by size end their epochs
    together (grain's mix rounds weights to hundredths of the smallest).
    """

    def __init__(self, sources: Sequence[Source], seed: int):
        self.positions = [source.positions for source in sources]
        self.seeds = [
            int(np.random.SeedSequence((seed, i)).generate_state(1)[0]) for i in range(len(sources))
        ]
        weights = [source.weight for source in sources]
        self.shares = [weight / sum(weights[i:]) for i, weight in enumerate(weights)]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> _Ref:
        source, index = self._mix(index)
        positions = self.positions[source]
        epoch, index = divmod(index, len(positions))
        seed = (self.seeds[source] + epoch) % 2**32
        return _Ref(source, epoch, int(positions[_shuffled(index, len(positions), seed)]))

    def _mix(self, index: int) -> tuple[int, int]:
        """Number in the mixture -> (source, number among the samples of the source)."""
        for source, share in enumerate(self.shares):  # of what the sources before leave over
            before = math.floor(index * share + 0.5)
            if math.floor((index + 1) * share + 0.5) > before:
                return source, before
            index -= before
        raise AssertionError("the last share is 1")


def _shuffled(index: int, length: int, seed: int) -> int:
    if length < 2**16:  # of fewer places index_shuffle goes through 2**16, a millisecond for 20
        return int(_permutation(length, seed)[index])
    return index_shuffle(index, max_index=length - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=64)
def _permutation(length: int, seed: int) -> np.ndarray:
    # raw bits: NumPy promises them for good, and not its own permutations
    return np.argsort(np.random.Philox(key=seed).random_raw(length), kind="stable")


class _EvalSamples:
    """A source in order of position."""

    def __init__(self, source: Source):
        self.positions = source.positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> _Ref:
        return _Ref(0, 0, int(self.positions[index]))


class _Load:
    """Refs -> a batch of them, made in one thread.

    {"image": uint8 [n, S, S, 3], "tokens": int32 [n, T], "source": int64 [n], "record": int64 [n]};
    with seed None, as in evaluation: the one central crop and text, and also "image_id" and
    "caption_id", int64 hashes that are equal where the image bytes or the captions are.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: DataConfig,
        tokenizer: Tokenizer,
        seed: int | None,
    ):
        self.datasets = [source.dataset for source in sources]
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        # Arrays to be filled anew: memory fresh from the system is zeroed first, 50 us a pair.
        self.spare: collections.deque[Batch] = collections.deque()

    def empty(self, rows: int) -> Batch:
        """Arrays of so many rows, to be filled."""
        size = self.config.image.size
        ids = ("source", "record") + (("image_id", "caption_id") if self.seed is None else ())
        return {
            "image": np.empty((rows, size, size, 3), np.uint8),
            "tokens": np.empty((rows, self.tokenizer.context_length), np.int32),
        } | {name: np.empty(rows, np.int64) for name in ids}

    def __call__(self, refs: Sequence[_Ref]) -> Batch:
        # Stage by stage, not record by record: decoding a picture empties the processor's caches,
        # and each of the small steps takes three times as long right after it.
        records = [self.datasets[ref.source][ref.position] for ref in refs]
        rngs = [self._rng(ref) for ref in refs]
        try:
            batch = self.spare.pop()
        except IndexError:
            batch = self.empty(len(refs))
        for row, ref in enumerate(refs):
            batch["image"][row] = self._image(ref, records[row], rngs[row])
        texts = [
            choose_text(record.texts(), self.config.text, rng)
            for record, rng in zip(records, rngs, strict=True)
        ]
        batch["tokens"][:] = self.tokenizer.encode(texts)
        batch["source"][:] = [ref.source for ref in refs]
        batch["record"][:] = [ref.position for ref in refs]
        if self.seed is None:
            batch["image_id"][:] = [hash64(record.image_sha256) for record in records]
            batch["caption_id"][:] = [hash64(text) for text in texts]
        return batch

    def _rng(self, ref: _Ref) -> np.random.Generator | None:
        return None if self.seed is None else np.random.default_rng((self.seed, *ref))

    def _image(self, ref: _Ref, record: Record, rng: np.random.Generator | None) -> np.ndarray:
        try:
            if rng is None:
                return eval_image(record.image, self.config.image)
            return train_image(record.image, self.config.image, rng)
        except ImageError as error:
            raise ValueError(
                f"Record {ref.position} of {self.datasets[ref.source].path} has an unreadable "
                f"image ({error}), though it was readable when the dataset was written. Copy it "
                "again."
            ) from error


class _Chunks:
    """One host's rows of every batch, in pieces for a thread to load: `chunks[i] -> Batch`.

    A global batch is the next batch_size samples in order, and host h of H has rows h*B/H to
    (h+1)*B/H of it. Rows past the last sample are left out.
    """

    def __init__(
        self,
        samples: _TrainSamples | _EvalSamples,
        load: _Load,
        *,
        batch_size: int,
        host: int,
        num_hosts: int,
        first: int = 0,
    ):
        if batch_size % num_hosts:
            raise ValueError(
                f"batch_size ({batch_size}) must divide by the number of hosts ({num_hosts})."
            )
        self.samples, self.load, self.batch_size = samples, load, batch_size
        self.local = batch_size // num_hosts
        self.size = max(c for c in range(1, min(self.local, MAX_CHUNK) + 1) if self.local % c == 0)
        self.per_batch = self.local // self.size
        self.first = first + host * self.local

    def __len__(self) -> int:
        return min(sys.maxsize, math.ceil(len(self.samples) / self.batch_size) * self.per_batch)

    def __getitem__(self, index: int) -> Batch:
        batch, piece = divmod(index, self.per_batch)
        start = self.first + batch * self.batch_size + piece * self.size
        stop = min(start + self.size, len(self.samples))
        return self.load([self.samples[i] for i in range(start, stop)])

    def read(self, num_threads: int, num_workers: int = 0) -> grain.DatasetIterator[Batch]:
        """All chunks in order, loaded two batches ahead: one is filled while one waits."""
        processes = max(1, num_workers)
        threads = num_threads or max(1, num_cores() // processes)
        ahead = max(threads, math.ceil(2 * self.per_batch / processes))
        chunks = grain.MapDataset.source(self).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        )
        if num_workers:
            chunks = chunks.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
        return iter(chunks)


def _fill(batch: Batch, chunks: Iterable[Batch]) -> Batch:
    """Copies the chunks into the first rows of `batch`."""
    start = 0
    for chunk in chunks:
        stop = start + len(chunk["record"])
        for key, rows in chunk.items():
            batch[key][start:stop] = rows
        start = stop
    return batch


class TrainInput:
    """An endless iterator over this host's rows of each global batch.

    Batches are dicts of NumPy arrays: "image" uint8 [b, S, S, 3], "tokens" int32 [b, T], "source"
    and "record" int64 [b], with b = batch_size / num_hosts. To be closed when done: a context
    manager. Memory: three batches and a chunk a thread, besides the batch that is given out.

    Args:
      next_sample: number of the first sample to give out, as `next_sample` was when saved.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        seed: int,
        batch_size: int,
        host: int = 0,
        num_hosts: int = 1,
        next_sample: int = 0,
    ):
        self.next_sample = next_sample
        self.batch_size = batch_size
        self._num_workers = config.num_workers
        self._chunks = _Chunks(
            _TrainSamples(sources, seed),
            _Load(sources, config, tokenizer, seed),
            batch_size=batch_size,
            host=host,
            num_hosts=num_hosts,
            first=next_sample,
        )
        self._iterator = self._chunks.read(config.num_threads, config.num_workers)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._chunks.load.empty(self._chunks.local)
        chunks = list(itertools.islice(self._iterator, self._chunks.per_batch))
        _fill(batch, chunks)
        if not self._num_workers:  # what comes from another process is memory shared with it
            self._chunks.load.spare.extend(chunks)
        self.next_sample += self.batch_size
        return batch

    def __enter__(self) -> "TrainInput":
        return self

    def __exit__(self, *_) -> None:
        self._iterator.close()


def eval_batches(
    source: Source,
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    host: int = 0,
    num_hosts: int = 1,
) -> Iterator[Batch]:
    """Every record of the source once, in order; as TrainInput's batches, with "valid" bool [b].

    The last batch is filled up with rows that are not valid, so that all hosts see equally many
    batches of one shape. Rows of all hosts, in order of host within each batch, are the records in
    order of position.
    """
    samples = _EvalSamples(source)
    load = _Load([source], config, tokenizer, None)
    chunks = _Chunks(samples, load, batch_size=batch_size, host=host, num_hosts=num_hosts)
    padding = load([samples[0]])
    with contextlib.closing(chunks.read(config.num_threads)) as iterator:
        for start in range(chunks.first, chunks.first + len(samples), batch_size):
            batch = {key: np.repeat(row, chunks.local, 0) for key, row in padding.items()}
            _fill(batch, itertools.islice(iterator, chunks.per_batch))
            yield batch | {"valid": np.arange(start, start + chunks.local) < len(samples)}
