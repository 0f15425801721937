r"""Exact retrieval both ways, beside faiss's brute force (and scikit-learn's) in the same run.

    python -m experiments.benchmarks.retrieval --size=100000 --dim=512 --queries=2048

jaxclip gives recall@k for any k, median rank, MRR and mAP of image-to-text and text-to-image from
one pass over the scores. The peers search the nearest 200 of each query (recall up to 200, no
ranks), one direction at a time; they are given --queries queries a direction, which is enough to
time them (0: all of them), and their time is scaled to --size. faiss's recall@10 is printed beside
ours where all were searched. Quote CPU seconds where others use the machine too.
"""

import functools
import resource
import time

import numpy as np
from absl import app, flags

from jaxclip.evals.base import Embeddings
from jaxclip.evals.retrieval import retrieval

_SIZE = flags.DEFINE_integer("size", 100_000, "images, and as many texts")
_DIM = flags.DEFINE_integer("dim", 512, "of the embeddings")
_QUERIES = flags.DEFINE_integer("queries", 2048, "that the peers are given; 0: all")
_NEAREST = 200


def data(size: int, dim: int) -> Embeddings:
    """Pairs at a cosine that leaves recall between 0 and 1; every fourth caption stands twice."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((size, dim), np.float32)
    text = image + 4 * rng.standard_normal((size, dim), np.float32)
    ids = np.arange(size)
    caption = np.where(ids % 4 == 1, ids - 1, ids)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text[caption]))
    return Embeddings(
        image_NE=image, text_NE=text, record_N=ids, image_id_N=ids, caption_id_N=caption
    )


def timed(work):
    """(result, seconds, CPU seconds)."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - start, time.process_time() - cpu


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def ours(embeddings: Embeddings) -> dict[str, float]:
    return {
        f"{m.name}/{key}": value for m in retrieval(embeddings) for key, value in m.values().items()
    }


def with_faiss(target: np.ndarray):
    import faiss

    index = faiss.IndexFlatIP(target.shape[1])
    index.add(target)
    return lambda query: index.search(query, _NEAREST)[1]


def with_sklearn(target: np.ndarray):
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=_NEAREST, algorithm="brute", metric="cosine").fit(target)
    return lambda query: index.kneighbors(query, return_distance=False)


def main(argv):
    del argv
    size, queries = _SIZE.value, _QUERIES.value or _SIZE.value
    embeddings = data(size, _DIM.value)
    retrieval(data(64, _DIM.value))  # jax starts
    before = peak_gib()
    found, seconds, cpu = timed(lambda: ours(embeddings))
    print(f"{size:,} x {size:,}, D {_DIM.value}")
    print(f"jaxclip, both directions: {seconds:.1f} s, {cpu:.1f} CPU s")
    print(f"  peak memory: {peak_gib():.2f} GiB, of which {peak_gib() - before:.2f} for this")
    for name, value in found.items():
        print(f"  {name}: {value:.4f}")
    _, first = np.unique(embeddings.caption_id_N, return_index=True)
    image, text = embeddings.image_NE, embeddings.text_NE[first]
    for name, index_of in (("faiss", with_faiss), ("scikit-learn", with_sklearn)):
        total = total_cpu = 0.0
        for query, target in ((image, text), (text, image)):
            search = index_of(target)  # not timed
            nearest, wall, used = timed(functools.partial(search, query[:queries]))
            scale = len(query) / min(queries, len(query))
            total, total_cpu = total + wall * scale, total_cpu + used * scale
            if query is image and queries >= len(query):  # an image's caption is caption_of[i]
                caption_of = np.unique(embeddings.caption_id_N, return_inverse=True)[1]
                hit = (nearest[:, :10] == caption_of[:, None]).any(axis=1).mean()
                print(f"{name}: image_to_text/recall@10 {hit:.4f}")
        print(
            f"{name}, both directions, nearest {_NEAREST}: {total:.1f} s, {total_cpu:.1f} CPU s "
            f"(from {queries:,} queries a direction): jaxclip takes {seconds / total:.2f} of its "
            f"time, {cpu / total_cpu:.2f} of its CPU time"
        )


if __name__ == "__main__":
    app.run(main)
