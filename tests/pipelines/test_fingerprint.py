"""Hashes of real changes to pictures; clusters against all pairs compared one by one."""

import cv2
import numpy as np
import pytest
import simplejpeg

from data_pipelines import fingerprint
from data_pipelines.fingerprint import caption_hash, near_duplicates, perceptual_hash
from data_pipelines.synthetic_captions import Facts
from data_pipelines.synthetic_figures import draw


def _distance(a: int, b: int) -> int:
    return ((a ^ b) & (2**64 - 1)).bit_count()


@pytest.fixture(scope="module")
def pictures():
    kinds = [
        Facts(modality="ct", organ="head", finding="normal"),
        Facts(modality="radiograph", organ="chest", finding="normal"),
        Facts(modality="histology", organ="liver", finding="fibrosis", stain="H&E"),
        Facts(modality="chart", finding="bar chart", count=4, trend="increasing"),
    ]
    return [draw(np.random.default_rng(i), facts, 256) for i, facts in enumerate(kinds * 3)]


@pytest.mark.parametrize(
    "change",
    [
        lambda p: simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(p, 30)),
        lambda p: cv2.resize(p, (97, 97), interpolation=cv2.INTER_AREA),
        lambda p: cv2.resize(p, (700, 500), interpolation=cv2.INTER_CUBIC),
        lambda p: (p * 0.7 + 40).astype(np.uint8),
        lambda p: np.repeat(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2),
    ],
    ids=["jpeg 30", "smaller", "larger and wider", "contrast", "grey"],
)
def test_hash_survives_re_encoding_and_resizing(pictures, change):
    """4 of 64 bits: those of coefficients next to the median. Unrelated pictures: 32 +- 4."""
    for picture in pictures:
        assert _distance(perceptual_hash(picture), perceptual_hash(change(picture))) <= 4


def test_hash_tells_pictures_apart(pictures):
    for picture in pictures:
        for other in (picture[:, ::-1], picture[::-1], np.rot90(picture)):
            assert _distance(perceptual_hash(picture), perceptual_hash(other)) > 4
    a, b, c, d = (perceptual_hash(picture) for picture in pictures[:4])
    assert min(_distance(*pair) for pair in [(a, b), (a, c), (a, d), (b, c), (b, d)]) > 8


def test_hash_is_an_int64_with_half_of_its_bits_set(pictures):
    for picture in pictures:
        value = perceptual_hash(picture)
        assert np.int64(value) == value
        assert _distance(value, 0) == 32  # by definition of the median


def test_blank_images_are_the_same_image():
    rng = np.random.default_rng(0)
    noise = rng.integers(253, 256, (80, 60, 3)).astype(np.uint8)
    assert perceptual_hash(np.full((9, 200, 3), 7, np.uint8)) == perceptual_hash(noise) == 0


def test_caption_hash_is_of_the_words():
    assert caption_hash("Fig. 1: (a) CT") == caption_hash("fig 1 (A) — CT.")
    assert caption_hash("naïve  T\ncells") == caption_hash("naive T cells")
    assert caption_hash("5 µm") != caption_hash("5 mm")
    assert caption_hash("CT of A1") != caption_hash("CT of A 1")
    assert caption_hash(" .") == 0


def _slow_clusters(hashes, max_distance):
    """Every pair by itself, and a flood."""
    cluster = list(range(len(hashes)))
    for i, first in enumerate(hashes):
        for j in range(i):
            if _distance(int(first), int(hashes[j])) <= max_distance:
                old, new = max(cluster[i], cluster[j]), min(cluster[i], cluster[j])
                cluster = [new if c == old else c for c in cluster]
    return cluster


def _hashes(rng, num_seeds, copies, flips):
    """Random hashes, each with copies of which some bits are flipped; shuffled."""
    seeds = rng.integers(-(2**63), 2**63 - 1, num_seeds, dtype=np.int64)
    hashes = np.repeat(seeds, copies)
    for _ in range(flips):
        bit = np.int64(1) << rng.integers(0, 63, len(hashes), dtype=np.int64)
        hashes = np.where(rng.random(len(hashes)) < 0.7, hashes ^ bit, hashes)
    return rng.permutation(hashes)


@pytest.mark.parametrize("max_distance", [0, 1, 2, 3, 4, 6, 7, 8, 11, 16])
def test_clusters_are_those_of_all_pairs(max_distance):
    rng = np.random.default_rng(max_distance)
    hashes = _hashes(rng, 40, 6, max_distance + 2)
    hashes[3], hashes[200] = -1, np.int64(2**63 - 1)  # one apart, in the sign
    clusters = near_duplicates(hashes, max_distance)
    assert clusters.dtype == np.int64
    assert clusters.tolist() == _slow_clusters(hashes, max_distance)


@pytest.mark.parametrize("max_distance", [3, 6, 9])
def test_every_way_of_cutting_the_bits_finds_every_pair(max_distance, monkeypatch):
    """Also in blocks smaller than a bucket, and joined many times."""
    rng = np.random.default_rng(1)
    hashes = _hashes(rng, 30, 5, max_distance)
    expected = _slow_clusters(hashes, max_distance)
    monkeypatch.setattr(fingerprint, "BLOCK_PAIRS", 7)
    for num_chunks in range(4, max_distance + 4):
        monkeypatch.setattr(fingerprint, "_best_num_chunks", lambda *_, n=num_chunks: n)
        assert near_duplicates(hashes, max_distance).tolist() == expected


def test_each_candidate_pair_comes_once():
    keys = np.sort(np.random.default_rng(0).integers(0, 16, 50))
    pairs = [
        (int(a), int(b))
        for left, right in fingerprint._candidates(keys, 4, 2)
        for a, b in zip(left, right, strict=True)
    ]
    expected = {
        (a, b) for b in range(50) for a in range(b) if int(keys[a] ^ keys[b]).bit_count() <= 2
    }
    assert len(pairs) == len(set(pairs)) and set(pairs) == expected


def test_many_equal_hashes_cost_nothing():
    """A million blank images would be 5e11 pairs."""
    hashes = np.zeros(1_000_000, np.int64)
    hashes[-2:] = 3, -5
    clusters = near_duplicates(hashes, 1)
    assert clusters[:-2].max() == 0 and clusters[-2:].tolist() == [999_998, 999_999]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"max_distance \(17\) must be 0 to 16"):
        near_duplicates(np.zeros(2, np.int64), 17)
    with pytest.raises(ValueError, match=r"hashes \(uint64, shape \(2,\)\) must be int64"):
        near_duplicates(np.zeros(2, np.uint64), 2)
    assert near_duplicates(np.zeros(0, np.int64), 4).tolist() == []
