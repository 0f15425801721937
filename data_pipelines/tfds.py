r"""A DATASET -> a TFDS dataset (array_record), for all who read those; and the way back.

    python -m data_pipelines.tfds --dataset=DATASET --name=my_corpus --out=DATA_DIR

writes DATA_DIR/my_corpus/1.0.0: the image's bytes as they are, all texts and ids, and every column
of metadata.parquet as a feature. TFDS has no missing values: they become "" in texts, NaN in
numbers. So whole numbers are integers where none is missing, float64 where some are and it holds
them, else text: no digit is lost. No TensorFlow is needed, neither here nor by readers
(`builder.as_data_source`).
"""

import dataclasses
import io
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from data_pipelines.options import option, run
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import SPLITS, TEXT_FIELDS
from jaxclip.data.tfds import TfdsDataset, load_tfds

RECORD_FIELDS = (*TEXT_FIELDS, "article_id", "figure_id", "panel_id", "source", "licence")
NAME = re.compile(r"[a-z][a-z0-9_]*")
VERSION = re.compile(r"\d+\.\d+\.\d+")


# --- TFDS -> rows, for corpora.py -----------------------------------------------------------------


def with_fields(path: str, **features: str) -> str:
    """`with_fields("D/x/1.0.0", caption="report")` -> "D/x/1.0.0?caption=report"."""
    named = urllib.parse.urlencode({field: name for field, name in features.items() if name})
    return f"{path}{'&' if '?' in path else '?'}{named}" if named else path


def tell_of_splits(paths: Sequence[str]) -> None:
    for path in paths:
        if left_out := TfdsDataset(path).left_out:
            counts = ", ".join(f"{name} ({count:,} records)" for name, count in left_out.items())
            print(f"Note: {path}: left out are the splits {counts}.")


def tfds_jobs(paths: Sequence[str], rows: int) -> list[tuple[str, int, int]]:
    """(path, first, one past the last) of each shard."""
    sizes = [(path, len(TfdsDataset(path))) for path in paths]
    return [
        (path, start, min(start + rows, size))
        for path, size in sizes
        for start in range(0, size, rows)
    ]


def read_tfds(path: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
    dataset = TfdsDataset(path)
    for position in range(start, stop):
        row = dataset.row(position)
        place = {"__key__": str(position), "__url__": path, "__split__": row.pop("split")}
        yield row | place


# --- DATASET -> TFDS ------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True, kw_only=True)
class TfdsOptions:
    """The command line."""

    dataset: str = option("", "the DATASET")
    out: str = option("", "TFDS's data_dir")
    name: str = option("", "name of the TFDS dataset: lower case, digits, _")
    version: str = option("1.0.0", "of the TFDS dataset")

    def validate(self) -> None:
        for name in ("dataset", "out", "name"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name ({self.name!r}) must be lower case letters, digits and _.")
        if not VERSION.fullmatch(self.version):
            raise ValueError(f"version ({self.version!r}) must be like 1.0.0.")


def publish(options: TfdsOptions) -> epath.Path:
    """Writes the TFDS dataset; returns its folder, which TfdsDataset opens.

    Raises:
      ValueError: an option; there is one at the place already; a column TFDS has no type for.
    """
    options.validate()
    dataset = Dataset(options.dataset)
    folder = epath.Path(options.out) / options.name / options.version
    if folder.exists():
        raise ValueError(f"{folder} exists. Choose another --version, or remove it.")
    builder_class = _builder_class(options, dataset)
    try:
        builder_class(data_dir=options.out, file_format="array_record").download_and_prepare()
    except OSError as error:
        raise ValueError(f"out ({options.out}) cannot be written: {error}.") from error
    print(f"{folder}: {len(dataset):,} records of {dataset.path}")
    print(f"  next     python -m jaxclip.train --config=... --config.data.path={folder}")
    return folder


def _builder_class(options: TfdsOptions, dataset: Dataset) -> type:
    tfds = load_tfds()
    columns = {
        name: _feature(tfds, name, dataset.metadata[name])
        for name in dataset.metadata.column_names
        if name not in RECORD_FIELDS
    }

    class Builder(tfds.core.GeneratorBasedBuilder):
        name = options.name
        VERSION = tfds.core.Version(options.version)

        def _info(self):
            texts = {field: tfds.features.Text() for field in RECORD_FIELDS}
            features = {"image": tfds.features.Image(shape=(None, None, 3)), **texts, **columns}
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"jaxclip dataset {dataset.content_hash}",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # records stay in the order of their positions
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            positions = {split: dataset.positions(split) for split in SPLITS}
            return {s: self._generate_examples(p) for s, p in positions.items() if len(p)}

        def _generate_examples(self, positions: np.ndarray):
            for position in positions.tolist():
                yield position, _example(dataset, position, columns)

    return Builder


def _feature(tfds: Any, name: str, column: pa.ChunkedArray) -> Any:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return tfds.features.Sequence(_feature(tfds, name, pc.list_flatten(column)))
    kind = column.type
    if pa.types.is_floating(kind):
        return tfds.features.Scalar(np.float64)
    if pa.types.is_boolean(kind):
        return tfds.features.Scalar(np.float64 if column.null_count else np.bool_)
    if pa.types.is_integer(kind):
        low, high = (pc.min_max(column)[end].as_py() or 0 for end in ("min", "max"))
        if not column.null_count and high < 2**63:
            return tfds.features.Scalar(np.int64)
        is_exact = max(-low, high) <= 2**53
        return tfds.features.Scalar(np.float64) if is_exact else tfds.features.Text()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return tfds.features.Text()
    raise ValueError(f"metadata column {name!r} is {kind}; TFDS has no type for it here.")


def _example(dataset: Dataset, position: int, columns: dict[str, Any]) -> dict[str, Any]:
    record = dataset[position]
    row = dataset.metadata.slice(position, 1).to_pylist()[0]
    example = {name: _filled(row[name], feature) for name, feature in columns.items()}
    example |= {field: getattr(record, field) for field in RECORD_FIELDS}
    return example | {"image": io.BytesIO(record.image)}  # a file: its bytes are kept as they are


def _filled(value: Any, feature: Any) -> Any:
    if isinstance(value, list):
        return [_filled(item, feature.feature) for item in value]
    if hasattr(feature, "feature"):
        return []
    if feature.np_dtype == np.object_:
        return "" if value is None else str(value)
    return np.nan if value is None else value


if __name__ == "__main__":
    run(publish, TfdsOptions)
