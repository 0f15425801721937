"""Cross-modal retrieval, with every right answer counted and every tie against us.

Shape letters: N records, Q queries, M targets, R right targets a query, E embedding.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.evals.base import Embeddings

RECALL_AT = (1, 5, 10)
CHUNK = 1024  # queries scored at a time


def retrieval(embeddings: Embeddings) -> dict[str, float]:
    """Image-to-text and text-to-image retrieval over one split.

    Queries and targets are the different images and the different captions: a caption that stands
    under several images is one target, and right for each of them.

    Returns:
      image_to_text/ and text_to_image/ recall@1, @5, @10 in [0, 1]; median_rank, from 1;
      chance_recall@k, of a random order with the same right answers; and the counts images and
      captions.
    """
    images, image_of_N = np.unique(embeddings.image_id_N, return_inverse=True)
    captions, caption_of_N = np.unique(embeddings.caption_id_N, return_inverse=True)
    image_QE = embeddings.image_NE[np.unique(image_of_N, return_index=True)[1]]
    text_ME = embeddings.text_NE[np.unique(caption_of_N, return_index=True)[1]]
    pairs = np.unique(np.stack([image_of_N, caption_of_N], axis=1), axis=0)
    metrics: dict[str, float] = {"images": len(images), "captions": len(captions)}
    for name, query, target, sides in (
        ("image_to_text", image_QE, text_ME, pairs),
        ("text_to_image", text_ME, image_QE, pairs[:, ::-1]),
    ):
        right_QR = right_answers(sides, len(query))
        rank_Q = ranks(query, target, right_QR)
        num_right_Q = (right_QR >= 0).sum(axis=1)
        for k in RECALL_AT:
            metrics[f"{name}/recall@{k}"] = float((rank_Q <= k).mean())
            chance = chance_recall(num_right_Q, len(target), k)
            metrics[f"{name}/chance_recall@{k}"] = float(chance.mean())
        metrics[f"{name}/median_rank"] = float(np.median(rank_Q))
    return metrics


def right_answers(pairs: np.ndarray, num_queries: int) -> np.ndarray:
    """(query, target) pairs [P, 2] -> targets of each query [Q, R], filled up with -1.

    `[[0, 4], [1, 2], [1, 3]]` -> `[[4, -1], [2, 3]]`.
    """
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    counts = np.bincount(pairs[:, 0], minlength=num_queries)
    right_QR = np.full((num_queries, counts.max()), -1)
    right_QR[np.arange(right_QR.shape[1]) < counts[:, None]] = pairs[:, 1]
    return right_QR


def ranks(query_QE: np.ndarray, target_ME: np.ndarray, right_QR: np.ndarray) -> np.ndarray:
    """Rank of each query's best right target among the wrong ones, from 1; int [Q].

    A wrong target with the same score as the best right one comes before it: a model that maps
    everything to one point has recall 0, not 1.
    """
    rank_Q = []
    on_device_ME = jnp.asarray(target_ME)
    for start in range(0, len(query_QE), CHUNK):
        rows = slice(start, start + CHUNK)
        rank_Q.append(np.asarray(_ranks(query_QE[rows], on_device_ME, right_QR[rows])))
    return np.concatenate(rank_Q)


@jax.jit
def _ranks(query_QE, target_ME, right_QR):
    score_QM = jnp.matmul(query_QE, target_ME.T, precision="highest")
    score_QR = jnp.take_along_axis(score_QM, jnp.maximum(right_QR, 0), axis=1)
    score_QR = jnp.where(right_QR >= 0, score_QR, -jnp.inf)
    best_Q1 = score_QR.max(axis=1, keepdims=True)
    # every right target that scores as high as the best one is not a wrong one
    return 1 + (score_QM >= best_Q1).sum(axis=1) - (score_QR >= best_Q1).sum(axis=1)


def chance_recall(num_right_Q: np.ndarray, num_targets: int, k: int) -> np.ndarray:
    """Probability that a random order has one of R right targets among its first k of M.

    1 - C(M-R, k) / C(M, k), as a product; exactly k/M for one right answer.
    """
    drawn = np.arange(min(k, num_targets))
    left = np.clip(num_targets - num_right_Q[:, None] - drawn, 0, None) / (num_targets - drawn)
    return 1 - left.prod(axis=1)
