"""Ranks, ties and chance on matrices one can read, and against float64 counting.

Shape letters: Q queries, M targets, E embedding.
"""

import itertools

import numpy as np
import pytest

from jaxclip.evals import retrieval as retrieval_lib
from jaxclip.evals.base import Embeddings
from jaxclip.evals.retrieval import chance_recall, ranks, retrieval, right_answers


def scored(score_QM):
    """Embeddings whose inner products are just these scores."""
    score_QM = np.asarray(score_QM, np.float32)
    return score_QM, np.eye(score_QM.shape[1], dtype=np.float32)


def embeddings(image, text, image_id, caption_id):
    image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
    return Embeddings(
        image_NE=image,
        text_NE=text,
        record_N=np.arange(len(image)),
        image_id_N=np.asarray(image_id),
        caption_id_N=np.asarray(caption_id),
    )


def test_ranks_on_a_matrix_with_ties():
    query_QE, target_ME = scored(
        [
            [0.9, 0.1, 0.2, 0.3],  # target 0 is right and best
            [0.5, 0.5, 0.1, 0.0],  # target 1 is right, 0 ties with it: against us
            [0.8, 0.7, 0.6, 0.6],  # 2 and 3 are right and tie with each other: not against us
        ]
    )
    right_QR = right_answers(np.array([[2, 2], [0, 0], [2, 3], [1, 1]]), 3)
    assert right_QR.tolist() == [[0, -1], [1, -1], [2, 3]]
    assert ranks(query_QE, target_ME, right_QR).tolist() == [1, 2, 3]


def test_the_best_of_several_right_targets_counts():
    query_QE, target_ME = scored([[0.1, 0.9, 0.5, 0.2]])
    for right, rank in (([1, 3], 1), ([2, 3], 2), ([0, 3], 3), ([0, 2], 2), ([0], 4)):
        assert ranks(query_QE, target_ME, np.array([right])).tolist() == [rank]


def test_several_captions_an_image_and_shared_captions():
    # Records: image 10 with captions 1 and 2, image 20 with caption 2 as well, image 30 with 3.
    metrics = retrieval(
        embeddings(
            image=[[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
            text=[[0.9, 0.3, 0], [0.4, 0.8, 0.1], [0.4, 0.8, 0.1], [0.2, 0.9, 0.5]],
            image_id=[10, 10, 20, 30],
            caption_id=[1, 2, 2, 3],
        )
    )
    assert (metrics["images"], metrics["captions"]) == (3, 3)
    # Images score captions 1, 2, 3 as (.9 .4 .2), (.3 .8 .9), (0 .1 .5): ranks 1, 2, 1.
    assert metrics["image_to_text/recall@1"] == pytest.approx(2 / 3)
    assert metrics["image_to_text/recall@5"] == 1
    # Captions score images as (.9 .3 0), (.4 .8 .1), (.2 .9 .5): ranks 1, 1 (image 20), 2.
    assert metrics["text_to_image/recall@1"] == pytest.approx(2 / 3)
    assert metrics["text_to_image/median_rank"] == 1
    # Image 10 has two right captions of three, the others one; so has caption 2.
    assert metrics["image_to_text/chance_recall@1"] == pytest.approx((2 + 1 + 1) / 9)
    assert metrics["text_to_image/chance_recall@1"] == pytest.approx((1 + 2 + 1) / 9)


@pytest.mark.parametrize("chunk", [1024, 7])
def test_ranks_equal_counting_in_float64(chunk, monkeypatch):
    monkeypatch.setattr(retrieval_lib, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    # eighths: products are exact in float32, and ties are many
    query_QE = rng.integers(-4, 5, (30, 3)).astype(np.float32) / 8
    target_ME = rng.integers(-4, 5, (40, 3)).astype(np.float32) / 8
    is_right_QM = rng.random((30, 40)) < 0.05
    is_right_QM[np.arange(30), rng.integers(0, 40, 30)] = True
    expected = []
    for query, is_right_M in zip(np.float64(query_QE), is_right_QM, strict=True):
        score_M = np.float64(target_ME) @ query
        wrong_M = score_M[~is_right_M]
        expected.append(1 + (wrong_M >= score_M[is_right_M].max()).sum())
    assert len(set(expected)) > 10
    right_QR = right_answers(np.argwhere(is_right_QM), 30)
    assert ranks(query_QE, target_ME, right_QR).tolist() == expected


@pytest.mark.parametrize("num_targets", [1, 4, 6])
@pytest.mark.parametrize("num_right", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_chance_recall_equals_enumeration(num_targets, num_right, k):
    num_right = min(num_right, num_targets)
    first_k = list(itertools.combinations(range(num_targets), min(k, num_targets)))
    expected = np.mean([min(chosen) < num_right for chosen in first_k])
    found = chance_recall(np.array([num_right]), num_targets, k)
    np.testing.assert_allclose(found, [expected], rtol=1e-12)


def test_collapsed_embeddings_have_no_recall():
    # 61 x 23: not a size at which a matrix product treats every column alike
    same_NE = np.tile(np.array([[0.6, 0.48, 0.64] + [0.0] * 20]), (61, 1))
    metrics = retrieval(embeddings(same_NE, same_NE, range(61), range(61)))
    for name in ("image_to_text", "text_to_image"):
        assert metrics[f"{name}/recall@10"] == 0
        assert metrics[f"{name}/median_rank"] == 61
        assert metrics[f"{name}/chance_recall@10"] == pytest.approx(10 / 61)


def test_perfect_embeddings_have_full_recall():
    metrics = retrieval(embeddings(np.eye(12), np.eye(12), range(12), range(12)))
    assert metrics["image_to_text/recall@1"] == metrics["text_to_image/recall@1"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["image", "text"])
def test_embeddings_that_are_not_finite_are_refused(side, value):
    arrays = {"image": np.eye(3), "text": np.eye(3)}
    arrays[side] = np.where(np.arange(3)[:, None] == 2, value, np.eye(3))
    with pytest.raises(FloatingPointError, match=f"{side} embeddings of 1 of 3 .* record 2:"):
        embeddings(**arrays, image_id=range(3), caption_id=range(3))
