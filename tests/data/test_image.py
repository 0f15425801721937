"""Hostile bytes to pixels, and the crops of training and evaluation."""

import io
import math
import pickle
import struct
import subprocess
import zlib

import cv2
import jax
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from jaxclip.data import decode
from jaxclip.data import image as image_module
from jaxclip.data.image import (
    ImageConfig,
    ImageError,
    converted_from,
    decode_image,
    eval_image,
    eval_pixels,
    image_size,
    jitter_colours,
    random_crop_box,
    resize,
    stack_images,
    train_image,
)
from jaxclip.data.naflex import naflex_grid, naflex_patches

CROP = {"scale": (0.08, 0.5), "ratio": (3 / 4, 4 / 3)}  # every draw fits into a square


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Clouds with fine grain: a spectrum like that of photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width)) ** 1.5
    channels = []
    for _ in range(3):
        spectrum = amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape))
        channel = np.fft.irfft2(spectrum, (height, width))
        channels.append(128 + 45 * channel / channel.std() + rng.normal(0, 3, channel.shape))
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards: no place looks like another."""
    y, x = np.mgrid[:height, :width]
    red, green = 40 + 160 * x / max(1, width - 1), 40 + 160 * y / max(1, height - 1)
    return np.stack([red, green, np.full_like(red, 90)], -1).round().astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, fmt, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes, crc_error: int = 0) -> bytes:
    crc = zlib.crc32(kind + data) ^ crc_error
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width: int, height: int, rows: bytes, crc_error: int = 0) -> bytes:
    """An RGB PNG whose header may say anything."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header, crc_error) + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def jpeg_of_size(height: int, width: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(encode(gradient(16, 16), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


# --- Decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_formats_give_the_pixels(fmt):
    pixels = texture(24, 40)
    decoded = decode_image(encode(pixels, fmt, **({"lossless": True} if fmt == "WEBP" else {})))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_what_pillow_decodes(options):
    # Both are libjpeg-turbo, so a quicker and rougher transform or upsampling would show.
    data = encode(texture(61, 83), "JPEG", quality=90, **options)
    assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))


def test_gif_gives_the_first_frame():
    frames = [Image.new("P", (12, 8), color) for color in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 10, 200, 30, 90, 90, 90])
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert (decode_image(data) == (10, 200, 30)).all()


def test_grey_jpeg_and_png_have_three_channels():
    grey = texture(20, 30)[..., 0]
    assert np.array_equal(decode_image(encode(grey, "PNG")), np.repeat(grey[..., None], 3, -1))
    decoded = decode_image(encode(grey, "JPEG"))
    assert decoded.shape == (20, 30, 3)
    assert (decoded[..., :1] == decoded).all()


def test_cmyk_jpeg():
    cmyk = Image.fromarray(gradient(32, 48)).convert("CMYK")
    data = encode(cmyk, "JPEG", quality=98)
    assert simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK")
    assert psnr(decode_image(data), gradient(32, 48)) > 35  # an inverted one has 6 dB
    assert decode_image(data, reduction=2).shape == (32, 48, 3)


@pytest.mark.parametrize("fmt,dtype", [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bit_grey_keeps_its_upper_bits(fmt, dtype):
    grey = np.array([[0, 255, 256], [0x1234, 0xFFFF, 0x8000]], dtype=dtype)
    data = encode(grey, fmt)
    if dtype == ">u2":
        assert Image.open(io.BytesIO(data)).mode == "I;16B"
    expected = [[0, 0, 1], [0x12, 0xFF, 0x80]]
    assert np.array_equal(decode_image(data), np.repeat(np.array(expected)[..., None], 3, -1))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("fmt,dtype", [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", "<i4")])
def test_grey_of_few_bits_in_many_is_not_black(fmt, dtype, bits):
    """12-bit grey in a file of 16 or 32 bits: white is white, and black is black."""
    grey = np.array([[0, 1 << (bits - 1), (1 << bits) - 1]], dtype)
    assert decode_image(encode(grey, fmt))[0, :, 0].tolist() == [0, 128, 255]


def test_a_deep_tiff_in_which_white_is_zero_is_no_negative():
    data = encode(np.array([[0, 4095]], "<u2"), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    assert decode_image(data)[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "CMYK"])
def test_strips_are_put_together(mode, monkeypatch):
    image = Image.fromarray(texture(50, 30))
    image = (
        Image.fromarray(np.asarray(image.convert("I")).astype("<u2") * 200)
        if mode == "I;16"
        else image.convert(mode)
    )
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    whole = decode_image(data)
    monkeypatch.setattr(decode, "BAND_PIXELS", 210)  # 7 rows
    assert np.array_equal(decode_image(data), whole)


def test_what_is_converted_is_told():
    rgb = Image.fromarray(texture(8, 8))
    deep = encode(np.zeros((8, 8), np.uint16), "PNG")
    colour16 = deep.replace(deep[24:26], b"\x10\x02")  # IHDR: 16 bits, RGB
    colour16 = colour16[:29] + struct.pack(">I", zlib.crc32(colour16[12:29])) + colour16[33:]
    expected = {
        "": [encode(rgb, "JPEG"), encode(rgb, "PNG"), encode(rgb.convert("L"), "JPEG")],
        "CMYK": [encode(rgb.convert("CMYK"), "JPEG"), encode(rgb.convert("CMYK"), "TIFF")],
        "16-bit grey": [deep],
        "16-bit colour": [colour16],
        "32-bit grey": [encode(np.zeros((8, 8), np.int32), "TIFF")],
        "transparency": [
            encode(rgb.convert("RGBA"), "PNG"),
            encode(rgb, "PNG", transparency=(1, 2, 3)),
        ],
    }
    for kind, files in expected.items():
        assert [converted_from(data) for data in files] == [kind] * len(files)


def test_transparent_becomes_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[..., 3] = [0, 128, 255]
    expected = [[255, 255, 255], [227, 127, 127], [200, 0, 0]]  # 200 * 128/255 + 127, and so on
    assert np.abs(decode_image(encode(rgba, "PNG"))[0].astype(int) - expected).max() <= 1

    grey_alpha = Image.fromarray(rgba[..., [0, 3]], "LA")
    assert decode_image(encode(grey_alpha, "PNG"))[0, :, 0].tolist() == [255, 227, 200]


def test_transparent_palette_and_key_colour_become_white():
    palette = Image.new("P", (2, 1), 0)
    palette.putpixel((1, 0), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    keyed = Image.new("RGB", (2, 1), (10, 20, 30))
    keyed.putpixel((1, 0), (200, 100, 50))
    for data in (
        encode(palette, "PNG", transparency=0),
        encode(palette, "GIF", transparency=0),
        encode(keyed, "PNG", transparency=(10, 20, 30)),
    ):
        assert decode_image(data)[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn right"
    data = encode(gradient(16, 32), "JPEG", exif=exif)
    assert decode_image(data).shape == (16, 32, 3)
    data = encode(gradient(16, 32), "PNG", exif=exif)
    assert np.array_equal(decode_image(data), gradient(16, 32))


def test_one_pixel():
    for fmt in ("JPEG", "PNG", "GIF"):
        pixels = decode_image(encode(np.full((1, 1, 3), 77, np.uint8), fmt))
        assert pixels.shape == (1, 1, 3)
        assert eval_image(encode(pixels, fmt), ImageConfig(size=4)).shape == (4, 4, 3)


GOOD_PNG = encode(texture(20, 20), "PNG")
GOOD_JPEG = encode(texture(40, 40), "JPEG")
HOSTILE = {
    "empty": (b"", "empty file"),
    "text": (b"<html>404 Not Found</html>", "not an image of a known format"),
    "two bytes of a JPEG": (b"\xff\xd8", "unreadable JPEG"),
    "cut JPEG": (GOOD_JPEG[: len(GOOD_JPEG) // 2], "unreadable JPEG"),
    "damaged JPEG": (GOOD_JPEG.replace(b"\xff\xda", b"\xff\x00"), "unreadable JPEG"),
    "cut PNG": (GOOD_PNG[: len(GOOD_PNG) // 2], "unreadable image"),
    "cut GIF": (encode(texture(20, 20), "GIF")[:-200], "unreadable image"),
    "cut TIFF": (encode(texture(20, 20), "TIFF")[:-300], None),
    "cut WebP": (encode(texture(20, 20), "WEBP")[:-100], None),
    "cut BMP": (encode(texture(20, 20), "BMP")[:-100], "unreadable image"),
    "PNG with a wrong checksum": (
        png(2, 1, bytes(7), crc_error=1),
        "not an image of a known format",
    ),
    "PNG with damaged data": (GOOD_PNG[:300] + b"damage" + GOOD_PNG[306:], "unreadable image"),
    "PNG without pixels": (png(2, 0, b""), None),
    "PNG of 10 gigapixels": (png(100_000, 100_000, bytes(7)), "too many pixels"),
    "PNG of 121 megapixels": (png(11_000, 11_000, bytes(7)), "too many pixels"),
    "JPEG of 4 gigapixels": (jpeg_of_size(65_000, 65_000), "too many pixels"),
    "JPEG of 64 megapixels without data": (jpeg_of_size(8_000, 8_000), "unreadable JPEG"),
    "float TIFF": (encode(np.ones((4, 4), np.float32), "TIFF"), "floating-point pixels"),
    "TIFF of Hounsfield units": (
        encode(np.array([[-1000, 1000]], np.int32), "TIFF"),
        "unknown range",
    ),
    "TIFF of more than 16 bits": (
        encode(np.array([[0, 70_000]], np.int32), "TIFF"),
        "unknown range",
    ),
    "EPS": (encode(texture(20, 20), "EPS"), "not an image of a known format"),
    "PSD": (b"8BPS\x00\x01" + bytes(100), "not an image of a known format"),
    "PDF": (b"%PDF-1.4\n" + bytes(100), "not an image of a known format"),
    "PPM": (encode(texture(20, 20), "PPM"), "not an image of a known format"),
}


@pytest.mark.filterwarnings("ignore:.*decompression bomb")
@pytest.mark.parametrize("read", [decode_image, lambda data: eval_image(data, ImageConfig(size=8))])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_raise_only_image_errors(name, read, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a decoder started a program")

    monkeypatch.setattr(subprocess, "Popen", forbidden)  # as Pillow does Ghostscript
    data, reason = HOSTILE[name]
    with pytest.raises(ImageError) as caught:
        read(data)
    if reason is not None:
        assert caught.value.reason == reason


@pytest.mark.parametrize("fmt", ["PNG", "GIF", "BMP", "WEBP", "JPEG"])
def test_random_damage_raises_only_image_errors(fmt, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100_000)  # a damaged size may be large: slow
    rng = np.random.default_rng(0)
    good = encode(texture(16, 24), fmt)
    failed = 0
    for _ in range(150):
        data = bytearray(good)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        try:
            pixels = eval_image(bytes(data), ImageConfig(size=8))
            assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
        except ImageError:
            failed += 1
    assert failed > (0 if fmt in ("GIF", "BMP") else 10)  # these two have no checksums


def test_image_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImageError("too small", "3 x 3")))
    assert (error.reason, error.detail, str(error)) == ("too small", "3 x 3", "too small: 3 x 3")


# --- Reduced decoding ----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(64, 96), (61, 83), (449, 333), (8, 8), (9, 130), (1, 1)])
def test_reduction_gives_exactly_that_size(size, reduction):
    data = encode(gradient(*size), "JPEG")
    expected = tuple(-(-side // reduction) for side in size)
    assert decode_image(data, reduction=reduction).shape[:2] == expected
    assert image_size(data) == size


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduction_keeps_places(reduction):
    # A pixel of the reduced image is the mean of the block that it stands for. A shift by half a
    # reduced pixel changes red by 1.7 at reduction 2 and more above; rounding averages to nothing.
    pixels = gradient(64, 96)
    decoded = decode_image(encode(pixels, "JPEG", quality=98, subsampling=0), reduction=reduction)
    blocks = pixels.reshape(64 // reduction, reduction, 96 // reduction, reduction, 3)
    error = decoded - blocks.mean((1, 3))
    assert np.abs(error.mean((0, 1))).max() < 0.4
    assert np.abs(error).max() <= 2


def test_other_formats_ignore_reduction():
    assert decode_image(encode(gradient(64, 96), "PNG"), reduction=4).shape == (64, 96, 3)


@pytest.mark.parametrize("interpolation", ["bicubic", "area"])
def test_reduced_crop_is_at_the_place_of_the_full_one(interpolation):
    # 449 rows are 225 at half size; a scale taken from that, 0.5011, is off by 3 columns of 1500 at
    # the right edge, which are 2 in the crop. The ruler is a blue bar at columns 150 to 160 of 300.
    pixels = gradient(449, 3000)
    pixels[:, 2850:2860] = (40, 40, 255)
    data = encode(pixels, "JPEG", quality=98, subsampling=0)
    config = ImageConfig(size=100, interpolation=interpolation)
    crop = image_module._decode_crop(data, (449, 3000), (0, 2700, 449, 300), config)
    blue = np.clip(crop[50, :, 2].astype(float) - 100, 0, None)
    assert abs(blue @ (np.arange(100) + 0.5) / blue.sum() - 155 / 3) < 0.2


def test_crop_of_a_format_without_reduction():
    # Large enough for a quarter, which only a JPEG has.
    pixels = texture(300, 400)
    expected = resize(pixels[:, 50:350], 32, 32, "bicubic")
    assert np.array_equal(eval_image(encode(pixels, "PNG"), ImageConfig(size=32)), expected)


# --- Resizing ------------------------------------------------------------------------------------

# Measured on texture(): the least over the sizes below, less 1.5 dB. OpenCV's cubic alone, without
# the blur, has 36.6.
PSNR_FLOOR = {"bicubic": 45.4, "area": 48.2, "pillow_bicubic": 99, "pillow_bilinear": 46.1}


@pytest.mark.parametrize("interpolation", PSNR_FLOOR)
@pytest.mark.parametrize("size", [(275, 345), (288, 384), (390, 500), (900, 700), (240, 1100)])
def test_resize_is_near_pillows_bicubic(size, interpolation):
    pixels = texture(*size)
    reference = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
    assert psnr(resize(pixels, 224, 224, interpolation), reference) > PSNR_FLOOR[interpolation]


@pytest.mark.parametrize("interpolation", image_module.INTERPOLATIONS)
def test_resize_keeps_a_flat_image_and_its_size(interpolation):
    flat = np.full((37, 50, 3), (10, 128, 250), np.uint8)
    for height, width in ((16, 16), (80, 90), (16, 90), (37, 50), (1, 1)):
        resized = resize(flat, height, width, interpolation)
        assert resized.shape == (height, width, 3)
        assert (resized == (10, 128, 250)).all()


@pytest.mark.parametrize("interpolation", image_module.INTERPOLATIONS[:-1])  # not tf_bilinear
def test_resize_is_antialiased(interpolation):
    # A fine chequerboard shrinks to grey; sampling points alone leaves black and white.
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    resized = resize(np.repeat(board[..., None], 3, -1), 51, 51, interpolation)
    assert resized.min() > 100 and resized.max() < 155


def test_opencv_uses_one_thread():
    assert cv2.getNumThreads() == 1


# --- The crop of evaluation ----------------------------------------------------------------------


def torchvision_crop(pixels: np.ndarray, size: int, method) -> np.ndarray:
    """Resize(size), CenterCrop(size) of torchvision 0.29, written out."""
    height, width = pixels.shape[:2]
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_height, new_width = size, int(size * width / height)
    resized = np.asarray(Image.fromarray(pixels).resize((new_width, new_height), method))
    top, left = int(round((new_height - size) / 2.0)), int(round((new_width - size) / 2.0))
    return resized[top : top + size, left : left + size]


SIZES = [(300, 400), (400, 301), (97, 61), (48, 200), (1200, 1700)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_pillow_bicubic_is_torchvisions_crop(size, fmt):
    data = encode(texture(*size), fmt)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    expected = torchvision_crop(pixels, 96, Image.Resampling.BICUBIC)
    config = ImageConfig(size=96, interpolation="pillow_bicubic")
    assert np.array_equal(eval_image(data, config), expected)


@pytest.mark.parametrize("size", SIZES)
def test_bicubic_is_near_torchvisions_crop(size):
    # Not the same: a JPEG is decoded at 1/4 where that is large enough, and the crop is of whole
    # pixels of the original, up to half a pixel of the result away.
    data = encode(texture(*size), "JPEG", quality=95)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    expected = torchvision_crop(pixels, 96, Image.Resampling.BICUBIC)
    assert psnr(eval_image(data, ImageConfig(size=96)), expected) > 27


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_squash_is_the_whole_image(size, fmt):
    data = encode(texture(*size), fmt)
    expected = Image.open(io.BytesIO(data)).resize((96, 96), Image.Resampling.BICUBIC)
    config = ImageConfig(size=96, resize="squash", interpolation="pillow_bicubic")
    assert np.array_equal(eval_image(data, config), np.asarray(expected))


def test_center_crop_is_central():
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 255
    for interpolation in image_module.INTERPOLATIONS:
        crop = eval_image(encode(pixels, "PNG"), ImageConfig(size=40, interpolation=interpolation))
        assert (crop == 255).all()


# --- The crop of training ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(224, 224), (300, 400), (50, 2000), (2000, 50), (3, 5), (1, 1)])
def test_crop_box_stays_inside_with_share_and_ratio_in_range(size):
    height, width = size
    rng = np.random.default_rng(0)
    for _ in range(300):
        top, left, h, w = random_crop_box(height, width, (0.3, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width
        assert h >= 1 and w >= 1
        # Sides are whole numbers, hence half a pixel each.
        assert (w - 0.5) / (h + 0.5) <= 4 / 3 and (w + 0.5) / (h - 0.5) >= 3 / 4
        if max(size) < 10 * min(size):
            assert (h + 0.5) * (w + 0.5) >= 0.3 * height * width


def test_crop_share_and_log_ratio_are_uniform():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(1000, 1000, **CROP, rng=rng) for _ in range(4000)])
    share = boxes[:, 2] * boxes[:, 3] / 1e6
    log_ratio = np.log(boxes[:, 3] / boxes[:, 2])
    for values, low, high in (
        (share, *CROP["scale"]),
        (log_ratio, *np.log(CROP["ratio"])),
        (boxes[:, 0] / (1000 - boxes[:, 2]), 0, 1),  # top and left, over where they may be
        (boxes[:, 1] / (1000 - boxes[:, 3]), 0, 1),
    ):
        u = np.sort((values - low) / (high - low))
        distance = np.abs(u - (np.arange(4000) + 0.5) / 4000).max()  # Kolmogorov-Smirnov
        assert distance < 1.95 / math.sqrt(4000)  # passed by 999 of 1000 uniform samples


def test_crop_reaches_every_place():
    rng = np.random.default_rng(0)
    boxes = {random_crop_box(4, 4, (0.25, 0.25), (1.0, 1.0), rng) for _ in range(200)}
    assert boxes == {(top, left, 2, 2) for top in range(3) for left in range(3)}


@pytest.mark.parametrize(
    "size,box", [((100, 1000), (0, 433, 100, 133)), ((1000, 100), (433, 0, 133, 100))]
)
def test_crop_of_a_strip_is_its_middle(size, box):
    # No draw fits 90 % of the area at a ratio up to 4/3.
    rng = np.random.default_rng(0)
    assert random_crop_box(*size, (0.9, 1.0), (3 / 4, 4 / 3), rng) == box


def test_train_image_without_augmentation_is_eval_image():
    data = encode(texture(120, 90), "JPEG")
    config = ImageConfig(size=48, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    drawn = train_image(data, config, np.random.default_rng(0))
    assert np.array_equal(drawn, eval_image(data, config))


def test_train_image_crops_the_box_that_is_drawn():
    data = encode(texture(120, 90), "PNG")
    config = ImageConfig(size=32, crop_scale=(0.2, 0.6), interpolation="pillow_bicubic")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        top, left, h, w = random_crop_box(120, 90, (0.2, 0.6), config.crop_ratio, rng)
        box = Image.fromarray(texture(120, 90)).crop((left, top, left + w, top + h))
        expected = np.asarray(box.resize((32, 32), Image.Resampling.BICUBIC))
        drawn = train_image(data, config, np.random.default_rng(seed))
        assert np.array_equal(drawn, expected)


def test_train_image_is_determined_by_its_rng():
    data = encode(texture(120, 90), "JPEG")
    config = ImageConfig(
        size=32, flip_probability=0.5, brightness=0.4, contrast=0.4, saturation=0.4
    )
    first, again, other = (train_image(data, config, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.flags.c_contiguous


def test_flip_mirrors_left_and_right():
    data = encode(gradient(40, 40), "PNG")
    same = {"size": 40, "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    flipped = train_image(data, ImageConfig(**same, flip_probability=1), np.random.default_rng(0))
    assert np.array_equal(flipped, gradient(40, 40)[:, ::-1])
    config = ImageConfig(**same, flip_probability=0.3)
    rng = np.random.default_rng(0)
    count = sum(train_image(data, config, rng)[0, 0, 0] > 100 for _ in range(1000))
    assert 250 < count < 350  # 300, and 3.4 standard deviations


# --- Colour jitter -------------------------------------------------------------------------------


def jitter_float64(pixels, factor, kind):
    x = pixels.astype(np.float64)
    grey = x @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    if kind == "brightness":
        x = x * factor
    elif kind == "contrast":
        x = factor * x + (1 - factor) * grey.mean()
    else:
        x = factor * x + (1 - factor) * grey[..., None]
    return np.clip(x, 0, 255)


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("seed", range(6))
def test_jitter_is_the_formula(kind, seed):
    pixels = texture(20, 30, seed)
    factor = np.random.default_rng(seed).uniform(0.2, 1.8)
    jittered = jitter_colours(pixels, ImageConfig(**{kind: 0.8}), np.random.default_rng(seed))
    # half from rounding the result, half times |1 - factor| from rounding grey
    assert np.abs(jittered - jitter_float64(pixels, factor, kind)).max() < 1


def test_jitter_is_applied_in_order():
    pixels = texture(20, 30)
    config = ImageConfig(brightness=0.5, contrast=0.5, saturation=0.5)
    rng, expected = np.random.default_rng(3), pixels
    for kind in ("brightness", "contrast", "saturation"):
        expected = jitter_float64(expected, rng.uniform(0.5, 1.5), kind)
    jittered = jitter_colours(pixels, config, np.random.default_rng(3))
    assert np.abs(jittered - expected).max() < 3  # the roundings of three steps, each up to 1.5x


def test_no_jitter_changes_nothing_and_draws_nothing():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert np.array_equal(jitter_colours(texture(8, 8), ImageConfig(), rng), texture(8, 8))
    assert rng.bit_generator.state == before


# --- Config --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field,value",
    [
        ("size", 0),
        ("resize", "pad"),
        ("interpolation", "lanczos"),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.5)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_ratio", (2.0, 1.0)),
        ("flip_probability", 1.5),
        ("brightness", -0.1),
        ("saturation", 2.0),
    ],
)
def test_validate_names_field_and_value(field, value):
    ImageConfig().validate()
    with pytest.raises(ValueError, match=rf"data\.image\.{field}") as caught:
        ImageConfig(**{field: value}).validate()
    assert str(value) in str(caught.value)


def test_tf_bilinear_is_jax_resize_without_antialiasing():
    """big_vision's resize: half-pixel centres, no antialiasing, fractions cut off."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    expected = jax.image.resize(pixels.astype(np.float32), (16, 80, 3), "linear", antialias=False)
    found = resize(pixels, 16, 80, "tf_bilinear")
    # where a sum is a whole number but for rounding, cutting off may go either way
    difference = np.abs(found.astype(int) - np.floor(np.asarray(expected)).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize("interpolation", ["bicubic", "pillow_bicubic", "tf_bilinear"])
@pytest.mark.parametrize("mode", ["center_crop", "squash"])
def test_decoded_pixels_are_treated_as_a_file_is(interpolation, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 71, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    config = ImageConfig(size=24, resize=mode, interpolation=interpolation)
    np.testing.assert_array_equal(eval_pixels(pixels, config), eval_image(file.getvalue(), config))


@pytest.mark.parametrize("size", [(300, 300), (10, 900), (2000, 1500), (224, 100)])
def test_naflex_patches_fill_the_budget_and_keep_the_aspect(size):
    height, width = size
    rows, columns = naflex_grid(height, width, 16, 256)
    assert 1 <= rows * columns <= 256
    # a grid that is larger by a row and a column would be too much, or the image is one long row
    assert (rows + 1) * (columns + 1) > 256
    if min(rows, columns) > 4:  # rounding up to whole patches changes the aspect by little
        assert rows / columns == pytest.approx(height / width, rel=0.2)


def test_naflex_patches_are_in_row_order_with_channels_last():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3)).astype(np.uint8)
    patches, grid = naflex_patches(pixels, 16, 8)
    assert grid == (2, 4) and patches.shape == (8, 768)
    np.testing.assert_array_equal(patches[5], pixels[16:32, 16:32].reshape(-1))
    patches, grid = naflex_patches(pixels, 16, 10)
    assert not patches[grid[0] * grid[1] :].any()


def test_naflex_crops_have_the_aspect_of_the_image():
    config = ImageConfig(size=64, naflex_patch_size=16, interpolation="pillow_bilinear")
    pixels = texture(120, 480)
    data = simplejpeg.encode_jpeg(pixels, 95, colorsubsampling="444")
    rng = np.random.default_rng(0)
    shapes = {train_image(data, config, rng).shape for _ in range(20)}
    # the ratio is drawn around the image's own of 4, from 3 to 5.3; in whole patches, at most 16
    assert shapes <= {(32, 128, 3), (32, 112, 3), (16, 256, 3), (32, 96, 3)}, shapes
    assert eval_image(data, config).shape == (32, 128, 3)
    np.testing.assert_array_equal(eval_pixels(decode_image(data), config), eval_image(data, config))
    found = stack_images([eval_image(data, config), np.zeros((16, 32, 3), np.uint8)], config)
    assert found["patches"].shape == (2, 16, 768)
    assert found["grid"].tolist() == [[2, 8], [1, 2]]
