"""Where articles are: packages and what hides in them, folders and what is listed of them."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections import Counter

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from lxml import etree

from data_pipelines.pmc import articles as sources
from data_pipelines.pmc.articles import Folder, list_inputs, open_articles
from data_pipelines.pmc.jats import parse_article
from tests.pipelines.pmc.articles import article, build, drops, fig, picture

# --- Packages ----------------------------------------------------------------------------------


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def sparse(name: str):
    """100 MB of holes in a few bytes: limits on what is read do not see them."""
    info, data = member(name, b"x")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "100000000"}
    return info, data


def package(path, *members) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


ARTICLE = [member("PMC1/a.nxml", article(fig(1, "<p>a</p>"))), member("PMC1/f1.jpg", picture(1))]


def test_a_package_is_read_and_its_tricks_are_not(tmp_path):
    tricks = [
        member("PMC1/../../evil.jpg", b"x"),
        member("/tmp/evil.jpg", b"x"),
        member("PMC1/link.jpg", kind=tarfile.SYMTYPE, link="/etc/hostname"),
        member("PMC1/hard.jpg", kind=tarfile.LNKTYPE, link="/etc/hostname"),
        member("PMC1/device.jpg", kind=tarfile.CHRTYPE),
        sparse("PMC1/hole.jpg"),
        member("PMC1/paper.pdf", b"%PDF"),
        member("PMC1/script.sh", b"rm"),
    ]
    package(tmp_path / "in/PMC1.tar.gz", *ARTICLE, *tricks)
    dataset = build(tmp_path / "in", tmp_path / "ds")
    assert [dataset[i].figure_id for i in range(len(dataset))] == ["F1"]
    assert drops(dataset) == {
        "package: member outside of it": 2,
        "package: link or special member": 4,
    }
    assert not list(tmp_path.rglob("evil*"))


def test_bombs_and_wrecks_among_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_TAR_BYTES", 1 << 20)
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 1 << 18)
    folder = tmp_path / "in"
    package(folder / "a.tar.gz", *ARTICLE)
    package(folder / "bomb.tar.gz", member("x.pdf", bytes(1 << 22)), *ARTICLE)
    package(folder / "large.tar.gz", member("x.jpg", bytes(1 << 19)), *ARTICLE)
    package(folder / "none.tar.gz", member("x.txt", b"x"))
    whole = (folder / "a.tar.gz").read_bytes()
    (folder / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.tar.xz").write_bytes(b"noise" * 100)
    claims = tarfile.TarInfo("pax")  # a header that claims to be a gigabyte long
    claims.type, claims.size = tarfile.XHDTYPE, 1 << 30
    (folder / "pax.tar").write_bytes(claims.tobuf() + bytes(1024))
    dataset = build(folder, tmp_path / "ds")
    assert {record.article_id for record in map(dataset.__getitem__, range(len(dataset)))} == {
        "PMC1"
    }
    found = drops(dataset)
    assert found["package: too large"] == 2  # the bomb and the header
    assert found["package: member too large"] == 1
    assert found["package: unreadable"] == 2
    assert found["package: no article in it"] >= 2


def test_a_bulk_archive_of_many_articles(tmp_path):
    path = tmp_path / "bulk.tar.xz"
    with lzma.open(path, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(3):
            data = article(fig(1, f"<p>{number}</p>"), number)
            info, _ = member(f"oa/{number}.xml", data)
            tar.addfile(info, io.BytesIO(data))
        info, data = member("oa/f1.png", picture(1, kind="PNG"))
        tar.addfile(info, io.BytesIO(data))
    dataset = build(path, tmp_path / "ds")
    assert len(dataset) == 3  # all name f1, which lies beside them
    assert dataset.manifest["counts"]["steps"]["articles"] == 3


def pax(**fields: bytes) -> bytes:
    """A tar with an image whose extended header has any bytes."""
    lines = b""
    for key, value in fields.items():
        line = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = next(n for n in range(len(line), len(line) + 9) if len(str(n)) + len(line) == n)
        lines += str(length).encode() + line
    tar = b""
    for name, kind, data in (("pax", tarfile.XHDTYPE, lines), ("x.jpg", tarfile.REGTYPE, b"x")):
        info, _ = member(name, data, kind)
        tar += info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    return tar


def plain(*members) -> bytes:
    blocks = (
        info.tobuf(tarfile.USTAR_FORMAT, errors="surrogateescape") + data + bytes(-len(data) % 512)
        for info, data in members
    )
    return b"".join(blocks) + bytes(1024)


UNREADABLE = {"package: unreadable": 1, "package: no article in it": 1}
NO_ID = b"<article><body><fig id='F1'><caption><p>a</p></caption><graphic href='f1'/></fig></body>"
NO_ID += b"</article>"


@pytest.mark.parametrize(
    "head, num_records, reasons",
    [
        (pax(path=b"PMC1/a\0b.jpg"), 1, {"package: unusable name": 1}),
        (pax(path=b"d/" * 2000 + b"x.jpg"), 1, {"package: unusable name": 1}),
        (pax(path=b"x" * 300 + b".jpg"), 1, {"package: unusable name": 1}),
        (pax(GNU__sparse__map=b"a,b"), 0, UNREADABLE),
        (
            pax(GNU__sparse__major=b"1", GNU__sparse__minor=b"0", GNU__sparse__realsize=b"z"),
            0,
            UNREADABLE,
        ),
        (
            plain(member("PMC1/x.jpg", b"1"), member("PMC1/x.jpg/y.jpg", b"1"))[:-1024],
            1,
            {"package: member is file and folder": 1},
        ),
        (plain(member("PMC1/\udce9.nxml", NO_ID))[:-1024], 2, {}),
    ],
)
def test_one_member_does_not_stop_the_others(tmp_path, head, num_records, reasons):
    """A tar with a junk member before an article, beside an article that is as it should be."""
    (tmp_path / "in/PMC9").mkdir(parents=True)
    (tmp_path / "in/PMC9/a.nxml").write_bytes(article(fig(1, "<p>a</p>"), 9))
    (tmp_path / "in/PMC9/f1.jpg").write_bytes(picture(9))
    (tmp_path / "in/z.tar").write_bytes(head + plain(*ARTICLE))
    dataset = build(tmp_path / "in", tmp_path / "ds")
    assert len(dataset) == 1 + num_records
    assert drops(dataset) == reasons


@pytest.mark.parametrize("damage", [b"\x01" * 512 + bytes(512), b""])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_damage_between_two_articles_is_told(tmp_path, damage, suffix):
    """A header of junk, or an end between two members; what came before it is a record."""
    more = plain(member("PMC2/b.nxml", NO_ID), member("PMC2/f1.jpg", picture(2)))
    data = plain(*ARTICLE)[:-1024] + damage + (more if damage else b"")
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    data = compress.get(suffix.rpartition(".")[2], bytes)(data)
    (tmp_path / "in").mkdir()
    (tmp_path / f"in/z.{suffix}").write_bytes(data)
    dataset = build(tmp_path / "in", tmp_path / "ds")
    assert len(dataset) == 1
    assert drops(dataset) == {"package: unreadable": 1}


def test_a_full_disk_is_no_fault_of_the_package(tmp_path, monkeypatch):
    """The job stops, to be run again; the package is not dropped for good."""
    package(tmp_path / "in/PMC1.tar.gz", *ARTICLE)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.os, "makedirs", full)
    with pytest.raises(OSError, match="No space left"):
        list(open_articles(Folder(os.fspath(tmp_path / "in")), "PMC1.tar.gz"))


# --- Folders -----------------------------------------------------------------------------------


def test_a_lost_connection_is_no_missing_image(monkeypatch):
    system = MemoryFileSystem()
    system.pipe("/net/PMC1/a.nxml", article(fig(1, "<p>a</p>")))
    system.pipe("/net/PMC1/f1.jpg", picture(1))

    def find(graphic="f1"):
        (source,) = open_articles(Folder("memory://net"), "PMC1/a.nxml")
        return source.find_image([graphic])

    assert find() == find("f1.eps") == find("F1.PDF") == find("f1.tif") == "PMC1/f1.jpg"
    assert find("none/such") is find("x" * 999) is find("x" * 999 + "/f1") is None

    def broken(*_, **__):
        raise ConnectionResetError("network")

    monkeypatch.setattr(MemoryFileSystem, "ls", broken)
    with pytest.raises(ConnectionResetError):
        find()


def test_a_directory_is_listed_once_a_job(tmp_path, monkeypatch):
    """A flat folder of N articles takes time linear in N."""
    for number in range(5):
        (tmp_path / f"PMC{number}.xml").write_bytes(article("", number))
    listed = []
    monkeypatch.setattr(
        Folder, "_names", lambda self, directory: listed.append(directory) or ["f1.jpg"]
    )
    folder = Folder(os.fspath(tmp_path))
    for number in range(5):
        (source,) = open_articles(folder, f"PMC{number}.xml")
        assert source.find_image(["f1"]) == "f1.jpg"
    assert listed == [""]


# --- Real articles -----------------------------------------------------------------------------


def test_every_image_that_real_articles_name_is_found_or_counted(shared_data):
    """What a build does before it decodes. The sum is that of images in lxml's <fig> elements, one
    for a figure without any; what is found is figures.jsonl."""
    folder, counts, elements = Folder(os.fspath(shared_data / "pmc_articles")), Counter(), 0
    _, names, _ = list_inputs(folder.root)
    for name in names:
        (source,) = open_articles(folder, name)
        figures = etree.fromstring(source.xml, etree.XMLParser(recover=True)).iter("fig")
        images = ".//graphic[not(parent::alternatives)] | .//alternatives[graphic]"
        elements += sum(max(1, len(figure.xpath(images))) for figure in figures)
        for figure in parse_article(source.xml).figures:
            if not figure.caption:
                counts["empty caption"] += 1
                continue
            for graphic in figure.graphics or [[]]:
                counts["found" if source.find_image(graphic) else "missing"] += 1
    assert counts == {"found": 1118, "missing": 110, "empty caption": 5}
    lines = (shared_data / "pmc_articles/figures.jsonl").read_text().splitlines()
    assert (sum(counts.values()), len(lines)) == (elements, counts["found"])
