"""Are planted duplicates found, others left alone, and a million hashes compared in minutes?

    python -m experiments.benchmarks.overlap --images=FOLDER --out=overlap.json

Three parts. Images: of the JPEGs below --images (real figures), one half is dataset A, the other
half dataset B, into which 7 % of A are planted, resized by 0.3 to 0.9 and encoded again at quality
40 to 90; recall and false positives of A in B at several distances. Hashes: --hashes random ones, 7
% of them with up to 6 bits flipped; time, CPU time and recall of near_duplicates. Component:
--component images whose hashes are all near each other, in pairs of copies (charts of one
template): CPU time beside that of the products of all pairs of thumbnails, and the peak of memory.
Goals: recall 95 %, false positives 1 %; minutes. Three minutes on 2 cores.
"""

import io
import json
import pathlib
import resource
import time

import numpy as np
from absl import flags
from PIL import Image

from data_pipelines.fingerprint import near_duplicates
from data_pipelines.overlap_keys import COLUMNS, THUMBNAIL, Collection, cluster, keys_of, leaders
from jaxclip import command
from jaxclip.data.image import decode_image
from jaxclip.data.record import Record

_IMAGES = flags.DEFINE_string("images", "", "folder of real JPEGs; empty: the hashes alone")
_HASHES = flags.DEFINE_integer("hashes", 1_000_000, "hashes to compare")
_DISTANCE = flags.DEFINE_integer("distance", 6, "bits, of the hashes' part")
_COMPONENT = flags.DEFINE_integer("component", 20_000, "images whose hashes are all near")
_OUT = flags.DEFINE_string("out", None, "JSON to write", required=True)
DISTANCES = (0, 2, 4, 6, 8, 10, 12)
PLANTED = 0.07


def changed(data: bytes, rng: np.random.Generator) -> bytes:
    image, scale = Image.fromarray(decode_image(data)), rng.uniform(0.3, 0.9)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(40, 91)))
    return buffer.getvalue()


def images_part(folder: pathlib.Path) -> dict:
    files = sorted(folder.rglob("*.jpg"))
    rng = np.random.default_rng(0)
    images = [files[i].read_bytes() for i in rng.permutation(len(files))]
    half = len(files) // 2
    planted = rng.choice(half, round(PLANTED * half), replace=False)
    copies = [changed(images[i], rng) for i in planted.tolist()]
    a, b = collection("a", images[:half]), collection("b", images[half:] + copies)
    is_planted = np.isin(np.arange(half), planted)
    results = {"images": len(files), "planted": len(planted)}
    for distance in DISTANCES:
        cluster([a, b], distance)
        found = a.found_in(b, ["near"])
        recall, false = found[is_planted].mean(), found[~is_planted].mean()
        print(f"distance {distance:2}: recall {recall:.1%}, false positives {false:.2%}")
        results[f"distance {distance}"] = {"recall": recall, "false_positives": false}
    return results


def collection(name: str, images: list[bytes]) -> Collection:
    """Images as the overlap program sees a dataset."""
    records = [Record(image=image, width=0, height=0, caption="") for image in images]
    keys = np.array([keys_of(record) for record in records], np.int64)
    positions = np.arange(len(records))
    return Collection(name, records, positions, dict(zip(COLUMNS, keys.T, strict=True)))


def hashes_part(count: int, distance: int) -> dict:
    rng = np.random.default_rng(0)
    hashes = rng.integers(-(2**63), 2**63, count, np.int64)
    copies = round(PLANTED * count)
    flips = np.zeros(copies, np.int64)
    for _ in range(distance):
        flips |= np.int64(1) << rng.integers(0, 63, copies)
    hashes[-copies:] = hashes[:copies] ^ flips
    wall, cpu = time.perf_counter(), time.process_time()
    cluster = near_duplicates(hashes, distance)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    recall = (cluster[-copies:] == cluster[:copies]).mean()
    print(f"{count:,} hashes: {wall:.0f} s, {cpu:.0f} CPU s, recall {recall:.3%}")
    return {"hashes": count, "seconds": wall, "cpu_seconds": cpu, "recall": recall}


def component_part(count: int) -> dict:
    rng = np.random.default_rng(0)
    distinct = rng.integers(0, 256, (count // 2, THUMBNAIL**2)).astype(np.uint8)
    thumbnails = np.concatenate([distinct, distinct // 2])  # darker: as near as copies are
    values = thumbnails.astype(np.float32)
    start, products = time.process_time(), 0.0
    for low in range(0, count, 2048):
        products += float((values[low : low + 2048] @ values.T)[0, 0])
    products_seconds = time.process_time() - start
    start = time.process_time()
    found = leaders(thumbnails)
    seconds = time.process_time() - start
    right = (found == np.tile(np.arange(count // 2), 2)).mean()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    ratio = seconds / products_seconds
    print(
        f"component of {count:,}: {seconds:.1f} CPU s, {ratio:.2f} of the products of all pairs; "
        f"{right:.2%} right; peak {peak / 2**20:.0f} MiB"
    )
    result = {"images": count, "cpu_seconds": seconds, "of_all_products": ratio, "right": right}
    return result | {"peak_bytes": peak}


def main(_) -> None:
    report = {"component": component_part(_COMPONENT.value)}
    if _IMAGES.value:
        report["images"] = images_part(pathlib.Path(_IMAGES.value))
    report["hashes"] = hashes_part(_HASHES.value, _DISTANCE.value)
    pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=1, default=float))


if __name__ == "__main__":
    command.run(main)
