"""CLIP score: how alike a checkpoint finds an image and its text, to filter by (DataComp).

    score = ClipScore("RUN")                       # a folder of jaxclip.train
    score([(image_bytes, "Chest X-ray."), ...]) -> float32 [N], cosine from -1 to 1

This is the one module of data_pipelines that needs jax and the trainer; it imports them only when a
ClipScore is made, so no other pipeline waits for them.
Shape letters: N pairs, B rows of a batch.
"""

from collections.abc import Sequence

import numpy as np
from etils import epath


class ClipScore:
    """Scores pairs with the newest checkpoint of a run.

    Args:
      workdir: of the run.
      batch_size: pairs at once.
    Raises:
      FileNotFoundError: no run, or no checkpoint in it.
    """

    def __init__(self, workdir: epath.PathLike, batch_size: int = 64):
        import jax

        from jaxclip.checkpoint import load_params
        from jaxclip.config import load_config
        from jaxclip.evals.suite import model_inputs
        from jaxclip.models import clip
        from jaxclip.workdir import run_tokenizer

        config = load_config(workdir)
        self._tokenizer = run_tokenizer(workdir, config.data.tokenizer)
        self._image_config, self._batch_size = config.data.image, batch_size
        inputs = model_inputs(config, self._tokenizer)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.eval_shape(lambda: clip.init(config.model, inputs, jax.random.key(0)))
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
        )
        self.step, self._params = load_params(workdir, like, ema=config.eval.ema)

        def cosine(params, batch):
            image_BE, text_BE = clip.apply(config.model, inputs, params, batch)
            return (image_BE * text_BE).sum(-1)

        self._cosine = jax.jit(cosine)

    def __call__(self, pairs: Sequence[tuple[bytes, str]]) -> np.ndarray:
        """Cosine of each (encoded image, text), float32 [N]. Raises ImageError."""
        scores = [self._score(pairs[i : i + self._batch_size]) for i in self._starts(len(pairs))]
        return np.concatenate(scores) if scores else np.zeros(0, np.float32)

    def _starts(self, num: int) -> range:
        return range(0, num, self._batch_size)

    def _score(self, pairs: Sequence[tuple[bytes, str]]) -> np.ndarray:
        from jaxclip.data.image import eval_image

        padded = [*pairs, *[pairs[-1]] * (self._batch_size - len(pairs))]  # one compilation
        images = [eval_image(image, self._image_config) for image, _ in padded]
        tokens = self._tokenizer.encode([text for _, text in padded])
        batch = {"image": np.stack(images), "tokens": tokens}
        return np.asarray(self._cosine(self._params, batch), np.float32)[: len(pairs)]
