"""s3:// and gs:// as they are spoken over HTTP: moto's server, and Google's JSON API in small."""

import http.server
import json
import logging
import pathlib
import threading
import urllib.parse

import pytest

from data_pipelines.corpora import CorpusOptions, build_corpus
from data_pipelines.remote import expand, open_file
from data_pipelines.synthetic_releases import draw, write_release

IMAGES = [draw(number, 40, 60) for number in range(24)]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release with its traps, and what is made of it from the disk."""
    root = tmp_path_factory.mktemp("release")
    options = write_release("pmc_oa", root / "pmc_oa", IMAGES, traps=True)
    tars = write_release("open_pmc", root / "open_pmc", IMAGES, traps=True)
    made = {
        "open_pmc": build(root / "a", tars),
        "pmc_oa": build(root / "b", options),
    }
    return root, made


def build(out, options):
    return build_corpus(CorpusOptions(out=str(out), workers=1, tokenizer_vocab=0, **options))


def same_from(bucket: str, release, tmp_path) -> None:
    """A glob, a brace, a folder; tars in one pass, a zip by its parts: as from the disk."""
    _, made = release
    assert len(expand([f"{bucket}/open_pmc/*.tar"], (".tar",))) == 3
    assert len(expand([f"{bucket}/open_pmc/train-{{0000..0001}}.tar"], (".tar",))) == 2
    tars = {"layout": "open_pmc", "input": (f"{bucket}/open_pmc",)}
    assert build(tmp_path / "tars", tars).metadata.equals(made["open_pmc"].metadata)
    table = {"layout": "pmc_oa", "input": (f"{bucket}/pmc_oa/pmc_oa.jsonl",)}
    table["images"] = f"{bucket}/pmc_oa/images.zip"
    assert build(tmp_path / "table", table).metadata.equals(made["pmc_oa"].metadata)
    with pytest.raises(FileNotFoundError, match="nothing.tar is no file"):
        expand([f"{bucket}/nothing.tar"], (".tar",))
    with open_file(f"{bucket}/open_pmc/train-0000.tar") as file:
        file.seek(100)
        assert len(file.read(10)) == 10


def test_s3(release, tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "of-nobody")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        bucket = s3fs.S3FileSystem()
        bucket.mkdir("corpora")
        for folder in ("open_pmc", "pmc_oa"):
            bucket.put(str(release[0] / folder), f"corpora/{folder}", recursive=True)
        same_from("s3://corpora", release, tmp_path)
    finally:
        server.stop()


class Storage(http.server.SimpleHTTPRequestHandler):
    """What gcsfs asks of Google's storage when it lists and reads: objects are files of a folder.

    GET /storage/v1/b/BUCKET/o?prefix=&delimiter=, /storage/v1/b/BUCKET/o/NAME, and its ?alt=media.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        _, _, name = url.path.partition("/o/")
        file = pathlib.Path(self.directory, urllib.parse.unquote(name))
        if not name:
            return self._json(self._list(query.get("prefix", ""), query.get("delimiter", "")))
        if not file.is_file():
            return self._send(404, b"{}", {})
        if query.get("alt") != "media":
            return self._json(self._about(file))
        data = file.read_bytes()
        if not (asked := self.headers.get("Range")):
            return self._send(200, data, {})
        low, high = asked.removeprefix("bytes=").split("-")
        last = min(int(high or len(data)), len(data) - 1)
        part = f"bytes {low}-{last}/{len(data)}"
        self._send(206, data[int(low) : last + 1], {"Content-Range": part})

    def _list(self, prefix: str, delimiter: str) -> dict:
        items, prefixes = [], set()
        for file in sorted(pathlib.Path(self.directory).rglob("*")):
            name = file.relative_to(self.directory).as_posix()
            if file.is_file() and name.startswith(prefix):
                head, cut, _ = name[len(prefix) :].partition("/")
                if delimiter and cut:
                    prefixes.add(f"{prefix}{head}/")
                else:
                    items.append(self._about(file))
        return {"items": items, "prefixes": sorted(prefixes)}

    def _about(self, file: pathlib.Path) -> dict:
        name = file.relative_to(self.directory).as_posix()
        return {"name": name, "bucket": "corpora", "size": str(file.stat().st_size)}

    def _json(self, value: dict) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def test_gs(release, tmp_path, monkeypatch):
    gcsfs = pytest.importorskip("gcsfs")

    class OfRelease(Storage):
        def __init__(self, *args):
            super().__init__(*args, directory=str(release[0]))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OfRelease) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "nobodys")
        gcsfs.GCSFileSystem.clear_instance_cache()
        same_from("gs://corpora", release, tmp_path)
        server.shutdown()
