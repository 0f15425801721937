"""Parquet files with an image column, as Hugging Face publishes datasets: rows for corpora.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.remote import is_url, open_file
from jaxclip.data.record import Drop

UNREADABLE = -1  # in place of a row group: the file is no parquet


def parquet_jobs(files: Sequence[str]) -> list[tuple[str, int]]:
    """(file, row group) of each shard: a group is what can be read at once."""
    jobs = []
    for file in files:
        try:
            with open_file(file, at_random=True) as opened:
                groups = range(pq.ParquetFile(opened).num_row_groups)
        except pa.ArrowInvalid:
            groups = [UNREADABLE]  # its only job is to be told of
        jobs += [(file, group) for group in groups]
    return jobs


def read_parquet(file: str, group: int) -> Iterator[dict[str, Any] | Drop]:
    """The rows of a group, with "image_bytes" of the column "image"; a Drop where it is damaged.

    Raises OSError: no connection.
    """
    number = "the beginning"
    try:
        for number, row in _rows_of_group(file, max(group, 0)):
            key = row.get("__key__")  # a WebDataset that was made a parquet has its own
            key = key if isinstance(key, str) and key else f"row {number}"
            yield _with_bytes(row) | {"__key__": key, "__url__": file}
    except (pa.ArrowInvalid, OSError) as error:
        if is_url(file) and isinstance(error, OSError):  # the network's fault
            raise
        yield Drop(item=f"{file}: after {number}", reason="unreadable parquet", detail=str(error))


def _rows_of_group(file: str, group: int) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_file(file, at_random=True) as opened:
        parquet = pq.ParquetFile(opened)
        number = sum(parquet.metadata.row_group(i).num_rows for i in range(group))
        for batch in parquet.iter_batches(64, row_groups=[group], use_threads=False):
            for row in batch.to_pylist():
                yield number, row
                number += 1


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face's {"bytes", "path"} of the column "image" becomes image_bytes."""
    image = row.get("image")
    if isinstance(image, Mapping) and image.get("bytes") is not None:
        return row | {"image_bytes": image["bytes"]}
    return row
