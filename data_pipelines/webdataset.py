"""Tars of samples, as WebDataset writes them: read from anywhere in one pass, nothing unpacked.

A sample is the run of members that have a key in common: `train-0000-000001.jpg`, `.jsonl` -> the
key train-0000-000001 with members jpg and jsonl. Tars come from outside: links and devices are not
followed, no member is written to disk or read past images.MAX_FILE_BYTES, and a tar that breaks off
is told as a Drop after the samples that came through.
"""

import json
from collections.abc import Iterator
from typing import Any

from data_pipelines.images import MAX_FILE_BYTES
from data_pipelines.remote import open_file
from data_pipelines.tars import TAR_ERRORS, open_tar
from jaxclip.data.image import ImageError
from jaxclip.data.record import Drop

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp")
TEXT_MEMBERS = ("json", "jsonl", "txt", "caption")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
Row = dict[str, Any]


def read_samples(url: str) -> Iterator[Row | Drop]:
    """The samples of a tar in order, as rows.

    Yields:
      {"__key__": ..., "__url__": ..., "image_bytes": bytes, "txt": str, and the fields of the JSON
      member}, each where the sample has it. A Drop: a sample with a member that cannot be read, or
      the place where the tar breaks off.
    Raises:
      OSError: the file cannot be read, which is no fault of the tar's.
    """
    key, members = "", {}
    for item in _members(url):
        if isinstance(item, Drop):
            yield item
            continue
        member_key, name, data = item
        if member_key != key or name in members:
            yield from _sample(url, key, members)
            key, members = member_key, {}
        members[name] = data
    yield from _sample(url, key, members)


def _members(url: str) -> Iterator[tuple[str, str, bytes | ImageError] | Drop]:
    """(key, suffix, content) of each member that a sample can have."""
    name, reading = "the beginning", None
    try:
        with open_file(url) as file, open_tar(file) as tar:
            for info in tar:
                tar.members = []  # it keeps them all
                name, parts = info.name, _split(info.name)
                if info.isdir() or parts is None:
                    continue
                if not info.isreg():
                    yield *parts, ImageError("not a plain file in the tar")
                elif info.size > MAX_FILE_BYTES:
                    detail = f"{info.size} bytes, at most {MAX_FILE_BYTES}"
                    yield *parts, ImageError("file too large", detail)
                else:
                    reading = parts
                    yield *parts, tar.extractfile(info).read()
                    reading = None
    except TAR_ERRORS as error:
        if reading:  # the drop is that of the sample
            yield *reading, ImageError("tar breaks off", str(error))
        else:
            yield Drop(item=f"{url}: after {name}", reason="tar breaks off", detail=str(error))


def _split(name: str) -> tuple[str, str] | None:
    """ "a/x.1.jpg" -> ("a/x.1", "jpg"); None: no member that is read. Keys may have dots."""
    key, _, suffix = name.rpartition(".")
    suffix = suffix.lower()
    return (key, suffix) if suffix in IMAGE_MEMBERS + TEXT_MEMBERS else None


def _sample(url: str, key: str, members: dict[str, bytes | ImageError]) -> Iterator[Row | Drop]:
    if not members:
        return
    fields: Row = {}
    own: Row = {"__key__": key, "__url__": url, "image_bytes": None}  # whatever a JSON says of them
    for name, data in members.items():
        if isinstance(data, ImageError):
            yield Drop(item=f"{url}: {key}.{name}", reason=data.reason, detail=data.detail)
            return
        if name in ("txt", "caption"):
            own[name] = data.decode(errors="replace")
        elif name in ("json", "jsonl"):
            fields, problem = _fields(data)
            if problem:
                yield Drop(item=f"{url}: {key}.{name}", reason="unreadable json", detail=problem)
                return
        else:
            own["image_bytes"] = data
    yield fields | own


def _fields(data: bytes) -> tuple[Row, str]:
    """The object of a .json, or the one line of a .jsonl; with it what is wrong, or ""."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        return {}, str(error)
    return (fields, "") if isinstance(fields, dict) else ({}, "not an object")
