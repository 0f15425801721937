"""Models as embedders on any mesh; of a run of ours, its newest checkpoint.

Shape letters: B rows of a batch, S image size, E embedding.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip import checkpoint
from jaxclip.command import num_cores
from jaxclip.config import load_config
from jaxclip.data.image import ImageConfig, stack_images
from jaxclip.inference import precise, prepared
from jaxclip.models import clip
from jaxclip.sharding import own_rows, put_batch, tree_sharding, use_mesh
from jaxclip.start import model_inputs
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
        image: ImageConfig,
        mesh: Mesh,
    ):
        self.mesh, self.params, self.image = mesh, params, image
        self._encode_texts = encode_texts
        whole = NamedSharding(mesh, PartitionSpec())  # every host reads all of it
        self._image, self._text = (
            jax.jit(_on_mesh(precise(encode, model, inputs), mesh), out_shardings=whole)
            for encode in (clip.encode_image, clip.encode_text)
        )

    @property
    def logit_scale(self) -> float:
        return float(np.exp(self.params["logit_scale"]))

    def encode_image(self, images: Sequence[Any]) -> np.ndarray:
        def prepare(i):
            return prepared(images[i], self.image)

        with ThreadPoolExecutor(num_cores()) as pool:
            return self._in_batches(
                len(images),
                lambda rows: stack_images(list(pool.map(prepare, rows)), self.image),
                self._image,
            )

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return self._in_batches(
            len(texts), lambda rows: self._encode_texts([texts[int(i)] for i in rows]), self._text
        )

    def _in_batches(self, count: int, prepare: Callable, encode: Callable) -> np.ndarray:
        """Each process reads and prepares its own rows, and gets the embeddings of all."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = -(-BATCH // shards) * shards
        mine = own_rows(self.mesh, size)
        found = []
        for start in range(0, count, size):
            rows = np.minimum(start + mine, count - 1).tolist()  # a short batch is filled up
            batch = put_batch(prepare(rows), self.mesh)
            found.append(encode(self.params, batch))  # not waited for: the next is prepared
        return np.concatenate([np.asarray(x) for x in found])[:count]


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
        super().__init__(config.model, inputs, params, tokenizer.encode, config.data.image, mesh)

    def randomised(self, seed: int) -> "RunEmbedder":
        """The same model with random parameters: what chance looks like."""
        other = copy.copy(self)
        init = jax.jit(self._init, out_shardings=self._sharding)
        other.step, other.params = 0, init(jax.random.key(seed))
        return other


def _on_mesh(encode: Callable, mesh: Mesh) -> Callable:
    def on_mesh(params, x):
        with use_mesh(mesh):
            return encode(params, x)

    return on_mesh
