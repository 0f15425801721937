"""Ranks, ties, several right answers and chance: by hand, against counting and other libraries.

Shape letters: Q queries, M targets, E embedding.
"""

import itertools

import numpy as np
import pytest

from jaxclip.evals import retrieval as retrieval_lib
from jaxclip.evals.base import Embeddings
from jaxclip.evals.retrieval import chance_recall, label_retrieval, pair_ranks, repeated, retrieval
from tests.evals.fixture import expected


def embeddings(image, text, image_id=None, caption_id=None, **more):
    image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
    rows = np.arange(len(image))
    return Embeddings(
        image_NE=image,
        text_NE=text,
        record_N=rows,
        image_id_N=rows if image_id is None else np.asarray(image_id),
        caption_id_N=rows if caption_id is None else np.asarray(caption_id),
        **more,
    )


def scores(*args, **kwargs):
    """{evaluator/metric: value} of retrieval()."""
    found = retrieval(*args, **kwargs)
    return {f"{m.name}/{k}": v for m in found for k, v in (m.values() | m.counts).items()}


def test_wrong_answers_before_the_right_ones_with_ties():
    score_QM = np.array(
        [
            [0.9, 0.1, 0.2, 0.3],  # target 0 is right and best
            [0.5, 0.5, 0.1, 0.0],  # target 1 is right, 0 ties with it: against us
            [0.8, 0.7, 0.6, 0.6],  # 2 and 3 are right and tie with each other: not against us
        ],
        np.float32,
    )
    pairs = np.array([[0, 0], [1, 1], [2, 2], [2, 3]])
    for_query, for_target = pair_ranks(score_QM, np.eye(4, dtype=np.float32), pairs)
    assert for_query.tolist() == [0, 1, 2, 2]
    # columns: .9 of (.9 .5 .8); .5 of (.1 .5 .7); .6 of (.2 .1 .6); .6 of (.3 0 .6)
    assert for_target.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("scores_at_a_time", [1 << 25, 320])
def test_ranks_equal_counting_in_float64(scores_at_a_time, monkeypatch):
    monkeypatch.setattr(retrieval_lib, "SCORES", scores_at_a_time)  # 320: chunks of 8 queries
    rng = np.random.default_rng(0)
    # eighths: products are exact in float32, and ties are many
    query_QE = rng.integers(-4, 5, (30, 3)).astype(np.float32) / 8
    target_ME = rng.integers(-4, 5, (40, 3)).astype(np.float32) / 8
    is_right_QM = rng.random((30, 40)) < 0.05
    is_right_QM[np.arange(30), rng.integers(0, 40, 30)] = True
    is_right_QM[7, :25] = True  # many right answers: up to five levels of thresholds
    pairs = np.argwhere(is_right_QM)
    score_QM = np.float64(query_QE) @ np.float64(target_ME).T
    score_P = score_QM[tuple(pairs.T)]
    wrong_QM = np.where(is_right_QM, -np.inf, score_QM)
    for_query, for_target = pair_ranks(query_QE, target_ME, pairs)
    assert for_query.tolist() == (wrong_QM[pairs[:, 0]] >= score_P[:, None]).sum(1).tolist()
    assert for_target.tolist() == (wrong_QM[:, pairs[:, 1]] >= score_P).sum(0).tolist()
    assert len(set(for_query)) > 10


def test_several_captions_an_image_and_shared_captions():
    # Records: image 10 with captions 1 and 2, image 20 with caption 2 as well, image 30 with 3.
    found = embeddings(
        image=[[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
        text=[[0.9, 0.3, 0], [0.4, 0.8, 0.1], [0.4, 0.8, 0.1], [0.2, 0.9, 0.5]],
        image_id=[10, 10, 20, 30],
        caption_id=[1, 2, 2, 3],
    )
    metrics = scores(found)
    assert metrics["image_to_text/images"] == metrics["image_to_text/captions"] == 3
    assert metrics["image_to_text/records_of_repeated_captions"] == 2
    assert metrics["image_to_text/records_of_repeated_images"] == 2
    # Images score captions 1, 2, 3 as (.9 .4 .2), (.3 .8 .9), (0 .1 .5): ranks 1, 2, 1.
    assert metrics["image_to_text/recall@1"] == pytest.approx(2 / 3)
    assert metrics["image_to_text/mrr"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    # Image 10: right at 1 and 2, precision 1 and 1; 20: right at 2, 1/2; 30: 1.
    assert metrics["image_to_text/map"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    # Captions score images as (.9 .3 0), (.4 .8 .1), (.2 .9 .5): ranks 1, 1 (image 20), 2.
    assert metrics["text_to_image/recall@1"] == pytest.approx(2 / 3)
    assert metrics["text_to_image/median_rank"] == 1
    # Caption 2 is right for images 20 (place 1) and 10 (place 2).
    assert metrics["text_to_image/map"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    image_to_text, text_to_image = retrieval(found)
    # Image 10 has two right captions of three, the others one; so has caption 2.
    assert image_to_text.chance["recall@1"] == pytest.approx((2 + 1 + 1) / 9)
    assert text_to_image.chance["recall@1"] == pytest.approx((1 + 2 + 1) / 9)


def test_captions_of_the_same_study_are_right():
    # One study has two views with a report each; each view is nearer to the other one's report.
    image, text = np.eye(3), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert scores(embeddings(image, text))["image_to_text/recall@1"] == pytest.approx(1 / 3)
    found = scores(embeddings(image, text, study_N=np.array([5, 5, 9])))
    assert found["image_to_text/recall@1"] == found["text_to_image/recall@1"] == 1


def test_the_published_protocol_counts_an_equal_caption_as_wrong():
    image = np.eye(2)[[0, 0, 1]]  # two images of one caption, and another
    found = embeddings(image, image, caption_id=[1, 1, 2])
    assert scores(found)["image_to_text/recall@1"] == 1
    published = scores(found, protocol="open_pmc")
    # the tie stands in order of position: record 1 finds record 0's copy of its caption first
    assert published["image_to_text/recall@1"] == pytest.approx(2 / 3)
    assert published["image_to_text/mrr"] == pytest.approx((1 + 1 / 2 + 1) / 3)


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
def test_equal_to_torchmetrics_and_clip_benchmark(direction):
    given, reference = expected("retrieval")
    rows, columns = np.nonzero(given["positive"])
    found = scores(embeddings(given["image"][rows], given["text"][columns], rows, columns))
    for name in ("recall@1", "recall@5", "recall@10", "mrr", "map"):
        # they average in float32
        assert found[f"{direction}/{name}"] == pytest.approx(
            reference[f"{direction}/{name}"], abs=1e-6
        )


def test_images_by_label():
    # on a line: labels a a b a b; the query itself is never an answer
    angle = np.array([0, 0.1, 0.25, 0.45, 0.7])
    image = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    found = label_retrieval(image, np.array([0, 0, 1, 0, 1]), np.arange(5)).values()
    # orders by distance: 1 2 3 4: a b a b | 0 2 3 4 | 1 3 0 4: a a a b | 2 4 1 0: b b a a | 3 2 1 0
    places = [[1, 3], [1, 3], [4], [3, 4], [2]]
    assert found["recall@1"] == 2 / 5
    assert found["mrr"] == pytest.approx(np.mean([1 / p[0] for p in places]))
    precision = [np.mean([(i + 1) / place for i, place in enumerate(p)]) for p in places]
    assert found["map"] == pytest.approx(np.mean(precision))


def test_chance_of_images_by_label():
    """Of 5 others, 2 are right for each of 3 images of a class, 1 for each of 2; one is alone."""
    found = label_retrieval(np.eye(6, dtype=np.float32), np.array([0, 0, 0, 1, 1, 2]), np.arange(6))
    assert found.num_units == 5 and repeated(np.array([30, -1, 30, 2, 30])) == 3
    assert found.chance["recall@1"] == pytest.approx((3 * 2 / 5 + 2 * 1 / 5) / 5)
    assert "recall@5" not in found.chance  # of 5 others the best 5 are all


def test_images_by_label_ties_are_against_us():
    found = label_retrieval(np.ones((4, 1), np.float32), np.array([0, 0, 1, 1]), np.arange(4))
    assert found.values()["mrr"] == 1 / 3  # after both images of the other class


@pytest.mark.parametrize("scores_at_a_time", [1, 1 << 25])  # 8 queries at a time; all
def test_images_by_label_equal_sorting_in_float64(scores_at_a_time, monkeypatch):
    monkeypatch.setattr(retrieval_lib, "SCORES", scores_at_a_time)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 8))
    image[40:50], image[50:] = image[:10], -image[:10]  # cosines of 1 and -1
    image = (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32)
    label = rng.integers(0, 5, 60)
    found = label_retrieval(image, label, np.arange(60))
    reciprocal, average = [], []
    for i in range(60):
        right = np.delete(label == label[i], i)
        score = np.delete(image.astype(float) @ image[i].astype(float), i) - 1e-6 * right
        places = 1 + np.flatnonzero(right[np.argsort(-score)])
        reciprocal.append(1 / places[0])
        average.append((np.arange(1, 1 + len(places)) / places).mean())
    np.testing.assert_allclose(found.items["mrr"], reciprocal, rtol=1e-6)
    np.testing.assert_allclose(found.items["map"], average, rtol=1e-5)


@pytest.mark.parametrize("num_targets", [1, 4, 6])
@pytest.mark.parametrize("num_right", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_chance_recall_equals_enumeration(num_targets, num_right, k):
    num_right = min(num_right, num_targets)
    first_k = list(itertools.combinations(range(num_targets), min(k, num_targets)))
    by_hand = np.mean([min(chosen) < num_right for chosen in first_k])
    found = chance_recall(np.array([num_right]), num_targets, k)
    np.testing.assert_allclose(found, [by_hand], rtol=1e-12)


def test_collapsed_embeddings_have_no_recall():
    # 61 x 23: not a size at which a matrix product treats every column alike
    same_NE = np.tile(np.array([[0.6, 0.48, 0.64] + [0.0] * 20]), (61, 1))
    for measured in retrieval(embeddings(same_NE, same_NE)):
        assert measured.values()["recall@10"] == 0
        assert measured.values()["median_rank"] == 61
        assert measured.chance["recall@10"] == pytest.approx(10 / 61)


def test_perfect_embeddings_have_full_recall():
    found = scores(embeddings(np.eye(12), np.eye(12)))
    assert found["image_to_text/recall@1"] == found["text_to_image/recall@1"] == 1
    assert "image_to_text/recall@50" not in found  # of 12 targets it is 1, whatever the model


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["image", "text"])
def test_embeddings_that_are_not_finite_are_refused(side, value):
    arrays = {"image": np.eye(3), "text": np.eye(3)}
    arrays[side] = np.where(np.arange(3)[:, None] == 2, value, np.eye(3))
    with pytest.raises(FloatingPointError, match=f"{side} embeddings of 1 of 3 .* record 2:"):
        embeddings(**arrays)


def test_items_are_what_the_means_are_of():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 40, 4))
    for measured in retrieval(embeddings(image, text, group_N=np.arange(40) // 3)):
        values = measured.values()
        assert measured.items.keys() == values.keys() - {"median_rank"}
        for metric, value_U in measured.items.items():
            assert len(value_U) == measured.num_units
            assert np.mean(value_U) == pytest.approx(values[metric], abs=1e-12)
            of_three = measured.metrics(np.array([5, 5, 7]))[metric]  # and of any units
            assert np.mean(value_U[[5, 5, 7]]) == pytest.approx(of_three, abs=1e-12)
