"""Embeddings of images and texts from any checkpoint: ours, or somebody else's.

    model = jaxclip.load("RUN")                        # or a folder, a file, a name on the hub
    image_NE = model.encode_image([Image.open("chest.png"), pixels_HW3])
    text_ME = model.encode_text(["chest radiograph", "histology, H&E"])
    logits_NM = model.logit_scale * image_NE @ text_ME.T + model.logit_bias

Shape letters: N images, M texts, E embedding, H height, W width.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxclip.data.image import ImageConfig, eval_image, eval_pixels, pillow_pixels, stack_images
from jaxclip.data.text import Tokenizer, load_tokenizer
from jaxclip.models import clip
from jaxclip.models.pretrained import leaves_of, load_params, tree_of
from jaxclip.models.pretrained.family import Family
from jaxclip.models.pretrained.files import Weights
from jaxclip.models.pretrained.table import Report
from jaxclip.start import open_model

log = logging.getLogger(__name__)
# a Pillow image, uint8 pixels [H, W, 3] or [H, W], the bytes of a file, or its path
Picture = Any


def load(
    path_or_name: str,
    *,
    batch_size: int = 64,
    dtype: str = "float32",
    device: Any = None,
    tokenizer: str = "",
) -> "Model":
    """The model of a run's folder, a checkpoint, or a name on the Hugging Face hub.

    Args:
      batch_size: at most so many images or texts at a time.
      dtype: of the matrix products: float32, which is not rounded to TF32 or bfloat16 where an
        accelerator would by default, or bfloat16, which is faster there.
      device: one of jax.devices(), or "cpu", "gpu" or "tpu"; by default the first.
      tokenizer: a vocabulary's file, for a checkpoint that comes without one.
    Raises:
      FileNotFoundError, ValueError: as start.open_model; no such device; a vocabulary for a
        checkpoint that has its own, or one of more ids than it has embeddings.
    """
    device = _device(device)
    family = open_model(path_or_name)
    family.model = dataclasses.replace(family.model, dtype=dtype)
    family.model.validate(family.image.size)
    vocabulary = _tokenizer(family, tokenizer)
    params, report = load_params(family)
    leaves = leaves_of(params)
    del params
    # one by one, each host copy given back, and then the file: else all of it is held three times
    placed = {path: jax.device_put(leaves.pop(path), device) for path in list(leaves)}
    family.weights = Weights({})
    found = "; ".join(report.lines())
    log.log(logging.INFO if report.is_plain else logging.WARNING, "%s (%s): %s", path_or_name,
            family.name, found)  # fmt: skip
    return Model(family, tree_of(placed), vocabulary, batch_size, report)


def _device(device: Any) -> Any:
    if not isinstance(device, str):
        return device
    try:
        return jax.devices(device)[0]
    except RuntimeError as error:
        here = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise ValueError(f"device ({device!r}) is not here, only: {here}.") from error


def _tokenizer(family: Family, path: str) -> Tokenizer | None:
    """None for a checkpoint without text tower or vocabulary; what is odd of it is assumed."""
    config = family.tokenizer
    if path and config.path and "text" in family.towers:
        raise ValueError(
            f"tokenizer ({path}) is for checkpoints without a vocabulary, and {family.source} has "
            f"its own ({Path(config.path).name}). Leave tokenizer empty."
        )
    if path:
        config = dataclasses.replace(config, path=path, kind="auto")
    if "text" not in family.towers or not config.path:
        return None
    tokenizer = load_tokenizer(config)
    if tokenizer.vocab_size < family.vocab_size:
        family.assumed.append(
            f"{tokenizer.file_name} is its vocabulary: it has {tokenizer.vocab_size:,} ids, and "
            f"the text tower {family.vocab_size:,} embeddings"
        )
    if tokenizer.vocab_size > family.vocab_size:
        raise ValueError(
            f"tokenizer ({config.path}) has {tokenizer.vocab_size:,} ids, but {family.source} was "
            f"trained with {family.vocab_size:,}. Name its own vocabulary: tokenizer=FILE."
        )
    family.pad_id, family.eos_id = tokenizer.pad_id, tokenizer.eos_id
    return tokenizer


class Model:
    """A loaded model. Embeddings are float32 NumPy arrays of unit norm, in the order given."""

    def __init__(
        self,
        family: Family,
        params: clip.Params,
        tokenizer: Tokenizer | None,
        batch_size: int,
        report: Report,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
        self.family, self.params, self.tokenizer = family, params, tokenizer
        self.batch_size, self.report = batch_size, report
        self._encode_image = jax.jit(precise(clip.encode_image, family.model, family.inputs))
        self._encode_text = jax.jit(precise(clip.encode_text, family.model, family.inputs))

    @property
    def logit_scale(self) -> float:
        """What similarities are multiplied by: after exp."""
        return float(np.exp(self.params["logit_scale"]))

    @property
    def logit_bias(self) -> float:
        """What is added to scaled similarities; 0 for a model trained with the softmax loss."""
        return float(self.params["logit_bias"])

    @property
    def has_text(self) -> bool:
        """Whether texts can be embedded: there is a text tower and a vocabulary."""
        return "text" in self.family.towers and self.tokenizer is not None

    def encode_image(self, images: Iterable[Picture]) -> np.ndarray:
        """float32 [N, E].

        Args:
          images: Pillow images, uint8 arrays [H, W, 3] or [H, W], bytes of a file, or paths. A
            generator is read batch by batch.
        Raises:
          FileNotFoundError, ValueError: see prepared().
        """
        self._need("image")
        if isinstance(images, (str, bytes, Path, Image.Image)):
            raise TypeError("encode_image() takes a list of images. Write encode_image([image]).")
        return self._run(self._encode_image, images, self._preprocess)

    def encode_text(self, texts: Iterable[str]) -> np.ndarray:
        """float32 [M, E]. A text that is too long loses its end.

        Raises:
          ValueError: no vocabulary; something that is no string.
        """
        self._need("text")
        if self.tokenizer is None:
            raise ValueError(
                f"{self.family.source} comes without a vocabulary. Name one: "
                "load(..., tokenizer=FILE)."
            )
        if isinstance(texts, str):
            raise TypeError("encode_text() takes a list of texts. Write encode_text([text]).")
        return self._run(self._encode_text, texts, self._tokens)

    def _need(self, tower: str) -> None:
        if tower not in self.family.towers:
            raise ValueError(
                f"{self.family.source} ({self.family.name}) has no {tower} tower, only "
                f"{' and '.join(self.family.towers)}."
            )

    def _run(self, encode: Callable, items: Iterable[Any], prepare: Callable) -> np.ndarray:
        """In batches; a short one is filled up to a power of two, to compile few shapes."""
        rows = [np.zeros((0, self.family.model.embed_dim), np.float32)]
        rest = iter(items)
        while part := list(itertools.islice(rest, self.batch_size)):
            batch, n = prepare(part), len(part)
            size = min(self.batch_size, 1 << (n - 1).bit_length())
            filled = jax.tree.map(lambda x, n=n, size=size: x[np.arange(size) % n], batch)
            rows.append(np.asarray(encode(self.params, filled))[:n])
        return np.concatenate(rows)

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        assert self.tokenizer is not None
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a text ({text!r}) must be a string. Leave it out, or give ''.")
        return self.tokenizer.encode(texts)

    def _preprocess(self, images: Sequence[Picture]) -> Any:
        """What the image tower takes, as the checkpoint's family has it."""
        config = self.family.image
        return stack_images([prepared(picture, config) for picture in images], config)


def precise(encode: Callable, model: clip.ClipConfig, inputs: clip.Inputs) -> Callable:
    """encode(model, inputs, ...) whose float32 is float32 on every device.

    By default GPUs round the factors of its matrix products to TF32, and TPUs to bfloat16.
    """
    precision = "highest" if model.dtype == "float32" else "default"

    @functools.wraps(encode)
    def call(*args):
        with jax.default_matmul_precision(precision):
            return encode(model, inputs, *args)

    return call


def prepared(picture: Picture, config: ImageConfig) -> np.ndarray:
    """Decoded, resized and cropped: uint8 RGB; of a Pillow image the same as of its file.

    Raises:
      FileNotFoundError: no file of that path.
      ValueError: another type or shape, or an unreadable file.
    """
    if isinstance(picture, (str, Path)):
        if not Path(picture).is_file():
            raise FileNotFoundError(f"image ({picture}) is not a file. Check the path.")
        picture = Path(picture).read_bytes()
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return eval_image(bytes(picture), config)
    if isinstance(picture, Image.Image):
        picture = pillow_pixels(picture)
    if isinstance(picture, jax.Array):
        picture = np.asarray(picture)
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        kind = f"{type(picture).__name__} of {getattr(picture, 'dtype', 'no pixels')}"
        raise ValueError(f"an image ({kind}) must be uint8 pixels, a Pillow image, or a file.")
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=-1)
    if picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
        raise ValueError(f"an image of shape {picture.shape} must be [height, width, 3].")
    return eval_pixels(picture, config)
