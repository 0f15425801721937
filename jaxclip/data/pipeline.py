"""Records -> batches: a Grain input whose position is one integer.

The stream is an endless sequence of samples, fixed by the config, the seed and the datasets alone:
sample i is a (source, epoch, record), and its augmentation is drawn from (seed, source, epoch,
record). Batch size, threads, worker processes and hosts only cut the sequence up, so a run may be
resumed with others of them, from "the next sample is number i". Imports no jax.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence

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

    path: tuple[str, ...] = ()  # datasets; several are mixed: --config.data.path=A --config.data.path=B
    weights: tuple[float, ...] = ()  # share of the samples from each; (): by their sizes
    text: TextPolicy = dataclasses.field(default_factory=TextPolicy)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    num_threads: int = 0  # that decode; 0: one a core, shared out over worker processes if any
    num_workers: int = 0  # processes; threads do, as the decoders release Python's lock

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
                f"{name}.weights {self.weights} must be positive. Leave a dataset out of {name}.path "
                "instead of weighting it 0."
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
                f"data.path ({path}) has {len(positions)} records in its {split} split, and none has "
                f"text in data.text.fields {config.text.fields}. Splits: "
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
    def __init__(self, source: int, length: int):
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
        self, datasets: Sequence[Dataset], config: DataConfig, tokenizer: Tokenizer, seed: int | None
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
                f"Record {ref.position} of {self.datasets[ref.source].path} has an unreadable image "
                f"({error}), though it was readable when the dataset was written. Copy it again."
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


def _read_options(config: DataConfig, chunks_a_batch: int) -> grain.ReadOptions:
    threads = config.num_threads or max(1, (os.cpu_count() or 1) // max(1, config.num_workers))
    # two batches ahead, in pieces: one being filled while one waits
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2 * chunks_a_batch))


class TrainInput:
    """An endless iterator over this host's rows of each global batch.

    Batches are dicts of NumPy arrays: "image" uint8 [b, S, S, 3], "tokens" int32 [b, T], "source" and
    "record" int64 [b], with b = batch_size / num_hosts. To be closed when done: a context manager.

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
        if batch_size % num_hosts:
            raise ValueError(
                f"batch_size ({batch_size}) must divide by the number of hosts ({num_hosts})."
            )
        self.next_sample = next_sample
        self.batch_size = batch_size
        local = batch_size // num_hosts
        chunk = max(c for c in range(1, min(local, MAX_CHUNK) + 1) if local % c == 0)
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
                read_options=_read_options(config, self._chunks_a_batch),
                multiprocessing_options=workers,
            )
        )
        self._iterator.set_state({"global_next_index": next_sample})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        chunks = [next(self._iterator) for _ in range(self._chunks_a_batch)]
        self.next_sample += self.batch_size
        if len(chunks) == 1:
            return chunks[0]
        return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}

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
    if len(parts) == 1:
        return parts[0]
    return grain.MapDataset.mix(parts, weights=[source.weight for source in sources])


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
    batches = math.ceil(len(source.positions) / batch_size)
    padded = np.full(batches * batch_size, source.positions[0])
    padded[: len(source.positions)] = source.positions
    valid = np.arange(len(padded)) < len(source.positions)
    rows = np.arange(len(padded)).reshape(batches, num_hosts, -1)[:, host].ravel()
    local = batch_size // num_hosts
    refs = grain.MapDataset.source(padded[rows]).map_with_index(_ToRef(0, len(padded)))
    loaded = refs.map(_Load([source.dataset], config, tokenizer, None)).batch(local)
    iterator = iter(loaded.to_iter_dataset(_read_options(config, 1)))
    try:
        for i, batch in enumerate(iterator):
            yield batch | {"valid": valid[rows[i * local : (i + 1) * local]]}
    finally:
        iterator.close()
