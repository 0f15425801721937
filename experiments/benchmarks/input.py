"""How near does the loader come to what the cores can decode?

    python -m experiments.benchmarks.input --out=input.json                    # makes its own data
    python -m experiments.benchmarks.input --dataset=DIR --out=input.json      # on yours

The limit is the rate of one core at decode + crop + resize, alone, on the same records with the
same function, times the cores. The loader is TrainInput over the dataset on disk: reading,
shuffling, decoding, tokenising, batching. Both are measured in turn, limit, loader, limit, ..., as
other work on the machine changes their rates over minutes; the ratio of a round is the loader
against the mean of the limits before and after it. The ratio per CPU second says what the loader
adds to the work; the ratio per second also has what others take from it, as it wants every core and
the limit but one: quote it from a quiet machine. `foreign_cores` is how many cores others used. The
files are read once before each round: disks are not measured.

Two forms of the same images, with their own data: "original", JPEGs of 512 x 400 and 800 x 600 as
in an archive, about 80 KB; "stored", as data_pipelines writes them, with a short side of 288
pixels. About five minutes on 2 cores.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from absl import flags
from etils import epath

from data_pipelines.images import prepare_image
from data_pipelines.tokenizer import save_tokenizer, train_tokenizer
from jaxclip import command
from jaxclip.data.dataset import Dataset, finish_dataset, write_shard
from jaxclip.data.files import write_atomically
from jaxclip.data.image import ImageConfig, train_image
from jaxclip.data.pipeline import TrainInput
from jaxclip.data.record import Example, Record
from jaxclip.data.sources import DataConfig, Source, open_sources
from jaxclip.data.text import Tokenizer, TokenizerConfig, choose_text, load_tokenizer

SIZES = ((400, 512), (600, 800))  # height, width
DISTINCT_IMAGES = 256  # each is in the dataset several times
RECORDS = 4096
MEASURED_IMAGES = 256  # of which the limit and the stages are taken
PACKAGES = ("grain", "array_record", "numpy", "simplejpeg", "opencv-python-headless", "pillow")
JIFFY = os.sysconf("SC_CLK_TCK")

_DATASET = flags.DEFINE_string("dataset", "", "dataset with a train split; empty: own data")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "vocabulary; empty: the dataset's tokenizer.json")
_OUT = flags.DEFINE_string("out", None, "JSON to write", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 7, "rounds of the default setting; others have 3")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "pairs")
_BATCHES = flags.DEFINE_integer("batches", 12, "batches that are timed in a round")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "pixels a side, of the model")
_INTERPOLATION = flags.DEFINE_string("interpolation", "bicubic", "see jaxclip/data/image.py")


# --- Data of its own -----------------------------------------------------------------------------


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: spectrum, correlation of colours and noise as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / width) ** 1.5
    phase_3HW = np.exp(2j * np.pi * rng.random((3, *amplitude.shape)))
    grey, red, blue = np.fft.irfft2(amplitude * phase_3HW, (height, width))
    pixels_HW3 = np.stack([grey + 0.35 * red, grey, grey + 0.35 * blue], axis=-1)
    pixels_HW3 = 128 + 45 * pixels_HW3 / pixels_HW3.std() + rng.normal(0, 4, pixels_HW3.shape)
    return np.clip(pixels_HW3, 0, 255).astype(np.uint8)


def captions(rng: np.random.Generator) -> Iterator[str]:
    """Endless: 60 words, of 8,000 with the frequencies of natural language (Zipf)."""
    syllables = [a + b for a in "bcdfglmnprst" for b in "aeiou"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(8000)]
    frequency = 1 / np.arange(2, len(words) + 2)
    while True:
        yield " ".join(rng.choice(words, 60, p=frequency / frequency.sum())) + "."


def make_dataset(directory: pathlib.Path, images: list[bytes]) -> None:
    texts = list(itertools.islice(captions(np.random.default_rng(0)), RECORDS))

    def examples() -> Iterator[Example]:
        for image, text in zip(itertools.cycle(images), texts, strict=False):
            height, width = simplejpeg.decode_jpeg_header(image)[:2]
            record = Record(image=image, width=width, height=height, caption=text)
            yield Example(record=record, split="train")

    directory.mkdir()
    save_tokenizer(train_tokenizer(texts, vocab_size=8192), directory / "tokenizer.json")
    write_shard(directory, 0, examples())
    finish_dataset(directory, 1, {"module": "experiments.benchmarks.input"})


def make_datasets(directory: pathlib.Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    original = [
        simplejpeg.encode_jpeg(texture(rng, *SIZES[i % 2]), 88, colorsubsampling="420")
        for i in range(DISTINCT_IMAGES)
    ]
    make_dataset(directory / "original", original)
    make_dataset(directory / "stored", [prepare_image(image).data for image in original])
    return {form: str(directory / form) for form in ("original", "stored")}


# --- Measuring -----------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Rate:
    per_second: float
    per_cpu_second: float
    foreign_cores: float  # used by other processes meanwhile

    @classmethod
    def of(cls, work: Callable[[], int]) -> "Rate":
        """Of what `work` returns the number of."""
        start, cpu, busy = time.perf_counter(), time.process_time(), _busy_seconds()
        count = work()
        seconds = time.perf_counter() - start
        cpu, busy = time.process_time() - cpu, _busy_seconds() - busy
        return cls(count / seconds, count / cpu, max(0.0, busy - cpu) / seconds)


def _busy_seconds() -> float:
    """CPU seconds of all processes, from /proc/stat; 0 where there is none."""
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    except FileNotFoundError:
        return 0.0
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, fields[:8])
    return (user + nice + system + interrupts + soft_interrupts + stolen) / JIFFY


def one_core(images: list[bytes], config: ImageConfig) -> Rate:
    def work() -> int:
        rng = np.random.default_rng(0)
        for image in images:
            train_image(image, config, rng)
        return len(images)

    return Rate.of(work)


def warm_page_cache(dataset: Dataset) -> None:
    """So that it is the loader that is measured, and not the disk."""
    for file in dataset.path.glob("*.array_record"):
        with open(file, "rb") as opened:
            while opened.read(1 << 24):
                pass


def loader(
    sources: list[Source], config: DataConfig, tokenizer: Tokenizer, number: int
) -> tuple[Rate, float]:
    """The rate in the middle of the stream, and the seconds until the first batch."""
    for source in sources:
        warm_page_cache(source.dataset)
    batch_size, batches = _BATCH_SIZE.value, _BATCHES.value
    next_sample = number * (batches + 1) * batch_size
    start = time.perf_counter()
    with TrainInput(
        sources, config, tokenizer, seed=0, batch_size=batch_size, next_sample=next_sample
    ) as train_input:
        next(train_input)  # from here on the buffer is as empty as it will be at the end
        first = time.perf_counter() - start

        def work() -> int:
            for _ in range(batches):
                next(train_input)
            return batches * batch_size

        rate = Rate.of(work)
    for thread in threading.enumerate():  # it finishes the chunk it is at
        if thread.name.startswith("grain-prefetch"):
            thread.join()
    return rate, first


def stages(
    dataset: Dataset, positions: np.ndarray, config: DataConfig, tokenizer: Tokenizer
) -> dict[str, float]:
    """Microseconds of CPU a pair, one thread, median of 5 rounds."""
    rng, size = np.random.default_rng(0), config.image.size
    records = [dataset[int(position)] for position in positions]
    image_SS3 = np.ones((size, size, 3), np.uint8)
    batch = np.empty((len(positions), size, size, 3), np.uint8)

    def read() -> None:
        for position in positions:
            dataset[int(position)]

    def seed() -> None:
        for position in positions:
            np.random.default_rng((0, 0, 0, int(position)))

    def decode_and_resize() -> None:
        for record in records:
            train_image(record.image, config.image, rng)

    def tokenise() -> None:
        tokenizer.encode([choose_text(record.texts(), config.text, rng) for record in records])

    def stack() -> None:
        for row in range(len(positions)):
            batch[row] = image_SS3

    times: dict[str, list[float]] = {}
    for _ in range(5):
        for work in (read, seed, decode_and_resize, tokenise, stack):
            start = time.thread_time()
            work()
            cost = (time.thread_time() - start) / len(positions) * 1e6
            times.setdefault(work.__name__, []).append(cost)
    return {name: statistics.median(costs) for name, costs in times.items()}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(
    sources: list[Source],
    config: DataConfig,
    tokenizer: Tokenizer,
    images: list[bytes],
    repeats: int,
) -> dict:
    """Limit and loader in turn."""
    cores = command.num_cores()
    limits, rates, firsts = [one_core(images, config.image)], [], []
    for number in range(repeats):
        rate, first = loader(sources, config, tokenizer, number)
        rates.append(rate)
        firsts.append(first)
        limits.append(one_core(images, config.image))
    around = list(itertools.pairwise(limits))
    wall = [
        rate.per_second / (cores * statistics.mean(limit.per_second for limit in pair))
        for rate, pair in zip(rates, around, strict=True)
    ]
    row = {
        "num_threads": config.num_threads,
        "num_workers": config.num_workers,
        "loader_pairs_per_s": spread([rate.per_second for rate in rates]),
        "limit_pairs_per_s": spread([cores * limit.per_second for limit in limits]),
        "ratio": spread(wall),
        "first_batch_s": spread(firsts),
    }
    if not config.num_workers:  # the CPU time of the workers is not this process's
        row["foreign_cores"] = spread([rate.foreign_cores for rate in rates])
        cpu = [
            rate.per_cpu_second / statistics.mean(limit.per_cpu_second for limit in pair)
            for rate, pair in zip(rates, around, strict=True)
        ]
        row["ratio_per_cpu_second"] = spread(cpu)
    return row


def settings() -> list[tuple[int, int, int]]:
    """(num_threads, num_workers, repeats); the first is the default."""
    cores = command.num_cores()
    few = min(3, _REPEATS.value)
    threads = sorted({1, cores, 2 * cores})
    return [(0, 0, _REPEATS.value), *((n, 0, few) for n in threads), (1, 1, few), (1, cores, few)]


def measure_dataset(path: str) -> dict:
    image = ImageConfig(size=_IMAGE_SIZE.value, interpolation=_INTERPOLATION.value)
    config = DataConfig(path=(path,), image=image)
    config.validate()
    tokenizer_path = _TOKENIZER.value or str(epath.Path(path) / "tokenizer.json")
    tokenizer = load_tokenizer(TokenizerConfig(path=tokenizer_path))
    sources = open_sources(config, "train")
    (source,) = sources
    chosen = np.random.default_rng(0).permutation(source.positions)[:MEASURED_IMAGES]
    records = [source.dataset[int(position)] for position in chosen]
    images = [record.image for record in records]
    one_core(images, image), loader(sources, config, tokenizer, 0)  # page cache, word cache
    rows = []
    for num_threads, num_workers, repeats in settings():
        setting = dataclasses.replace(config, num_threads=num_threads, num_workers=num_workers)
        rows.append(measure(sources, setting, tokenizer, images, repeats))
        print(line(rows[-1]), flush=True)
    return {
        "records": len(source.positions),
        "bytes_per_pair": statistics.mean(map(len, images)),
        "pixels_per_pair": statistics.mean(record.width * record.height for record in records),
        "stages_us_per_pair": stages(source.dataset, chosen, config, tokenizer),
        "rows": rows,
    }


# --- Reporting -----------------------------------------------------------------------------------


def line(row: dict) -> str:
    def show(values: dict[str, float], digits: int) -> str:
        return "{median:.{d}f} [{min:.{d}f}, {max:.{d}f}]".format(**values, d=digits)

    threads = row["num_threads"] or "auto"
    text = (
        f"  threads {threads:>4}, workers {row['num_workers']}: "
        f"{show(row['loader_pairs_per_s'], 0)} pairs/s of {show(row['limit_pairs_per_s'], 0)}, "
        f"ratio {show(row['ratio'], 2)}"
    )
    if cpu := row.get("ratio_per_cpu_second"):
        text += f", per CPU second {show(cpu, 2)}, others {show(row['foreign_cores'], 1)} cores"
    return f"{text}, first batch {row['first_batch_s']['median']:.1f} s"


def machine() -> dict:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(FileNotFoundError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
        cpu = names[0] if names else cpu
    return {"cores": command.num_cores(), "cpu": cpu, "python": platform.python_version()}


def main(_) -> None:
    result = {
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {
            name: flags.FLAGS[name].value
            for name in ("batch_size", "batches", "image_size", "interpolation")
        },
        "datasets": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        if _DATASET.value:
            datasets = {epath.Path(_DATASET.value).name: _DATASET.value}
        else:
            print("Making the data ...", flush=True)
            datasets = make_datasets(pathlib.Path(temporary))
        for name, path in datasets.items():
            print(f"{name}:", flush=True)
            result["datasets"][name] = measured = measure_dataset(path)
            costs = measured["stages_us_per_pair"]
            print(f"  {measured['bytes_per_pair']:.0f} bytes a pair; microseconds of CPU a pair:")
            print("   ", ", ".join(f"{stage} {cost:.0f}" for stage, cost in costs.items()))
    write_atomically(_OUT.value, json.dumps(result, indent=1))


if __name__ == "__main__":
    command.run(main)
