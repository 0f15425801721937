"""Where articles are: folders as PMC's packages unpack to, packages, bulk archives.

An input is one XML file with its images beside it, or one tar with any number of those. Tars are
hostile until read: a member that is absolute, climbs out, or is a link or device is never written,
sizes are limited before anything is unpacked, and what is unpacked lies in a folder that is gone
when the article is done.
"""

import bz2
import contextlib
import dataclasses
import functools
import gzip
import lzma
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator
from typing import IO

import fsspec

from data_pipelines.images import MAX_FILE_BYTES, open_images
from data_pipelines.tars import TAR_ERRORS, LimitedFile, TooLarge
from jaxclip.data.image import ImageError
from jaxclip.data.record import Drop

XML_SUFFIXES = (".nxml", ".xml")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif")  # best first
MAX_XML_BYTES = 64 << 20
MAX_TAR_BYTES = 8 << 30  # unpacked; the largest packages of PMC have about 3 GB
MAX_TAR_MEMBERS = 1_000_000


@dataclasses.dataclass(slots=True, kw_only=True)
class Source:
    """One article as it lies there."""

    name: str  # what the user knows it by: file, or package and member
    stem: str  # of the file, for an article without an id
    xml: bytes
    folder: "Folder"
    directory: str  # of the XML, inside the folder

    def find_image(self, names: list[str]) -> str | None:
        """The file of an image that the article calls one of `names`, with or without suffix."""
        for name in names:
            name = name.replace("\\", "/")
            known = self.folder.images(posixpath.join(self.directory, posixpath.dirname(name)))
            known = known or self.folder.images(self.directory)  # info:doi/10.1371/journal.g001
            if file := known.get(_stem(posixpath.basename(name))):
                return file
        return None


class Folder:
    """Files below a local folder or a remote prefix; nothing outside it is read."""

    def __init__(self, root: str):
        self.root = root
        self.is_remote = "://" in root
        self.images = functools.lru_cache(maxsize=64)(self._images)

    def files(self) -> Iterator[str]:
        """Names of all files below, sorted."""
        if self.is_remote:
            system, root = fsspec.url_to_fs(self.root)
            names = (name[len(root) :].lstrip("/") for name in system.find(root))
            yield from sorted(names)
            return
        for directory, folders, files in os.walk(self.root):
            folders.sort()
            for file in sorted(files):
                yield os.path.relpath(os.path.join(directory, file), self.root)

    def read(self, name: str) -> bytes:
        """Raises ImageError: outside the folder, not there, too large, unreadable."""
        if not self.is_remote:
            return open_images(self.root).read(name)
        with self.open(name) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ImageError("file too large", f"{name}: at most {MAX_FILE_BYTES} bytes")
        return data

    def open(self, name: str) -> IO[bytes]:
        if not self.is_remote:
            return open(os.path.join(self.root, name), "rb")
        return fsspec.open(posixpath.join(self.root, name), "rb").open()  # pyright: ignore

    def _images(self, directory: str) -> dict[str, str]:
        """Stem -> the best image file of it, of one directory."""
        names = self._names(posixpath.normpath(directory) if directory else "")
        best: dict[str, str] = {}
        rank = {suffix: i for i, suffix in enumerate(IMAGE_SUFFIXES)}
        for name in sorted(names, key=lambda n: (rank.get(_suffix(n), len(rank)), n)):
            if _suffix(name) in rank:
                best.setdefault(_stem(name), posixpath.normpath(posixpath.join(directory, name)))
        return best

    def _names(self, directory: str) -> list[str]:
        if directory.startswith(("..", "/")):
            return []
        with contextlib.suppress(OSError):
            if not self.is_remote:
                return os.listdir(os.path.join(self.root, directory))
            system, root = fsspec.url_to_fs(posixpath.join(self.root, directory))
            return [posixpath.basename(name) for name in system.ls(root, detail=False)]
        return []


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _stem(name: str) -> str:
    """ "Fig1.JPG" -> "fig1"; "journal.pone.0115884.g001" keeps its last dot."""
    name = name.lower()
    return name.removesuffix(_suffix(name)) if _suffix(name) in IMAGE_SUFFIXES else name


def list_inputs(path: str) -> tuple[str, Iterator[str]]:
    """(folder, names of the XML files and tars in it) of a folder, or of one such file.

    Raises ValueError: there is nothing at `path`.
    """
    if "://" not in path and not os.path.exists(path):
        raise ValueError(f"input ({path!r}) does not exist. Give a folder, an .nxml or a .tar.gz.")
    if path.lower().endswith(XML_SUFFIXES + TAR_SUFFIXES) and not os.path.isdir(path):
        folder, _, name = path.rpartition("/")
        return folder or ".", iter([name])
    names = Folder(path).files()
    return path, (name for name in names if name.lower().endswith(XML_SUFFIXES + TAR_SUFFIXES))


def open_articles(root: str, name: str) -> Iterator[Source | Drop]:
    """The articles of one input, one after the other."""
    if name.lower().endswith(TAR_SUFFIXES):
        yield from _unpacked(root, name)
    else:
        yield _source(Folder(root), name, name)


def _source(folder: Folder, name: str, known_as: str) -> Source | Drop:
    try:
        xml = folder.read(name)
    except ImageError as error:
        return Drop(item=known_as, reason=f"article: {error.reason}", detail=error.detail)
    if len(xml) > MAX_XML_BYTES:
        detail = f"{len(xml)} bytes, at most {MAX_XML_BYTES}"
        return Drop(item=known_as, reason="article: XML too large", detail=detail)
    directory, file = posixpath.split(name.replace(os.sep, "/"))
    stem = posixpath.splitext(file)[0]
    return Source(name=known_as, stem=stem, xml=xml, folder=folder, directory=directory)


# --- Tars --------------------------------------------------------------------------------------


def _unpacked(root: str, name: str) -> Iterator[Source | Drop]:
    with tempfile.TemporaryDirectory(prefix="jaxclip-") as target:
        try:
            with Folder(root).open(name) as file:
                yield from _unpack(file, name, target)
        except TooLarge as error:
            yield Drop(item=name, reason="package: too large", detail=str(error))
            return
        except (*TAR_ERRORS, OSError) as error:
            yield Drop(item=name, reason="package: unreadable", detail=str(error)[:200])
        found = False
        for member in Folder(target).files():
            if member.lower().endswith(XML_SUFFIXES):
                found = True
                yield _source(Folder(target), member, f"{name}:{member}")
        if not found:
            yield Drop(item=name, reason="package: no article in it")


def _unpack(file: IO[bytes], name: str, target: str) -> Iterator[Drop]:
    """Writes the XML and images of a tar below `target`; yields what it refuses."""
    openers = {".gz": gzip.open, ".tgz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    opener = openers.get(_suffix(name))
    plain = opener(file) if opener else file
    with tarfile.open(fileobj=LimitedFile(plain, MAX_TAR_BYTES), mode="r:") as tar:  # pyright: ignore
        for count, member in enumerate(tar):
            if count >= MAX_TAR_MEMBERS:
                raise TooLarge(f"more than {MAX_TAR_MEMBERS} members")
            if member.isdir() or not member.name.lower().endswith(XML_SUFFIXES + IMAGE_SUFFIXES):
                continue
            known_as = f"{name}:{member.name}"
            path = os.path.realpath(os.path.join(target, member.name))
            if not member.isreg() or member.issparse():
                yield Drop(item=known_as, reason="package: link or special member")
            elif not path.startswith(os.path.realpath(target) + os.sep) or member.name[:1] == "/":
                yield Drop(item=known_as, reason="package: member outside of it")
            elif member.size > MAX_FILE_BYTES:
                yield Drop(item=known_as, reason="package: member too large")
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as out:
                    out.write(tar.extractfile(member).read())  # pyright: ignore
