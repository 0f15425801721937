"""Retrieval, with every right answer counted and every tie against us.

A wrong target comes before a right one if it scores higher or within TIE of it. TIE is just above
the rounding of a float32 inner product of unit vectors, so that equal embeddings tie on any device,
whatever the chunks: a model that maps everything to one point has recall 0, not 1.

Shape letters: N records, Q queries, M targets, R right targets a query, P right pairs, E embedding.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.evals.base import Embeddings, Measured

RECALL_AT = (1, 5, 10, 50, 200)
TIE = 1e-6
SCORES = 1 << 25  # scored at a time: 128 MiB of float32
PROTOCOLS = ("all_right", "open_pmc")


def retrieval(embeddings: Embeddings, protocol: str = "all_right") -> list[Measured]:
    """Image-to-text and text-to-image retrieval over one split.

    all_right: queries and targets are the different images and the different captions. A caption
    that stands under several images is one target, and right for each of them; so is every caption
    of the image's study where there are studies.
    open_pmc: as published with Open-PMC (arXiv:2503.14377; mmlearn's RetrievalRecallAtK): every
    record is a query and a target, only its own pair is right, equal captions are wrong answers.
    There torch.topk orders ties as it likes; here they stand in order of position.

    Returns:
      image_to_text and text_to_image: recall@k in [0, 1] for the k of RECALL_AT below the number of
      targets, median_rank (of the best right answer, from 1), mrr, map; chance of recall@k, of a
      random order with the same right answers.
    """
    assert protocol in PROTOCOLS, protocol
    found = _own_pair(embeddings) if protocol == "open_pmc" else _all_right(embeddings)
    for measured in found:
        measured.method = f"protocol {protocol}"
    return found


def _all_right(embeddings: Embeddings) -> list[Measured]:
    images, first_image, image_of_N = np.unique(
        embeddings.image_id_N, return_index=True, return_inverse=True
    )
    captions, first_caption, caption_of_N = np.unique(
        embeddings.caption_id_N, return_index=True, return_inverse=True
    )
    pairs = np.stack([image_of_N, caption_of_N], axis=1)
    if embeddings.study_N is not None:
        pairs = np.concatenate([pairs, _within_studies(embeddings.study_N, pairs)])
    pairs = np.unique(pairs, axis=0)
    ranks = pair_ranks(embeddings.image_NE[first_image], embeddings.text_NE[first_caption], pairs)
    counts = {
        "images": len(images),
        "captions": len(captions),
        "records_of_repeated_images": repeated(image_of_N),
        "records_of_repeated_captions": repeated(caption_of_N),
    }
    group_N = np.asarray(embeddings.group_N)
    return [
        _measured("image_to_text", pairs, ranks[0], len(captions), first_image, group_N, counts),
        _measured(
            "text_to_image", pairs[:, ::-1], ranks[1], len(images), first_caption, group_N, counts
        ),
    ]


def label_retrieval(image_NE: np.ndarray, label_N: np.ndarray, group_N: np.ndarray) -> Measured:
    """Image-to-image: of all other images, those with the query's label are right.

    Images of classes with one image have no right answer and are no queries; they stay targets. At
    least one class must have two.
    Chance is a random order's: a network that was never trained is well above it, as pixels that
    are alike give embeddings that are alike. Compare with RUN:random.

    Args:
      label_N: int.
    """
    of_class = np.bincount(label_N)[label_N] - 1
    queries = np.flatnonzero(of_class > 0)
    assert len(queries), "no class has two images"
    rank_Q, ap_Q = [], []
    on_device_NE, on_device_N = jnp.asarray(image_NE), jnp.asarray(label_N)
    chunk = max(8, min(256, SCORES // len(image_NE)))
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk]
        rank, ap = _label_ranks(on_device_NE, on_device_N, jnp.asarray(rows))
        rank_Q.append(np.asarray(rank))
        ap_Q.append(np.asarray(ap))
    return _of_ranks(
        "image_to_image", np.concatenate(rank_Q), np.concatenate(ap_Q), of_class[queries],
        len(image_NE) - 1, queries, group_N, {"images": len(image_NE), "queries": len(queries)},
    )  # fmt: skip


def pair_ranks(
    query_QE: np.ndarray, target_ME: np.ndarray, pairs_P2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many wrong targets come before each right one, for its query; and the other way round.

    Each score is computed once, for both directions, and compared with those of the right pairs in
    its row and in its column. Memory: the embeddings and a few times SCORES, whatever Q and M.

    Args:
      pairs_P2: (query, target), int, each pair once.
    Returns:
      int [P]: wrong targets before the pair's target; wrong queries before the pair's query.
    """
    query, target = jnp.asarray(query_QE, jnp.float32), jnp.asarray(target_ME, jnp.float32)
    threshold_P = _pair_scores(query, target, pairs_P2) - TIE
    chunk = max(8, min(len(query), SCORES // len(target)))
    rows = _Side(pairs_P2[:, 0], len(query), threshold_P, multiple=chunk)
    columns = _Side(pairs_P2[:, 1], len(target), threshold_P)
    target = target[columns.order]
    column_levels = [jnp.asarray(level) for level in columns.levels]
    row_P, column_P = rows.place[pairs_P2[:, 0]], columns.place[pairs_P2[:, 1]]
    in_order = np.argsort(row_P, kind="stable")
    row_P, column_P = row_P[in_order], column_P[in_order]
    for start in range(0, len(query), chunk):
        # the last chunk is filled up with query 0, whose scores there are not counted
        chosen = np.zeros(chunk, np.int64)
        taken = rows.order[start : start + chunk]
        chosen[: len(taken)] = taken
        low, high = np.searchsorted(row_P, (start, start + chunk))
        right_2P = np.full((2, 1 << int(high - low).bit_length()), chunk)  # out of bounds: dropped
        right_2P[:, : high - low] = row_P[low:high] - start, column_P[low:high]
        row_levels = [level[start : start + chunk] for level in rows.levels if start < len(level)]
        by_row, by_column = _count_wrong(
            query[chosen], target, right_2P, row_levels, column_levels, len(taken)
        )
        rows.add(by_row, start)
        columns.add(by_column, 0)
    return rows.of_pairs(), columns.of_pairs()


@jax.jit
def _count_wrong(query_qE, target_ME, right_2P, row_levels, column_levels, num_queries):
    """Counts of wrong scores at or above each threshold of each row, and of each column."""
    score_qM = jnp.matmul(query_qE, target_ME.T, precision="highest")
    score_qM = score_qM.at[right_2P[0], right_2P[1]].set(-jnp.inf, mode="drop")
    score_qM = jnp.where(jnp.arange(len(query_qE))[:, None] < num_queries, score_qM, -jnp.inf)

    def count(scores, level, axis):
        thresholds = jnp.expand_dims(jnp.asarray(level).T, axis + 1)  # [W, n, 1] or [W, 1, n]
        return jax.lax.map(lambda t: (scores >= t).sum(axis, dtype=jnp.int32), thresholds)

    by_row = [count(score_qM[: len(level)], level, 1) for level in row_levels]
    return by_row, [count(score_qM[:, : len(level)], level, 0) for level in column_levels]


class _Side:
    """Thresholds of the right pairs of each query, or of each target.

    Those with the most right pairs stand first (`order`), so that level l, the right pairs number
    2^(l-1) to 2^l - 1 of each, is a dense table of a prefix, and all tables together have at most
    twice as many entries as there are pairs.
    """

    def __init__(
        self, index_P: np.ndarray, length: int, threshold_P: np.ndarray, multiple: int = 1
    ):
        number = np.bincount(index_P, minlength=length)
        self.order = np.argsort(-number, kind="stable")
        self.place = np.empty(length, np.int64)
        self.place[self.order] = np.arange(length)
        by_index = np.argsort(index_P, kind="stable")
        starts = np.cumsum(number) - number
        slot_P = np.empty(len(index_P), np.int64)  # number of the pair among those of its index
        slot_P[by_index] = np.arange(len(index_P)) - starts[index_P[by_index]]
        level_P = np.frexp(slot_P)[1]  # 0, 1, 2 2, 3 3 3 3, ...
        self.levels, self.counts, self.pairs = [], [], []
        for level in range(level_P.max() + 1):
            first = 1 << level >> 1
            rows = int((number > first).sum()) if level else length
            rows = -(-rows // multiple) * multiple
            pairs = np.flatnonzero(level_P == level)
            where = (self.place[index_P[pairs]], slot_P[pairs] - first)
            table = np.full((rows, max(first, 1)), np.inf, np.float32)
            table[where] = threshold_P[pairs]
            self.levels.append(table)
            self.counts.append(np.zeros(table.shape, np.int64))
            self.pairs.append((pairs, where))

    def add(self, counts: list, start: int) -> None:
        for total, count in zip(self.counts, counts, strict=False):
            count = np.asarray(count).T
            total[start : start + len(count)] += count

    def of_pairs(self) -> np.ndarray:
        found = np.empty(sum(len(pairs) for pairs, _ in self.pairs), np.int64)
        for (pairs, where), total in zip(self.pairs, self.counts, strict=True):
            found[pairs] = total[where]
        return found


def _pair_scores(query: jax.Array, target: jax.Array, pairs_P2: np.ndarray) -> np.ndarray:
    dot = jax.jit(lambda x, y: jnp.einsum("pe,pe->p", x, y, precision="highest"))
    return np.concatenate(
        [
            np.asarray(dot(query[part[:, 0]], target[part[:, 1]]))
            for part in np.array_split(pairs_P2, -(-len(pairs_P2) // 65536))
        ]
    )


def _within_studies(study_N: np.ndarray, pairs_N2: np.ndarray) -> np.ndarray:
    """All (image, caption) pairs of records of one study."""
    order = np.argsort(study_N, kind="stable")
    ends = np.flatnonzero(study_N[order][1:] != study_N[order][:-1]) + 1
    return np.concatenate(
        [
            np.stack(np.meshgrid(pairs_N2[part, 0], pairs_N2[part, 1]), -1).reshape(-1, 2)
            for part in np.split(order, ends)
        ]
    )


def repeated(id_N: np.ndarray) -> int:
    """How many have an id that others have, too."""
    number = np.unique(id_N, return_counts=True)[1]
    return int(number[number > 1].sum())


def _measured(name, pairs_P2, wrong_P, num_targets, row_Q, group_N, counts) -> Measured:
    """From the wrong answers before each right one to ranks and average precision of queries."""
    order = np.lexsort((wrong_P, pairs_P2[:, 0]))
    query_P, wrong_P = pairs_P2[order, 0], wrong_P[order]
    num_right_Q = np.bincount(query_P)
    first_Q = np.cumsum(num_right_Q) - num_right_Q
    nth_P = np.arange(len(query_P)) - first_Q[query_P] + 1  # right answers up to and with this one
    ap_Q = np.bincount(query_P, nth_P / (nth_P + wrong_P)) / num_right_Q
    return _of_ranks(
        name, 1 + wrong_P[first_Q], ap_Q, num_right_Q, num_targets, row_Q, group_N, counts
    )


def _of_ranks(name, rank_Q, ap_Q, num_right_Q, num_targets, row_Q, group_N, counts) -> Measured:
    """row_Q: the row of the split that each query is of."""
    shown = [k for k in RECALL_AT if k < num_targets]

    def metrics(units):
        rank_U = rank_Q[units]
        found = {f"recall@{k}": float((rank_U <= k).mean()) for k in shown}
        found |= {"median_rank": float(np.median(rank_U)), "mrr": float((1 / rank_U).mean())}
        return found | {"map": float(ap_Q[units].mean())}

    chance = {
        f"recall@{k}": float(chance_recall(num_right_Q, num_targets, k).mean()) for k in shown
    }
    items = {f"recall@{k}": rank_Q <= k for k in shown} | {"mrr": 1 / rank_Q, "map": ap_Q}
    return Measured(
        name=name, metrics=metrics, num_units=len(rank_Q), group_U=np.asarray(group_N)[row_Q],
        chance=chance, counts=counts, items=items, row_U=row_Q,
    )  # fmt: skip


def _own_pair(embeddings: Embeddings) -> list[Measured]:
    found = []
    size = len(embeddings.record_N)
    sides = embeddings.image_NE, embeddings.text_NE
    chunk = max(8, SCORES // size)
    for name, (query, target) in (("image_to_text", sides), ("text_to_image", sides[::-1])):
        target = jnp.asarray(target)
        rank_N = np.concatenate(
            [
                np.asarray(_own_ranks(query[start : start + chunk], target, start))
                for start in range(0, size, chunk)
            ]
        )
        one, rows, counts = np.ones(size, np.int64), np.arange(size), {"pairs": size}
        found.append(
            _of_ranks(name, rank_N, 1 / rank_N, one, size, rows, embeddings.group_N, counts)
        )
    return found


@jax.jit
def _own_ranks(query_qE, target_NE, start):
    score_qN = jnp.matmul(query_qE, target_NE.T, precision="highest")
    own_q1 = start + jnp.arange(len(query_qE))[:, None]
    score_q1 = jnp.take_along_axis(score_qN, own_q1, axis=1)
    before_qN = jnp.arange(len(target_NE)) < own_q1
    # TIE either way: equal up to rounding, so the earlier position comes first
    above_qN = score_qN > score_q1 + jnp.where(before_qN, -TIE, TIE)
    return 1 + above_qN.sum(axis=1)


@jax.jit
def _label_ranks(image_NE, label_N, query_q):
    """Rank of the best right image and average precision of each query.

    One number an image is sorted, which is five times as fast as two: the score in steps of 2^-29,
    which loses nothing above 1/64, and in the last bit whether the image is right. Of equal scores
    the wrong one comes first.
    """
    score_qN = jnp.matmul(image_NE[query_q], image_NE.T, precision="highest")
    right_qN = label_N[query_q][:, None] == label_N
    steps_qN = jnp.round(jnp.where(right_qN, score_qN - TIE, score_qN) * 2**29).astype(jnp.int32)
    itself_qN = query_q[:, None] == jnp.arange(len(label_N))
    last = jnp.iinfo(jnp.int32).max - 1  # and not right
    key_qN = jnp.where(itself_qN, last, -2 * steps_qN + right_qN)
    right_qN = jnp.sort(key_qN, axis=1) & 1
    nth_qN = jnp.cumsum(right_qN, axis=1)
    position_N = jnp.arange(1, len(label_N) + 1)
    precision_qN = jnp.where(right_qN == 1, nth_qN / position_N, 0)
    return 1 + jnp.argmax(right_qN, axis=1), precision_qN.sum(axis=1) / nth_qN[:, -1]


def chance_recall(num_right_Q: np.ndarray, num_targets: int, k: int) -> np.ndarray:
    """Probability that a random order has one of R right targets among its first k of M.

    1 - C(M-R, k) / C(M, k), as a product; exactly k/M for one right answer.
    """
    drawn = np.arange(min(k, num_targets))
    different, query_of = np.unique(num_right_Q, return_inverse=True)
    left = np.clip(num_targets - different[:, None] - drawn, 0, None) / (num_targets - drawn)
    return (1 - left.prod(axis=1))[query_of]
