"""Files wherever fsspec goes: a local path, gs://, s3://, https://, memory://.

    expand(["gs://corpus/train-{0000..0003}.tar"])  -> four URLs and their sizes
    open_file("s3://bucket/a.tar")                  -> a file that survives a lost connection
    create_file("gs://bucket/a.json")               -> a local file, there once it is whole

What is read is not unpacked or copied to disk, with one exception: ArrayRecord reads local files
only, so Shards fetches those at a URL, one at a time.
"""

import atexit
import concurrent.futures
import contextlib
import functools
import io
import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence

import braceexpand
import fsspec
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from data_pipelines.retrying import BLOCK_BYTES, RetryingFile, no_access
from jaxclip.data.files import temporary_name

PARALLEL_REQUESTS = 16
NEEDS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}


def is_url(path: str) -> bool:
    return "://" in path


def without_query(path: str) -> str:
    """ "https://host/a.tar?download=true" -> "https://host/a.tar"; other paths as they are."""
    return path.partition("?")[0] if path.startswith(("http://", "https://")) else path


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Raises ValueError: a protocol that is not known, or whose package is not installed."""
    options = {"anon": True} if path.startswith("s3://") and _is_anonymous() else {}
    if path.startswith(("http://", "https://")):
        options = {"get_client": _http_client}
    try:  # no listings are kept: others write there, too
        return fsspec.core.url_to_fs(path, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        protocol = path.split("://")[0]
        package = NEEDS.get(protocol)
        remedy = f"pip install {package}." if package else "Use a path, gs://, s3:// or https://."
        raise ValueError(f"{path} cannot be opened ({error}). {remedy}") from None


async def _http_client(**options):
    """A file may take hours, where no range can be asked for; without a byte, it may take one
    minute."""
    import aiohttp

    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None, sock_read=60), **options)


@functools.cache
def _is_anonymous() -> bool:
    """Whether there are no credentials of AWS: then public buckets can be read all the same, as
    gcsfs does by itself."""
    try:
        import botocore.session
    except ImportError:
        return False
    return botocore.session.get_session().get_credentials() is None


def expand(paths: Sequence[str], suffixes: Sequence[str]) -> dict[str, int]:
    """The files that paths, braces, globs and folders stand for: {path: bytes, -1 if not told}.

    `["a/{00..01}.tar", "b/*.tar", "c"]` -> a/00.tar, a/01.tar, then those of b and c by name.

    Args:
      suffixes: which files of a folder are meant.
    Raises:
      FileNotFoundError: a path that stands for no file.
      ValueError: unbalanced braces; no access; see filesystem().
    """
    try:
        expanded = [file for path in paths for file in braceexpand.braceexpand(path)]
    except braceexpand.UnbalancedBracesError as error:
        raise ValueError(f"input has unbalanced braces: {error}.") from None
    with concurrent.futures.ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        found = list(pool.map(lambda path: list(_files(path, suffixes)), expanded))
    for path, files in zip(expanded, found, strict=True):
        if not files:
            raise FileNotFoundError(f"{path} is no file, and no folder with {' '.join(suffixes)}.")
    return {file: size for files in found for file, size in files}


def _files(path: str, suffixes: Sequence[str]) -> Iterator[tuple[str, int]]:
    for info in _infos(path):
        name = info["name"]
        if info.get("is_the_path"):
            yield path, _size(info)
        elif info["type"] == "file" and name.endswith(tuple(suffixes)):
            yield filesystem(path)[0].unstrip_protocol(name) if is_url(path) else name, _size(info)


def _infos(path: str) -> list[dict]:
    """What fsspec tells of the files that a path stands for, by name."""
    fs, root = filesystem(path)
    with _one_line(path, "read"):
        try:
            if any(c in without_query(root) for c in "*?["):
                infos = fs.glob(root, detail=True).values()
            elif (info := fs.info(root))["type"] == "directory":
                infos = fs.find(root, detail=True).values()
            else:
                infos = [info | {"is_the_path": True}]
        except FileNotFoundError:
            return []
    return sorted(infos, key=lambda info: info["name"])


def files_below(url: str) -> list[str]:
    """Names of all files at any depth, sorted. Raises ValueError: no access."""
    fs, root = filesystem(url)
    with _one_line(url, "read"):
        return sorted(name[len(root) :].lstrip("/") for name in fs.find(root))


def _size(info: dict) -> int:
    return -1 if info.get("size") is None else int(info["size"])


def open_file(path: str, at_random: bool = False) -> io.BufferedIOBase:
    """A file to read; one that is far away is read ahead, and opened again where it broke off.

    Args:
      at_random: it is not read from beginning to end.
    Raises:
      ValueError, then or while it is read: no access; at_random, and the server gives no part of a
        file (HTTP ranges).
    """
    if not is_url(path):
        return open(path, "rb")
    try:
        fs, name = filesystem(path)
        opener = functools.partial(fs.open, name, "rb", cache_type="readahead")
        return io.BufferedReader(RetryingFile(path, opener, at_random), BLOCK_BYTES)
    except PermissionError as error:
        raise no_access(path, "read", error) from None


# --- Writing: a file is there whole or not at all -------------------------------------------------


def _place(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """filesystem(), but "~" and "::" are no more than letters in a local path."""
    if is_url(path):
        return filesystem(path)
    return fsspec.filesystem("file"), os.path.abspath(path)


def exists(path: str) -> bool:
    fs, name = _place(path)
    return fs.exists(name)


def read_file(path: str) -> bytes | None:
    """All of a small file; None: there is none."""
    fs, name = _place(path)
    with _one_line(path, "read"):
        try:
            return fs.cat_file(name)
        except FileNotFoundError:
            return None


@contextlib.contextmanager
def create_file(path: str) -> Iterator[str]:
    """A local path to write to; what is written is renamed or uploaded to `path` at the end."""
    if not is_url(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        temporary = temporary_name(path)
        yield temporary
        os.replace(temporary, path)
        return
    folder, name = posixpath.split(path)
    with tempfile.TemporaryDirectory() as temporary:
        yield os.path.join(temporary, name)
        upload(temporary, [name], folder)


def upload(local: str | os.PathLike, names: Sequence[str], folder: str) -> None:
    """Copies files of a local folder to a URL, in their order: a later one says that the earlier
    are there. Does nothing where `folder` is no URL."""
    if not is_url(folder):
        return
    fs, root = filesystem(folder)
    for name in names:
        with _one_line(folder, "written"):  # a put is atomic in object stores
            fs.put_file(os.path.join(local, name), posixpath.join(root, name))


@contextlib.contextmanager
def _one_line(path: str, done: str) -> Iterator[None]:
    """Makes a ValueError of what goes wrong at a URL; each protocol has errors of its own."""
    try:
        yield
    except Exception as error:
        if not is_url(path):
            raise
        raise no_access(path, done, error) from error


def list_files(folder: str) -> list[str]:
    """Names of what is in a folder now; [] where there is none."""
    fs, root = _place(folder)
    try:
        return sorted(posixpath.basename(name) for name in fs.ls(root, detail=False))
    except FileNotFoundError:
        return []


def remove_files(folder: str, names: Sequence[str]) -> None:
    """Those that are not there are no error."""
    fs, root = _place(folder)

    def remove(name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")

    with concurrent.futures.ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        list(pool.map(remove, names))


def local_folder(folder: str, names: Sequence[str]) -> str:
    """Where files of a folder can be read: the folder itself, or at a URL, a copy that has its name
    and is there until the program ends."""
    if not is_url(folder):
        return folder
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    local = os.path.join(temporary.name, posixpath.basename(folder))
    os.mkdir(local)
    fs, root = filesystem(folder)
    fs.get([f"{root}/{name}" for name in names], [os.path.join(local, name) for name in names])
    return local


class Shards:
    """The packed records of .array_record files by position; what is at a URL is fetched, shard by
    shard: ask in order. Picklable."""

    def __init__(self, files: Sequence[str], num_records: Sequence[int]):
        self._files = list(files)
        self._stops = np.cumsum(num_records)
        self._opened = -1, None  # a disk holds one shard a process

    def __getitem__(self, position: int) -> bytes:
        shard = int(np.searchsorted(self._stops, position, side="right"))
        if self._opened[0] != shard:
            self._opened = shard, _open_shard(self._files[shard])
        return self._opened[1][int(position) - (int(self._stops[shard - 1]) if shard else 0)]

    def __getstate__(self):
        return self.__dict__ | {"_opened": (-1, None)}


def _open_shard(file: str) -> ArrayRecordDataSource:
    if not is_url(file):
        return ArrayRecordDataSource([file])
    fs, name = filesystem(file)
    with tempfile.TemporaryDirectory() as temporary:
        local = os.path.join(temporary, posixpath.basename(file))
        fs.get_file(name, local)
        source = ArrayRecordDataSource([local])
        source[0]  # opens it: it stays readable without its name, and its space ends with `source`
    return source
