"""Tables beside image files, as public sets have them -> rows (evals/readers.py)."""

import collections
import csv
import dataclasses
import functools
import gzip
import json
import re
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 128 << 20  # a file can be of any size
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join:
    """Another table, of which each row gets the columns that it lacks; None if it is not there."""

    file: str
    key: str  # what of the row, as Table.image,
    key_pattern: str = ".*"  # or what of that, a regex,
    on: str  # is in this column of the other table
    line: str = ""  # as Table.line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV, TSV, JSON, JSONL (each also .gz), XLSX or text table beside image files."""

    file: str
    image: str  # path inside the root, of columns: "images/{image}.jpg", or "p{id:.2}/{id}.jpg"
    line: str = ""  # of a text file without a header: a regex whose named groups are the columns
    joins: tuple[Join, ...] = ()
    label: str = ""  # column of the class
    one_hot: tuple[str, ...] = ()  # columns of the classes, of which one holds 1
    findings: tuple[str, ...] = ()  # columns that hold 1 where the finding is there
    unsure: tuple[str, ...] = ()  # of these, those where -1 means that it is there, too
    votes: bool = False  # a row is one reader's findings: those that most readers of an image see
    findings_list: str = ""  # column with a list of findings, as ['a', 'b'] or a|b
    caption: str = ""  # columns, as `image`
    report: str = ""  # path, as `image`: the findings and impression there are the caption
    group: str = ""  # article or patient, as `image`; of a row that has none, the image
    group_pattern: str = ".*"  # what of the group's text is the group, a regex
    study: str = ""
    split: str = ""  # column
    of_split: str = ""  # what split all rows are of, where no column says it


def table_rows(tables: tuple[Table, ...], root: Path) -> Iterator[Row]:
    """Rows of those tables that are there.

    Raises:
      FileNotFoundError: none is, or one that is to be joined is not.
      ValueError: a column is not there.
    """
    there = [table for table in tables if (root / table.file).exists()]
    if not there:
        raise FileNotFoundError(f"no {' or '.join(table.file for table in tables)}")
    for table in there:
        found = _rows(table, root)
        yield from _majority(found) if table.votes else found


def _rows(table: Table, root: Path) -> Iterator[Row]:
    for number, line in enumerate(_joined(table, root)):
        try:
            name = _fill(table.image, line)
            group = _part(table.group_pattern, _fill(table.group, line))
            caption: Any = _fill(table.caption, line).strip()
            if table.report:  # read when it is asked for
                caption = functools.partial(read_report, root, _fill(table.report, line))
            yield {
                "name": name,
                "image": functools.partial(read_file, root, name),
                "label": _label(table, line),
                "caption": caption,
                "group": group or (name if table.group else ""),
                "study": _fill(table.study, line),
                "split": line[table.split].strip() if table.split else table.of_split,
            }
        except KeyError as error:
            raise ValueError(
                f"{root / table.file}, row {number}: no column {error}. It has: {', '.join(line)}."
            ) from None


def _majority(rows: Iterable[Row]) -> Iterator[Row]:
    """One row an image, with the findings of more than half of its rows."""
    of_image = collections.defaultdict(list)
    for row in rows:
        of_image[row["name"]].append(row)
    for of_readers in of_image.values():
        votes = collections.Counter(finding for row in of_readers for finding in row["label"])
        seen = tuple(finding for finding, n in votes.items() if 2 * n > len(of_readers))
        yield of_readers[0] | {"label": seen}


def _joined(table: Table, root: Path) -> Iterator[Row]:
    others = []
    for join in table.joins:
        by_key = {str(line[join.on]): line for line in _lines(root / join.file, join.line)}
        empty = dict.fromkeys(next(iter(by_key.values()), {}))
        others.append((join, by_key, empty))
    for line in _lines(root / table.file, table.line):
        for join, by_key, empty in others:
            key = _part(join.key_pattern, _fill(join.key, line))
            line = by_key.get(key, empty) | line
        yield line


def _fill(template: str, line: Row) -> str:
    """`"{a}/{b}"` or a column's name -> text of the row; a missing value is ""."""
    if "{" not in template:
        return str("" if line[template] is None else line[template]) if template else ""
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return template.format_map({n: "" if line[n] is None else str(line[n]) for n in fields})


def _part(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else text


def _label(table: Table, line: Row) -> Any:
    if columns := table.findings or table.one_hot:
        if all(line[name] is None for name in columns):  # of a joined table that lacks the row
            return None
        value = {name: str(line[name]).strip().removesuffix(".0") for name in columns}
        found = [n for n, v in value.items() if v == "1" or (v == "-1" and n in table.unsure)]
        return tuple(found) if table.findings else "".join(found[:1])
    if table.findings_list:
        return listed(str(line[table.findings_list] or ""))
    return str(line[table.label]).strip() if table.label else ""


def listed(text: str) -> tuple[str, ...]:
    """`a|b`, `a, b`, `['a', 'b']` -> ("a", "b"); of an empty list, ("",)."""
    return tuple(part.strip(" '\"[]") for part in re.split(r"[|,;]", text))


def _lines(file: Path, pattern: str = "") -> Iterator[Row]:
    name = file.name.removesuffix(".gz")
    if name.endswith(".xlsx"):
        yield from _sheet(file)
        return
    packed = file.suffix == ".gz"  # utf-8-sig: some begin with a byte order mark
    opened = (gzip.open if packed else open)(file, "rt", encoding="utf-8-sig", newline="")
    with opened as text:
        if pattern:
            for number, line in enumerate(text):
                if not (match := re.match(pattern, line)):
                    raise ValueError(f"{file}, row {number} ({line[:60]!r}) is not as {pattern!r}.")
                yield match.groupdict()
        elif name.endswith(".jsonl"):
            yield from map(json.loads, filter(str.strip, text))
        elif name.endswith(".json"):
            for item in json.load(text):
                if len(item) == 1:  # DeepEyeNet: [{path: {...}}, ...]
                    ((key, value),) = item.items()
                    item = {"key": key} | value
                yield item
        else:
            csv.field_size_limit(1 << 24)
            lines = csv.DictReader(text, delimiter="\t" if name.endswith(".tsv") else ",")
            lines.fieldnames = [column.strip() for column in lines.fieldnames or ()]
            yield from lines


def _sheet(file: Path) -> Iterator[Row]:
    """The first sheet; its first row has the columns' names."""
    try:
        import openpyxl
    except ImportError:
        raise ValueError(f"{file} needs openpyxl: pip install 'jaxclip[eval]'.") from None
    book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    lines = book.worksheets[0].iter_rows(values_only=True)
    names = [str(name) for name in next(lines, ())]
    yield from (dict(zip(names, line, strict=False)) for line in lines)
    book.close()


def read_file(root: Path, name: str) -> bytes:
    """Raises ValueError: a path that leaves the root, or a file larger than MAX_FILE_BYTES."""
    file = (root / name).resolve()
    if not file.is_relative_to(root.resolve()):
        raise ValueError(
            f"image ({name}) lies outside {root}. Paths and links must stay inside; the set itself "
            "may be a link."
        )
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"image ({name}) is larger than {MAX_FILE_BYTES} bytes: no picture.")
    return file.read_bytes()


def read_report(root: Path, name: str) -> str:
    """What findings_and_impression takes from a file; "" if it is not there."""
    try:
        return findings_and_impression(read_file(root, name).decode(errors="replace"))
    except FileNotFoundError:
        return ""


def findings_and_impression(report: str) -> str:
    """Those sections of a radiology report; "" if it has none.

    "EXAM: AP. \\n FINDINGS: Clear\\n lungs.\\n\\n IMPRESSION: Normal." -> "Clear lungs. Normal."
    """
    parts = re.split(r"(?m)^[ \t]*([A-Z][A-Z /,()&-]*):", report)
    sections = [
        " ".join(text.split())
        for head, text in zip(parts[1::2], parts[2::2], strict=True)
        if re.search("FINDING|IMPRESSION|CONCLUSION", head)
    ]
    return " ".join(filter(None, sections))
