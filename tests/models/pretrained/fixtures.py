"""Fixtures as folders on disk, and what the original library computed from them."""

import functools
import json
import pathlib

import jax
import numpy as np
import safetensors.numpy

from jaxclip.models import clip
from jaxclip.models.pretrained.family import Family
from tests.models.pretrained.random_weights import random_images, random_tensor

FOLDER = pathlib.Path(__file__).parent / "fixtures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def read_fixture(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def tensors_of(fixture: dict) -> dict[str, np.ndarray]:
    return {k: random_tensor(k, tuple(shape)) for k, shape in fixture["tensors"].items()}


def write_folder(folder: pathlib.Path, fixture: dict, **changed) -> pathlib.Path:
    """The checkpoint's folder: its JSON files and the weights, in safetensors."""
    folder.mkdir(exist_ok=True)
    for file, values in fixture["files"].items():
        (folder / file).write_text(json.dumps(values))
    is_openclip = "open_clip_config.json" in fixture["files"]
    file = "open_clip_model.safetensors" if is_openclip else "model.safetensors"
    tensors = tensors_of(fixture) | changed
    safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def embeddings(family: Family, params: clip.Params, fixture: dict) -> dict[str, np.ndarray]:
    """What our model computes of the fixture's images and tokens."""
    found = {}
    if "image_embedding" in fixture:
        size = family.image.size
        image = random_images((3, size, size, 3))
        if "grid" in fixture:
            patches = random_images((3, 24, 8 * 8 * 3))
            image = {"patches": patches, "grid": np.array(fixture["grid"])}
        encode = functools.partial(clip.encode_image, family.model, family.inputs)
        found["image_embedding"] = np.asarray(jax.jit(encode)(params, image))
    if "text_embedding" in fixture:
        encode = functools.partial(clip.encode_text, family.model, family.inputs)
        found["text_embedding"] = np.asarray(jax.jit(encode)(params, np.array(fixture["tokens"])))
    return found
