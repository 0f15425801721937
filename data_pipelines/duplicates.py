r"""Near duplicates inside one dataset: a list of all but the first of each group, to leave out.

    python -m data_pipelines.duplicates --dataset=D --out=DUPLICATES.npy
    python -m data_pipelines.subset --dataset=D --exclude=DUPLICATES.npy ...

Images are the same where their bytes are, or where perceptual hashes are near and thumbnails agree,
as `data_pipelines.overlap` has it. The first by position stays. Keys are kept in OUT.keys/. A copy
that is the same in every id and text has the uid of its first, which then cannot stay without it:
such copies are counted, and are left in.
"""

import dataclasses

import numpy as np
from etils import epath

from data_pipelines.options import option, run
from data_pipelines.overlap_keys import cluster, collect
from data_pipelines.query import connect
from data_pipelines.uids import save_uids, uids_of


@dataclasses.dataclass(slots=True, kw_only=True)
class DuplicateOptions:
    """The command line."""

    dataset: str = option("", "the DATASET or SUBSET")
    out: str = option("", "the list of uids, .npy")
    max_distance: int = option(6, "bits of 64 that near duplicates may differ in")
    workers: int = option(0, "processes; 0: one per core")

    def validate(self) -> None:
        for name in ("dataset", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")


def find_duplicates(options: DuplicateOptions) -> list[str]:
    """Writes the list; returns its uids.

    Raises:
      ValueError, FileNotFoundError: an option; as open_dataset.
    """
    options.validate()
    keys = epath.Path(f"{options.out}.keys")
    keys.mkdir(parents=True, exist_ok=True)
    found = collect(options.dataset, "", keys, options.workers)
    cluster([found], options.max_distance, options.workers)
    later = np.zeros(len(found.positions), bool)
    for kind in ("image", "near"):
        key = found.keys[kind]
        _, first = np.unique(key, return_index=True)
        is_first = np.zeros(len(key), bool)
        is_first[first] = True
        later |= (key != 0) & ~is_first
    uids = np.array(uids_of(connect(found.records), found.positions))
    kept = np.isin(uids[later], uids[~later])
    chosen = np.unique(uids[later][~kept]).tolist()
    save_uids(epath.Path(options.out), chosen)
    print(
        f"{options.out}: {len(chosen):,} near duplicates of {len(uids):,} records. "
        f"{kept.sum():,} are the same in every id and text as one that stays, and stay, too."
    )
    return chosen


if __name__ == "__main__":
    run(find_duplicates, DuplicateOptions)
