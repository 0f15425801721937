"""The shape of the embedding space: distances between distributions, gaps, spread, rank.

Open-PMC compares distributions by a maximum mean discrepancy (its branch statistical_analysis).
Here it is the unbiased statistic, with one projection and one bandwidth for both samples, and the
p-value is of a permutation test that counts the sample itself as one of the permutations.

Shape letters: N, M samples, E embedding, P permutations.
"""

import dataclasses

import numpy as np

SAMPLES = 2000  # of each side at most: kernels are quadratic


@dataclasses.dataclass(slots=True, kw_only=True)
class Discrepancy:
    mmd2: float  # unbiased: may be below 0
    p_value: float  # of both samples being from one distribution
    bandwidth: float


def mmd(
    x_NE: np.ndarray, y_ME: np.ndarray, *, dims: int = 0, permutations: int = 200, seed: int = 0
) -> Discrepancy:
    """Unbiased MMD^2 (Gretton et al. 2012, Lemma 6), Gaussian kernel exp(-d^2 / (2 bandwidth^2)).

    The bandwidth is the median distance of the pooled sample; p = (1 + as large or larger) /
    (1 + permutations).

    Args:
      dims: project both on so many principal components of the pooled sample; 0: as they are.
    """
    n, rng = len(x_NE), np.random.default_rng(seed)
    pooled = np.concatenate([x_NE, y_ME]).astype(np.float64)
    if dims:
        centered = pooled - pooled.mean(axis=0)
        pooled = centered @ np.linalg.svd(centered, full_matrices=False)[2][:dims].T
    distance2 = squared_distances(pooled, pooled)
    bandwidth2 = float(np.median(distance2[np.triu_indices(len(pooled), 1)]))
    bandwidth2 = bandwidth2 or 1.0  # more than half of the points are one
    kernel = np.exp(-distance2 / (2 * bandwidth2))
    np.fill_diagonal(kernel, 0)
    in_x_PN = np.zeros((permutations + 1, len(pooled)))
    in_x_PN[0, :n] = 1
    for row in in_x_PN[1:]:
        row[rng.permutation(len(pooled))[:n]] = 1
    found_P = _mmd2(kernel, in_x_PN, n)
    p_value = (1 + (found_P[1:] >= found_P[0] - 1e-12).sum()) / (1 + permutations)
    return Discrepancy(
        mmd2=float(found_P[0]), p_value=float(p_value), bandwidth=float(bandwidth2**0.5)
    )


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
    values = np.linalg.svd(x_NE - x_NE.mean(axis=0), compute_uv=False)
    if not values.sum():
        return 1.0
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def cka(x_NE: np.ndarray, y_ND: np.ndarray) -> float:
    """Linear centred kernel alignment of two representations of the same N inputs.

    With the unbiased HSIC (Song et al. 2007; Nguyen et al. 2021, arXiv:2010.15327, eq. 3): the
    plain one (Kornblith et al. 2019) goes to 1 for unrelated ones when N is not much above E.
    """
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


def describe(image_NE: np.ndarray, text_NE: np.ndarray | None, seed: int = 0) -> dict[str, float]:
    """All of the above for one set; of at most SAMPLES pairs, drawn by the seed."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(image_NE))[:SAMPLES])
    image_NE = image_NE[chosen].astype(np.float64)
    found = {
        "image_uniformity": uniformity(image_NE),
        "image_effective_rank": effective_rank(image_NE),
    }
    if text_NE is None:
        return found
    text_NE = text_NE[chosen].astype(np.float64)
    discrepancy = mmd(image_NE, text_NE, seed=seed)
    return found | {
        "text_uniformity": uniformity(text_NE),
        "text_effective_rank": effective_rank(text_NE),
        "alignment": alignment(image_NE, text_NE),
        "modality_gap": modality_gap(image_NE, text_NE),
        "mmd2_image_text": discrepancy.mmd2,
        "mmd2_image_text_p_value": discrepancy.p_value,
    }


def plane(x_NE: np.ndarray, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Points [N, 2] for a picture: "tsne" (scikit-learn) or "umap" (umap-learn).

    Raises:
      ValueError: the library is not installed.
    """
    try:
        if method == "umap":
            from umap import UMAP  # pyright: ignore[reportMissingImports]

            return UMAP(metric="cosine", random_state=seed).fit_transform(x_NE)  # pyright: ignore
        from sklearn.manifold import TSNE  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"A {method} picture needs {error.name}: pip install jaxclip[eval]."
        ) from None
    perplexity = min(30.0, (len(x_NE) - 1) / 3)
    return TSNE(metric="cosine", random_state=seed, perplexity=perplexity).fit_transform(x_NE)
