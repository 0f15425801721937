"""Embedding sets with any embedder: each set once, kept on disk by content.

Shape letters: N images or texts, B rows of a batch, S image size, E embedding.
"""

import functools
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jaxclip.data.files import write_atomically
from jaxclip.evals.base import Embedder, Embeddings
from jaxclip.evals.sets import EvalSplit


def fingerprint(embedder: Embedder, tower: str) -> str:
    """Names what a tower computes, by what it makes of two odd images, or of three texts.

    Two embedders that agree to the bit on a wide and a tall image, or on a long text, have the same
    weights, preprocessing and tokenizer; nothing has to be declared, so nothing can be forgotten.
    """
    rng = np.random.default_rng(0)
    if tower == "image":
        sizes = ((301, 517), (449, 256))
        images = [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in sizes]
        found = embedder.encode_image(images)
    else:
        words = rng.integers(97, 123, (400, 6)).astype(np.uint8).tobytes().decode()
        apart = " ".join(words[i : i + 6] for i in range(400))
        found = embedder.encode_text(["Axial CT of the abdomen (arrow).", words, apart])
    return hashlib.sha256(np.ascontiguousarray(found, np.float32).tobytes()).hexdigest()


def has_text(embedder: Embedder) -> bool:
    """Whether it has a text tower and a vocabulary for it; those that do not say have both."""
    return getattr(embedder, "has_text", True)


class EmbeddingCache:
    """CACHE/KEY.npy, KEY a hash of the tower's fingerprint and of what is embedded."""

    def __init__(self, embedder: Embedder, directory: epath.PathLike | None):
        self.embedder = embedder
        self.directory = None if directory is None else epath.Path(directory)
        # of a tower when it is first used: a model may have one
        self._fingerprint = functools.cache(functools.partial(fingerprint, embedder))

    def images(self, content_hash: str, images: Sequence[bytes | np.ndarray]) -> np.ndarray:
        """[N, E]; `images` is only read where the embeddings are not there yet."""
        embed = functools.partial(self.embedder.encode_image, images)
        return self._cached("image", content_hash, len(images), embed)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """[N, E]; equal texts are embedded once."""
        different, of_N = np.unique(np.asarray(texts, object), return_inverse=True)
        digest = hashlib.sha256("\0".join(different).encode()).hexdigest()
        embed = functools.partial(self.embedder.encode_text, list(different))
        return self._cached("text", digest, len(different), embed)[of_N]

    def _cached(
        self, tower: str, content: str, rows: int, embed: Callable[[], np.ndarray]
    ) -> np.ndarray:
        if self.directory is None:
            return _checked(embed(), rows)
        key = f"{self._fingerprint(tower)} {tower} {content}"
        file = self.directory / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
        kept = _read_by_first(file, rows)
        if kept is not None:
            return kept
        found = _checked(embed(), rows)
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, found)
            write_atomically(file, buffer.getvalue())
        return found


def _read_by_first(file: epath.Path, rows: int) -> np.ndarray | None:
    """What the first process reads there, on all; None if it has none.

    Embedding is a collective computation: a process that found a file of its own disk, or not,
    and decided by itself would leave the others waiting.
    """
    kept = None
    if jax.process_index() == 0 and file.exists():
        kept = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    if jax.process_count() == 1:
        return kept
    width = int(
        multihost_utils.broadcast_one_to_all(np.int32(0 if kept is None else kept.shape[1]))
    )
    if not width:
        return None
    empty = np.zeros((rows, width), np.float32)
    return np.asarray(multihost_utils.broadcast_one_to_all(empty if kept is None else kept))


def _checked(array_NE: Any, rows: int) -> np.ndarray:
    """Raises ValueError: the embedder did not give one unit vector a row."""
    array_NE = np.asarray(array_NE, np.float32)
    if array_NE.ndim != 2 or len(array_NE) != rows:
        raise ValueError(f"The embedder gave {array_NE.shape} for {rows} inputs: one row each.")
    norms_N = np.linalg.norm(array_NE, axis=1)
    off_N = np.abs(norms_N - 1) > 1e-3
    if off_N.any() and np.isfinite(norms_N).all():
        norm = norms_N[off_N.argmax()]
        raise ValueError(f"The embedder gave a vector of norm {norm:.4f}; norms must be 1.")
    return array_NE


def embed_set(cache: EmbeddingCache, split: EvalSplit) -> Embeddings:
    """Images and captions of a split; without captions or a text tower, images stand for texts.

    Raises:
      FloatingPointError: an embedding is not finite.
    """
    image_NE = cache.images(split.content_hash, split.images)
    captions = split.captions if has_text(cache.embedder) else None
    return Embeddings(
        image_NE=image_NE,
        text_NE=image_NE if captions is None else cache.texts(captions),
        record_N=np.arange(len(image_NE)),
        image_id_N=split.image_id_N,
        caption_id_N=np.unique(
            np.arange(len(image_NE)) if captions is None else np.asarray(captions, object),
            return_inverse=True,
        )[1],
        group_N=split.groups,
        study_N=split.studies,
    )
