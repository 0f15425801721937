"""What is between two models on one set, or between two sets in one model's space.

Shape letters: N images, E embedding.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxclip.evals.base import Measured
from jaxclip.evals.embed import EmbeddingCache
from jaxclip.evals.representation import cka, discrepancy, sample
from jaxclip.evals.sets import EvalSplit


class Sample(NamedTuple):
    model: str
    name: str
    set: str
    identity: str
    image_NE: np.ndarray
    group_N: np.ndarray


@dataclasses.dataclass(slots=True)
class Across:
    """Samples that later ones are compared with: of each set in the first model, and in the last.

    A model of several seeds has one `name` a seed, and one `model`.
    """

    first: dict[str, Sample] = dataclasses.field(default_factory=dict)
    last: tuple[str, list[Sample]] = ("", [])

    def measured(
        self, model: str, name: str, cache: EmbeddingCache, scored: EvalSplit
    ) -> list[Measured]:
        """CKA with the first model that saw the set; MMD of its images and each set before."""
        chosen = sample(len(scored.images))
        image_NE = cache.images(scored.content_hash, scored.images)[chosen]
        if scored.groups is None:  # no image of one set is in a group of another
            group_N = np.array([f"{scored.name} {i}" for i in chosen])
        else:
            group_N = scored.groups[chosen].astype(str)
        mine = Sample(model, name, scored.name, scored.identity, image_NE, group_N)
        first, found = self.first.setdefault(scored.identity, mine), []
        if first.model != model:
            found.append(similarity(first.name, first.image_NE, image_NE, group_N))
        if self.last[0] != name:
            self.last = (name, [])
        for other in self.last[1]:
            found.append(_between(mine, other))
        self.last[1].append(mine)
        return found


def similarity(name: str, x_NE: np.ndarray, y_ND: np.ndarray, group_N: np.ndarray) -> Measured:
    """cka() of two models' embeddings of the same sample of images, as `image_cka_with_NAME`."""
    return Measured(
        name="representation", num_units=len(x_NE), group_U=group_N, halves=True,
        metrics=lambda units: {f"image_cka_with_{name}": cka(x_NE[units], y_ND[units])},
    )  # fmt: skip


def _between(one: Sample, other: Sample) -> Measured:
    counts = discrepancy(
        f"images_with_{other.set}", (one.image_NE, other.image_NE), (one.group_N, other.group_N)
    )
    return Measured(
        name="representation", num_units=len(one.image_NE), group_U=one.group_N, counts=counts,
        method=f"beside {other.set} {other.identity[:8]}", metrics=lambda units: {},
    )  # fmt: skip
