"""Distances of distributions and shapes of the space, against sums written out.

Shape letters: N samples, E embedding.
"""

import numpy as np
import pytest

from jaxclip.evals.representation import (
    alignment,
    cka,
    describe,
    effective_rank,
    mmd,
    modality_gap,
    plane,
    uniformity,
)


def normal(seed, n, e=6, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, e)) + shift


def test_mmd_is_the_unbiased_statistic_written_out():
    x, y = normal(0, 7), normal(1, 9, shift=0.5)
    found = mmd(x, y, permutations=1)
    pooled = np.concatenate([x, y])
    distances = [np.linalg.norm(a - b) for i, a in enumerate(pooled) for b in pooled[:i]]
    assert found.bandwidth == pytest.approx(np.median(distances))

    def kernel(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * found.bandwidth**2))

    xx = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([kernel(a, b) for a in x for b in y])
    assert found.mmd2 == pytest.approx(xx + yy - 2 * xy, abs=1e-12)


def test_mmd_p_values_are_those_of_chance_where_nothing_differs():
    """Uniform under the null: the mean of 60 is 0.5 within 4 of its standard errors (0.037)."""
    p = [mmd(normal(2 * s, 25), normal(2 * s + 1, 25), permutations=50).p_value for s in range(60)]
    assert abs(np.mean(p) - 0.5) < 0.15 and min(p) >= 1 / 51
    different = mmd(normal(0, 40), normal(1, 40, shift=1.0), permutations=99)
    assert different.p_value == 1 / 100  # no permutation reaches it


def test_one_projection_for_both():
    """Two samples that differ along an axis that neither varies along by itself."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 60, 5)) * [1, 1, 1, 1, 0]
    y[:, 4] = 5
    # a PCA of each matrix would never see the last axis
    assert mmd(x, y, dims=2, permutations=99).p_value == 1 / 100


def test_alignment_uniformity_and_gap_by_hand():
    image, text = np.array([[1.0, 0], [0, 1]]), np.array([[0.0, 1], [0, 1]])
    assert alignment(image, text) == pytest.approx(1)  # squared distances 2 and 0
    assert uniformity(image) == pytest.approx(-4)  # log exp(-2 * 2)
    assert modality_gap(image, text) == pytest.approx(0.5**0.5)  # (.5, .5) and (0, 1)


def test_effective_rank():
    assert effective_rank(np.concatenate([np.eye(4), -np.eye(4)])) == pytest.approx(4)
    assert effective_rank(np.outer(np.arange(5.0), [1, 2])) == pytest.approx(1)


def test_cka():
    x = normal(0, 50, 8)
    turned = x @ np.linalg.qr(normal(1, 8, 8))[0] * 3 + 7
    assert cka(x, turned) == pytest.approx(1)  # rotation, scale and shift do not matter
    # unrelated, with as many dimensions as samples: the biased estimate is near 0.5
    found = [cka(normal(s, 50, 50), normal(s + 100, 50, 50)) for s in range(20)]
    assert abs(np.mean(found)) < 0.05


def test_describe_draws_the_same_sample():
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (normal(0, 30), normal(1, 30)))
    assert describe(x, y) == describe(x, y)
    assert set(describe(x, None)) == {"image_uniformity", "image_effective_rank"}


def test_plane_keeps_two_clusters_apart():
    pytest.importorskip("sklearn")
    x = np.concatenate([normal(0, 20, shift=8), normal(1, 20, shift=-8)])
    points = plane(x)
    assert points.shape == (40, 2)
    centres = points[:20].mean(axis=0), points[20:].mean(axis=0)
    spread = np.linalg.norm(points[:20] - centres[0], axis=1).mean()
    assert np.linalg.norm(centres[0] - centres[1]) > spread
