"""Which records show the same image or say the same, within a dataset and in others.

Two records have the same image if its bytes are equal, or if their perceptual hashes are within
some bits and thumbnails agree (re-encoded, resized: see overlap_keys). Two have the same caption if
its words are: case, accents and punctuation do not count.
"""

import os
from collections.abc import Sequence

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from data_pipelines.overlap_keys import Collection, cluster, collect
from jaxclip.data.record import Record, hash64

COLUMNS = ("image_sha256", "perceptual_hash", "caption_hash")  # as signals.py has them


class Shards:
    """The records of a dataset whose manifest is not there yet, by position. Picklable."""

    def __init__(self, files: Sequence[str]):
        self._source = grain.sources.ArrayRecordDataSource(list(files))

    def __getitem__(self, position: int) -> Record:
        return Record.unpack(self._source[position])


def duplicate_columns(
    others: Sequence[str], max_distance: int, workers: int, directory: epath.Path, num_shards: int
) -> pa.Table:
    """What finish_dataset adds to metadata.parquet, a row a record.

    Args:
      others: datasets, subsets or TFDS to look for the images in.
      max_distance: bits of 64 that the hashes of near duplicates may differ in; 0 to 16.
      directory, num_shards: of the dataset in the making; its shards are finished.
    Returns:
      duplicate_cluster: the smallest position of the records with the same image; its own where
        there is no other. `WHERE duplicate_cluster = position` keeps one of each.
      caption_cluster: the same for captions.
      duplicate_in: names of the others that have the image, comma-separated; null: none has.
    """
    mine, caption_hashes = _collection(directory, num_shards)
    kept = epath.Path(f"{os.fspath(directory).rstrip('/')}.keys")
    collections = [mine, *(collect(path, "", kept, workers) for path in others)]
    cluster(collections, max_distance, workers)
    near = mine.keys["near"]  # 0: nobody else's
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


def _collection(directory: epath.Path, num_shards: int) -> tuple[Collection, np.ndarray]:
    """The dataset in the making with its keys; the hashes of its captions, int64 [N]."""
    names = [os.fspath(directory / f"records-{i:05d}") for i in range(num_shards)]
    filled = [name for name in names if pq.read_metadata(f"{name}.parquet").num_rows]
    tables = [pq.read_table(f"{name}.parquet", columns=list(COLUMNS)) for name in filled]
    table = pa.concat_tables(tables) if tables else pa.table(dict.fromkeys(COLUMNS, []))
    keys = {
        "image": np.array([hash64(s) for s in table["image_sha256"].to_pylist()], np.int64),
        "phash": table["perceptual_hash"].to_numpy().astype(np.int64),
    }
    shards = Shards([f"{name}.array_record" for name in filled])
    collection = Collection(directory.name, shards, np.arange(len(table)), keys)
    return collection, table["caption_hash"].to_numpy().astype(np.int64)


def _smallest(keys: np.ndarray) -> np.ndarray:
    """[7, 3, 7] -> [0, 1, 0]: the first place of each key, int64 [N]."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse.ravel()].astype(np.int64)
