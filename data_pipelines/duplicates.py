"""Which records show the same image or say the same, within a dataset and in others.

Two records have the same image if its bytes are equal, or if their perceptual hashes are within
some bits and thumbnails agree (re-encoded, resized: see overlap_keys), and they are not just panels
of one figure. Two have the same caption if its words are: case, accents, punctuation do not count.
"""

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from data_pipelines.overlap_keys import Collection, cluster, collect
from data_pipelines.remote import Shards
from jaxclip.data.dataset import shard_name
from jaxclip.data.record import Record, hash64

COLUMNS = ("article_id", "figure_id", "image_sha256", "perceptual_hash", "caption_hash")


class Records:
    """The records of a dataset whose manifest is not there yet, by position. Picklable."""

    def __init__(self, shards: Shards):
        self._shards = shards

    def __getitem__(self, position: int) -> Record:
        return Record.unpack(self._shards[position])


def duplicate_columns(
    others: Sequence[str],
    max_distance: int,
    workers: int,
    directory: epath.Path,
    num_shards: int,
    shards: Shards,
) -> pa.Table:
    """What finish_dataset adds to metadata.parquet, a row a record.

    Args:
      others: datasets, subsets or TFDS to look for the images in.
      max_distance: bits of 64 that the hashes of near duplicates may differ in; 0 to 16.
      directory, num_shards, shards: of the dataset in the making; the tables of its shards are in
        `directory`.
    Returns:
      duplicate_cluster: the smallest position of the records with the same image; its own where
        there is no other. `WHERE duplicate_cluster = position` keeps one of each.
      caption_cluster: the same for captions.
      duplicate_in: names of the others that have the image, comma-separated; null: none has.
    """
    mine, caption_hashes = _collection(directory, num_shards, shards)
    kept = epath.Path(f"{os.fspath(directory).rstrip('/')}.keys")
    collections = [mine, *(collect(path, "", kept, workers) for path in others)]
    cluster(collections, max_distance, workers)
    near = _across_figures(collections)
    by_bytes = np.unique(mine.keys["image"], return_inverse=True)[1] + near.max(initial=0) + 1
    columns = {
        "duplicate_cluster": pa.array(_smallest(np.where(near != 0, near, by_bytes))),
        "caption_cluster": pa.array(
            np.where(caption_hashes != 0, _smallest(caption_hashes), np.arange(len(near)))
        ),
    }
    if others:
        found = [(c.name, mine.found_in(c, ("image", "near"))) for c in collections[1:]]
        names = [", ".join(name for name, has in found if has[i]) or None for i in range(len(near))]
        columns["duplicate_in"] = pa.array(names, pa.string())
    return pa.table(columns)


def _across_figures(collections: Sequence[Collection]) -> np.ndarray:
    """The key `near` of the first collection, 0 where only panels of one figure share it: drawn
    with one template, they are alike and no copies."""
    mine = collections[0].keys
    pairs = np.unique(np.stack([mine["near"], mine["figure"]], axis=1), axis=0)
    numbers, counts = np.unique(pairs[:, 0], return_counts=True)
    known = [numbers[counts > 1], *(other.keys["near"] for other in collections[1:])]
    mine["near"] = np.where(np.isin(mine["near"], np.concatenate(known)), mine["near"], 0)
    return mine["near"]


def _collection(
    directory: epath.Path, num_shards: int, shards: Shards
) -> tuple[Collection, np.ndarray]:
    """The dataset in the making with its keys; the hashes of its captions, int64 [N]."""
    files = [os.fspath(directory / f"{shard_name(i)}.parquet") for i in range(num_shards)]
    filled = [file for file in files if pq.read_metadata(file).num_rows]
    tables = [pq.read_table(file, columns=list(COLUMNS)) for file in filled]
    table = pa.concat_tables(tables) if tables else pa.table(dict.fromkeys(COLUMNS, []))
    figures = zip(table["article_id"].to_pylist(), table["figure_id"].to_pylist(), strict=True)
    keys = {
        "figure": np.array([hash64("\0".join(figure)) for figure in figures], np.int64),
        "image": np.array([hash64(s) for s in table["image_sha256"].to_pylist()], np.int64),
        "phash": table["perceptual_hash"].to_numpy().astype(np.int64),
    }
    collection = Collection(directory.name, Records(shards), np.arange(len(table)), keys)
    return collection, table["caption_hash"].to_numpy().astype(np.int64)


def _smallest(keys: np.ndarray) -> np.ndarray:
    """[7, 3, 7] -> [0, 1, 0]: the first place of each key, int64 [N]."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse.ravel()].astype(np.int64)
