"""Records -> batches: a Grain input whose position is one integer.

The stream is an endless sequence of samples, fixed by the config, the seed and the datasets alone:
sample i is a (source, epoch, record), and its augmentation is drawn from (seed, source, epoch,
record). Batch size, threads, worker processes and hosts only cut the sequence up, so a run may be
resumed with others of them, from "the next sample is number i". Imports no jax.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from jaxclip.data.image import ImageConfig, ImageError, eval_image, train_image
from jaxclip.data.record import Dataset, hash64
from jaxclip.data.text import TextPolicy, Tokenizer, TokenizerConfig, choose_text

MAX_CHUNK = 64  # samples that one thread turns into a piece of a batch
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    """What is read, and how it becomes pixels and tokens."""

    path: tuple[str, ...] = ()  # datasets, mixed: --config.data.path=A --config.data.path=B
    weights: tuple[float, ...] = ()  # share of the samples from each; (): by their sizes
    text: TextPolicy = dataclasses.field(default_factory=TextPolicy)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    num_threads: int = 0  # that decode; 0: one a core, shared out over worker processes if any
    num_workers: int = 0  # processes; 0: none, as the decoders release Python's lock

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
    """The records of one split of one dataset that have a text under the run's policy."""

    dataset: Dataset
    positions: np.ndarray  # int64 [N]
    weight: float  # share of the samples; the sources' weights sum to 1
    without_text: int  # records of the split that were left out: no text in the policy's fields


def open_sources(config: DataConfig, split: str) -> list[Source]:
    """Opens the datasets of config.path.

    Raises:
      FileNotFoundError, ValueError: as Dataset does; a dataset has no record to use in this split.
    """
    sources = []
    for path in config.path:
        dataset = Dataset(path)
        positions = dataset.positions(split)
        chars = dataset.columns([f"{field}_chars" for field in config.text.fields])
        has_text = np.sum([column.to_numpy() for column in chars.columns], axis=0) > 0
        used = positions[has_text[positions]]
        if not len(used):
            raise ValueError(
                f"data.path ({path}) has {len(positions)} records in its {split} split, and none "
                f"has text in data.text.fields {config.text.fields}. Splits: "
                f"{dataset.manifest['counts']['splits']}."
            )
        sources.append(Source(dataset, used, float(len(used)), len(positions) - len(used)))
    weights = config.weights or [source.weight for source in sources]
    for source, weight in zip(sources, weights, strict=True):
        source.weight = weight / sum(weights)
    return sources


@dataclasses.dataclass(frozen=True, slots=True)
class _Ref:
    """One sample, not yet read."""

    source: int
    epoch: int
    position: int


class _ToRef(grain.transforms.MapWithIndex):
    def __init__(self, source: int, length: int = sys.maxsize):
        self.source, self.length = source, length

    def map_with_index(self, index: int, position: int) -> _Ref:
        return _Ref(self.source, index // self.length, int(position))


class _HostBlocks:
    """The samples in the order in which interleaved reading gives each host one block of the batch.

    ElasticIterator gives host h the samples h, h+H, h+2H, ... of H hosts. Within each batch of B,
    place j*H + h is given the sample of row h*B/H + j: so the global batch has the same rows in the
    same order for any H.
    """

    def __init__(self, samples: grain.MapDataset, first: int, batch_size: int, num_hosts: int):
        self.samples, self.first = samples, first
        self.batch_size, self.num_hosts = batch_size, num_hosts

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> _Ref:
        batch, place = divmod(index - self.first, self.batch_size)
        j, host = divmod(place, self.num_hosts)
        row = host * (self.batch_size // self.num_hosts) + j
        return self.samples[self.first + batch * self.batch_size + row]


class _Load(grain.transforms.Map):
    """_Ref -> {"image": uint8 [S, S, 3], "tokens": int32 [T], "source", "record": int64}.

    With seed None, as in evaluation: the one central crop and text, and also "image_id" and
    "caption_id", int64 hashes that are equal where the image bytes or the captions are.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        config: DataConfig,
        tokenizer: Tokenizer,
        seed: int | None,
    ):
        self.datasets, self.config, self.tokenizer, self.seed = datasets, config, tokenizer, seed

    def map(self, ref: _Ref) -> Batch:
        config = self.config
        record = self.datasets[ref.source][ref.position]
        rng = None
        if self.seed is not None:
            rng = np.random.default_rng((self.seed, ref.source, ref.epoch, ref.position))
        try:
            if rng is None:
                image = eval_image(record.image, config.image)
            else:
                image = train_image(record.image, config.image, rng)
        except ImageError as error:
            raise ValueError(
                f"Record {ref.position} of {self.datasets[ref.source].path} has an unreadable "
                f"image ({error}), though it was readable when the dataset was written. Copy it "
                "again."
            ) from error
        text = choose_text(record.texts(), config.text, rng)
        sample = {
            "image": image,
            "tokens": self.tokenizer.encode([text])[0],
            "source": np.int64(ref.source),
            "record": np.int64(ref.position),
        }
        if rng is None:
            sample["image_id"] = np.int64(hash64(record.image_sha256))
            sample["caption_id"] = np.int64(hash64(text))
        return sample


def _chunk_size(local: int) -> int:
    """The largest divisor of a host's batch that is at most MAX_CHUNK."""
    return max(c for c in range(1, min(local, MAX_CHUNK) + 1) if local % c == 0)


def _read_options(num_threads: int, workers: int, chunks_a_batch: int) -> grain.ReadOptions:
    """Of each worker process. All together read two batches ahead: one is filled, one waits."""
    threads = num_threads or max(1, len(os.sched_getaffinity(0)) // workers)
    ahead = math.ceil(2 * chunks_a_batch / workers)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))


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
    manager. Memory: four batches, besides what decoding takes.

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
        local = _local_batch(batch_size, num_hosts)
        self.next_sample = next_sample
        self.batch_size = batch_size
        self._shapes = {
            "image": ((local, config.image.size, config.image.size, 3), np.uint8),
            "tokens": ((local, tokenizer.context_length), np.int32),
            "source": ((local,), np.int64),
            "record": ((local,), np.int64),
        }
        chunk = _chunk_size(local)
        self._chunks_a_batch = local // chunk
        samples = _endless_samples(sources, seed)
        blocks = grain.MapDataset.source(_HostBlocks(samples, next_sample, batch_size, num_hosts))
        load = _Load([source.dataset for source in sources], config, tokenizer, seed)
        workers = None
        if config.num_workers:
            workers = grain.MultiprocessingOptions(num_workers=config.num_workers)
        self._iterator = iter(
            grain.experimental.ElasticIterator(
                blocks.map(load),
                chunk * num_hosts,
                grain.sharding.ShardOptions(host, num_hosts),
                read_options=_read_options(
                    config.num_threads, max(1, config.num_workers), self._chunks_a_batch
                ),
                multiprocessing_options=workers,
            )
        )
        self._iterator.set_state({"global_next_index": next_sample})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = {key: np.empty(shape, dtype) for key, (shape, dtype) in self._shapes.items()}
        _fill(batch, (next(self._iterator) for _ in range(self._chunks_a_batch)))
        self.next_sample += self.batch_size
        return batch

    def __enter__(self) -> "TrainInput":
        return self

    def __exit__(self, *_) -> None:
        self._iterator.close()


def _endless_samples(sources: Sequence[Source], seed: int) -> grain.MapDataset:
    """Each source in a new order every epoch, mixed in exact proportion to the weights."""
    parts = [
        grain.MapDataset.source(source.positions)
        .seed(int(np.random.SeedSequence((seed, i)).generate_state(1)[0]))
        .shuffle()
        .repeat(None)
        .map_with_index(_ToRef(i, len(source.positions)))
        for i, source in enumerate(sources)
    ]
    mixture = _Mixture([source.weight for source in sources])
    return grain.MapDataset.select_from_datasets(parts, mixture)


class _Mixture(grain.transforms.DatasetSelectionMap):
    """Sample index -> (source, index within the source), in even strides.

    Of the first n samples, a source has its share of n, rounded (MapDataset.mix rounds the weights
    to hundredths of the smallest). Sources with weights by size so end their epochs together.
    """

    def __init__(self, weights: Sequence[float]):
        self.shares = [weight / sum(weights[i:]) for i, weight in enumerate(weights)]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        for source, share in enumerate(self.shares):  # of what the sources before have left over
            before = math.floor(index * share + 0.5)
            if math.floor((index + 1) * share + 0.5) > before:
                return source, before
            index -= before
        raise AssertionError("the last share is 1")


def _local_batch(batch_size: int, num_hosts: int) -> int:
    if batch_size % num_hosts:
        raise ValueError(
            f"batch_size ({batch_size}) must divide by the number of hosts ({num_hosts})."
        )
    return batch_size // num_hosts


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
    local = _local_batch(batch_size, num_hosts)
    chunk = _chunk_size(local)
    num_batches = math.ceil(len(source.positions) / batch_size)
    rows = np.arange(num_batches * batch_size).reshape(num_batches, num_hosts, local)[:, host]
    valid = rows < len(source.positions)
    load = _Load([source.dataset], config, tokenizer, None)
    padding = load.map(_Ref(0, 0, int(source.positions[0])))
    refs = grain.MapDataset.source(source.positions[rows[valid]]).map_with_index(_ToRef(0))
    loaded = refs.map(load).batch(chunk)
    options = _read_options(config.num_threads, 1, local // chunk)
    with contextlib.closing(iter(loaded.to_iter_dataset(options))) as chunks:
        for valid_rows in valid:
            batch = {key: np.repeat(value[None], local, 0) for key, value in padding.items()}
            num_chunks = math.ceil(valid_rows.sum() / chunk)
            yield _fill(batch, itertools.islice(chunks, num_chunks)) | {"valid": valid_rows}
