"""By what records of different datasets are told to be the same: keys, and near duplicates."""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import tqdm
from etils import epath

from data_pipelines.fingerprint import caption_hash, near_duplicates, perceptual_hash
from jaxclip.data.image import ImageError, decode_image
from jaxclip.data.record import Dataset, Record, article_key, figure_key, hash64
from jaxclip.data.subset import Subset, open_dataset
from jaxclip.data.tfds import TfdsDataset

KINDS = ("article", "figure", "image", "near", "caption")
COLUMNS = ("article", "figure", "image", "phash", "caption", "panel_caption")
MIN_WORDS = 5  # a shorter caption, "Figure 1.", is nobody's own
RECORDS_PER_TASK = 2048
THUMBNAIL = 24  # pixels a side, of what is compared where hashes are near
# Of 200 real figures, resized and encoded again, all thumbnails correlate above 0.97 with theirs;
# of 20 pairs of figures whose hashes are near by chance (charts of one template), two above 0.93.
MIN_CORRELATION = 0.96
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
        hash64(record.image_sha256),
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
    collection = Collection(epath.Path(path.partition("?")[0]).name, opened, positions, {})
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
    return _in_parallel(_keys_of_range, jobs, workers, collection.name)


def _in_parallel(
    function: Callable[..., np.ndarray], jobs: Sequence[tuple], workers: int, name: str
) -> np.ndarray:
    """The results of function(*job), one row a position, joined in the order of the jobs."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    results: dict[int, np.ndarray] = {}
    with tqdm.tqdm(total=sum(len(job[1]) for job in jobs), unit=" records", desc=name) as bar:
        if workers <= 1:
            for number, job in enumerate(jobs):
                results[number] = function(*job)
                bar.update(len(job[1]))
        else:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
                tasks = {pool.submit(function, *job): i for i, job in enumerate(jobs)}
                for task in concurrent.futures.as_completed(tasks):
                    results[tasks[task]] = task.result()
                    bar.update(len(task.result()))
    return np.concatenate([results[number] for number in range(len(jobs))])


def cluster(collections: Sequence[Collection], max_distance: int, workers: int = 1) -> None:
    """Fills in the key `near`: records of one number show the same image; 0: nobody else's.

    Hashes find the candidates, and thumbnails decide: charts made of one template have hashes as
    near as copies do.
    """
    hashes = np.concatenate([c.keys["phash"] for c in collections])
    clusters = np.zeros(len(hashes), np.int64)
    known = hashes != 0
    clusters[known] = near_duplicates(hashes[known], max_distance) + 1
    _verify(collections, clusters, workers)
    stops = np.cumsum([len(c.positions) for c in collections])[:-1]
    for collection, part in zip(collections, np.split(clusters, stops), strict=True):
        collection.keys["near"] = part


def _verify(collections: Sequence[Collection], clusters: np.ndarray, workers: int) -> None:
    """Splits each cluster into records with the same thumbnail, in place; one alone becomes 0."""
    candidates = np.flatnonzero(np.bincount(clusters)[clusters] * (clusters != 0) > 1)
    of_alone = np.ones(len(clusters), bool)
    of_alone[candidates] = False
    clusters[of_alone] = 0
    if not len(candidates):
        return
    thumbnails_CF = _thumbnails(collections, candidates, workers)
    order = np.argsort(clusters[candidates], kind="stable")
    starts = np.flatnonzero(np.diff(clusters[candidates][order])) + 1
    for members in np.split(order, starts):
        rows = candidates[members]
        leaders = _leaders(thumbnails_CF[members])
        alone = np.bincount(leaders)[leaders] == 1
        clusters[rows] = np.where(alone, 0, rows[leaders] + 1)


def _thumbnails(
    collections: Sequence[Collection], candidates: np.ndarray, workers: int
) -> np.ndarray:
    """float32 [C, THUMBNAIL^2] of the candidates, ascending over all collections."""
    jobs, start = [], 0
    for collection in collections:
        stop = start + len(collection.positions)
        own = candidates[(candidates >= start) & (candidates < stop)] - start
        parts = np.array_split(collection.positions[own], max(1, -(-len(own) // RECORDS_PER_TASK)))
        jobs += [(collection.records, part) for part in parts if len(part)]
        start = stop
    return _in_parallel(_thumbnails_of_range, jobs, workers, "near duplicates")


def _thumbnails_of_range(records: Dataset | TfdsDataset, positions: np.ndarray) -> np.ndarray:
    return np.stack([thumbnail(records[p].image) for p in positions.tolist()])


def thumbnail(image: bytes) -> np.ndarray:
    """float32 [THUMBNAIL^2], grey, of mean 0 and norm 1: products are correlations."""
    grey = cv2.cvtColor(np.ascontiguousarray(decode_image(image)), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    values = small.astype(np.float32).ravel()
    values -= values.mean()
    return values / max(np.linalg.norm(values), 1e-6)


def _leaders(thumbnails_NF: np.ndarray) -> np.ndarray:
    """int64 [N]: of each the first one that it correlates with, itself at the latest."""
    leaders = np.full(len(thumbnails_NF), -1)
    while len(free := np.flatnonzero(leaders < 0)):
        similar = thumbnails_NF[free] @ thumbnails_NF[free[0]] >= MIN_CORRELATION
        similar[0] = True
        leaders[free[similar]] = free[0]
    return leaders
