r"""Exact retrieval both ways, beside faiss's brute force (and scikit-learn's) in the same run.

    python -m experiments.benchmarks.retrieval --size=100000 --dim=512 --queries=2048

jaxclip gives recall@k for any k, median rank, MRR and mAP of image-to-text and text-to-image from
one pass over the scores. The peers search the nearest 200 of each query (recall up to 200, no
ranks), one direction at a time, in float32 and on as many threads; they are given --queries queries
a direction (0: all of them), before jaxclip runs and after it, and their mean time is scaled to
--size. Where all were searched, faiss's recall@10 is printed beside ours. Quote CPU seconds where
others use the machine too.
"""

import functools
import resource
import time

import numpy as np
from absl import app, flags

from jaxclip.command import num_cores
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

    faiss.omp_set_num_threads(num_cores())
    index = faiss.IndexFlatIP(target.shape[1])
    index.add(target)
    return lambda query: index.search(query, _NEAREST)[1]


def with_sklearn(target: np.ndarray):
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=_NEAREST, algorithm="brute", metric="cosine").fit(target)
    return lambda query: index.kneighbors(query, return_distance=False)


def search_seconds(index_of, image, text, queries) -> tuple[float, float]:
    """(wall, CPU) seconds of the nearest texts of all images, and the other way round."""
    wall = cpu = 0.0
    for query, target in ((image, text), (text, image)):
        search = index_of(target)  # not timed
        search(query[:64])  # threads start
        _, one_wall, one_cpu = timed(functools.partial(search, query[:queries]))
        scale = len(query) / min(queries, len(query))
        wall, cpu = wall + one_wall * scale, cpu + one_cpu * scale
    return wall, cpu


def main(argv):
    del argv
    size, queries = _SIZE.value, _QUERIES.value or _SIZE.value
    embeddings = data(size, _DIM.value)
    _, first = np.unique(embeddings.caption_id_N, return_index=True)
    image, text = embeddings.image_NE, embeddings.text_NE[first]
    retrieval(data(64, _DIM.value))  # jax starts
    peers = {"faiss": with_faiss, "scikit-learn": with_sklearn}
    before = {name: search_seconds(index, image, text, queries) for name, index in peers.items()}
    memory = peak_gib()
    found, seconds, cpu = timed(lambda: ours(embeddings))
    peak = peak_gib()
    after = {name: search_seconds(index, image, text, queries) for name, index in peers.items()}
    print(f"{size:,} x {size:,}, D {_DIM.value}, float32, {num_cores()} threads each")
    print(f"jaxclip, both directions, all ranks: {seconds:.1f} s, {cpu:.1f} CPU s")
    print(f"  peak memory: {peak:.2f} GiB; before it ran, {memory:.2f}")
    for name, value in found.items():
        print(f"  {name}: {value:.4f}")
    for name in peers:
        wall, used = np.mean([before[name], after[name]], axis=0)
        print(
            f"{name}, both directions, nearest {_NEAREST} (of {queries:,} queries, before and "
            f"after): {wall:.1f} s, {used:.1f} CPU s; jaxclip takes {seconds / wall:.2f} of its "
            f"time, {cpu / used:.2f} of its CPU time"
        )
    if queries >= size:
        check_recall(image, text, embeddings.caption_id_N, found)


def check_recall(image, text, caption_id_N, found) -> None:
    """faiss finds what we count: recall@10 of image to text, but for ties."""
    nearest = with_faiss(text)(image)[:, :10]
    caption_of = np.unique(caption_id_N, return_inverse=True)[1]
    hit = (nearest == caption_of[:, None]).any(axis=1).mean()
    print(f"recall@10, image to text: {found['image_to_text/recall@10']:.4f}, faiss {hit:.4f}")


if __name__ == "__main__":
    app.run(main)
