"""Distances of distributions and shapes of the space, against sums written out.

Shape letters: N samples, E embedding.
"""

import importlib.util
import sys
import types

import numpy as np
import pytest

from jaxclip.evals.representation import (
    SAMPLES,
    alignment,
    cka,
    describe,
    effective_rank,
    mmd,
    modality_gap,
    plane,
    representation,
    sample,
    uniformity,
)
from jaxclip.evals.uncertainty import bootstrap


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


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_sample_is_of_the_whole_set():
    """The first rows are those of the first class, where folders are read in order."""
    chosen = sample(5000)
    assert len(set(chosen)) == SAMPLES and (np.diff(chosen) > 0).all()
    # a tenth of 2000, within 6 standard deviations of the hypergeometric (10.4)
    assert abs((chosen < 500).sum() - 200) < 63
    assert sample(30).tolist() == list(range(30))
    # 4 classes in order, as two models see them, each in its own coordinates
    rng = np.random.default_rng(0)
    centre = np.repeat(rng.normal(size=(4, 8)) * 2, 2000, axis=0)
    turns = [np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(2)]
    one, two = (unit(centre @ turn + rng.normal(size=(8000, 8))) for turn in turns)
    rows = sample(8000)
    assert cka(one[rows], two[rows]) > 0.5 and abs(cka(one[:2000], two[:2000])) < 0.05


def test_rows_of_an_article_are_permuted_together():
    """20 articles of 10 alike rows, in two samples that differ by chance alone."""
    rng, p = np.random.default_rng(0), {True: [], False: []}
    for trial in range(20):
        x = np.repeat(rng.normal(size=(20, 3)), 10, axis=0) + 0.1 * rng.normal(size=(200, 3))
        group = np.repeat(np.arange(20), 10)
        for known in p:
            groups = (group[:100], group[100:]) if known else None
            found = mmd(x[:100], x[100:], groups=groups, permutations=60, seed=trial)
            p[known].append(found.p_value)
    # uniform on (0, 1): at most 5 of 20 below 0.1 but with probability 0.01
    assert sum(value < 0.1 for value in p[True]) <= 5
    assert sum(value < 0.1 for value in p[False]) >= 15  # rows alone say that they differ


def test_modalities_are_compared_with_each_other():
    modality = np.array(["CT"] * 30 + ["MRI"] * 30 + ["other"] * 5 + ["US"] * 30, object)
    image = unit(normal(1, 95) + 3 * (modality == "US")[:, None] * [1, 0, 0, 0, 0, 0])
    found = representation(image, unit(normal(2, 95)), np.arange(95), modality)
    assert {name for name in found.counts if name.endswith("p_value")} == {
        f"mmd2_{name}_p_value" for name in ("image_text", "CT_MRI", "CT_US", "MRI_US")
    }
    assert found.counts["modalities_with_few_images"] == 1
    assert (
        found.counts["mmd2_CT_US_p_value"] == 1 / 201 < 0.05 < found.counts["mmd2_CT_MRI_p_value"]
    )
    values, intervals = found.values(), bootstrap(found)
    assert set(values) == set(describe(image, image)) and values["modality_gap"] > 0
    for name, interval in intervals.items():
        assert interval.low < values[name] < interval.high, name
    only = representation(image, None, np.arange(95))
    assert set(only.values()) == {"image_uniformity", "image_effective_rank"} and not only.counts


def test_plane_keeps_two_clusters_apart():
    pytest.importorskip("sklearn")
    x = np.concatenate([normal(0, 20, shift=8), normal(1, 20, shift=-8)])
    points = plane(x)
    assert points.shape == (40, 2)
    centres = points[:20].mean(axis=0), points[20:].mean(axis=0)
    spread = np.linalg.norm(points[:20] - centres[0], axis=1).mean()
    assert np.linalg.norm(centres[0] - centres[1]) > spread


def test_a_map_that_cannot_be_drawn_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs umap: pip install 'jaxclip\[umap\]'"):
        plane(normal(0, 9), "umap")


def test_umap_is_given_the_cosine_the_seed_and_no_more_neighbours_than_there_are(monkeypatch):
    """Of umap-learn's arguments; itself it compiles for 12 s of CPU."""
    given = {}

    class UMAP:
        def __init__(self, **options):
            given.update(options)

        def fit_transform(self, x):
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP, __spec__="here"))
    assert plane(normal(0, 9), "umap").shape == (9, 2)
    assert given == {"n_neighbors": 8, "metric": "cosine", "random_state": 0, "n_jobs": 1}
