"""Embedding sets with any embedder: each set once, kept on disk by content.

Shape letters: N images or texts, B rows of a batch, S image size, E embedding.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxclip.data.record import write_atomically
from jaxclip.evals.base import Embedder, Embeddings
from jaxclip.evals.sets import EvalSplit


def fingerprint(embedder: Embedder) -> str:
    """Names what an embedder computes, by what it makes of two odd images and three texts.

    Two embedders that agree to the bit on a wide, a tall image and a long text have the same
    weights, preprocessing and tokenizer; nothing has to be declared, so nothing can be forgotten.
    """
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((301, 517), (449, 256))]
    words = rng.integers(97, 123, (400, 6)).astype(np.uint8).tobytes().decode()
    texts = [
        "Axial CT of the abdomen (arrow).",
        words,
        " ".join(words[i : i + 6] for i in range(400)),
    ]
    digest = hashlib.sha256()
    for array in (embedder.encode_image(images), embedder.encode_text(texts)):
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()


class EmbeddingCache:
    """CACHE/KEY.npy, KEY a hash of the embedder's fingerprint and of what is embedded."""

    def __init__(self, embedder: Embedder, directory: epath.PathLike | None):
        self.embedder = embedder
        self.directory = None if directory is None else epath.Path(directory)
        self.fingerprint = fingerprint(embedder) if directory is not None else ""

    def images(self, content_hash: str, images: Sequence[bytes | np.ndarray]) -> np.ndarray:
        """[N, E]; `images` is only read where the embeddings are not there yet."""
        return self._cached(
            f"image {content_hash}", len(images), lambda: self.embedder.encode_image(images)
        )

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """[N, E]; equal texts are embedded once."""
        different, of_N = np.unique(np.asarray(texts, object), return_inverse=True)
        digest = hashlib.sha256("\0".join(different).encode()).hexdigest()
        encode = self.embedder.encode_text
        found = self._cached(f"text {digest}", len(different), lambda: encode(list(different)))
        return found[of_N]

    def _cached(self, content: str, rows: int, embed: Callable[[], np.ndarray]) -> np.ndarray:
        if self.directory is None:
            return _checked(embed(), rows)
        key = hashlib.sha256(f"{self.fingerprint} {content}".encode()).hexdigest()
        file = self.directory / f"{key}.npy"
        if file.exists():
            return np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
        found = _checked(embed(), rows)
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, found)
            write_atomically(file, buffer.getvalue())
        return found


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
    """Images and captions of a split; a set without captions has its images as text embeddings.

    Raises:
      FloatingPointError: an embedding is not finite.
    """
    image_NE = cache.images(split.content_hash, split.images)
    captions = split.captions
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
