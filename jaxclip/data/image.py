"""Images: hostile bytes -> uint8 pixels (decode.py) -> a crop of the model's size.

Shape letters: H height, W width, S the model's image size. Every array is uint8 RGB; normalisation
to the model's mean and standard deviation happens on the device (models/clip.py).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from jaxclip.data.decode import ImageError as ImageError
from jaxclip.data.decode import converted_from as converted_from
from jaxclip.data.decode import decode_image, image_size
from jaxclip.data.decode import pillow_pixels as pillow_pixels
from jaxclip.data.naflex import naflex_grid, naflex_patches

RESIZE_MODES = ("center_crop", "squash")
INTERPOLATIONS = ("bicubic", "area", "pillow_bicubic", "pillow_bilinear", "tf_bilinear")

cv2.setNumThreads(1)  # the loader's threads are the parallelism


@dataclasses.dataclass(slots=True, kw_only=True)
class ImageConfig:
    """How pixels reach the model."""

    size: int = 224  # pixels, both sides
    resize: str = "center_crop"  # evaluation: center_crop (the short side fits) | squash
    interpolation: str = "bicubic"  # INTERPOLATIONS, see resize()
    naflex_patch_size: int = 0  # > 0: images keep their aspect, and become at most (size / this)**2
    # patches of this size (SigLIP 2's NaFlex); no `resize`, and crop_ratio is of the image's own
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of pixels in [0, 1]
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)  # CLIP's, as the mean
    crop_scale: tuple[float, float] = (0.9, 1.0)  # training: share of the area; (1, 1) and
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # ratio (1, 1): the evaluation's crop
    flip_probability: float = 0.0  # 0: a mirrored radiograph is another finding
    brightness: float = 0.0  # strength of jitter: factor from [1 - x, 1 + x]
    contrast: float = 0.0  # likewise, about the image's mean grey
    saturation: float = 0.0  # likewise, about each pixel's grey

    def validate(self, name: str = "data.image") -> None:
        if self.size < 1:
            raise ValueError(f"{name}.size ({self.size}) must be at least 1.")
        if self.naflex_patch_size < 0 or (
            self.naflex_patch_size and self.size % self.naflex_patch_size
        ):
            raise ValueError(
                f"{name}.naflex_patch_size ({self.naflex_patch_size}) must divide {name}.size "
                f"({self.size}), or be 0."
            )
        if self.resize not in RESIZE_MODES:
            raise ValueError(f"{name}.resize ({self.resize!r}) must be one of {RESIZE_MODES}.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"{name}.interpolation ({self.interpolation!r}) must be one of {INTERPOLATIONS}."
            )
        for field, low, rule in (("mean", -math.inf, "finite"), ("std", 0.0, "more than 0")):
            values = getattr(self, field)
            if len(values) != 3 or not all(low < value < math.inf for value in values):
                raise ValueError(f"{name}.{field} {values} must be 3 numbers (RGB), each {rule}.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name}.crop_scale {self.crop_scale} must be 0 < low <= high <= 1.")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"{name}.crop_ratio {self.crop_ratio} must be 0 < low <= high.")
        if not 0 <= self.flip_probability <= 1:
            value = self.flip_probability
            raise ValueError(f"{name}.flip_probability ({value}) must be in [0, 1].")
        for field in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{name}.{field} ({getattr(self, field)}) must be in [0, 1].")


def resize(pixels_HW3: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resizes, with antialiasing but for the last.

    bicubic: Gaussian blur, then OpenCV's cubic; 41 to 48 dB from Pillow's at five times its speed.
    area: OpenCV's mean over the pixel's area (cubic where it enlarges).
    pillow_bicubic, pillow_bilinear: Pillow's, as torchvision and open_clip have it.
    tf_bilinear: TensorFlow's without antialiasing, fractions cut off, as big_vision has it.

    Returns:
      uint8 [height, width, 3].
    """
    old_height, old_width = pixels_HW3.shape[:2]
    if (old_height, old_width) == (height, width):
        return pixels_HW3
    if interpolation.startswith("pillow"):
        method = Image.Resampling[interpolation.removeprefix("pillow_").upper()]
        return np.asarray(Image.fromarray(pixels_HW3).resize((width, height), method))
    if interpolation == "tf_bilinear":
        pixels = cv2.resize(pixels_HW3.astype(np.float32), (width, height))
        return np.clip(pixels, 0, 255).astype(np.uint8)
    shrink_y, shrink_x = old_height / height, old_width / width
    if interpolation == "area" and min(shrink_y, shrink_x) >= 1:
        return cv2.resize(pixels_HW3, (width, height), interpolation=cv2.INTER_AREA)
    if max(shrink_y, shrink_x) > 1:
        sigma_y, sigma_x = (BLUR * math.sqrt(max(s * s - 1, 1e-4)) for s in (shrink_y, shrink_x))
        pixels_HW3 = cv2.GaussianBlur(pixels_HW3, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    return cv2.resize(pixels_HW3, (width, height), interpolation=cv2.INTER_CUBIC)


BLUR = 0.40  # standard deviation per sqrt(shrink^2 - 1) that comes nearest to Pillow's bicubic


def eval_image(data: bytes, config: ImageConfig) -> np.ndarray:
    """The one crop of evaluation: uint8 [S, S, 3]; of NaFlex whole patches. Raises ImageError.

    With the Pillow interpolations, pixel for pixel what torchvision and open_clip do: the whole
    image is resized and then cropped. The others crop first, which is faster.
    """
    height, width = image_size(data)
    if config.naflex_patch_size or config.resize == "squash":
        return _decode_crop(data, (height, width), (0, 0, height, width), config)
    if config.interpolation.startswith("pillow"):
        return _torchvision_center_crop(decode_image(data), config)
    side = min(height, width)
    box = ((height - side) // 2, (width - side) // 2, side, side)
    return _decode_crop(data, (height, width), box, config)


def eval_pixels(pixels_HW3: np.ndarray, config: ImageConfig) -> np.ndarray:
    """eval_image for an image that is decoded, and at its full size."""
    height, width = pixels_HW3.shape[:2]
    if config.resize == "center_crop" and not config.naflex_patch_size:
        if config.interpolation.startswith("pillow"):
            return _torchvision_center_crop(pixels_HW3, config)
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels_HW3 = pixels_HW3[top : top + side, left : left + side]
    return resize(pixels_HW3, *target_size(height, width, config), config.interpolation)


def target_size(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """What a crop of this size is resized to: S x S, or for NaFlex whole patches of its aspect."""
    P = config.naflex_patch_size
    if not P:
        return config.size, config.size
    rows, columns = naflex_grid(height, width, P, (config.size // P) ** 2)
    return rows * P, columns * P


def stack_images(images: Sequence[np.ndarray], config: ImageConfig) -> Any:
    """What an image tower takes, of images as eval_image or train_image give them.

    Returns:
      uint8 [N, S, S, 3]; for NaFlex {"patches": uint8 [N, T, P * P * 3], "grid": int32 [N, 2]}.
    """
    P = config.naflex_patch_size
    if not P:
        return np.stack(images)
    found = [naflex_patches(image, P, (config.size // P) ** 2) for image in images]
    patches, grids = zip(*found, strict=True)
    return {"patches": np.stack(patches), "grid": np.array(grids, np.int32)}


def train_image(data: bytes, config: ImageConfig, rng: np.random.Generator) -> np.ndarray:
    """A random crop, resized to target_size, with flip and colour jitter as configured: uint8."""
    if config.crop_scale == (1.0, 1.0) and config.crop_ratio == (1.0, 1.0):
        pixels_SS3 = eval_image(data, config)
    else:
        height, width = image_size(data)
        low, high = config.crop_ratio
        if config.naflex_patch_size:  # relative to the image's own
            low, high = low * width / height, high * width / height
        box = random_crop_box(height, width, config.crop_scale, (low, high), rng)
        pixels_SS3 = _decode_crop(data, (height, width), box, config)
    if config.flip_probability and rng.random() < config.flip_probability:
        pixels_SS3 = pixels_SS3[:, ::-1]
    return jitter_colours(pixels_SS3, config, rng)


def random_crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Inception-style crop (Szegedy et al. 2015, arXiv:1409.4842): (top, left, height, width).

    Draws the share of the area and the logarithm of the aspect ratio (width / height) uniformly; if
    ten draws do not fit, takes the largest central box with a ratio in range.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):  # Python's numbers: an array of ten draws costs more than the one needed
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.random(), rng.random()
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h = min(height, max(1, round(width / aspect)))
    w = min(width, max(1, round(height * aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_colours(
    pixels_HW3: np.ndarray, config: ImageConfig, rng: np.random.Generator
) -> np.ndarray:
    """Brightness, contrast about the mean grey, saturation about each pixel's grey, in order."""
    if config.brightness:
        factor = rng.uniform(1 - config.brightness, 1 + config.brightness)
        pixels_HW3 = cv2.convertScaleAbs(pixels_HW3, alpha=factor)
    if config.contrast:
        factor = rng.uniform(1 - config.contrast, 1 + config.contrast)
        mean = float(cv2.cvtColor(np.ascontiguousarray(pixels_HW3), cv2.COLOR_RGB2GRAY).mean())
        table = np.clip(np.arange(256) * factor + mean * (1 - factor) + 0.5, 0, 255)
        pixels_HW3 = table.astype(np.uint8)[pixels_HW3]
    if config.saturation:
        factor = rng.uniform(1 - config.saturation, 1 + config.saturation)
        pixels_HW3 = np.ascontiguousarray(pixels_HW3)
        grey = cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2GRAY)
        grey_HW3 = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
        pixels_HW3 = cv2.addWeighted(pixels_HW3, factor, grey_HW3, 1 - factor, 0)
    return np.ascontiguousarray(pixels_HW3)


def _decode_crop(
    data: bytes, size: tuple[int, int], box: tuple[int, int, int, int], config: ImageConfig
) -> np.ndarray:
    """The box (top, left, height, width) of the image of `size` (height, width), at target_size.

    A JPEG is decoded as small as still leaves so many pixels in the box, unless Pillow's or
    TensorFlow's interpolation is asked for, which is about equality with others.
    """
    top, left, h, w = box
    out_h, out_w = target_size(h, w, config)
    reduction = 1
    if not config.interpolation.startswith(("pillow", "tf")):
        while reduction < 8 and min(h / out_h, w / out_w) >= 2 * reduction:
            reduction *= 2
    pixels_HW3 = decode_image(data, reduction=reduction)
    if pixels_HW3.shape[:2] == size:
        reduction = 1  # or the format has no reduced decoding
    top, left, bottom, right = (round(x / reduction) for x in (top, left, top + h, left + w))
    crop_HW3 = pixels_HW3[top:bottom, left:right]
    return resize(crop_HW3, out_h, out_w, config.interpolation)


def _torchvision_center_crop(pixels_HW3: np.ndarray, config: ImageConfig) -> np.ndarray:
    """torchvision's Resize(S), CenterCrop(S), with its rounding."""
    height, width = pixels_HW3.shape[:2]
    size, short = config.size, min(height, width)
    height, width = int(size * height / short), int(size * width / short)
    pixels_HW3 = resize(pixels_HW3, height, width, config.interpolation)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels_HW3[top : top + size, left : left + size]
