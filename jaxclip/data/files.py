"""Files written whole or not at all, and errors that name the file."""

import contextlib
import os
import uuid
from collections.abc import Iterator

from etils import epath

AGAIN = "Copy it again, or make it again."
COPY_COMMANDS = {"gs": "gcloud storage rsync", "s3": "aws s3 sync"}  # they go on where they stopped


class DamagedError(ValueError):
    """A dataset that cannot be read; says which file or record, why, and what to do."""


def write_atomically(path: epath.PathLike, data: bytes | str) -> None:
    """Writes a small file whole or not at all, also where two threads do so at once."""
    path = epath.Path(path)
    temporary = epath.Path(temporary_name(path))
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    temporary.replace(path)


def temporary_name(path: epath.PathLike) -> str:
    """Beside `path`, and of this call only: several threads may be writing the same file."""
    return f"{os.fspath(path)}.{uuid.uuid4().int}.tmp"


@contextlib.contextmanager
def reading(file: epath.PathLike) -> Iterator[None]:
    """Names the file where a library says no more than what is wrong in it."""
    try:
        yield
    except (ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DamagedError(f"{os.fspath(file)} cannot be read ({reason}). {AGAIN}") from error


def local_path(path: epath.PathLike) -> epath.Path:
    """Raises ValueError for a URL: ArrayRecord reads local files."""
    if "://" in os.fspath(path):
        raise ValueError(f"{path} is a URL; records are read from local files: {copying(path)}.")
    return epath.Path(path)


def copying(url: epath.PathLike) -> str:
    """How to get what is at a URL to where it can be read."""
    tool = COPY_COMMANDS.get(os.fspath(url).partition("://")[0])
    command = f" (`mkdir -p FOLDER && {tool} {os.fspath(url)} FOLDER`)" if tool else ""
    return f"copy it{command} or mount the bucket (gcsfuse, mount-s3), and give that FOLDER"
