"""Files from wherever fsspec goes: a local path, gs://, s3://, https://, memory://; nothing is
unpacked or copied to disk.

    expand(["gs://corpus/train-{0000..0003}.tar"])  -> four URLs and their sizes
    open_file("s3://bucket/a.tar")                  -> a file that survives a lost connection
"""

import concurrent.futures
import io
import time
from collections.abc import Iterator, Sequence

import braceexpand
import fsspec

BLOCK_BYTES = 8 << 20  # read ahead: a request a block
RETRIES = 5  # of a read, with 1, 2, 4, ... seconds between
PARALLEL_LOOKUPS = 16
NEEDS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}


def is_url(path: str) -> bool:
    return "://" in path


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Raises ValueError: a protocol that is not known, or whose package is not installed."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        protocol = path.split("://")[0]
        package = NEEDS.get(protocol)
        remedy = f"pip install {package}." if package else "Use a path, gs://, s3:// or https://."
        raise ValueError(f"{path} cannot be opened ({error}). {remedy}") from None


def expand(paths: Sequence[str], suffixes: Sequence[str]) -> dict[str, int]:
    """The files that paths, braces, globs and folders stand for: {path: bytes, -1 if not told}.

    `["a/{00..01}.tar", "b/*.tar", "c"]` -> a/00.tar, a/01.tar, then those of b and c by name.

    Args:
      suffixes: which files of a folder are meant.
    Raises:
      FileNotFoundError: a path that stands for no file.
      ValueError: unbalanced braces; see filesystem().
    """
    try:
        expanded = [file for path in paths for file in braceexpand.braceexpand(path)]
    except braceexpand.UnbalancedBracesError as error:
        raise ValueError(f"input has unbalanced braces: {error}.") from None
    with concurrent.futures.ThreadPoolExecutor(PARALLEL_LOOKUPS) as pool:
        found = list(pool.map(lambda path: list(_files(path, suffixes)), expanded))
    for path, files in zip(expanded, found, strict=True):
        if not files:
            raise FileNotFoundError(f"{path} is no file, and no folder with {' '.join(suffixes)}.")
    return {file: size for files in found for file, size in files}


def _files(path: str, suffixes: Sequence[str]) -> Iterator[tuple[str, int]]:
    fs, root = filesystem(path)
    try:
        if any(c in root for c in "*?["):
            infos = fs.glob(root, detail=True).values()
        elif (info := fs.info(root))["type"] == "directory":
            infos = fs.find(root, detail=True).values()
        else:
            yield path, _size(info)
            return
    except FileNotFoundError:
        return
    for info in sorted(infos, key=lambda info: info["name"]):
        if info["type"] == "file" and info["name"].endswith(tuple(suffixes)):
            name = info["name"]
            yield fs.unstrip_protocol(name) if is_url(path) else name, _size(info)


def _size(info: dict) -> int:
    return -1 if info.get("size") is None else int(info["size"])


def open_file(path: str) -> io.BufferedIOBase:
    """A file to read; one that is far away is read ahead, and opened again where it broke off."""
    if not is_url(path):
        return open(path, "rb")
    return io.BufferedReader(_Retrying(path), BLOCK_BYTES)


class _Retrying(io.RawIOBase):
    """A remote file whose reads are tried again. Raises OSError after RETRIES failures in a row."""

    def __init__(self, path: str):
        self._path = path
        self._fs, self._name = filesystem(path)
        self._position = 0
        self._file = self._open()

    def _open(self):
        return self._fs.open(self._name, "rb", block_size=BLOCK_BYTES, cache_type="readahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        for attempt in range(RETRIES + 1):
            try:
                if self._file is None:
                    self._file = self._open()
                    self._file.seek(self._position)
                data = self._file.read(len(buffer))
                break
            except FileNotFoundError:
                raise
            except Exception as error:  # each protocol has errors of its own
                if attempt == RETRIES:
                    raise OSError(f"{self._path} at byte {self._position}: {error}") from error
                self._file = None
                time.sleep(2**attempt)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if self._file is not None and not self.closed:
            self._file.close()
        super().close()
