"""Models as embedders on any mesh; of a run of ours, its newest checkpoint.

Shape letters: B rows of a batch, S image size, E embedding.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import checkpoint
from jaxclip.config import load_config
from jaxclip.data.image import ImageConfig, eval_image, stack_images
from jaxclip.data.pipeline import num_cores
from jaxclip.evals.suite import model_inputs
from jaxclip.models import clip
from jaxclip.sharding import put_batch, tree_sharding, use_mesh
from jaxclip.workdir import run_tokenizer

BATCH = 128


class MeshEmbedder:
    """A model whose parameters lie on a mesh; images are read and prepared by all cores."""

    def __init__(
        self,
        model: clip.ClipConfig,
        inputs: clip.Inputs,
        params: clip.Params,
        encode_texts: Callable[[Sequence[str]], Any],
        prepare_image: Callable[[Any], np.ndarray],
        image: ImageConfig,
        mesh: Mesh,
    ):
        self.mesh, self.params, self.image = mesh, params, image
        self._encode_texts, self._prepare_image = encode_texts, prepare_image
        whole = NamedSharding(mesh, PartitionSpec())  # every host reads all of it
        self._image, self._text = (
            jax.jit(_on_mesh(encode, model, inputs, mesh), out_shardings=whole)
            for encode in (clip.encode_image, clip.encode_text)
        )

    @property
    def logit_scale(self) -> float:
        return float(np.exp(self.params["logit_scale"]))

    def encode_image(self, images: Sequence[Any]) -> np.ndarray:
        def prepare(part):
            with ThreadPoolExecutor(num_cores()) as pool:
                return stack_images(list(pool.map(self._prepare_image, part)), self.image)

        return self._in_batches(images, prepare, self._image)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return self._in_batches(texts, lambda part: self._encode_texts(list(part)), self._text)

    def _in_batches(self, items: Sequence[Any], prepare: Callable, encode: Callable) -> np.ndarray:
        """Every process is given all items, prepares its own rows and gets all embeddings."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        processes = jax.process_count()
        size = -(-BATCH // (shards * processes)) * shards * processes
        mine = slice(*(size // processes * (jax.process_index() + i) for i in (0, 1)))
        found = []
        for start in range(0, len(items), size):
            part = list(items[start : start + size])
            part += part[:1] * (size - len(part))
            batch = put_batch({"x": prepare(part[mine])}, self.mesh)
            found.append(encode(self.params, batch["x"]))  # not waited for: the next is prepared
        return np.concatenate([np.asarray(x) for x in found])[: len(items)]


class RunEmbedder(MeshEmbedder):
    """The newest checkpoint of a run, on any mesh.

    Raises:
      FileNotFoundError: no run there, or no checkpoint.
    """

    def __init__(self, workdir: epath.PathLike, mesh: Mesh):
        self.config = config = load_config(workdir)
        tokenizer = run_tokenizer(workdir, config.data.tokenizer)
        inputs = model_inputs(config, tokenizer)
        self._init = functools.partial(clip.init, config.model, inputs)
        shapes = jax.eval_shape(self._init, jax.random.key(0))
        self._sharding = tree_sharding(shapes, mesh)
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self._sharding
        )
        self.step, params = checkpoint.load_params(workdir, like, ema=config.eval.ema)
        super().__init__(
            config.model, inputs, params, tokenizer.encode, self._crop, config.data.image, mesh
        )

    def randomised(self, seed: int) -> "RunEmbedder":
        """The same model with random parameters: what chance looks like."""
        other = copy.copy(self)
        init = jax.jit(self._init, out_shardings=self._sharding)
        other.step, other.params = 0, init(jax.random.key(seed))
        return other

    def _crop(self, image: bytes | np.ndarray) -> np.ndarray:
        if isinstance(image, np.ndarray):  # BMP, so that arrays take the same way as files
            image = cv2.imencode(".bmp", image[..., ::-1])[1].tobytes()
        return eval_image(image, self.image)


def _on_mesh(encode: Callable, model: clip.ClipConfig, inputs: clip.Inputs, mesh: Mesh) -> Callable:
    # float32 is float32, as jaxclip.load has it: accelerators would round factors to TF32, bfloat16
    precision = "highest" if model.dtype == "float32" else "default"

    def on_mesh(params, x):
        with use_mesh(mesh), jax.default_matmul_precision(precision):
            return encode(model, inputs, params, x)

    return on_mesh
