"""The SUBSET contract: records of a dataset, chosen and named once; no bytes are rewritten.

A SUBSET is a directory:

    positions.npy    int64 [N], ascending: positions in the dataset
    manifest.json    which dataset (path, content hash), how chosen (query, seed, ...), counts, hash

It chooses among the records of some splits (`splits` in the manifest, train by default); all other
splits are the dataset's, so that subsets of a dataset are evaluated on the same records.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxclip.data.dataset import Dataset
from jaxclip.data.files import local_path, reading, write_atomically
from jaxclip.data.record import SPLITS
from jaxclip.data.tfds import TfdsDataset, is_tfds

FORMAT = "jaxclip-subset"
POSITIONS = "positions.npy"
VERSION = re.compile(r"\d+\.\d+\.\d+")  # of a TFDS dataset, the name of its folder
# what a subset that was killed while it was written may have left
UNFINISHED = re.compile(r"positions\.npy|(positions\.npy|manifest\.json)(\.\d+)?\.tmp")


class Subset:
    """A finished SUBSET, opened for reading. Picklable.

    Raises:
      FileNotFoundError: there is none at `path`, or its dataset is gone.
      ValueError: it is damaged, or was made for another version of its dataset.
    """

    def __init__(self, path: epath.PathLike):
        self.path = local_path(path)
        manifest = _read_manifest(self.path)
        if manifest is None:
            raise FileNotFoundError(
                f"{self.path} is not a subset. Make one with `python -m data_pipelines.subset`."
            )
        self.manifest = manifest
        self.dataset = Dataset(self._find_dataset())
        expected = self.manifest["dataset"]["content_hash"]
        if self.dataset.content_hash != expected:
            raise ValueError(
                f"{self.path} was made for version {expected[:12]} of {self.dataset.path}, which "
                f"now is {self.dataset.content_hash[:12]}. Make the subset again, with the "
                "`made_by` of its manifest.json, or bring that version back."
            )
        with reading(self.path / POSITIONS):
            self._positions = np.load(self.path / POSITIONS, allow_pickle=False)
        if positions_hash(self._positions) != self.manifest["positions_sha256"]:
            raise ValueError(
                f"{self.path / POSITIONS} does not have the content of the manifest. Copy the "
                "subset again, or make it again."
            )

    def _find_dataset(self) -> epath.Path:
        """Where it was, or as far from the subset as it was: the two may have been moved."""
        dataset = self.manifest["dataset"]
        places = [epath.Path(dataset["path"]), self.path / dataset["relative_path"]]
        found = [place for place in places if (place / "manifest.json").exists()]
        if not found:
            raise FileNotFoundError(
                f"The dataset of {self.path} is neither at {places[0]} nor at {places[1]}. Put it "
                "there, or link it."
            )
        return found[0]

    @property
    def content_hash(self) -> str:
        return self.manifest["content_hash"]

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return f"Subset({os.fspath(self.path)!r}, {len(self):,} of {self.dataset!r})"

    def positions(self, split: str | None = None) -> np.ndarray:
        """Positions in the dataset, ascending, int64 [N]: the chosen of a split, or if the subset
        was not drawn from it, all. None: every chosen one."""
        if split is None:
            return self._positions
        of_split = self.dataset.positions(split)
        if split not in self.manifest["splits"]:
            return of_split
        return np.intersect1d(self._positions, of_split, assume_unique=True)


def open_dataset(path: epath.PathLike) -> Dataset | TfdsDataset | Subset:
    """Whatever data.path may name: a DATASET, a SUBSET of one, or a prepared TFDS dataset."""
    if _read_manifest(local_path(path)) is not None:
        return Subset(path)
    return TfdsDataset(path) if is_tfds(path) else Dataset(path)


def dataset_name(path: epath.PathLike) -> str:
    """A short name of what open_dataset() opens: its folder's; of TFDS, that above the version's.

    `"corpora/10k"` -> "10k"; `"d/coco/1.1.0?caption=title"` -> "coco"
    """
    folder = epath.Path(os.fspath(path).partition("?")[0])
    return folder.parent.name if VERSION.fullmatch(folder.name) else folder.name


def write_subset(
    directory: epath.PathLike,
    dataset: Dataset,
    positions: np.ndarray,
    *,
    splits: Sequence[str],
    made_by: Mapping[str, Any],
    counts: Mapping[str, Any],
) -> Subset:
    """Writes a subset, the manifest last.

    Args:
      positions: of records in `splits`, each once, in any order.
      made_by: how they were chosen, as JSON.
      counts: of what there was to choose from, as JSON.
    Raises:
      ValueError: no positions; another subset, or something else, is at `directory`.
    """
    directory = epath.Path(directory)
    positions = np.sort(np.asarray(positions, np.int64))
    if not len(positions):
        raise ValueError(f"No record was chosen for {directory}.")
    assert set(splits) <= set(SPLITS) and len(np.unique(positions)) == len(positions)
    digest = positions_hash(positions)
    content = f"{dataset.content_hash}{digest}{','.join(sorted(splits))}"
    manifest = {
        "format": FORMAT,
        "content_hash": hashlib.sha256(content.encode()).hexdigest(),
        "records": len(positions),
        "splits": list(splits),
        "counts": dict(counts),
        "made_by": dict(made_by),
        "dataset": {
            "path": os.path.abspath(dataset.path),
            "relative_path": os.path.relpath(dataset.path, directory),
            "content_hash": dataset.content_hash,
            "records": len(dataset),
        },
        "positions_sha256": digest,
    }
    before = _read_manifest(directory)
    found = directory.iterdir() if before is None and directory.exists() else ()
    if not all(UNFINISHED.fullmatch(path.name) for path in found):
        raise ValueError(f"{directory} holds something that is no subset. Choose another --out.")
    if before is not None and before["content_hash"] != manifest["content_hash"]:
        raise ValueError(
            f"{directory} holds another subset ({before['records']:,} records, content hash "
            f"{before['content_hash'][:12]}). Choose another --out, or remove it."
        )
    directory.mkdir(parents=True, exist_ok=True)
    array = io.BytesIO()
    np.save(array, positions)
    write_atomically(directory / POSITIONS, array.getvalue())
    write_atomically(directory / "manifest.json", json.dumps(manifest, indent=1))
    return Subset(directory)


def positions_hash(positions: np.ndarray) -> str:
    return hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()


def _read_manifest(path: epath.Path) -> dict[str, Any] | None:
    file = path / "manifest.json"
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_text())
    except ValueError:
        return None
    is_subset = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    return manifest if is_subset else None
