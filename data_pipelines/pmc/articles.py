"""Where articles are: folders as PMC's packages unpack to, packages, bulk archives.

An input is one XML file with its images beside it, or one tar with any number of those. Tars are
hostile until read: a member that is absolute, climbs out, or is a link or device is never written,
sizes are limited before anything is unpacked, and what is unpacked lies in a folder that is gone
when the tar is done.

A tar is unpacked to TMPDIR as a whole, as images may come before or after the article, and is one
unit of work, up to MAX_TAR_BYTES. NCBI's bulk archives (oa_bulk) are larger: unpack them yourself,
and give the folder, whose articles many workers share.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from data_pipelines.images import MAX_FILE_BYTES, open_images
from data_pipelines.remote import files_below, is_url, list_files, open_file
from data_pipelines.tars import TAR_ERRORS, TooLarge, open_tar
from jaxclip.data.image import ImageError
from jaxclip.data.record import Drop

XML_SUFFIXES = (".nxml", ".xml")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif")  # best first
PRINT_SUFFIXES = (".eps", ".pdf", ".svg", ".emf", ".wmf", ".ai", ".psd", ".jp2")  # of a name only
MAX_XML_BYTES = 64 << 20
MAX_TAR_BYTES = 8 << 30  # unpacked; the largest packages of PMC have about 3 GB
MAX_TAR_MEMBERS = 1_000_000
MAX_NAME = 255  # bytes; no file has a longer one, and a file system or bucket errs if asked for it
MAX_PATH = 3000  # bytes of a path in a tar; with the folder's at most 4096
# What junk makes the readers raise; ValueError is tarfile's of a header. No other OSError: a lost
# connection or a full disk says nothing of the tar, and stops the job, which can be run again.
PACKAGE_ERRORS = (*TAR_ERRORS, ValueError, FileNotFoundError, PermissionError)
BZ2_JUNK = "Invalid data stream"  # of an OSError


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
            if len(name.encode()) > MAX_NAME:
                continue
            known = self.folder.images(posixpath.join(self.directory, posixpath.dirname(name)))
            known = known or self.folder.images(self.directory)  # info:doi/10.1371/journal.g001
            stem = _stem(posixpath.basename(name))
            if _suffix(stem) in PRINT_SUFFIXES and stem not in known:
                stem = stem.removesuffix(_suffix(stem))
            if file := known.get(stem):
                return file
        return None


class Folder:
    """Files below a local folder or a remote prefix; nothing outside it is read."""

    def __init__(self, root: str):
        self.root = root
        self.is_remote = is_url(root)
        self.images = functools.lru_cache(maxsize=64)(self._images)

    def files(self) -> Iterator[str]:
        """Names of all files below, sorted."""
        if self.is_remote:
            yield from files_below(self.root)
            return
        for directory, folders, files in os.walk(self.root):
            folders.sort()
            for file in sorted(files):
                yield os.path.relpath(os.path.join(directory, file), self.root)

    def read(self, name: str) -> bytes:
        """Raises ImageError: outside the folder, not there, too large, unreadable."""
        return open_images(self.root).read(name)

    def open(self, name: str) -> BinaryIO:
        return open_file(posixpath.join(self.root, name))

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
        # Any other error, of a network above all, must not make images missing for good.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self.is_remote:
                return list_files(posixpath.join(self.root, directory))
            return os.listdir(os.path.join(self.root, directory))
        return []


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _stem(name: str) -> str:
    """ "Fig1.JPG" -> "fig1"; "journal.pone.0115884.g001" keeps its last dot."""
    name = name.lower()
    return name.removesuffix(_suffix(name)) if _suffix(name) in IMAGE_SUFFIXES else name


def list_inputs(path: str) -> tuple[str, list[str], str]:
    """(folder, names of the XML files and tars in it, hash of these and of the images' names) of a
    folder, or of one such file.

    Raises ValueError: there is nothing at `path`.
    """
    if "://" not in path and not os.path.exists(path):
        raise ValueError(f"input ({path!r}) does not exist. Give a folder, an .nxml or a .tar.gz.")
    if path.lower().endswith(XML_SUFFIXES + TAR_SUFFIXES) and not os.path.isdir(path):
        folder, _, name = path.rpartition("/")
        return folder or ".", [name], hashlib.sha256(name.encode()).hexdigest()
    names, digest = [], hashlib.sha256()
    for name in Folder(path).files():
        if name.lower().endswith(XML_SUFFIXES + TAR_SUFFIXES + IMAGE_SUFFIXES):
            digest.update(name.encode(errors="surrogateescape") + b"\0")
            if not name.lower().endswith(IMAGE_SUFFIXES):
                names.append(name)
    return path, names, digest.hexdigest()


def open_articles(folder: Folder, name: str) -> Iterator[Source | Drop]:
    """The articles of one input, one after the other.

    Args:
      folder: the same for all inputs of a job: what lies in a directory is listed once.
    """
    if name.lower().endswith(TAR_SUFFIXES):
        yield from _unpacked(folder, name)
    else:
        yield _source(folder, name, name)


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


def _unpacked(folder: Folder, name: str) -> Iterator[Source | Drop]:
    with tempfile.TemporaryDirectory(prefix="jaxclip-") as target:
        try:
            with folder.open(name) as file:
                yield from _unpack(file, name, target)
        except TooLarge as error:
            yield Drop(item=name, reason="package: too large", detail=str(error))
            return
        except (*PACKAGE_ERRORS, OSError) as error:
            if not isinstance(error, PACKAGE_ERRORS) and str(error) != BZ2_JUNK:
                raise
            yield Drop(item=name, reason="package: unreadable", detail=str(error)[:200])
        found, unpacked = False, Folder(target)
        for member in unpacked.files():
            if member.lower().endswith(XML_SUFFIXES):
                found = True
                yield _source(unpacked, member, f"{name}:{member}")
        if not found:
            yield Drop(item=name, reason="package: no article in it")


def _unpack(file: BinaryIO, name: str, target: str) -> Iterator[Drop]:
    """Writes the XML and images of a tar below `target`; yields what it refuses."""
    with open_tar(file, MAX_TAR_BYTES) as tar:
        for count, member in enumerate(tar):
            if count >= MAX_TAR_MEMBERS:
                raise TooLarge(f"more than {MAX_TAR_MEMBERS} members")
            if member.isdir() or not member.name.lower().endswith(XML_SUFFIXES + IMAGE_SUFFIXES):
                continue
            known_as = f"{name}:{member.name}".replace("\0", "\\0")
            if reason := _refusal(member, target):
                yield Drop(item=known_as, reason=f"package: {reason}")
                continue
            path = os.path.join(target, member.name)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as out:
                    out.write(tar.extractfile(member).read())  # pyright: ignore
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                yield Drop(item=known_as, reason="package: member is file and folder")


def _refusal(member: tarfile.TarInfo, target: str) -> str:
    """Why a member is not written; "" if it is."""
    name = member.name.encode()
    if b"\0" in name or len(name) > MAX_PATH or max(map(len, name.split(b"/"))) > MAX_NAME:
        return "unusable name"
    if not member.isreg() or member.issparse():
        return "link or special member"
    path = os.path.realpath(os.path.join(target, member.name))
    if not path.startswith(os.path.realpath(target) + os.sep) or member.name[:1] == "/":
        return "member outside of it"
    return "member too large" if member.size > MAX_FILE_BYTES else ""
