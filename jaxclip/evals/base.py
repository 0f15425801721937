"""What evaluators take in and give back, and embedding a split once for all of them.

An evaluator is a function of Embeddings (and, where it has prompts, of `encode_text`) to Measured:
metrics as functions of the units that are counted, so that evals/uncertainty.py can draw the units
anew. Training and `jaxclip.evaluate` call the same evaluators.

Shape letters: N records, U units (queries, images), B rows of a batch, E embedding.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.models import clip
from jaxclip.sharding import put_batch, use_mesh

ID_FIELDS = ("record", "image_id", "caption_id")


class Embedder(Protocol):
    """Two functions to one space: our runs, imported checkpoints, in tests random numbers."""

    @property
    def logit_scale(self) -> float:
        """After exp: what a cosine is multiplied by to be a logit."""
        ...

    def encode_image(self, images: Sequence[bytes | np.ndarray], /) -> np.ndarray:
        """Encoded bytes, or uint8 RGB [H, W, 3] -> unit-norm float32 [B, E]."""
        ...

    def encode_text(self, texts: Sequence[str], /) -> np.ndarray:
        """Strings -> unit-norm float32 [B, E]."""
        ...


@dataclasses.dataclass(slots=True, kw_only=True)
class Measured:
    """What an evaluator found on U units."""

    name: str  # image_to_text, zero_shot/mednist, ...
    metrics: Callable[[np.ndarray], dict[str, float]]  # int [any], indices of units -> metrics
    num_units: int
    group_U: np.ndarray  # units of one article or patient are drawn together
    method: str = ""  # protocol, prompts, training images: results of two are not compared
    chance: dict[str, float] = dataclasses.field(default_factory=dict)  # by metric
    counts: dict[str, float] = dataclasses.field(default_factory=dict)  # of the whole: no draws
    # [U] by metric, of the metrics that are means over units: what each unit adds
    items: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    row_U: np.ndarray | None = None  # row of the split that a unit is of; None: unit i is row i
    halves: bool = False  # repeated units would distort the metrics: halves are drawn instead
    # the same metrics from other draws of training images: `metrics` is of the first
    repeats: Sequence[Callable[[np.ndarray], dict[str, float]]] = ()

    def values(self) -> dict[str, float]:
        units = np.arange(self.num_units)
        found = [metrics(units) for metrics in (self.metrics, *self.repeats)]
        return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


@dataclasses.dataclass(slots=True, kw_only=True)
class Embeddings:
    """A split, embedded, in order of position."""

    image_NE: np.ndarray  # float32, unit norm
    text_NE: np.ndarray
    record_N: np.ndarray  # int64: positions in the dataset
    image_id_N: np.ndarray  # int64: equal where the image bytes are
    caption_id_N: np.ndarray  # int64: equal where the captions are
    group_N: np.ndarray | None = None  # article or patient; None: each record is one
    # any text of a study is right for its images; None: no studies
    study_N: np.ndarray | None = None

    def __post_init__(self):
        if self.group_N is None:
            self.group_N = self.record_N
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
        pairs = {name: batch[name] for name in ("image", "grid", "tokens") if name in batch}
        on_device = put_batch(pairs | {"ids": ids.view(np.int32)}, mesh)
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
