"""The page shows what was asked for, to this machine alone, and nothing in a corpus can hurt it."""

import http.client
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import urllib.parse

import duckdb
import numpy as np
import pytest
from PIL import Image

from data_pipelines import search as browse_search
from data_pipelines.browse import PER_PAGE, BrowseOptions, Server
from data_pipelines.query import deadline, run_query
from data_pipelines.search import excerpt
from data_pipelines.synthetic_releases import draw
from jaxclip.data.dataset import Dataset, finish_dataset, write_shard
from jaxclip.data.files import DamagedError
from jaxclip.data.record import Example, Record
from jaxclip.data.subset import write_subset

NUM = 60
HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def record(number: int) -> Record:
    caption = HOSTILE if number == 7 else f"{'CT' if number % 2 else 'MRI'} of patient {number}."
    ids = {"article_id": f"PMC{number}", "figure_id": "F1"}
    return Record(image=draw(number, 90, 120), width=120, height=90, caption=caption, **ids)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("browse")
    (root / "corpus").mkdir()
    signals = [{"modality": "radiology" if n < 30 else "microscopy", "n": n} for n in range(NUM)]
    examples = [Example(record=record(n), split="train", signals=signals[n]) for n in range(NUM)]
    write_shard(root / "corpus", 0, examples)
    dataset = finish_dataset(root / "corpus", 1, {})
    for name, positions in (("odd", np.arange(1, NUM, 2)), ("few", np.array([3, 4]))):
        write_subset(root / name, dataset, positions, splits=("train",), made_by={}, counts={})
    paths = tuple(str(root / name) for name in ("corpus", "odd", "few"))
    options = BrowseOptions(dataset=paths, port=0, cache=str(root / "cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(browse_search, "RECORDS", 16)  # captions are kept in four parts
        server = Server(options)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(
    server, path: str, host: str = "localhost", method: str = "GET", **headers: str
) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.request(method, path, headers={"Host": host} | headers)
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


def search(server, **query) -> str:
    status, _, body = get(server, "/?" + urllib.parse.urlencode(query))
    assert status == 200
    return body.decode()


def shown(page: str) -> list[str]:
    return re.findall(r'src="/image/(\d+/\d+)"', page)


def counts(page: str) -> list[str]:
    return re.findall(r'class="count">(.*?) records', page)


def test_search_and_filter(server):
    assert counts(search(server)) == ["60 of 60"]
    assert counts(search(server, q="mri of")) == ["30 of 60"]
    page = search(server, q="MRI", where="modality = 'microscopy' AND n < 36")
    assert shown(page) == ["0/30", "0/32", "0/34"]
    assert counts(search(server, q="100%' OR true --")) == ["0 of 60"]
    assert "n (bigint)" in page and "modality (varchar)" in page  # what there is to filter by


def test_pages_hold_each_record_once(server):
    numbers, path = [], "/"
    while path:
        page = get(server, path)[2].decode()
        numbers += shown(page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        path = following and following[1].replace("&amp;", "&")
    assert numbers == [f"0/{n}" for n in range(NUM)] and PER_PAGE < NUM
    assert shown(search(server, page=99)) == numbers[48:]  # past the last: the last


def test_two_subsets_side_by_side(server):
    page = search(server, a=1, b=2)
    assert counts(page) == ["30 of 30", "2 of 2"]
    assert shown(page)[-2:] == ["2/3", "2/4"] and "1/1" in shown(page)
    assert "1 of these in both" in page  # 3
    assert "in both" not in search(server, a=1)
    assert counts(search(server, a=1, b=2, q="CT")) == ["29 of 30", "1 of 2"]  # of its own only


def test_what_was_searched_for_is_shown():
    text = "a" * 1000 + " axial CT " + "b" * 1000
    before, found, after = excerpt(text, "ct")
    assert (before[:2], before[-7:], found, after[:2], after[-1]) == (
        "… ",
        " axial ",
        "CT",
        " b",
        "…",
    )
    assert len(before + found + after) < 610 and excerpt("CT.", "(")[2] == "CT."
    assert excerpt(text, "") == ("", "", "a" * 600 + " …")


def test_what_a_browser_does_is_no_error(server, monkeypatch, capsys):
    """It goes on before an image is there; of a record that is damaged it is told."""
    for error, told in ((ConnectionResetError, False), (BrokenPipeError, False), (KeyError, True)):
        try:
            raise error()
        except Exception:
            server.handle_error(None, ("127.0.0.1", 1))
        assert ("Traceback" in capsys.readouterr().err) == told

    def damaged(self, position):
        raise DamagedError(f"Record {position} is damaged.")

    monkeypatch.setattr(Dataset, "__getitem__", damaged)
    for path in ("/image/0/3", "/record/0/3"):
        status, _, body = get(server, path)
        assert status == 500 and b"Record 3 is damaged." in body


def test_all_are_opened_before_captions_are_read(server, tmp_path):
    paths = (str(server.corpora[0].dataset.path), str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="none is not a dataset"):
        Server(BrowseOptions(dataset=paths, port=0, cache=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def test_a_record_with_every_signal(server):
    page = get(server, "/record/0/31")[2].decode()
    assert "CT of patient 31." in page and "<th>modality</th><td>microscopy</td>" in page
    status, headers, body = get(server, "/image/0/31")
    assert (status, headers["Content-Type"], body) == (200, "image/jpeg", draw(31, 90, 120))


@pytest.mark.parametrize("path", ["/?q=owned", "/record/0/7"])
def test_captions_stay_text(server, path):
    _, headers, body = get(server, path)
    page = body.decode()
    assert "<script>" not in page and "onerror=alert" in page  # as text
    assert "&lt;script&gt;" in page and "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/image/0/60",
        "/image/1/0",  # in the dataset, but not in this subset
        "/image/3/0",
        "/image/0/-1",
        "/image/0/../../etc/passwd",
        "/../../../etc/passwd",
        "/image/0/%2e%2e%2fetc%2fpasswd",
        "/image/0/99999999999999999999",
        "/image/0/¹",
        "/browse.py",
    ],
)
def test_no_path_leads_elsewhere(server, path):
    assert get(server, urllib.parse.quote(path, safe="/%."))[0] == 404


def test_mistakes_are_told_on_the_page(server):
    page = search(server, where="modalty = 1")
    assert 'class="error"' in page and "modalty" in page and "Columns: position" in page
    assert "must be one expression" in search(server, where="true) UNION SELECT (1")
    status = get(server, "/?page=-3&a=99&b=x&page=0")[0]
    assert status == 200


def test_only_this_machine(server):
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/", host="evil.example")[0] == 403  # DNS rebinding
    assert get(server, "/", host="127.0.0.1:80")[0] == 200
    assert get(server, "/", host="[::1]:80")[0] == 200
    assert get(server, "/", host="[::1")[0] == 403  # no address
    with pytest.raises(ValueError, match="host .127.0.0.1., port .*Choose others"):
        start_again(server, server.server_address[1])


@pytest.mark.parametrize(
    ["site", "status"],
    [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)],
)
def test_no_other_page_searches(server, site, status):
    """<img src="http://127.0.0.1:8000/?where=..."> on a page elsewhere."""
    assert get(server, "/?where=true", **{"Sec-Fetch-Site": site})[0] == status


def test_head_has_no_body(server):
    status, headers, body = get(server, "/", method="HEAD")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) > 1000


def test_a_search_has_an_end():
    query = "SELECT sum(hash(a.range + b.range)) AS n FROM range(1000000000) a, range(1000000000) b"
    connection = duckdb.connect()
    with pytest.raises(ValueError, match="takes too long"), deadline(connection, 0.1):
        run_query(connection, "w", query)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6(server):
    path = server.corpora[0].dataset.path
    options = BrowseOptions(
        dataset=(str(path),), host="::1", port=0, cache=str(path.parent / "cache")
    )
    try:
        other = Server(options)
    except ValueError as error:
        pytest.skip(str(error))
    with other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert other.address.startswith("http://[::1]:")
        assert get(other, "/", host="[::1]")[0] == 200
        other.shutdown()


def start_again(server, port: int) -> None:
    path = server.corpora[0].dataset.path
    options = BrowseOptions(dataset=(str(path),), port=port, cache=str(path.parent / "cache"))
    Server(options).server_close()


def test_captions_are_read_once(server, monkeypatch):
    cache = server.corpora[0].dataset.path.parent / "cache"
    (kept,) = list(cache.iterdir())  # of three, two are subsets of the first
    assert kept.name.startswith("captions-")
    monkeypatch.setattr(Dataset, "__getitem__", None)  # would fail if called
    start_again(server, 0)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look with")
def test_a_browser_shows_it_and_runs_nothing(server, tmp_path):
    def chromium(*flags: str) -> str:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    dom = chromium("--dump-dom", f"{server.address}?q=owned")
    assert "<title>corpus</title>" in dom and dom.count("<figure>") == 1
    assert "<mark>owned</mark>" in dom
    shot = pathlib.Path(tmp_path / "page.png")
    url = f"{server.address}?a=1&b=2"
    chromium(f"--screenshot={shot}", "--window-size=1200,900", url)
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 500  # the images are there: text alone has few colours
