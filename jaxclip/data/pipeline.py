"""Records -> batches: a Grain input whose position is one integer.

The stream is an endless sequence of samples, fixed by the config, the seed and the datasets alone:
sample i is a (source, epoch, record), and its augmentation is drawn from (seed, source, epoch,
record). Batch size, threads, worker processes and hosts only cut the sequence up, so a run may be
resumed with others of them, from "the next sample is number i". Imports no jax.
"""

import contextlib
import gc
import itertools
import math
import sys
from collections.abc import Generator, Iterator, Sequence

import grain
import numpy as np

from jaxclip.command import num_cores
from jaxclip.data.files import DamagedError
from jaxclip.data.image import ImageError, eval_image, train_image
from jaxclip.data.naflex import naflex_patches
from jaxclip.data.order import Ref, TrainSamples
from jaxclip.data.record import Record, article_key, figure_key, hash64
from jaxclip.data.sources import DataConfig, Source
from jaxclip.data.text import Tokenizer, choose_text

MAX_CHUNK = 64  # samples that one thread turns into a piece of a batch
IDS = ("article_id", "figure_id", "image_id", "caption_id")
Batch = dict[str, np.ndarray]


class _EvalSamples:
    """A source in order of position."""

    def __init__(self, source: Source):
        self.positions = source.positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Ref:
        return Ref(0, 0, int(self.positions[index]))


class _Load:
    """Refs -> the rows of a batch, filled in one thread.

    {"image": uint8 [n, S, S, 3], "tokens": int32 [n, T], "source": int64 [n], "record": int64 [n]},
    and for each of IDS int64 [n], hashes that are equal in rows with the same article, figure,
    image bytes or caption. A record that does not say its article or figure is alone in it.
    Captions are the same in training where the tokens are, as the model sees no more of them; in
    evaluation where the texts are, so that scores do not depend on the tokenizer. With labels:
    "labels" int32 [n, L], numbers of kinds, filled up with -1, and "label_id", equal where all
    labels are; a record without is alone. For NaFlex "image" is of patches, uint8 [n, patches,
    values], and "grid" int32 [n, 2] their rows and columns. With seed None, as in evaluation: the
    one central crop and text.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: DataConfig,
        tokenizer: Tokenizer,
        seed: int | None,
    ):
        self.datasets = [source.dataset for source in sources]
        self.labels = [source.labels for source in sources if source.labels]
        self.most_labels = max((labels.most for labels in self.labels), default=0)
        self.config, self.tokenizer, self.seed = config, tokenizer, seed

    def empty(self, rows: int) -> Batch:
        """Arrays of so many rows, to be filled."""
        size, P = self.config.image.size, self.config.image.naflex_patch_size
        shape = ((size // P) ** 2, P * P * 3) if P else (size, size, 3)
        batch = {
            "image": np.empty((rows, *shape), np.uint8),
            "tokens": np.empty((rows, self.tokenizer.context_length), np.int32),
        } | {name: np.empty(rows, np.int64) for name in ("source", "record", *IDS)}
        if P:
            batch["grid"] = np.empty((rows, 2), np.int32)
        if self.most_labels:
            batch["label_id"] = np.empty(rows, np.int64)
            batch["labels"] = np.empty((rows, self.most_labels), np.int32)
        return batch

    def __call__(self, refs: Sequence[Ref], batch: Batch) -> None:
        """Fills the arrays of `batch`, which have a row a ref."""
        # Stage by stage, not record by record: decoding a picture empties the processor's caches,
        # and each of the small steps takes three times as long right after it.
        records = [self.datasets[ref.source][ref.position] for ref in refs]
        rngs = [self._rng(ref) for ref in refs]
        for row, ref in enumerate(refs):
            self._put_image(batch, row, self._image(ref, records[row], rngs[row]))
        texts = [
            choose_text(record.texts(), self.config.text, rng)
            for record, rng in zip(records, rngs, strict=True)
        ]
        batch["tokens"][:] = self.tokenizer.encode(texts)
        batch["source"][:] = [ref.source for ref in refs]
        batch["record"][:] = [ref.position for ref in refs]
        captions = texts if self.seed is None else [row.tobytes() for row in batch["tokens"]]
        for row, ids in enumerate(map(self._ids, refs, records, captions)):
            for name, number in ids.items():
                batch[name][row] = number
        if self.most_labels:
            self._fill_labels(batch, refs)

    def _put_image(self, batch: Batch, row: int, pixels: np.ndarray) -> None:
        if P := self.config.image.naflex_patch_size:
            length = batch["image"].shape[1]
            batch["image"][row], batch["grid"][row] = naflex_patches(pixels, P, length)
        else:
            batch["image"][row] = pixels

    def _ids(self, ref: Ref, record: Record, caption: str | bytes) -> dict[str, int]:
        figure = figure_key(record)
        if record.figure_id and not record.article_id:  # its name is one of the dataset
            figure = f"{self.datasets[ref.source].content_hash}/{record.figure_id}"
        return {
            "article_id": hash64(article_key(record.article_id) or self._itself(ref)),
            "figure_id": hash64(figure or self._itself(ref)),
            "image_id": hash64(record.image_sha256),
            "caption_id": hash64(caption),
        }

    def _itself(self, ref: Ref) -> str:
        return f"{self.datasets[ref.source].content_hash}/{ref.position}"

    def _fill_labels(self, batch: Batch, refs: Sequence[Ref]) -> None:
        batch["labels"][:] = -1
        for row, ref in enumerate(refs):
            labels = self.labels[ref.source].of(ref.position)
            batch["labels"][row, : len(labels)] = labels
            batch["label_id"][row] = hash64(labels.tobytes() or self._itself(ref))

    def _rng(self, ref: Ref) -> np.random.Generator | None:
        return None if self.seed is None else np.random.default_rng((self.seed, *ref))

    def _image(self, ref: Ref, record: Record, rng: np.random.Generator | None) -> np.ndarray:
        try:
            if rng is None:
                return eval_image(record.image, self.config.image)
            return train_image(record.image, self.config.image, rng)
        except ImageError as error:
            raise DamagedError(
                f"Record {ref.position} of {self.datasets[ref.source].path} has an unreadable "
                f"image ({error}), though it was readable when the dataset was written. Copy it "
                "again."
            ) from error


class _Chunks:
    """One host's rows of every batch, in pieces for a thread to load: `chunks[i]` is a Batch.

    A global batch is the next batch_size samples in order, and host h of H has rows h*B/H to
    (h+1)*B/H of it. Rows past the last sample are left out.
    """

    def __init__(
        self,
        samples: TrainSamples | _EvalSamples,
        load: _Load,
        *,
        batch_size: int,
        host: int,
        num_hosts: int,
        first: int = 0,
        num_workers: int = 0,
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
        self.num_workers = num_workers
        # Threads write where the rows are to stay, which saves a copy of every image. Processes
        # cannot: theirs are put together afterwards.
        self.filling: dict[int, Batch] = {}

    def num_batches(self) -> int:
        return math.ceil(len(self.samples) / self.batch_size)

    def __len__(self) -> int:
        return min(sys.maxsize, self.num_batches() * self.per_batch)

    def __getitem__(self, index: int) -> Batch:
        number, piece = divmod(index, self.per_batch)
        start = self.first + number * self.batch_size + piece * self.size
        stop = min(start + self.size, len(self.samples))
        refs = [self.samples[i] for i in range(start, stop)]
        if self.num_workers:
            rows = self.load.empty(len(refs))
        else:
            batch = self.filling.get(number)
            if batch is None:  # of two threads that come here at once, the first one's stays
                batch = self.filling.setdefault(number, self.load.empty(self.local))
            place = slice(piece * self.size, piece * self.size + len(refs))
            rows = {key: values[place] for key, values in batch.items()}
        self.load(refs, rows)
        return rows

    def batches(self, num_threads: int) -> Generator[Batch, None, None]:
        """Batch by batch, loaded two ahead: one is filled while one waits. To be closed."""
        processes = max(1, self.num_workers)
        threads = num_threads or max(1, num_cores() // processes)
        ahead = max(threads, math.ceil(2 * self.per_batch / processes))
        chunks = grain.MapDataset.source(self).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        )
        if self.num_workers:
            options = grain.MultiprocessingOptions(num_workers=self.num_workers)
            chunks = chunks.mp_prefetch(options)
        with contextlib.closing(iter(chunks)) as iterator:
            for number in range(self.num_batches()):
                pieces = list(itertools.islice(iterator, self.per_batch))
                if self.num_workers:
                    batch = {key: np.concatenate([p[key] for p in pieces]) for key in pieces[0]}
                else:
                    batch = self.filling.pop(number)
                del pieces  # shared memory, that need not wait for the next ones
                yield batch


class TrainInput:
    """An endless iterator over this host's rows of each global batch.

    Batches are dicts of NumPy arrays of b = batch_size / num_hosts rows: "image" uint8
    [b, S, S, 3], "tokens" int32 [b, T], "source" and "record" int64 [b], where they are from; and
    what two rows have in common, int64 [b], equal where it is the same: "article_id", "figure_id",
    "image_id", "caption_id". With data.label also "label_id", and "labels" int32 [b, L]; see _Load.
    To be closed when done: a context manager. Memory: three batches and a chunk a thread, besides
    the batch that is given out. A record that cannot be read is a DamagedError, which names it.

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
        chunks = _Chunks(
            TrainSamples([s.positions for s in sources], [s.weight for s in sources], seed),
            _Load(sources, config, tokenizer, seed),
            batch_size=batch_size,
            host=host,
            num_hosts=num_hosts,
            first=next_sample,
            num_workers=config.num_workers,
        )
        self._batches = chunks.batches(config.num_threads)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except DamagedError as error:  # Grain raises it again, for a worker process
            told = str(error)
        else:
            self.next_sample += self.batch_size
            return batch
        gc.collect()  # Grain's frames are garbage that holds shared memory
        raise DamagedError(told)

    def __enter__(self) -> "TrainInput":
        return self

    def __exit__(self, *_) -> None:
        self._batches.close()


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
    padding = load.empty(1)
    load([samples[0]], padding)
    with contextlib.closing(chunks.batches(config.num_threads)) as batches:
        for number, batch in enumerate(batches):
            start = chunks.first + number * batch_size
            valid = np.arange(start, start + chunks.local) < len(samples)
            for key, row in padding.items():
                batch[key][~valid] = row
            yield batch | {"valid": valid}
