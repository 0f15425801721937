"""Lists of records: uids as DataComp keeps them, and article ids a line; what --exclude takes.

A record's uid is 32 hex digits: the column `uid` where the dataset has one, else the MD5 of its
identity.
"""

import os
from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa
from etils import epath

from jaxclip.data.record import TEXT_FIELDS

IDENTITY = ("image_sha256", "article_id", "figure_id", "panel_id")
IDENTITY += tuple(f"{field}_chars" for field in TEXT_FIELDS)
UID = np.dtype("u8,u8")


def uid_expression(columns: Sequence[str]) -> str:
    """SQL of a record's uid, 32 hex digits."""
    return "uid" if "uid" in columns else f"md5(concat_ws(chr(31), {', '.join(IDENTITY)}))"


def uids_of(connection: duckdb.DuckDBPyConnection, positions: np.ndarray) -> list[str]:
    """uid of each position, 32 hex digits."""
    columns = [row[0] for row in connection.execute("DESCRIBE metadata").fetchall()]
    connection.register("asked", pa.table({"position": positions, "i": np.arange(len(positions))}))
    query = f"SELECT {uid_expression(columns)} FROM metadata JOIN asked USING (position) ORDER BY i"
    return [row[0] for row in connection.execute(query).fetchall()]


def save_uids(path: epath.PathLike, uids: Sequence[str]) -> None:
    """DataComp's form: the two halves of each uid as u8, sorted, in a .npy."""
    pairs = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids], UID)
    temporary = epath.Path(f"{os.fspath(path)}.tmp")
    with temporary.open("wb") as file:
        np.save(file, np.sort(pairs))
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
    return pa.table({"uid": [f"{high:016x}{low:016x}" for high, low in pairs.tolist()]})
