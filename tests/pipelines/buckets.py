"""Buckets on loopback: moto's server speaks S3, and Storage enough of Google's JSON API."""

import contextlib
import http.server
import json
import logging
import pathlib
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def s3_bucket(monkeypatch) -> Iterator[str]:
    """An empty s3:// bucket."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    try:
        url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()  # a process has one store
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "of-nobody")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("corpora")
        yield "s3://corpora"
    finally:
        server.stop()


@contextlib.contextmanager
def gs_bucket(monkeypatch, folder: pathlib.Path) -> Iterator[str]:
    """A gs:// bucket whose objects are the files of a folder."""
    gcsfs = pytest.importorskip("gcsfs")

    class OfFolder(Storage):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OfFolder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "nobodys")
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield "gs://corpora"
        server.shutdown()


class Storage(http.server.SimpleHTTPRequestHandler):
    """What gcsfs asks of Google's storage: objects are files of a folder.

    GET /storage/v1/b/BUCKET/o?prefix=&delimiter=, /storage/v1/b/BUCKET/o/NAME, and its ?alt=media;
    DELETE of it; POST /upload/storage/v1/b/BUCKET/o?uploadType=multipart.
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

    def do_POST(self):
        """A multipart message of JSON, with the name, and the data."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        end = body[: body.index(b"\n")]
        _, about, data = body.split(b"\n\n", 2)
        name = json.loads(about.partition(b"\n" + end)[0])["name"]
        file = pathlib.Path(self.directory, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.removesuffix(b"\n" + end + b"--"))
        self._json(self._about(file))

    def do_DELETE(self):
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path.partition("/o/")[2])
        file = pathlib.Path(self.directory, name)
        is_there = file.is_file()
        file.unlink(missing_ok=True)
        self._send(204 if is_there else 404, b"", {})

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
