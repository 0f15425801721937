"""Is converting a released corpus limited by decoding and encoding its images, and nothing else?

    python -m experiments.benchmarks.readers --out=readers.json [--layouts=open_pmc,biomedica]

Writes a release of --pairs pairs in each layout (600 x 450 and 800 x 600 JPEGs of textures), then
runs data_pipelines.corpora on it with a worker a core. The limit is the rate of one core at
prepare_image (decode, reduce, encode) alone, on the same images, times the cores; it is measured
before and after each conversion, as other work on the machine changes it. `per_second` compares the
wall clocks, and also has what others take from a run that wants every core: quote it from a quiet
machine. `per_cpu_second` is the share of the conversion's CPU time that the images take: what is
missing to 1 is tars, JSON, hashes, files and the start of the workers. Goal: 0.8. Two minutes a
layout on 2 cores.
"""

import contextlib
import io
import json
import pathlib
import platform
import tempfile
import time

import numpy as np
import simplejpeg
from absl import flags

from data_pipelines.corpora import CorpusOptions, build_corpus
from data_pipelines.images import prepare_image
from data_pipelines.synthetic_releases import TAR_LAYOUTS, TRAPS, write_release
from experiments.benchmarks.clock import cpu_seconds
from jaxclip import command

SIZES = ((450, 600), (600, 800))  # height, width
DISTINCT_IMAGES = 128

_OUT = flags.DEFINE_string("out", None, "JSON to write", required=True)
_PAIRS = flags.DEFINE_integer("pairs", 10_000, "pairs of each release")
_LAYOUTS = flags.DEFINE_list("layouts", [*TAR_LAYOUTS, "pmc_oa"], ", ".join(TRAPS))


def picture(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A JPEG of noise with the spectrum of photographs, 60 to 110 KB."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude_HW = 1 / np.maximum(frequency, 1 / width) ** 1.5
    phase_3HW = np.exp(2j * np.pi * rng.random((3, *amplitude_HW.shape)))
    pixels_3HW = np.fft.irfft2(amplitude_HW * phase_3HW, (height, width))
    pixels_HW3 = np.moveaxis(128 + 45 * pixels_3HW / pixels_3HW.std(), 0, -1)
    pixels_HW3 = np.clip(pixels_HW3 + rng.normal(0, 4, pixels_HW3.shape), 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HW3), 85, colorsubsampling="420")


def seconds_per_image(images: list[bytes]) -> tuple[float, float]:
    """(wall, CPU) seconds of prepare_image on one core."""
    wall, cpu = time.perf_counter(), time.process_time()
    for image in images:
        prepare_image(image)
    used = time.perf_counter() - wall, time.process_time() - cpu
    return used[0] / len(images), used[1] / len(images)


def measure(layout: str, images: list[bytes], folder: pathlib.Path) -> dict[str, float]:
    pairs = [images[i % len(images)] for i in range(_PAIRS.value)]
    read = write_release(layout, folder / "release", pairs, traps=False)
    options = CorpusOptions(out=str(folder / "dataset"), tokenizer_vocab=0, **read)
    before = seconds_per_image(images)
    wall, cpu = time.perf_counter(), cpu_seconds()
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = build_corpus(options)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    after = seconds_per_image(images)
    assert len(dataset) == len(pairs)
    image_wall, image_cpu = np.mean([before, after], axis=0).tolist()
    return {
        "pairs_per_second": len(pairs) / wall,
        "limit_per_second": command.num_cores() / image_wall,
        "per_second": len(pairs) * image_wall / (command.num_cores() * wall),
        "per_cpu_second": len(pairs) * image_cpu / cpu,
    }


def main(_) -> None:
    rng = np.random.default_rng(0)
    images = [picture(rng, *SIZES[i % 2]) for i in range(DISTINCT_IMAGES)]
    results = {}
    for layout in _LAYOUTS.value:
        with tempfile.TemporaryDirectory() as folder:
            results[layout] = measure(layout, images, pathlib.Path(folder))
        told = ", ".join(f"{name} {value:,.2f}" for name, value in results[layout].items())
        print(f"{layout:14} {told}", flush=True)
    report = {
        "pairs": _PAIRS.value,
        "cores": command.num_cores(),
        "python": platform.python_version(),
    }
    text = json.dumps(report | {"results": results}, indent=1)
    pathlib.Path(_OUT.value).write_text(text)


if __name__ == "__main__":
    command.run(main)
