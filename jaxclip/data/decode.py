"""Hostile bytes -> uint8 RGB pixels. Shape letters: H height, W width."""

import contextlib
import io
from collections.abc import Iterable, Iterator

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # Pillow's limit; a figure scanned at 600 dpi over A3 has 70 million
JPEG_COLOURS = ("YCbCr", "RGB", "Gray")  # others, CMYK and YCCK, are for printers
PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP")
BAND_PIXELS = 1 << 21  # converted at once
# What detectors record, in files of 16 bits or more: 12-bit grey taken for 16 would be near black.
GREY_BITS = (8, 10, 12, 14, 16)
PHOTOMETRIC = 262  # TIFF's tag PhotometricInterpretation


class ImageError(ValueError):
    """Bytes that are not a usable image; `reason` is a few words, the same for all of a kind."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


def decode_image(data: bytes, *, reduction: int = 1) -> np.ndarray:
    """Decodes JPEG, PNG, GIF (first frame), TIFF (first page), BMP or WebP.

    Args:
      data: encoded bytes from anywhere.
      reduction: 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size, rounded up, by its
        scaled inverse cosine transform; other formats and CMYK ignore it.
    Returns:
      uint8 RGB [H, W, 3]. Transparency becomes white. Grey of 16 or 32 bits is taken for one of 8,
      10, 12, 14 or 16, the fewest that hold its largest value, and keeps the upper 8 of them. The
      orientation of EXIF is ignored, as in torchvision, open_clip and TensorFlow: of 1,100 figures
      of PMC none has any.
    Raises:
      ImageError: not an image, cut short, more than MAX_PIXELS, of a format not listed; grey that
        is negative or of more than 16 bits, of which nothing says what is black and what is white.
    """
    with _only_image_errors(data):
        if not _is_jpeg(data):
            return _decode_with_pillow(data)
        *size, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        height, width = map(int, size)
        _check_pixels(height, width)
        if colorspace not in JPEG_COLOURS:
            return _decode_with_pillow(data)
        return simplejpeg.decode_jpeg(
            data, min_height=-(-height // reduction), min_width=-(-width // reduction)
        )


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of what decode_image returns, from the header alone. Raises ImageError."""
    with _only_image_errors(data):
        if _is_jpeg(data):
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            return int(height), int(width)
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            return image.height, image.width


def converted_from(data: bytes) -> str:
    """What decode_image makes 8-bit RGB of that is not just that, from the header alone: "CMYK",
    "16-bit grey", "32-bit grey", "16-bit colour", "transparency"; else "". Raises ImageError."""
    with _only_image_errors(data):
        if _is_jpeg(data):
            return "" if simplejpeg.decode_jpeg_header(data)[2] in JPEG_COLOURS else "CMYK"
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            if image.mode.startswith("I"):
                return "16-bit grey" if image.mode.startswith("I;16") else "32-bit grey"
            if image.mode == "CMYK":
                return "CMYK"
            if any(";16" in str(tile[3]) for tile in image.tile):
                return "16-bit colour"
            return "transparency" if image.has_transparency_data else ""


@contextlib.contextmanager
def _only_image_errors(data: bytes) -> Iterator[None]:
    if not data:
        raise ImageError("empty file")
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too many pixels", str(error)) from None
    except Exception as error:  # Pillow has no list of what a damaged file may raise
        kind = "JPEG" if _is_jpeg(data) else "image"
        raise ImageError(f"unreadable {kind}", str(error)) from None


def _is_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8"


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError("too many pixels", f"{width} x {height}, at most {MAX_PIXELS}")
    if height < 1 or width < 1:
        raise ImageError("no pixels", f"{width} x {height}")


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
        return pillow_pixels(image)


def pillow_pixels(image: Image.Image) -> np.ndarray:
    """decode_image for a Pillow image, opened or in memory. Raises ImageError."""
    _check_pixels(image.height, image.width)
    if image.mode == "F":
        raise ImageError("floating-point pixels", "no range to map to 0..255")
    if image.mode.startswith("I"):  # I;16, I;16B; I is 32 bits
        return _deep_grey(image)
    convert = _on_white if image.has_transparency_data else _as_rgb
    return _stack(map(convert, _bands(image)), image.height, image.width)


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """An image in strips, from the top: each step of a conversion makes a copy, and of one of
    MAX_PIXELS that is 350 MB."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _stack(bands: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    pixels_HW3, top = np.empty((height, width, 3), np.uint8), 0
    for band in bands:
        pixels_HW3[top : top + len(band)] = band
        top += len(band)
    return pixels_HW3


def _as_rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def _on_white(image: Image.Image) -> np.ndarray:
    white = Image.new("RGBA", image.size, "white")
    return _as_rgb(Image.alpha_composite(white, image.convert("RGBA")))


def _deep_grey(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits: the upper 8 of as many as its largest value needs, GREY_BITS."""
    extremes = [(band.min(), band.max()) for band in map(np.asarray, _bands(image))]
    lowest, highest = min(low for low, _ in extremes), max(high for _, high in extremes)
    if lowest < 0 or highest >= 1 << GREY_BITS[-1]:
        raise ImageError("unknown range", f"grey from {lowest} to {highest}: which of it is white?")
    shift = next(bits for bits in GREY_BITS if highest < 1 << bits) - 8
    # TIFF's WhiteIsZero, which Pillow heeds at 8 bits only
    invert = 255 if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0 else 0
    greys = ((np.asarray(band) >> shift).astype(np.uint8) ^ invert for band in _bands(image))
    return _stack((grey_HW[..., None] for grey_HW in greys), image.height, image.width)
