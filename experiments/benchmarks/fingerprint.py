"""Near duplicates among many hashes: time, and comparisons beside all pairs.

    python -m experiments.benchmarks.fingerprint --num=1000000 --shared=../shared/data

With --shared also what max_distance means on real figures: how many bits a JPEG of quality 50 and
half the size moves a hash of PMC's figures, and how near the nearest other figure is.
"""

import argparse
import json
import pathlib
import time

import cv2
import numpy as np
import simplejpeg

from data_pipelines.fingerprint import near_duplicates, perceptual_hash
from jaxclip.data.image import decode_image


def hashes_with_duplicates(num: int) -> np.ndarray:
    """Random, a tenth of them one bit from another."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(-(2**63), 2**63 - 1, num, dtype=np.int64)
    hashes[num // 2 : num // 2 + num // 10] = hashes[: num // 10] ^ 1
    return hashes


def real_distances(shared: pathlib.Path) -> None:
    with open(shared / "pmc_articles/figures.jsonl") as opened:
        files = [json.loads(line)["file"] for line in opened]
    figures = [decode_image((shared / "pmc_articles" / f).read_bytes()) for f in files[::3]]
    original = np.array([perceptual_hash(figure) for figure in figures])
    copies = []
    for figure in figures:
        small = cv2.resize(figure, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        copies.append(perceptual_hash(simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(small, 50))))
    moved = np.bitwise_count(original ^ np.array(copies))
    apart = np.bitwise_count(original[:, None] ^ original[None]) + 64 * np.eye(len(original))
    nearest = apart.min(1)
    print(f"bits moved by half size and JPEG 50: median {np.median(moved):.0f}, max {moved.max()}")
    for distance in (2, 4, 6, 8, 10):
        print(
            f"  within {distance} bits: {(moved <= distance).mean():.3f} of the copies, "
            f"{(nearest <= distance).mean():.3f} of the figures have another figure"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=1_000_000)
    parser.add_argument("--distances", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--shared", type=pathlib.Path)
    options = parser.parse_args()
    hashes = hashes_with_duplicates(options.num)
    block = hashes[: min(4000, options.num)]
    start = time.process_time()
    for hash_ in block[:400]:
        np.bitwise_count(hash_ ^ block)
    a_pair = (time.process_time() - start) / 400 / len(block)
    all_pairs = a_pair * options.num**2 / 2
    for distance in options.distances:
        start = time.process_time()
        clusters = near_duplicates(hashes, distance)
        seconds = time.process_time() - start
        found = int((clusters != np.arange(len(hashes))).sum())
        print(
            f"{options.num:,} hashes, distance {distance}: {seconds:.1f} s of CPU, "
            f"{all_pairs / seconds:.0f} times less than all pairs; {found:,} duplicates"
        )
    if options.shared:
        real_distances(options.shared)


if __name__ == "__main__":
    main()
