"""Looking for records of a dataset or subset: by their texts and signals, for the browser."""

import os
import re
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from etils import epath

from data_pipelines.query import check_where, connect, deadline, run_query
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import TEXT_FIELDS
from jaxclip.data.subset import Subset

SECONDS = 20  # that a search may take
EXCERPT = 600  # characters of a record's texts that are shown
RECORDS = 16384  # whose texts are held at once
CAPTIONS = pa.schema([("position", pa.int64()), ("caption", pa.string())])


class Corpus:
    """One dataset or subset to look through. Threads may share it."""

    def __init__(self, name: str, opened: Dataset | Subset, cache: epath.Path):
        self.name = name
        self.dataset = opened.dataset if isinstance(opened, Subset) else opened
        self.positions = opened.positions()
        self._lock = threading.Lock()
        self._connection = connect(self.dataset, captions=keep_captions(self.dataset, cache))
        self._connection.register("chosen", pa.table({"position": self.positions}))
        described = self._connection.execute("DESCRIBE metadata").fetchall()
        self.columns = [(name, kind.lower()) for name, kind, *_ in described]
        self._last = ("", "true"), self.positions

    def search(self, text: str, where: str) -> np.ndarray:
        """Positions of the records that match, int64 [N], ascending. Raises ValueError: see
        check_where."""
        asked = text, where.strip() or "true"
        with self._lock, deadline(self._connection, SECONDS):
            if asked != self._last[0]:  # another page of the same search costs nothing
                self._last = asked, self._search(*asked)
            return self._last[1]

    def _search(self, text: str, where: str) -> np.ndarray:
        check_where(self._connection, where)
        query = f"FROM metadata SEMI JOIN chosen USING (position) WHERE (\n{where}\n)"
        if text:  # which records, first: texts are not carried through a join
            found = "SELECT position FROM captions WHERE contains(lower(caption), lower(?))"
            query = f"FROM (SELECT * {query}) SEMI JOIN ({found}) USING (position)"
        found = run_query(
            self._connection,
            where,
            f"SELECT position {query} ORDER BY position",
            [text] if text else [],
        )
        return found["position"].astype(np.int64)

    def figures(self, positions: np.ndarray, text: str) -> list[dict[str, Any]]:
        """Position, ids and an excerpt of the texts of each record of a page."""
        wanted = ", ".join(map(str, positions.tolist()))
        if not wanted:
            return []
        query = (
            "SELECT position, concat_ws(' ', article_id, figure_id, panel_id) AS ids, caption "
            f"FROM metadata JOIN captions USING (position) WHERE position IN ({wanted}) "
            "ORDER BY position"
        )
        with self._lock:
            rows = self._connection.execute(query).fetchall()
        return [
            {"position": position, "ids": ids, "excerpt": excerpt(caption, text)}
            for position, ids, caption in rows
        ]

    def has(self, position: int) -> bool:
        index = int(np.searchsorted(self.positions, position))
        return index < len(self.positions) and int(self.positions[index]) == position

    def details(self, position: int) -> list[tuple[str, Any]]:
        """Every text and every column of a record."""
        texts = [(name, text) for name, text in self.dataset[position].texts().items() if text]
        query = f"SELECT * FROM metadata WHERE position = {position}"
        with self._lock:
            row = self._connection.execute(query).fetchone()
        return texts + [(name, row[i]) for i, (name, _) in enumerate(self.columns)]


def excerpt(caption: str, text: str) -> tuple[str, str, str]:
    """The part of a caption around what was searched for: before it, it, after it.

    `("... axial CT ...", "ct")` -> ("... axial ", "CT", " ...")
    """
    found = re.search(re.escape(text), caption, re.IGNORECASE) if text else None
    low, high = found.span() if found else (0, 0)
    start = 0 if high < EXCERPT // 2 else low - EXCERPT // 4
    stop = max(start + EXCERPT, high)
    before, after = caption[start:low], caption[high:stop]
    return (
        "… " * (start > 0) + before,
        caption[low:high],
        after + " …" * (stop < len(caption)),
    )


def keep_captions(dataset: Dataset, cache: epath.Path) -> str:
    """A parquet with position and all texts of each record as one string; made once, in `cache`."""
    file = cache / f"captions-{dataset.content_hash[:24]}.parquet"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = f"{file}.{os.getpid()}.tmp"
        with (
            pq.ParquetWriter(temporary, CAPTIONS) as writer,
            tqdm.tqdm(total=len(dataset), unit=" captions") as bar,
        ):
            for start in range(0, len(dataset), RECORDS):
                positions = range(start, min(start + RECORDS, len(dataset)))
                rows = [{"position": p, "caption": _texts(dataset, p)} for p in positions]
                writer.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS))
                bar.update(len(rows))
        os.replace(temporary, file)
    return os.fspath(file)


def _texts(dataset: Dataset, position: int) -> str:
    texts = dataset[position].texts()
    return "\n".join(filter(None, map(texts.get, TEXT_FIELDS)))
