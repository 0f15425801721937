"""A file far away: read ahead, opened again where it broke off, with or without byte ranges."""

import io
import time
from collections.abc import Callable
from typing import Any

BLOCK_BYTES = 8 << 20  # read ahead: a request a block
RETRIES = 5  # of a read, with 1, 2, 4, ... seconds between


class NoRanges(ValueError):
    pass


def no_access(path: str, done: str, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be {done} ({type(error).__name__}: {error}). Is there such a bucket, "
        "and are you logged in and allowed to read and write it?"
    )


class RetryingFile(io.RawIOBase):
    """A remote file whose reads are tried again.

    Args:
      path: what errors call it.
      opener: opens it by fsspec, given its block_size; 0: as a stream, which cannot seek.
      at_random: it is not read from beginning to end.
    Raises, then or while it is read:
      OSError: RETRIES failures in a row; ValueError: no access; at_random, and there are no ranges.
    """

    def __init__(self, path: str, opener: Callable[..., Any], at_random: bool):
        self._path, self._opener, self._at_random = path, opener, at_random
        self._position = 0
        self._has_ranges = True  # until the server gives the whole file instead
        self._file = self._open()

    def _open(self):
        """The file, at self._position."""
        file = self._opener(block_size=BLOCK_BYTES if self._has_ranges else 0)
        self._has_ranges = getattr(file, "size", 0) is not None  # a stream's is not known
        if self._has_ranges:
            file.seek(self._position)
            return file
        if self._at_random:
            file.close()
            raise NoRanges(
                f"{self._path} cannot be read in parts, as its server knows no byte ranges. Copy "
                "the file, and give its path."
            )
        ahead = self._position
        while ahead and (data := file.read(min(ahead, BLOCK_BYTES))):
            ahead -= len(data)
        return file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._has_ranges

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
                data = self._file.read(len(buffer))
                break
            except (FileNotFoundError, NoRanges):
                raise
            except PermissionError as error:
                raise no_access(self._path, "read", error) from None
            except Exception as error:  # each protocol has errors of its own
                if attempt == RETRIES:
                    raise OSError(f"{self._path} at byte {self._position}: {error}") from error
                self._close()
                if self._has_ranges and "range requests" in str(error):  # fsspec has no type for it
                    self._has_ranges = False
                else:
                    time.sleep(2**attempt)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._close()
        super().close()
