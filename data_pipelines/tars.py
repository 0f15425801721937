"""Tars from outside: what a header claims is not believed.

A pax header of 3 GB is 3 MB of gzip, and tarfile reads it at once: here no read is larger than a
file may be.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from typing import IO, BinaryIO

from data_pipelines.images import MAX_FILE_BYTES

# by the first bytes, whatever the name says
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
BLOCK_BYTES = 1 << 20


class TooLarge(tarfile.TarError):
    pass


class LimitedFile:
    """An unpacked stream of which no read is larger than a file may be, and none is past `end`:
    the size that a package may have, or None."""

    def __init__(self, file: IO[bytes], end: int | None = None):
        self._file, self._end = file, end
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES + tarfile.RECORDSIZE:
            raise TooLarge(f"{size} bytes at once, at most {MAX_FILE_BYTES}")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        if self._end is not None and position > self._end:
            raise TooLarge(f"{position} bytes, at most {self._end}")
        if self._file.seekable():
            return self._file.seek(position)
        while (ahead := position - self._file.tell()) > 0:  # a server that knows no ranges
            if not self._file.read(min(ahead, BLOCK_BYTES)):
                break
        return self._file.tell()


def decompressed(file: BinaryIO) -> IO[bytes]:
    """A buffered file, unpacked if it is compressed."""
    head = file.peek(6)  # pyright: ignore
    opener = next((COMPRESSIONS[magic] for magic in COMPRESSIONS if head.startswith(magic)), None)
    return opener(file) if opener else file


class _Member(tarfile.TarInfo):
    """Python's own reader takes a tar that breaks off between two members for a whole one."""

    @classmethod
    def fromtarfile(cls, tarfile_):
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # the two blocks of zeros that end a tar
            raise
        except tarfile.EmptyHeaderError:
            raise tarfile.SubsequentHeaderError("no end mark: it breaks off here") from None
        except tarfile.HeaderError as error:
            raise tarfile.SubsequentHeaderError(str(error)) from None


def open_tar(file: BinaryIO, end: int | None = None) -> tarfile.TarFile:
    """A tar, compressed or not, to be read from beginning to end.

    Args:
      file: buffered.
      end: the bytes that it may have, unpacked.
    Raises, then or while it is read: TAR_ERRORS, and what junk makes the readers raise.
    """
    return tarfile.open(
        fileobj=LimitedFile(decompressed(file), end),  # pyright: ignore
        mode="r:",
        tarinfo=_Member,
        errors="backslashreplace",  # of a name that is no UTF-8
    )
