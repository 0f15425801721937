"""The shape of the embedding space: distances between distributions, gaps, spread, rank.

Open-PMC compares distributions by a maximum mean discrepancy (its branch statistical_analysis).
Here it is the unbiased statistic, with one projection and one bandwidth for both samples, and the
p-value is of a permutation test that counts the sample itself as one of the permutations.

Shape letters: N, M samples, E embedding, P permutations.
"""

import dataclasses
import importlib.util
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxclip.evals.base import Measured

SAMPLES = 2000  # of each side at most: kernels are quadratic
PROJECTED = 64  # principal components of both samples together that discrepancies are measured in
MODALITY_IMAGES = 20  # a modality with fewer has no discrepancy
Scores = dict[str, float]


class _Map(NamedTuple):
    name: str
    library: str
    extra: str  # that has the library


MAPS = {"tsne": _Map("t-SNE", "sklearn", "eval"), "umap": _Map("UMAP", "umap", "umap")}


@dataclasses.dataclass(slots=True, kw_only=True)
class Discrepancy:
    mmd2: float  # unbiased: may be below 0
    p_value: float  # of both samples being from one distribution
    bandwidth: float


def mmd(
    x_NE: np.ndarray,
    y_ME: np.ndarray,
    *,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    dims: int = 0,
    permutations: int = 200,
    seed: int = 0,
) -> Discrepancy:
    """Unbiased MMD^2 (Gretton et al. 2012, Lemma 6), Gaussian kernel exp(-d^2 / (2 bandwidth^2)).

    The bandwidth is the median distance of the pooled sample; p = (1 + as large or larger) /
    (1 + permutations).

    Args:
      groups: article or patient of each row of x and of y; rows of one are alike, so they are
        permuted together. None: each row is one.
      dims: project both on so many principal components of the pooled sample; 0: as they are.
    """
    n, rng = len(x_NE), np.random.default_rng(seed)
    pooled = np.concatenate([x_NE, y_ME]).astype(np.float64)
    if 0 < dims < pooled.shape[1]:
        centered = pooled - pooled.mean(axis=0)
        pooled = centered @ np.linalg.eigh(centered.T @ centered)[1][:, -dims:]
    distance2 = squared_distances(pooled, pooled)
    bandwidth2 = float(np.median(distance2[np.triu_indices(len(pooled), 1)]))
    bandwidth2 = bandwidth2 or 1.0  # more than half of the points are one
    kernel = np.exp(-distance2 / (2 * bandwidth2))
    np.fill_diagonal(kernel, 0)
    in_x_PN = np.zeros((permutations + 1, len(pooled)))
    in_x_PN[0, :n] = 1
    group_N = np.arange(len(pooled)) if groups is None else np.concatenate(groups)
    rows_of_groups = _groups_by_size(group_N)
    for row in in_x_PN[1:]:
        for rows_GR in rows_of_groups:
            dealt_GR = rng.permuted(in_x_PN[0][rows_GR], axis=1)
            row[rows_GR] = dealt_GR[rng.permutation(len(dealt_GR))]
    found_P = _mmd2(kernel, in_x_PN, n)
    p_value = (1 + (found_P[1:] >= found_P[0] - 1e-12).sum()) / (1 + permutations)
    return Discrepancy(
        mmd2=float(found_P[0]), p_value=float(p_value), bandwidth=float(bandwidth2**0.5)
    )


def _groups_by_size(group_N: np.ndarray) -> list[np.ndarray]:
    """Rows [G, R] of the groups of R rows, for each R there is: those may change places whole."""
    _, of_N, sizes_G = np.unique(group_N, return_inverse=True, return_counts=True)
    order = np.argsort(of_N, kind="stable")
    starts_G = np.cumsum(sizes_G) - sizes_G
    return [
        order[starts_G[sizes_G == size][:, None] + np.arange(size)] for size in np.unique(sizes_G)
    ]


def _mmd2(kernel: np.ndarray, in_x_PN: np.ndarray, n: int) -> np.ndarray:
    """MMD^2 of each split of the pooled sample; `kernel` without its diagonal."""
    m = len(kernel) - n
    rows_PN = in_x_PN @ kernel
    xx = (rows_PN * in_x_PN).sum(axis=1)
    xy = rows_PN.sum(axis=1) - xx
    yy = kernel.sum() - xx - 2 * xy
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def squared_distances(x_NE: np.ndarray, y_ME: np.ndarray) -> np.ndarray:
    x2, y2 = (x_NE**2).sum(axis=1), (y_ME**2).sum(axis=1)
    return np.maximum(x2[:, None] + y2 - 2 * x_NE @ y_ME.T, 0)


def modality_gap(image_NE: np.ndarray, text_NE: np.ndarray) -> float:
    """Distance of the modalities' means (Liang et al. 2022, arXiv:2203.02053)."""
    return float(np.linalg.norm(image_NE.mean(axis=0) - text_NE.mean(axis=0)))


def alignment(image_NE: np.ndarray, text_NE: np.ndarray) -> float:
    """Mean squared distance of matched pairs (Wang and Isola 2020, arXiv:2005.10242, alpha 2)."""
    return float(((image_NE - text_NE) ** 2).sum(axis=1).mean())


def uniformity(x_NE: np.ndarray) -> float:
    """log mean exp(-2 d^2) over different rows (Wang and Isola 2020, t 2); lower is more even."""
    distance2 = squared_distances(x_NE, x_NE)[np.triu_indices(len(x_NE), 1)]
    return float(np.log(np.exp(-2 * distance2).mean()))


def effective_rank(x_NE: np.ndarray) -> float:
    """exp of the entropy of the centred singular values' shares (Roy and Vetterli 2007)."""
    centered = x_NE.astype(np.float64) - x_NE.mean(axis=0)
    if len(centered) < centered.shape[1]:
        centered = centered.T
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(centered.T @ centered), 0))
    if not values.sum():
        return 1.0
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def cka(x_NE: np.ndarray, y_ND: np.ndarray) -> float:
    """Linear centred kernel alignment of two representations of the same N inputs.

    With the unbiased HSIC (Song et al. 2007; Nguyen et al. 2021, arXiv:2010.15327, eq. 3): the
    plain one (Kornblith et al. 2019) goes to 1 for unrelated ones when N is not much above E.
    Of less than 4 inputs it is not defined: NaN.
    """
    if len(x_NE) < 4:
        return float("nan")
    kernels = [x @ x.T for x in (x_NE.astype(np.float64), y_ND.astype(np.float64))]
    for kernel in kernels:
        np.fill_diagonal(kernel, 0)
    xy, xx, yy = (_hsic(kernels[i], kernels[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
    return float(xy / np.sqrt(xx * yy)) if xx > 0 and yy > 0 else float("nan")


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    trace = (k * m).sum()
    means = k.sum() * m.sum() / ((n - 1) * (n - 2))
    cross = 2 * (k.sum(axis=0) @ m.sum(axis=0)) / (n - 2)
    return (trace + means - cross) / (n * (n - 3))


def sample(number: int, seed: int = 0) -> np.ndarray:
    """SAMPLES of so many rows, in order; the first ones would be of the first classes."""
    return np.sort(np.random.default_rng(seed).permutation(number)[:SAMPLES])


def describe(image_NE: np.ndarray, text_NE: np.ndarray | None) -> dict[str, float]:
    """Spread and rank of each modality, and where there are texts what is between the two."""
    found = {
        "image_uniformity": uniformity(image_NE),
        "image_effective_rank": effective_rank(image_NE),
    }
    if text_NE is None:
        return found
    return found | {
        "text_uniformity": uniformity(text_NE),
        "text_effective_rank": effective_rank(text_NE),
        "alignment": alignment(image_NE, text_NE),
        "modality_gap": modality_gap(image_NE, text_NE),
    }


def representation(
    image_NE: np.ndarray,
    text_NE: np.ndarray | None,
    group_N: np.ndarray,
    modality_N: np.ndarray | None = None,
) -> Measured:
    """describe() of a sample of a set, and discrepancies: of images and texts, of modalities.

    Args:
      modality_N: str; each two of which there are MODALITY_IMAGES images are compared.
    """
    chosen = sample(len(image_NE))
    image, group = image_NE[chosen], group_N[chosen]
    text = None if text_NE is None else text_NE[chosen]
    counts = {}
    if text is not None:
        counts = discrepancy("image_text", (image, text), (group, group))
    if modality_N is not None:
        names, number = np.unique(modality_N.astype(str), return_counts=True)
        counts["modalities_with_few_images"] = float((number < MODALITY_IMAGES).sum())
        rows = {m: np.flatnonzero(modality_N == m) for m in names[number >= MODALITY_IMAGES]}
        rows = {m: of_m[sample(len(of_m))] for m, of_m in rows.items()}
        for one, other in itertools.combinations(rows, 2):
            pair = rows[one], rows[other]
            counts |= discrepancy(
                f"{one}_{other}", [image_NE[r] for r in pair], [group_N[r] for r in pair]
            )
    return Measured(
        name="representation", num_units=len(chosen), group_U=group, counts=counts, halves=True,
        metrics=lambda units: describe(image[units], None if text is None else text[units]),
    )  # fmt: skip


def discrepancy(name: str, two: Sequence[np.ndarray], groups: Sequence[np.ndarray]) -> Scores:
    """mmd() of two samples on their common principal components, as `mmd2_NAME` and its p-value."""
    found = mmd(two[0], two[1], groups=(groups[0], groups[1]), dims=PROJECTED)
    return {f"mmd2_{name}": found.mmd2, f"mmd2_{name}_p_value": found.p_value}


def plane(x_NE: np.ndarray, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Points [N, 2] for a picture of at least 5 rows: see MAPS.

    Raises:
      ValueError: the library is not installed.
    """
    require_map(method)
    if method == "umap":
        from umap import UMAP  # pyright: ignore[reportMissingImports]

        neighbours = min(15, len(x_NE) - 1)
        reducer = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(x_NE))
    from sklearn.manifold import TSNE  # pyright: ignore[reportMissingImports]

    perplexity = min(30.0, (len(x_NE) - 1) / 3)
    return TSNE(metric="cosine", random_state=seed, perplexity=perplexity).fit_transform(x_NE)


def require_map(method: str) -> None:
    """Raises ValueError: the library that draws this map is not installed."""
    name, library, extra = MAPS[method]
    if importlib.util.find_spec(library) is None:
        raise ValueError(f"A {name} picture needs {library}: pip install 'jaxclip[{extra}]'.")
