"""CLIP score: how alike a checkpoint finds an image and its text, to filter by (DataComp).

    score = ClipScore("RUN")                       # whatever jaxclip.load takes
    score([(image_bytes, "Chest X-ray."), ...]) -> float64 [N], cosine from -1 to 1

This is the one module of data_pipelines that needs jax and the trainer; it imports them only when a
ClipScore is made, so no other pipeline waits for them.
Shape letters: N pairs, E embedding.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxclip.data.record import Example

BATCH_SIZE = 64  # pairs at once
DECIMALS = 4  # those beyond may differ with the number of cores that made them


class ClipScore:
    """Scores pairs with a run, a checkpoint of somebody else's, or a name on the hub.

    Raises:
      FileNotFoundError, ValueError: as jaxclip.load; a model without image or text tower.
    """

    def __init__(self, checkpoint: str, batch_size: int = BATCH_SIZE):
        import jaxclip

        self._model = jaxclip.load(checkpoint, batch_size=batch_size)
        self([])  # a model that lacks a tower or a vocabulary says so now

    def __call__(self, pairs: Sequence[tuple[bytes, str]]) -> np.ndarray:
        """Cosine of each (encoded image, text), float64 [N]. Raises ImageError."""
        image_NE = self._model.encode_image([image for image, _ in pairs])
        text_NE = self._model.encode_text([text for _, text in pairs])
        return np.round((image_NE * text_NE).sum(-1).astype(np.float64), DECIMALS)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Names the weights, whatever they are called."""
        import jax

        digest = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(self._model.params):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def clip_score(checkpoint: str) -> ClipScore:
    """The ClipScore of a checkpoint, loaded once a process."""
    return ClipScore(checkpoint)


def add_similarity(items: Iterable[Any], score: ClipScore) -> Iterator[Any]:
    """Gives Examples the signal `similarity`, of the image and its own text; in the order given.

    Items are held until there are BATCH_SIZE Examples among them, so that a shard's scores depend
    on nothing but what is in the shard.
    """
    waiting: list[Any] = []
    examples: list[Example] = []
    for item in items:
        waiting.append(item)
        if isinstance(item, Example):
            examples.append(item)
        if len(examples) == BATCH_SIZE:
            _score_all(examples, score)
            yield from waiting
            waiting, examples = [], []
    _score_all(examples, score)
    yield from waiting


def _score_all(examples: Sequence[Example], score: ClipScore) -> None:
    records = [example.record for example in examples]
    pairs = [(record.image, record.panel_caption or record.caption) for record in records]
    for example, value in zip(examples, score(pairs), strict=True):
        example.signals["similarity"] = float(value)
