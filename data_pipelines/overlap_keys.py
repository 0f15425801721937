"""By what records of different datasets are told to be the same: keys, and near duplicates."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import multiprocessing
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import tqdm
from etils import epath

from data_pipelines.fingerprint import caption_hash, near_duplicates, perceptual_hash
from jaxclip.command import num_cores
from jaxclip.data.dataset import Dataset
from jaxclip.data.image import ImageError, decode_image
from jaxclip.data.record import Record, article_key, figure_key, hash64
from jaxclip.data.subset import Subset, dataset_name, open_dataset
from jaxclip.data.tfds import TfdsDataset

KINDS = ("article", "figure", "image", "near", "caption")
COLUMNS = ("article", "figure", "image", "phash", "caption", "panel_caption")
MIN_WORDS = 5  # a shorter caption, "Figure 1.", is nobody's own
RECORDS_PER_TASK = 2048
THUMBNAIL = 24  # pixels a side, of what is compared where hashes are near
# Of 200 real figures, resized and encoded again, all thumbnails correlate above 0.97 with theirs;
# of 20 pairs of figures whose hashes are near by chance (charts of one template), two above 0.93.
MIN_CORRELATION = 0.96
BLOCK = 2048  # thumbnails compared with as many at once
KEYS_VERSION = 2  # another meaning of the keys: those kept are made again


@dataclasses.dataclass(slots=True)
class Collection:
    """One dataset with the keys of its records; 0 in a key means not known, and matches none."""

    name: str
    opened: Dataset | Subset | TfdsDataset
    positions: np.ndarray  # int64 [N]
    keys: dict[str, np.ndarray]  # int64 [N] each; COLUMNS, then near

    @property
    def records(self) -> Dataset | TfdsDataset:
        return self.opened.dataset if isinstance(self.opened, Subset) else self.opened

    def values(self, kind: str) -> np.ndarray:
        """int64 [N, 1 or 2]: the keys of a kind."""
        names = ("caption", "panel_caption") if kind == "caption" else (kind,)
        return np.stack([self.keys[name] for name in names], axis=1)

    def found_in(self, other: "Collection", kinds: Sequence[str]) -> np.ndarray:
        """Which records have a counterpart by any of the kinds in `other`; bool [N]."""
        found = np.zeros(len(self.positions), bool)
        for kind in kinds:
            values = self.values(kind)
            found |= ((values != 0) & np.isin(values, other.values(kind))).any(axis=1)
        return found


# --- Keys -----------------------------------------------------------------------------------------


def keys_of(record: Record, phash: int | None = None) -> tuple[int, ...]:
    """The keys of a record, in the order of COLUMNS; phash where it is known already."""
    if phash is None:
        try:
            phash = perceptual_hash(decode_image(record.image))
        except ImageError:
            phash = 0
    return (
        hash64(article) if (article := article_key(record.article_id)) else 0,
        hash64(figure) if (figure := figure_key(record)) else 0,
        hash64(record.image_sha256 or hashlib.sha256(record.image).hexdigest()),
        phash,  # 0 also where an image is blank
        _caption_key(record.caption),
        _caption_key(record.panel_caption),
    )


def _caption_key(text: str) -> int:
    return caption_hash(text) if len(re.findall(r"\w+", text)) >= MIN_WORDS else 0


def _keys_of_range(
    records: Dataset | TfdsDataset, positions: np.ndarray, phashes: Sequence[int | None]
) -> np.ndarray:
    """int64 [n, len(COLUMNS)]"""
    pairs = zip(positions.tolist(), phashes, strict=True)
    return np.array([keys_of(records[p], phash) for p, phash in pairs], np.int64)


def _known_hashes(collection: Collection) -> list[int | None]:
    """The column perceptual_hash (of signals.py), where the dataset has it."""
    records = collection.records
    if isinstance(records, TfdsDataset) or "perceptual_hash" not in records.metadata.column_names:
        return [None] * len(collection.positions)
    column = records.columns(["perceptual_hash"])["perceptual_hash"]
    return column.take(collection.positions).to_pylist()


def collect(path: str, split: str, out: epath.Path, workers: int) -> Collection:
    """Opens a dataset and reads its keys, or those kept in `out`."""
    opened = open_dataset(path)
    positions = opened.positions(split or None)
    collection = Collection(dataset_name(path), opened, positions, {})
    kept = out / "keys" / f"{opened.content_hash[:24]}-{split or 'all'}-{KEYS_VERSION}.npy"
    if kept.exists():
        with kept.open("rb") as file:
            table = np.load(file, allow_pickle=False)
    else:
        table = _read_keys(collection, workers)
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(kept.name + ".tmp")
        with temporary.open("wb") as file:
            np.save(file, table)
        temporary.replace(kept)
    collection.keys = dict(zip(COLUMNS, table.T, strict=True))
    return collection


def _read_keys(collection: Collection, workers: int) -> np.ndarray:
    """int64 [N, len(COLUMNS)] of all records, read in parallel."""
    count = len(collection.positions)
    parts = np.array_split(collection.positions, max(1, -(-count // RECORDS_PER_TASK)))
    hashes = iter(_known_hashes(collection))
    jobs = [(collection.records, part, list(itertools.islice(hashes, len(part)))) for part in parts]
    return np.concatenate(list(_in_parallel(_keys_of_range, jobs, workers, collection.name)))


def _in_parallel(
    function: Callable[..., np.ndarray], jobs: Sequence[tuple], workers: int, name: str
) -> Iterator[np.ndarray]:
    """function(*job) of each job, in order, a row a position."""
    workers = min(workers or num_cores(), len(jobs))
    with contextlib.ExitStack() as stack:
        total = sum(len(job[1]) for job in jobs)
        bar = stack.enter_context(tqdm.tqdm(total=total, unit=" records", desc=name))
        run = map
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
            run = stack.enter_context(pool).map
        for result in run(function, *zip(*jobs, strict=True)):
            bar.update(len(result))
            yield result


def cluster(collections: Sequence[Collection], max_distance: int, workers: int = 1) -> None:
    """Fills in the key `near`: records of one number show the same image; 0: nobody else's.

    Hashes find the candidates, and thumbnails decide: charts made of one template have hashes as
    near as copies do.
    """
    hashes = np.concatenate([c.keys["phash"] for c in collections])
    clusters = np.zeros(len(hashes), np.int64)
    known = hashes != 0
    clusters[known] = near_duplicates(hashes[known], max_distance) + 1
    images = np.concatenate([c.keys["image"] for c in collections])
    clusters = _verify(collections, clusters, images, workers)
    stops = np.cumsum([len(c.positions) for c in collections])[:-1]
    for collection, part in zip(collections, np.split(clusters, stops), strict=True):
        collection.keys["near"] = part


def _verify(
    collections: Sequence[Collection], clusters: np.ndarray, images: np.ndarray, workers: int
) -> np.ndarray:
    """Splits each cluster into records with the same thumbnail; one alone becomes 0.

    Equal bytes need no look: of each cluster the distinct images are compared.
    """
    rows = np.flatnonzero(np.bincount(clusters)[clusters] * (clusters != 0) > 1)
    rows = rows[np.lexsort((images[rows], clusters[rows]))]
    is_new = np.diff(clusters[rows], prepend=-1) != 0
    is_new |= np.diff(images[rows], prepend=0) != 0
    first = rows[is_new]  # one record of each distinct image U
    starts = np.flatnonzero(np.diff(clusters[first], prepend=-1))
    sizes = np.diff(np.append(starts, len(first)))
    compared = np.flatnonzero(np.repeat(sizes > 1, sizes))
    leader = np.arange(len(first))
    with _thumbnails(collections, first[compared], workers) as thumbnails_CF:
        stop = 0
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            begin, stop = stop, stop + size
            leader[start : start + size] = start + leaders(thumbnails_CF[begin:stop])
    same = first[leader][np.cumsum(is_new) - 1]  # of each row the first with its image
    verified = np.zeros(len(clusters), np.int64)
    verified[rows] = np.where(np.bincount(same)[same] > 1, same + 1, 0) if len(rows) else 0
    return verified


@contextlib.contextmanager
def _thumbnails(
    collections: Sequence[Collection], rows: np.ndarray, workers: int
) -> Iterator[np.ndarray]:
    """uint8 [len(rows), THUMBNAIL^2], on disk, of rows counted over all collections."""
    jobs, start = [], 0
    order = np.argsort(rows)  # each record is read in the order in which it lies there
    for collection in collections:
        stop = start + len(collection.positions)
        own = rows[order[np.searchsorted(rows, start, sorter=order) :]]
        own = own[own < stop] - start
        parts = np.array_split(collection.positions[own], max(1, -(-len(own) // RECORDS_PER_TASK)))
        jobs += [(collection.records, part) for part in parts if len(part)]
        start = stop
    with tempfile.TemporaryFile() as file:
        file.truncate(max(1, len(rows)) * THUMBNAIL**2)
        thumbnails = np.memmap(file, np.uint8, shape=(len(rows), THUMBNAIL**2)) if jobs else rows
        done = 0
        for part in _in_parallel(_thumbnails_of_range, jobs, workers, "near") if jobs else ():
            thumbnails[order[done : done + len(part)]] = part
            done += len(part)
        yield thumbnails


def _thumbnails_of_range(records: Dataset | TfdsDataset, positions: np.ndarray) -> np.ndarray:
    return np.stack([thumbnail(records[p].image) for p in positions.tolist()])


def thumbnail(image: bytes) -> np.ndarray:
    """uint8 [THUMBNAIL^2], grey."""
    grey = cv2.cvtColor(np.ascontiguousarray(decode_image(image)), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).ravel()


def _normalised(thumbnails_NF: np.ndarray) -> np.ndarray:
    """float32 [N, THUMBNAIL^2] of mean 0 and norm 1: products are correlations."""
    values_NF = thumbnails_NF.astype(np.float32)
    values_NF -= values_NF.mean(axis=1, keepdims=True)
    return values_NF / np.maximum(np.linalg.norm(values_NF, axis=1, keepdims=True), 1e-6)


def leaders(thumbnails_NF: np.ndarray) -> np.ndarray:
    """int64 [N]: of each the first leader that it correlates with; a leader is its own, as it
    correlates with none before it. Compared block by block."""
    leader = np.full(len(thumbnails_NF), -1)
    for start in range(0, len(leader), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(leader)))
        block_BF = _normalised(thumbnails_NF[rows])
        heads = np.flatnonzero(leader[:start] == np.arange(start))
        for low in range(0, len(heads), BLOCK):
            some = heads[low : low + BLOCK]
            free = np.flatnonzero(leader[rows] < 0)
            similar = block_BF[free] @ _normalised(thumbnails_NF[some]).T >= MIN_CORRELATION
            found = similar.any(axis=1)
            leader[rows[free[found]]] = some[similar[found].argmax(axis=1)]
        similar = block_BF @ block_BF.T >= MIN_CORRELATION
        for i in np.flatnonzero(leader[rows] < 0):
            if leader[rows[i]] < 0:
                joining = similar[i] & (leader[rows] < 0)
                leader[rows[joining]] = rows[i]
                leader[rows[i]] = rows[i]
    return leader
