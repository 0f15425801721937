"""Files of small made-up sets. Image n is a square of one grey, 8 n: `number_of` tells it again."""

import csv
import gzip
import io
import pathlib

import numpy as np
from PIL import Image

SIDE = 12


def grey(number: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), 8 * number, np.uint8)


def number_of(image: bytes | np.ndarray) -> int:
    if isinstance(image, bytes):
        image = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    return round(float(image.mean()) / 8)


def encoded(number: int, suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey(number)).save(
        buffer, {"tif": "TIFF", "png": "PNG"}.get(suffix.lstrip("."), "JPEG")
    )
    return buffer.getvalue()


def write_images(root: pathlib.Path, *names: str) -> None:
    """The first is image 0."""
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(number, file.suffix))


def write_csv(file: pathlib.Path, header: str, *rows: tuple) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header.split(","), *rows])
    data = buffer.getvalue().encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def write_sheet(file: pathlib.Path, header: str, *rows: tuple) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (header.split(","), *rows):
        book.worksheets[0].append(row)
    file.parent.mkdir(parents=True, exist_ok=True)
    book.save(file)
