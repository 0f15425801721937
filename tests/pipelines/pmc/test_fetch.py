"""Fetching from a server that stalls, cuts short, errs and lies; licences; going on."""

import collections
import hashlib
import http.server
import json
import threading

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from data_pipelines.pmc.fetch import Fetcher, FetchOptions, Wanted, fetch, read_list

BODY = bytes(range(256)) * 40
LIST = "File,Article Citation,Accession ID,Last Updated,PMID,License\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """What a path is called is how it behaves, the first time or always."""

    asked: collections.Counter
    ranges: list
    released: threading.Event
    files: dict[str, bytes]

    def do_HEAD(self):
        body = self.files.get(self.path, BODY)
        if "down" in self.path:
            return self.send_error(503)
        self.send_response(404 if "gone" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        return None

    def do_GET(self):
        self.asked[self.path] += 1
        is_first = self.asked[self.path] == 1
        if "gone" in self.path:
            return self.send_error(404)
        if ("errs" in self.path or "down" in self.path) and (is_first or "always" in self.path):
            return self.send_error(503)
        if "stalls" in self.path and is_first:
            self.released.wait(20)
            return None
        body = self.files.get(self.path, BODY)
        start, end = 0, len(body)
        if (asked := self.headers.get("Range")) and "norange" not in self.path:
            self.ranges.append((self.path, asked))
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(body)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        else:
            self.send_response(200)
        body = body[start:end]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        is_cut = "cut" in self.path and (is_first or "always" in self.path)
        self.wfile.write(body[: len(body) // 2] if is_cut else body)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Mine", (Handler,), {})
    handler.asked, handler.ranges = collections.Counter(), []
    handler.files, handler.released = {}, threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    handler.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def options(base: str, tmp_path, lines: str = "", **changed) -> FetchOptions:
    (tmp_path / "list.csv").write_text(LIST + lines)
    defaults = dict(threads=2, tries=3, backoff=0.01, timeout=0.5, requests_per_second=1000)
    where = dict(list=str(tmp_path / "list.csv"), base=base, out=str(tmp_path / "out"))
    return FetchOptions(**where | defaults | changed)


@pytest.mark.parametrize("name", ["plain", "stalls", "cut", "errs", "down", "norange"])
def test_a_file_comes_whole_from_a_bad_server(server, tmp_path, name):
    _, base = server
    counts = fetch(options(base, tmp_path, f"a/b/{name}.tar.gz,,,,,CC BY\n"))
    assert counts == {"fetched": 1}
    assert (tmp_path / f"out/a/b/{name}.tar.gz").read_bytes() == BODY
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("gone", "not there"),
        ("cutalways", "server failed"),
        ("errsalways", "server failed"),
        ("downalways", "server failed"),
    ],
)
def test_what_cannot_be_had_is_listed_and_leaves_no_file(server, tmp_path, name, reason):
    handler, base = server
    lines = f"{name}.tar.gz,,,,,CC BY\nplain.tar.gz,,,,,CC0\n"
    counts = fetch(options(base, tmp_path, lines))
    assert counts == {reason: 1, "fetched": 1}
    failed = [json.loads(line) for line in (tmp_path / "out/failed.jsonl").open()]
    assert [(f["item"], f["reason"]) for f in failed] == [(f"{name}.tar.gz", reason)]
    assert not (tmp_path / f"out/{name}.tar.gz").exists()
    assert handler.asked[f"/{name}.tar.gz"] == (1 if name == "gone" else 3)  # tries


class OneThread(LocalFileSystem):
    """A connection that one thread may use, as FTP's, and that ends after its first command."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.thread, self.commands = threading.get_ident(), 0

    def info(self, path, **kwargs):
        self.commands += 1
        assert self.thread == threading.get_ident()
        if self.commands > 1:
            raise FileNotFoundError(path)  # what fsspec makes of "421 closing the connection"
        return super().info(path)


def test_ftp_has_a_connection_a_thread_and_a_new_one_where_that_was_closed(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    for i in range(8):
        (tmp_path / f"mirror/{i}.tgz").write_bytes(BODY)
    chosen = options("ftp://host", tmp_path, "".join(f"{i}.tgz,,,,,CC0\n" for i in range(9)))
    root = str(tmp_path / "mirror")
    monkeypatch.setattr(fsspec, "url_to_fs", lambda base, **_: (OneThread(), root))
    assert fetch(chosen) == {"fetched": 8, "not there": 1}


def test_a_server_that_is_not_there_is_no_answer(tmp_path):
    chosen = options("http://127.0.0.1:9", tmp_path)  # nobody listens
    assert Fetcher(chosen).get(Wanted("x", "CC0")).reason == "server failed"


def test_waits_grow_from_try_to_try(server, tmp_path, monkeypatch):
    _, base = server
    slept = []
    fetcher = Fetcher(options(base, tmp_path, tries=9, backoff=1.0))
    monkeypatch.setattr(fetcher.stopped, "wait", slept.append)
    assert fetcher.get(Wanted("errsalways", "CC BY")).reason == "server failed"
    for wait, most in zip(slept, (1, 2, 4, 8, 16, 32, 60, 60), strict=True):  # none after the last
        assert most / 2 <= wait <= most


def test_stopped_it_tries_nothing_again(server, tmp_path):
    handler, base = server
    fetcher = Fetcher(options(base, tmp_path, backoff=100.0))
    fetcher.stopped.set()
    assert fetcher.get(Wanted("errsalways", "CC BY")).reason == "server failed"
    assert handler.asked["/errsalways"] == 1


def test_licences_are_filtered_before_any_request(server, tmp_path):
    handler, base = server
    lines = "a.tgz,,,,,CC BY-NC\nb.tgz,,,,,NO-CC CODE\nc.tgz,,,,,CC BY-ND\nd.tgz,,,,,CC BY-NC-SA\n"
    assert fetch(options(base, tmp_path, lines)) == {"licence": 3, "fetched": 1}
    assert list(handler.asked) == ["/c.tgz"]
    more = options(base, tmp_path, lines, licences=("commercial", "noncommercial"))
    assert fetch(more) == {"fetched": 2, "licence": 1, "there already": 1}


def test_goes_on_in_the_middle_of_a_file(server, tmp_path):
    handler, base = server
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plain.tar.gz.part").write_bytes(BODY[:5000])
    assert fetch(options(base, tmp_path, "plain.tar.gz,,,,,CC BY\n")) == {"fetched": 1}
    assert (tmp_path / "out/plain.tar.gz").read_bytes() == BODY
    assert handler.ranges == [("/plain.tar.gz", f"bytes=5000-{len(BODY) - 1}")]


def test_a_part_of_another_file_is_found_out_by_its_checksum(server, tmp_path):
    _, base = server
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x.part").write_bytes(b"other" * 100)
    fetcher = Fetcher(options(base, tmp_path))
    right = ("md5", hashlib.md5(BODY).hexdigest())
    assert fetcher.get(Wanted("x", "CC BY", right)).reason == "fetched"
    assert (tmp_path / "out/x").read_bytes() == BODY
    assert fetcher.get(Wanted("y", "CC BY", ("md5", "0" * 32))).reason == "wrong checksum"
    assert not (tmp_path / "out/y").exists()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_a_list_cannot_write_outside(server, tmp_path, path):
    handler, base = server
    drop = Fetcher(options(base, tmp_path)).get(Wanted(path, "CC BY"))
    assert drop.reason == "path outside of the folder"
    assert not handler.asked


def record(**changed) -> bytes:
    name = "s3://pmc-oa-opendata/PMC7.2/"
    urls = [f"{name}gr1.jpg?md5={hashlib.md5(b'image').hexdigest()}", f"{name}mmc1.pdf?md5=0"]
    xml = f"{name}PMC7.2.xml?md5={hashlib.md5(b'<article/>').hexdigest()}"
    return json.dumps(
        {"license_code": "CC BY", "xml_url": xml, "media_urls": urls} | changed
    ).encode()


def test_an_article_of_the_cloud_service(server, tmp_path):
    handler, base = server
    handler.files |= {"/metadata/PMC7.2.json": record(), "/PMC7.2/gr1.jpg": b"image"}
    handler.files |= {"/PMC7.2/PMC7.2.xml": b"<article/>"}
    fetcher = Fetcher(options(base, tmp_path))
    assert fetcher.get(Wanted("PMC7.2")).reason == "fetched"
    files = {file.name: file.read_bytes() for file in (tmp_path / "out/PMC7.2").iterdir()}
    assert files == {"PMC7.2.xml": b"<article/>", "gr1.jpg": b"image", "PMC7.2.json": record()}
    assert fetcher.get(Wanted("metadata/PMC7.2.json")).reason == "there already"


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"license_code": "TDM"}, "licence"),
        ({"is_retracted": True}, "retracted"),
        ({"xml_url": None, "media_urls": 3}, "unusable record"),
        ({"xml_url": "s3://b/PMC7.2/PMC7.2.xml?md5=" + "0" * 32}, "wrong checksum"),
    ],
)
def test_an_article_that_is_not_wanted_or_not_right(server, tmp_path, changed, reason):
    handler, base = server
    handler.files |= {"/metadata/PMC7.2.json": record(**changed)}
    assert Fetcher(options(base, tmp_path)).get(Wanted("PMC7.2")).reason == reason
    assert not (tmp_path / "out/PMC7.2/PMC7.2.json").exists()


def test_the_rate_holds_for_all_threads(tmp_path, monkeypatch):
    now, slept = [100.0], []
    monkeypatch.setattr("data_pipelines.pmc.fetch.time.monotonic", lambda: now[0])
    monkeypatch.setattr("data_pipelines.pmc.fetch.time.sleep", slept.append)
    fetcher = Fetcher(options(str(tmp_path), tmp_path, requests_per_second=4.0))
    for _ in range(3):
        fetcher._wait_for_turn()
    assert slept == [0.0, 0.25, 0.5]


def test_lists(tmp_path):
    (tmp_path / "a.csv").write_text('Key,ETag,License\na.xml,"""' + "ab" * 16 + '""",CC BY\n')
    assert list(read_list(str(tmp_path / "a.csv"))) == [
        Wanted("a.xml", "CC BY", ("md5", "ab" * 16))
    ]
    (tmp_path / "ids.txt").write_text("PMC1\n\nmetadata/PMC2.3.json\n")
    assert [w.path for w in read_list(str(tmp_path / "ids.txt"))] == [
        "PMC1",
        "metadata/PMC2.3.json",
    ]
    (tmp_path / "r.csv").write_text("Article File,Retracted,License\na.xml,yes,CC0\nb.xml,no,CC0\n")
    assert [w.problem for w in read_list(str(tmp_path / "r.csv"))] == ["retracted", ""]
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="must have a column File"):
        list(read_list(str(tmp_path / "b.csv")))


def test_the_file_list_as_text(tmp_path):
    """A date, then columns without names; a quote in a citation is a letter."""
    path = tmp_path / "oa_file_list.txt"
    line = 'oa/PMC{0}.tar.gz\tJ "X. 2001\tPMC{0}\tPMID:1\tCC BY{1}\n'.format
    path.write_text("2024-12-18 10:00:00\n" + line(1, "") + line(2, "-NC"))
    assert list(read_list(str(path))) == [
        Wanted("oa/PMC1.tar.gz", "CC BY"),
        Wanted("oa/PMC2.tar.gz", "CC BY-NC"),
    ]


@pytest.mark.parametrize("written", ["PMC7.2", "pmc7.2", "7.2", "metadata/PMC7.2.json"])
def test_ids_in_any_spelling(server, tmp_path, written):
    handler, base = server
    handler.files |= {"/metadata/PMC7.2.json": record(license_code="TDM")}
    (tmp_path / "ids.txt").write_text(f"{written}\n")
    assert fetch(options(base, tmp_path, list=str(tmp_path / "ids.txt"))) == {"licence": 1}
    assert list(handler.asked) == ["/metadata/PMC7.2.json"]


def test_what_is_not_wanted_is_not_asked_for(server, tmp_path):
    handler, base = server
    (tmp_path / "ids.txt").write_text("10.1/x\n10.1/y\n")
    assert fetch(options(base, tmp_path, list=str(tmp_path / "ids.txt"))) == {"no article id": 2}
    assert (tmp_path / "out/failed.jsonl").read_text().count("no article id") == 2
    drop = Fetcher(options(base, tmp_path)).get(Wanted("x.xml", "CC BY", problem="retracted"))
    assert drop.reason == "retracted"
    assert not handler.asked


@pytest.mark.parametrize("base", ["https://", "s3://", "nope://x", "/nowhere"])
def test_a_base_that_is_none_is_refused(tmp_path, base):
    with pytest.raises(ValueError, match=r"base \("):
        fetch(options(base, tmp_path, "a.tgz,,,,,CC BY\n"))


def test_a_local_folder_is_a_mirror(tmp_path):
    (tmp_path / "mirror/sub").mkdir(parents=True)
    (tmp_path / "mirror/sub/x.tgz").write_bytes(BODY)
    chosen = options(str(tmp_path / "mirror"), tmp_path, "sub/x.tgz,,,,,CC0\nsub/y.tgz,,,,,CC0\n")
    assert fetch(chosen) == {"fetched": 1, "not there": 1}
    assert (tmp_path / "out/sub/x.tgz").read_bytes() == BODY
