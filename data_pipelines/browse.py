r"""A page to look through a corpus: search captions, filter by signals, compare two subsets.

    python -m data_pipelines.browse DATASET             # then open the address it says
    python -m data_pipelines.browse DATASET SUBSET_A SUBSET_B

Listens on this machine alone unless --host says otherwise: it has no password. Captions are read
once, and kept in --cache for the next time.
"""

import dataclasses
import functools
import http.server
import os
import socket
import threading
import urllib.parse
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from etils import epath

from data_pipelines.options import option, run
from data_pipelines.query import check_where, connect, deadline, run_query
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import TEXT_FIELDS
from jaxclip.data.subset import Subset, open_dataset

PER_PAGE = 24
SECONDS = 20  # that a search may take
LOOPBACK = ("127.0.0.1", "localhost", "::1")
IMAGE_TYPES = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png"}
HEADERS = {  # what a caption may do, should it get out of its quotes: nothing
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclasses.dataclass(slots=True, kw_only=True)
class BrowseOptions:
    """The command line."""

    dataset: tuple[str, ...] = option((), "datasets and subsets, comma-separated")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: every machine may look")
    port: int = option(8000, "0: any that is free")
    cache: str = option("~/.cache/jaxclip", "folder for the captions that were read")

    def __post_init__(self):
        self.dataset = tuple(self.dataset)

    def validate(self) -> None:
        if not self.dataset:
            raise ValueError("dataset is not set. Give --dataset=DATASET[,SUBSET...].")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port ({self.port}) must be 0 to 65535.")


class Corpus:
    """One dataset or subset to look through. Threads may share it."""

    def __init__(self, path: str, cache: epath.Path):
        opened = open_dataset(path)
        if not isinstance(opened, (Dataset, Subset)):
            raise ValueError(f"{path} is TFDS: make a dataset of it with data_pipelines.corpora.")
        self.name = epath.Path(path).name
        self.dataset = opened.dataset if isinstance(opened, Subset) else opened
        self.positions = opened.positions()
        self._lock = threading.Lock()
        self._connection = connect(self.dataset)
        self._connection.register("captions", read_captions(self.dataset, cache))
        self._connection.register("chosen", pa.table({"position": self.positions}))

    def search(self, text: str, where: str, page: int) -> tuple[int, list[dict[str, Any]]]:
        """How many records match, and those of a page. Raises ValueError: see check_where."""
        where = where.strip() or "true"
        condition = f"WHERE (\n{where}\n)"
        source = "metadata SEMI JOIN chosen USING (position)"
        text_condition = "contains(lower(caption), lower(?))" if text else "true"
        query = (
            f"FROM (SELECT * FROM {source} {condition}) JOIN captions USING (position) "
            f"WHERE {text_condition}"
        )
        values = [text] if text else []
        with self._lock, deadline(self._connection, SECONDS):
            check_where(self._connection, where)
            (count,) = run_query(self._connection, where, f"SELECT count(*) AS n {query}", values)[
                "n"
            ].tolist()
            rows = run_query(
                self._connection,
                where,
                "SELECT position, left(caption, 600) AS caption, concat_ws(' ', article_id, "
                f"figure_id, panel_id) AS ids {query} ORDER BY position "
                f"LIMIT {PER_PAGE} OFFSET {PER_PAGE * page}",
                values,
            )
        keys = ("position", "caption", "ids")
        columns = zip(*(rows[key] for key in keys), strict=True)
        return count, [dict(zip(keys, values, strict=True)) for values in columns]

    def has(self, position: int) -> bool:
        index = int(np.searchsorted(self.positions, position))
        return index < len(self.positions) and int(self.positions[index]) == position

    def details(self, position: int) -> list[tuple[str, Any]]:
        """Every text and every column of a record."""
        record = self.dataset[position]
        texts = [(name, text) for name, text in record.texts().items() if text]
        return texts + list(self.dataset.metadata.slice(position, 1).to_pylist()[0].items())


def read_captions(dataset: Dataset, cache: epath.Path) -> pa.Table:
    """position and all texts of every record, in one string; read once, then from `cache`."""
    file = cache / f"captions-{dataset.content_hash[:24]}.parquet"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        columns = {"position": pa.array(np.arange(len(dataset))), "caption": []}
        for position in tqdm.trange(len(dataset), unit=" captions"):
            texts = dataset[position].texts()
            columns["caption"].append("\n".join(filter(None, map(texts.get, TEXT_FIELDS))))
        temporary = f"{file}.{os.getpid()}.tmp"
        pq.write_table(pa.table(columns), temporary)
        os.replace(temporary, file)
    return pq.read_table(file)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("browse.html.jinja")


def search_page(corpora: list[Corpus], query: Mapping[str, str]) -> str:
    """The page of a search; what is wrong with the search is told on it."""
    asked = {"q": query.get("q", ""), "where": query.get("where", "")}
    sides = {side: _number(query.get(side), len(corpora)) for side in ("a", "b")}
    sides["a"] = sides["a"] or 0
    page = max(0, (_number(query.get("page"), 10**9) or 1) - 1)
    error, columns, pages = "", [], 1
    for number in dict.fromkeys(s for s in sides.values() if s is not None):
        corpus = corpora[number]
        try:
            found, figures = corpus.search(asked["q"], asked["where"], page)
        except ValueError as problem:
            error = str(problem)
            break
        pages = max(pages, -(-found // PER_PAGE))
        total = len(corpus.positions)
        columns.append({"name": corpus.name, "collection": number, "found": found})
        columns[-1] |= {"figures": figures, "total": total}

    def link(to: int) -> str:
        values = asked | {k: v for k, v in sides.items() if v is not None} | {"page": to + 1}
        return "/?" + urllib.parse.urlencode(values) if 0 <= to < pages else ""

    return _template().render(
        title=", ".join(column["name"] for column in columns) or "Corpus",
        record=None,
        names=[corpus.name for corpus in corpora],
        asked=asked | sides,
        columns=columns,
        error=error,
        page=page + 1,
        pages=pages,
        previous=link(page - 1),
        next=link(page + 1),
    )


def record_page(corpora: list[Corpus], number: int, position: int) -> str:
    corpus = corpora[number]
    record = {"name": corpus.name, "collection": number, "position": position}
    record["rows"] = corpus.details(position)
    return _template().render(title=f"{corpus.name} {position}", record=record, columns=[])


def _number(text: str | None, below: int) -> int | None:
    """A number in range(below), or None."""
    if not text or not text.isascii() or not text.isdecimal() or len(text) > 12:
        return None
    return int(text) if int(text) < below else None


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /, /record/CORPUS/POSITION, /image/CORPUS/POSITION; no path reaches the file system."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        if self.server.is_private and not self._is_from_here():
            return self.send_error(HTTPStatus.FORBIDDEN)
        url = urllib.parse.urlsplit(self.path)
        try:
            if url.path == "/":
                query = dict(urllib.parse.parse_qsl(url.query))
                return self._send(search_page(self.server.corpora, query).encode())
            kind, number, position = self._parse(url.path)
        except LookupError:
            return self.send_error(HTTPStatus.NOT_FOUND)
        if kind == "record":
            return self._send(record_page(self.server.corpora, number, position).encode())
        image = self.server.corpora[number].dataset[position].image
        self._send(image, IMAGE_TYPES.get(image[:2], "application/octet-stream"))

    do_HEAD = do_GET

    def _is_from_here(self) -> bool:
        """Not by another site's name for this machine, nor from another site's page."""
        try:
            host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        site = self.headers.get(
            "Sec-Fetch-Site", "none"
        )  # a browser says it, no page can change it
        return host in LOOPBACK and site in ("same-origin", "none")

    def _parse(self, path: str) -> tuple[str, int, int]:
        """ "/image/0/17" -> ("image", 0, 17). Raises LookupError: no such thing."""
        parts = path.strip("/").split("/")
        if len(parts) != 3 or parts[0] not in ("image", "record"):
            raise LookupError(path)
        number = _number(parts[1], len(self.server.corpora))
        position = _number(parts[2], 10**12)
        if number is None or position is None or not self.server.corpora[number].has(position):
            raise LookupError(path)
        return parts[0], number, position

    def _send(self, data: bytes, content_type: str = "text/html; charset=utf-8") -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass  # the terminal is for what matters


class Server(http.server.ThreadingHTTPServer):
    """The page's server. Raises ValueError: the address cannot be had."""

    daemon_threads = True

    def __init__(self, options: BrowseOptions):
        options.validate()
        cache = epath.Path(os.path.expanduser(options.cache))
        self.corpora = [Corpus(path, cache) for path in options.dataset]
        self.is_private = options.host in LOOPBACK
        if ":" in options.host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((options.host, options.port), Handler)
        except OSError as error:
            raise ValueError(
                f"host ({options.host}), port ({options.port}): {error}. Choose others."
            ) from None

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def main(options: BrowseOptions) -> None:
    with Server(options) as server:
        print(f"{server.address}  (Ctrl-C ends it)")
        if options.host not in LOOPBACK:
            print("Warning: whoever reaches this machine can look; there is no password.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    run(main, BrowseOptions, positional="dataset")
