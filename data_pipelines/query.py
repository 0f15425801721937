"""SQL over metadata.parquet: an expression of the user's over the columns, in a closed room.

The expression is parsed before it is run: one expression, no subquery, nothing that differs from
run to run; and the connection reaches no other file.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb

from jaxclip.data.record import METADATA, Dataset

MEMORY = "1500MB"
VOLATILE = {"random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "setseed", "nextval"}
VOLATILE |= {"now", "current_timestamp", "current_date", "today", "get_current_timestamp"}
VOLATILE |= {"current_time", "getenv", "current_setting", "transaction_timestamp"}


def connect(dataset: Dataset) -> duckdb.DuckDBPyConnection:
    """A connection with one table, `metadata`, that reads no file but its parquet."""
    file = os.path.abspath(dataset.path / METADATA)
    connection = duckdb.connect()
    for setting in (
        f"memory_limit = '{MEMORY}'",
        f"allowed_paths = [{_literal(file)}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    connection.execute(f"CREATE VIEW metadata AS SELECT * FROM read_parquet([{_literal(file)}])")
    return connection


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def check_where(connection: duckdb.DuckDBPyConnection, where: str) -> None:
    """Makes sure that `where` is one expression over the columns that gives true or false.

    Raises:
      ValueError: in one line, what is wrong, with the columns there are.
    """
    if not where.strip():
        raise ValueError("where is empty. Leave it out for all records.")
    query = f"SELECT (\n{where}\n)"
    tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()[0])
    if tree.get("error"):
        raise ValueError(f"where ({where}) is not SQL: {_line(tree.get('error_message'))}")
    node = tree["statements"][0]["node"] if len(tree["statements"]) == 1 else {}
    is_expression = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not node["modifiers"]
    )
    kinds = list(_walk(node))
    if not is_expression or any(part.get("class") == "SUBQUERY" for part in kinds):
        raise ValueError(f"where ({where}) must be one expression over the columns, no query.")
    names = {str(part.get("function_name", "")).lower() for part in kinds}
    names |= {str(n).lower() for part in kinds for n in part.get("column_names") or ()}
    if volatile := sorted(names & VOLATILE):
        raise ValueError(f"where ({where}) must give the same every time; {volatile[0]} does not.")
    try:
        connection.execute(f"SELECT position FROM metadata WHERE (\n{where}\n) LIMIT 0")
    except duckdb.Error as error:
        columns = ", ".join(row[0] for row in connection.execute("DESCRIBE metadata").fetchall())
        raise ValueError(f"where ({where}): {_line(error)} Columns: {columns}.") from None


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _walk(part)


def run_query(
    connection: duckdb.DuckDBPyConnection, where: str, query: str, values: Sequence[Any] = ()
) -> Any:
    """Runs our own query around a checked expression; its columns as NumPy arrays, by name.

    values: of the query's question marks.


    Raises ValueError: what only the data shows, such as a text that is no number.
    """
    try:
        return connection.execute(query, list(values)).fetchnumpy()
    except duckdb.Error as error:
        raise ValueError(f"where ({where}): {_line(error)}") from None


def _line(error: Any) -> str:
    return " ".join(str(error).split("\n\n")[0].split())
