"""Near-duplicate images: a 64-bit perceptual hash, and clusters of hashes within a Hamming radius.

    perceptual_hash(pixels) -> 5783...         a bit or two off after re-encoding, resizing
    near_duplicates([a, a ^ 1, b], 4) -> [0, 0, 2]     the smallest index of each cluster

Shape letters: N items, H height, W width, P pairs.
"""

import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Iterator

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxclip.data.record import hash64

MAX_DISTANCE = 16  # unrelated images are 32 +- 4 bits apart
SIDE = 32  # pixels of the reduced image
BLANK = 2.0  # grey levels of spread, below which there is only compression noise
BLOCK_PAIRS = 1 << 22  # pairs compared at once: bounds the memory
MAX_CHUNK_BITS = 22  # a table of 2**22 bucket starts is 32 MB


# --- One image, one caption --------------------------------------------------------------------


def perceptual_hash(pixels_HW3: np.ndarray) -> int:
    """The signs of an image's 64 lowest frequencies, as int64 (DCT hash; Zauner 2010, ch. 3.2.1).

    The grey image is reduced to 32 x 32 whatever its shape; each of the 64 cosine coefficients of
    least frequency, without the mean, is 1 where it is above their median. Re-encoding, resizing
    and a change of brightness or contrast flip few bits; a crop, a flip or a rotation many.
    A blank image hashes to 0.

    Args:
      pixels_HW3: uint8, RGB.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(pixels_HW3), cv2.COLOR_RGB2GRAY)
    shrink = min(grey.shape) >= SIDE
    interpolation = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    small = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=interpolation)
    if small.std() < BLANK:
        return 0
    rows, columns = _lowest_frequencies()
    coefficients = cv2.dct(small)[rows, columns]
    bits = coefficients > np.median(coefficients)
    return int(np.packbits(bits).view(">i8")[0])


@functools.cache
def _lowest_frequencies() -> tuple[np.ndarray, np.ndarray]:
    pairs = sorted(itertools.product(range(12), repeat=2), key=lambda uv: (math.hypot(*uv), uv))
    rows, columns = zip(*pairs[1:65], strict=True)  # not (0, 0), the mean
    return np.array(rows), np.array(columns)


def caption_hash(text: str) -> int:
    """Identity of a caption's words as int64: case, accents, spaces, punctuation do not count.

    `"Fig. 1: (a) CT"` and `"fig 1 (A) — CT."` are the same. "" hashes to 0.
    """
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    letters = "".join(c for c in decomposed if not unicodedata.combining(c))
    words = " ".join(re.findall(r"\w+", letters))
    return hash64(words) if words else 0


# --- Clusters ----------------------------------------------------------------------------------


def near_duplicates(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """Clusters of items whose hashes differ in at most `max_distance` bits.

    A cluster is a connected component: with a~b and b~c, a and c are together however far apart.
    Every pair within the radius is found, by multi-index hashing (Norouzi et al. 2012,
    arXiv:1307.2982): of 64 bits cut in m chunks, two hashes within d differ by at most d // m bits
    in one of them, so only items that nearly share a chunk are compared.

    Args:
      hashes: int64 [N].
      max_distance: bits, 0 (the same hash) to 16.
    Returns:
      int64 [N], the smallest index of each item's cluster.
    Raises:
      ValueError: hashes are not int64 [N], or max_distance is out of range.
    """
    hashes = np.asarray(hashes)
    if hashes.ndim != 1 or hashes.dtype != np.int64:
        raise ValueError(f"hashes ({hashes.dtype}, shape {hashes.shape}) must be int64 [N].")
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(
            f"max_distance ({max_distance}) must be 0 to {MAX_DISTANCE}; unrelated images are "
            "about 32 bits apart."
        )
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    cluster = _components(unique.view(np.uint64), max_distance)
    smallest = np.full(len(unique), len(hashes), np.int64)
    np.minimum.at(smallest, cluster, first)
    return smallest[cluster][inverse.ravel()]


def _components(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """Component number of each of N distinct uint64 hashes."""
    cluster = np.arange(len(hashes))
    if max_distance == 0 or len(hashes) < 2:
        return cluster
    edges, waiting = [], 0
    for left, right in _close_pairs(hashes, max_distance):
        apart = cluster[left] != cluster[right]
        edges.append((left[apart], right[apart]))
        waiting += int(apart.sum())
        if waiting > BLOCK_PAIRS:  # joined now and then, so that a dense cluster's pairs fit
            cluster, edges, waiting = _join(cluster, edges), [], 0
    return _join(cluster, edges)


def _join(cluster: np.ndarray, edges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    if not edges:
        return cluster
    left, right = (cluster[np.concatenate(side)] for side in zip(*edges, strict=True))
    size = len(cluster)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1][cluster]


def _close_pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of index pairs of uint64 hashes at most `distance` apart; every pair at least once."""
    num_chunks = _best_num_chunks(len(hashes), distance)
    for chunk, radius in enumerate(_radii(num_chunks, distance)):
        bits = range(chunk, 64, num_chunks)  # strided: neighbouring frequencies go together
        keys = np.zeros(len(hashes), np.int64)
        for place, bit in enumerate(bits):
            keys |= ((hashes >> np.uint64(bit)) & np.uint64(1)).astype(np.int64) << place
        order = np.argsort(keys, kind="stable")
        sorted_hashes = hashes[order]
        for left, right in _candidates(keys[order], len(bits), radius):
            close = np.bitwise_count(sorted_hashes[left] ^ sorted_hashes[right]) <= distance
            yield order[left[close]], order[right[close]]


def _candidates(
    keys: np.ndarray, num_bits: int, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of pairs of positions whose sorted keys [N] differ in at most `radius` bits."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << num_bits))])
    positions = np.arange(len(keys))
    for mask in _masks(num_bits, radius):
        other = keys ^ mask
        # each pair once: the partner is in a later bucket, or later in the same one
        begin = positions + 1 if mask == 0 else starts[other]
        count = np.where(other >= keys, starts[other + 1] - begin, 0)
        total = np.cumsum(count)
        low = 0
        while low < len(keys):
            done = total[low - 1] if low else 0
            high = max(low + 1, int(np.searchsorted(total, done + BLOCK_PAIRS, side="right")))
            part = count[low:high]
            left = np.repeat(positions[low:high], part)
            offset = np.arange(len(left)) - np.repeat(total[low:high] - part - done, part)
            if len(left):
                yield left, np.repeat(begin[low:high], part) + offset
            low = high


@functools.cache
def _masks(num_bits: int, radius: int) -> tuple[int, ...]:
    """All numbers of `num_bits` bits of which at most `radius` are set."""
    return tuple(
        sum(1 << bit for bit in bits)
        for weight in range(radius + 1)
        for bits in itertools.combinations(range(num_bits), weight)
    )


def _radii(num_chunks: int, distance: int) -> list[int]:
    """The radius to search each chunk with: -1 means not at all (ibid., Proposition 2)."""
    radius, rest = divmod(distance, num_chunks)
    return [radius] * (rest + 1) + [radius - 1] * (num_chunks - rest - 1)


def _best_num_chunks(num_items: int, distance: int) -> int:
    """The number of chunks with the fewest comparisons if hashes were random."""

    def cost(num_chunks: int) -> float:
        total = 0.0
        for chunk, radius in enumerate(_radii(num_chunks, distance)):
            num_bits = len(range(chunk, 64, num_chunks))
            num_masks = sum(math.comb(num_bits, weight) for weight in range(radius + 1))
            total += num_masks * num_items * (1 + num_items / 2**num_bits)
            total += 2**num_bits
        return total

    fewest = math.ceil(64 / MAX_CHUNK_BITS)
    return min(range(fewest, max(fewest, distance + 1) + 1), key=cost)
