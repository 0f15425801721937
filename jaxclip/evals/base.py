"""Embedding a split once, for every evaluator to read.

Shape letters: N records, B rows of a batch, E embedding.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.models import clip
from jaxclip.sharding import put_batch, use_mesh

ID_FIELDS = ("record", "image_id", "caption_id")


@dataclasses.dataclass(slots=True, kw_only=True)
class Embeddings:
    """A split, embedded, in order of position."""

    image_NE: np.ndarray  # float32, unit norm
    text_NE: np.ndarray
    record_N: np.ndarray  # int64: positions in the dataset
    image_id_N: np.ndarray  # int64: equal where the image bytes are
    caption_id_N: np.ndarray  # int64: equal where the captions are

    def __post_init__(self):
        for field in ("image_NE", "text_NE"):
            bad = ~np.isfinite(getattr(self, field)).all(axis=1)
            if bad.any():  # a NaN is greater than nothing: it would rank first
                raise FloatingPointError(
                    f"{field[:-3]} embeddings of {bad.sum()} of {len(bad)} records are not finite, "
                    f"the first of record {self.record_N[bad.argmax()]}: there is nothing to score."
                )


def make_embed(model: clip.ClipConfig, inputs: clip.Inputs, mesh: Mesh) -> Callable[..., Any]:
    """The jitted (params, batch) -> (image_BE, text_BE, ids), whole on every device.

    The ids travel through the device with the rows, so that no order of hosts can part them.
    """

    def embed(params, batch):
        with use_mesh(mesh):
            image_BE, text_BE = clip.apply(model, inputs, params, batch)
        return image_BE, text_BE, batch["ids"]

    return jax.jit(embed, out_shardings=NamedSharding(mesh, PartitionSpec()))


def embed_split(
    embed: Callable[..., Any], params: Any, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> Embeddings:
    """Runs `embed` over data.pipeline.eval_batches.

    Raises:
      FloatingPointError: an embedding is not finite.
    """
    rows = []
    for batch in batches:
        # as pairs of int32: jax would cut int64
        ids = np.stack([batch[field] for field in ID_FIELDS] + [batch["valid"]], 1).astype(np.int64)
        on_device = put_batch(
            {"image": batch["image"], "tokens": batch["tokens"], "ids": ids.view(np.int32)}, mesh
        )
        rows.append([np.asarray(x) for x in embed(params, on_device)])
    image_NE, text_NE, ids = (np.concatenate(column) for column in zip(*rows, strict=True))
    ids = np.ascontiguousarray(ids).view(np.int64)
    valid = ids[:, -1].astype(bool)
    record_N, image_id_N, caption_id_N = ids[valid, :-1].T
    return Embeddings(
        image_NE=image_NE[valid],
        text_NE=text_NE[valid],
        record_N=record_N,
        image_id_N=image_id_N,
        caption_id_N=caption_id_N,
    )
