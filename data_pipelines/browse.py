r"""A page to look through a corpus: search captions, filter by signals, compare two subsets.

    python -m data_pipelines.browse DATASET             # then open the address it says
    python -m data_pipelines.browse DATASET SUBSET_A SUBSET_B

Listens on this machine alone unless --host says otherwise: it has no password. Captions are read
once, and kept in --cache for the next time; searching them reads them from there, with all cores.
"""

import dataclasses
import functools
import http.server
import os
import socket
import sys
import urllib.parse
from collections.abc import Mapping
from http import HTTPStatus

import jinja2
import numpy as np
from etils import epath

from data_pipelines.options import option, run
from data_pipelines.search import Corpus
from jaxclip.data.dataset import Dataset
from jaxclip.data.files import DamagedError
from jaxclip.data.subset import Subset, open_dataset

PER_PAGE = 24
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HTML = "text/html; charset=utf-8"
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
    numbers = list(dict.fromkeys(s for s in sides.values() if s is not None))
    error, found = "", []
    try:
        found = [corpora[number].search(asked["q"], asked["where"]) for number in numbers]
    except ValueError as problem:
        error = str(problem)
    pages = max([1, *(-(-len(positions) // PER_PAGE) for positions in found)])
    page = min(max(1, _number(query.get("page"), 10**9) or 1), pages)
    shown = slice(PER_PAGE * (page - 1), PER_PAGE * page)
    columns = [
        {
            "name": corpora[number].name,
            "collection": number,
            "found": len(positions),
            "total": len(corpora[number].positions),
            "figures": corpora[number].figures(positions[shown], asked["q"]),
        }
        for number, positions in zip(numbers, found, strict=False)
    ]

    def link(to: int) -> str:
        values = asked | {k: v for k, v in sides.items() if v is not None} | {"page": to}
        return "/?" + urllib.parse.urlencode(values) if 1 <= to <= pages else ""

    return _template().render(
        title=", ".join(column["name"] for column in columns) or "Corpus",
        record=None,
        names=[corpus.name for corpus in corpora],
        asked=asked | sides,
        columns=columns,
        in_both=_in_both([corpora[number] for number in numbers], found),
        signals=corpora[sides["a"]].columns,
        error=error,
        page=page,
        pages=pages,
        previous=link(page - 1),
        next=link(page + 1),
    )


def _in_both(corpora: list[Corpus], found: list[np.ndarray]) -> int | None:
    """How many of the records found two subsets of one dataset share; None: they are not such."""
    hashes = {corpus.dataset.content_hash for corpus in corpora}
    if len(found) < 2 or len(hashes) > 1:
        return None
    return len(np.intersect1d(*found, assume_unique=True))


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
        try:
            self._send(*self._page())
        except LookupError:
            self.send_error(HTTPStatus.NOT_FOUND)
        except DamagedError as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain=str(error))

    def _page(self) -> tuple[bytes, str]:
        """Content and type of what was asked for. Raises LookupError: no such thing."""
        url = urllib.parse.urlsplit(self.path)
        corpora = self.server.corpora
        if url.path == "/":
            query = dict(urllib.parse.parse_qsl(url.query))
            return search_page(corpora, query).encode(), HTML
        kind, number, position = self._parse(url.path)
        if kind == "record":
            return record_page(corpora, number, position).encode(), HTML
        image = corpora[number].dataset[position].image
        return image, IMAGE_TYPES.get(image[:2], "application/octet-stream")

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

    def _send(self, data: bytes, content_type: str) -> None:
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


def _open(path: str) -> Dataset | Subset:
    opened = open_dataset(path)
    if not isinstance(opened, (Dataset, Subset)):
        raise ValueError(f"{path} is TFDS: make a dataset of it with data_pipelines.corpora.")
    return opened


class Server(http.server.ThreadingHTTPServer):
    """The page's server. Raises ValueError: the address cannot be had."""

    daemon_threads = True

    def __init__(self, options: BrowseOptions):
        options.validate()
        cache = epath.Path(os.path.expanduser(options.cache))
        opened = [_open(path) for path in options.dataset]  # all, before captions are read
        names = [epath.Path(path).name for path in options.dataset]
        self.corpora = [Corpus(n, o, cache) for n, o in zip(names, opened, strict=True)]
        self.is_private = options.host in LOOPBACK
        if ":" in options.host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((options.host, options.port), Handler)
        except OSError as error:
            raise ValueError(
                f"host ({options.host}), port ({options.port}): {error}. Choose others."
            ) from None

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # of a browser that went on
            super().handle_error(request, client_address)

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
