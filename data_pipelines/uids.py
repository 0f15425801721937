"""Lists of records: uids as DataComp keeps them, and article ids a line; what --exclude takes.

A record's uid is 32 hex digits: the column `uid` where the dataset has one, else the MD5 of its
identity and of texts_hash, which datasets have since 2026-11-22 (two captions of one image may be
of the same length).
"""

import os
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from etils import epath

from jaxclip.data.record import TEXT_FIELDS, article_key

IDENTITY = ("image_sha256", "article_id", "figure_id", "panel_id")
IDENTITY += tuple(f"{field}_chars" for field in TEXT_FIELDS)
UID = np.dtype("u8,u8")


def uid_expression(columns: Sequence[str]) -> str:
    """SQL of a record's uid, 32 hex digits."""
    if "uid" in columns:
        return "uid"
    own = (*IDENTITY, *({"texts_hash"} & {*columns}))
    return f"md5(concat_ws(chr(31), {', '.join(own)}))"


def columns_of(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [row[0] for row in connection.execute("DESCRIBE metadata").fetchall()]


def uids_of(connection: duckdb.DuckDBPyConnection, positions: np.ndarray) -> np.ndarray:
    """uids of the records at `positions`, UID [N], sorted. No strings: of millions they are GB."""
    uid = uid_expression(columns_of(connection))
    halves = (f"CAST('0x' || {half}({uid}, 16) AS UBIGINT)" for half in ("left", "right"))
    connection.register("asked", pa.table({"position": positions}))
    query = (
        "SELECT {} AS high, {} AS low FROM metadata SEMI JOIN asked USING (position) ORDER BY ALL"
    )
    found = connection.execute(query.format(*halves)).fetchnumpy()
    connection.unregister("asked")
    uids = np.empty(len(positions), UID)
    uids["f0"], uids["f1"] = found["high"], found["low"]
    return uids


def save_uids(path: epath.PathLike, uids: np.ndarray) -> None:
    """DataComp's form: the two halves of each uid as u8, sorted, in a .npy."""
    temporary = epath.Path(f"{os.fspath(path)}.tmp")
    with temporary.open("wb") as file:
        np.save(file, uids)
    temporary.replace(path)


def load_list(path: str) -> pa.Table:
    """One column, `uid` of a .npy or `article` of a .txt with an id a line.

    Raises ValueError: another kind of file; FileNotFoundError: none.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: there is no such list.")
    if path.endswith(".txt"):
        lines = [line.strip() for line in file.read_text().splitlines()]
        return pa.table({"article": pa.array([line for line in lines if line], pa.string())})
    try:
        with file.open("rb") as opened:
            pairs = np.load(opened, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} must be a .npy of uids or a .txt of article ids: {error}"
        ) from None
    if pairs.dtype != UID:
        raise ValueError(f"{path} has {pairs.dtype}; a list of uids has pairs of u8 (DataComp).")
    digits = np.stack([pairs["f0"], pairs["f1"]], axis=-1).astype(">u8").tobytes().hex().encode()
    stops = np.arange(0, len(digits) + 1, 32)
    buffers = [None, pa.py_buffer(stops), pa.py_buffer(digits)]
    return pa.table({"uid": pa.Array.from_buffers(pa.large_string(), pairs.size, buffers)})


def join_lists(
    connection: duckdb.DuckDBPyConnection, only: Sequence[str], exclude: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Makes the tables wanted_uids, excluded_uids and excluded_articles of what the lists have of
    this dataset; articles are found however they are spelled (PMC1, pmc1.1, 1).

    Returns:
      {path: {"listed": uids or articles, "found": of them in the dataset}}
    Raises:
      ValueError: as load_list; a list has nothing of this dataset.
    """
    for name in ("wanted_uids", "excluded_uids", "excluded_articles"):
        connection.execute(f"CREATE TABLE {name} (id VARCHAR)")
    counts = {}
    for path in (*only, *exclude):
        listed = load_list(path)
        (kind,) = listed.column_names
        if kind == "article" and path in only:
            raise ValueError(f"uids ({path}) must be a .npy of uids; articles are for --exclude.")
        find = _find_articles if kind == "article" else _find_uids
        counts[path], ids = find(connection, listed[kind])
        if len(listed) and not len(ids):
            raise ValueError(
                f"{path}: none of its {len(listed):,} {kind}s, e.g. {listed[kind][0]}, is in this "
                f"dataset, which has e.g. {_example(connection, kind)}. Was it made of another "
                "version or corpus? Leave it out if there is nothing to find."
            )
        connection.register("found", pa.table({"id": ids}))
        table = "wanted_uids" if path in only else f"excluded_{kind}s"
        connection.execute(f"INSERT INTO {table} SELECT id FROM found")
        connection.unregister("found")
    return counts


def _find_uids(connection: duckdb.DuckDBPyConnection, listed: Any) -> tuple[dict[str, int], Any]:
    """Counts, and the uids that the dataset has."""
    connection.register("listed", pa.table({"id": listed}))
    uid = uid_expression(columns_of(connection))
    query = f"SELECT DISTINCT {uid} AS id FROM metadata WHERE {uid} IN (SELECT id FROM listed)"
    found = connection.sql(query).to_arrow_table()["id"]
    connection.unregister("listed")
    return {"listed": len(listed.unique()), "found": len(found)}, found


def _find_articles(
    connection: duckdb.DuckDBPyConnection, listed: Any
) -> tuple[dict[str, int], Any]:
    """Counts, and the article ids as the dataset spells them."""
    wanted = {article_key(article) for article in listed.to_pylist()}
    query = "SELECT DISTINCT article_id FROM metadata WHERE article_id <> ''"
    spelled = [row[0] for row in connection.execute(query).fetchall()]
    found = [article for article in spelled if article_key(article) in wanted]
    counts = {"listed": len(wanted), "found": len({article_key(article) for article in found})}
    return counts, pa.array(found, pa.string())


def _example(connection: duckdb.DuckDBPyConnection, kind: str) -> str:
    column = "article_id" if kind == "article" else uid_expression(columns_of(connection))
    return str(connection.execute(f"SELECT {column} FROM metadata LIMIT 1").fetchone()[0])
