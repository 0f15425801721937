"""SQL over metadata.parquet: an expression of the user's over the columns, in a closed room.

The expression is parsed before it is run: one expression, no other clause or subquery, nothing that
differs from run to run; and the connection reaches no other file.
"""

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence, Set
from typing import Any

import duckdb

from jaxclip.data.dataset import METADATA, Dataset

MEMORY = "1500MB"
# What DuckDB calls consistent, or does not tell of: age(x) is counted from today.
UNSTABLE = {"age", "getenv", "version", "current_localtimestamp", "current_localtime"}
# Names without brackets that are functions, where no column has them.
CLOCK = {"current_timestamp", "current_date", "current_time", "localtime", "localtimestamp"}
# As large as a number says, whatever the data: gigabytes, for minutes that nothing can interrupt.
GROWING = {"repeat", "lpad", "rpad", "range", "generate_series", "list_resize", "array_resize"}
GROWING |= {"printf", "format", "bar", "bitstring"}


def connect(dataset: Dataset, **more: os.PathLike) -> duckdb.DuckDBPyConnection:
    """A connection with the table `metadata`, and one of each parquet in `more`; it reads no other
    file."""
    tables = {"metadata": dataset.path / METADATA} | more
    files = {name: _literal(os.path.abspath(file)) for name, file in tables.items()}
    connection = duckdb.connect()
    for setting in (
        f"memory_limit = '{MEMORY}'",
        f"allowed_paths = [{', '.join(files.values())}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    for name, file in files.items():
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{file}])")
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
    asked, tree = _asked(where), _parse(connection, where)
    if tree.get("error"):
        raise ValueError(f"{asked} is not SQL: {_line(tree.get('error_message'))}")
    expression, rest = _split(tree)
    kinds = {part.get("class") for part in _walk(expression)}
    if rest != _split(_parse(connection, "true"))[1] or kinds & {"SUBQUERY", "PARAMETER"}:
        raise ValueError(f"{asked} must be one expression over the columns, no query.")
    called = {str(part.get("function_name", "")).lower() for part in _walk(expression)}
    if growing := sorted(called & GROWING):
        raise ValueError(f"{asked}: {growing[0]} is refused, as its results have no bounds.")
    columns = [row[0] for row in connection.execute("DESCRIBE metadata").fetchall()]
    unknown = _unknown_names(expression, {"metadata", *(name.lower() for name in columns)})
    if volatile := sorted(called & _unstable_functions(connection) | unknown & CLOCK):
        raise ValueError(f"{asked} must give the same every time; {volatile[0]} does not.")
    told = f"Columns: {', '.join(columns)}."
    if unknown:  # current_user, too, is read as a column's name
        raise ValueError(f"{asked}: {min(unknown)} is no column. {told}")
    try:
        connection.execute(f"SELECT position FROM metadata WHERE (\n{where}\n) LIMIT 0")
        described = connection.execute(f"DESCRIBE SELECT (\n{where}\n) FROM metadata").fetchall()
    except duckdb.Error as error:
        raise ValueError(f"{asked}: {_line(error)} {told}") from None
    if described[0][1] != "BOOLEAN":
        raise ValueError(f"{asked} gives {described[0][1]}; it must be true or false.")


def _asked(where: str) -> str:
    return f"where ({' '.join(where.split())})"


def _parse(connection: duckdb.DuckDBPyConnection, where: str) -> dict[str, Any]:
    query = f"SELECT 1 FROM metadata WHERE (\n{where}\n)"
    return json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()[0])


def _split(tree: Any) -> tuple[Any, Any]:
    """The expression of a parsed query, and all that the query is besides."""
    for part in _walk(tree):
        for key in [key for key in part if key.startswith("query_location")]:
            del part[key]
    node = tree["statements"][0]["node"]
    return node.pop("where_clause", None), tree


def _unknown_names(node: Any, known: Set[str]) -> set[str]:
    """Names in an expression that are neither known nor a parameter of a lambda around them."""
    if isinstance(node, list):
        return set().union(*(_unknown_names(part, known) for part in node))
    if not isinstance(node, dict):
        return set()
    if node.get("class") == "LAMBDA" and node["syntax_type"] == "LAMBDA_KEYWORD":
        parameters = {name for part in _walk(node["lhs"]) for name in part.get("column_names", ())}
        return _unknown_names(node["expr"], known | {name.lower() for name in parameters})
    own = {name.lower() for name in node.get("column_names", ())[:1]} - known
    return own | _unknown_names(list(node.values()), known)


def _unstable_functions(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Those that may differ between two runs, by what DuckDB says of them, and macros of them."""
    functions = connection.execute(
        "SELECT lower(function_name), stability, lower(macro_definition) FROM duckdb_functions()"
    ).fetchall()
    unstable = UNSTABLE | {name for name, how, _ in functions if how not in (None, "CONSISTENT")}
    macros = [(name, set(re.findall(r"\w+", text))) for name, _, text in functions if text]
    while more := {name for name, words in macros if words & (unstable | CLOCK)} - unstable:
        unstable |= more
    return unstable


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _walk(part)


@contextlib.contextmanager
def deadline(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupts what the connection does after so many seconds: a duckdb.Error."""
    timer = threading.Timer(seconds, connection.interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run_query(
    connection: duckdb.DuckDBPyConnection, where: str, query: str, values: Sequence[Any] = ()
) -> Any:
    """Runs our own query around a checked expression; its columns as NumPy arrays, by name.

    values: of the query's question marks.

    Raises ValueError: what only the data shows, such as a text that is no number.
    """
    try:
        return connection.execute(query, list(values)).fetchnumpy()
    except duckdb.InterruptException:
        raise ValueError(f"{_asked(where)} takes too long. Ask for less.") from None
    except duckdb.Error as error:
        raise ValueError(f"{_asked(where)}: {_line(error)}") from None


def _line(error: Any) -> str:
    return " ".join(str(error).split("\n\n")[0].split())
