"""How long does it take to choose 100,000 of 5 million records, and in how much memory?

    python -m experiments.benchmarks.subset --out=subset.json

Writes a metadata.parquet of --rows rows with columns that every dataset has, and some signals
(about 750 MB for 5 million), then runs data_pipelines.subset on it in a process of its own, plain
and stratified, and reports wall time, CPU time and the peak of resident memory of that process.
Goal: under 5 s and 2 GiB. A minute or two on 2 cores.
"""

import json
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags

from data_pipelines.signals import signals
from jaxclip import command
from jaxclip.data.dataset import Dataset, finish_dataset, write_shard
from jaxclip.data.record import Example, Record

_ROWS = flags.DEFINE_integer("rows", 5_000_000, "records of the dataset")
_SIZE = flags.DEFINE_integer("size", 100_000, "records of the subset")
_OUT = flags.DEFINE_string("out", None, "JSON to write", required=True)
MODALITIES = ("radiology", "microscopy", "visible light photography", "chart", "other")
QUERIES = {
    "plain": [],
    "where": ["--where=modality = 'radiology' AND caption_tokens >= 20"],
    "stratified": ["--stratify=modality", "--where=caption_tokens >= 20"],
}


def table(rng: np.random.Generator, first: int, rows: int) -> pa.Table:
    position = np.arange(first, first + rows)
    hashes = rng.bytes(32 * rows).hex()
    columns = {
        "position": position,
        "article_id": [f"PMC{n // 6}" for n in position],
        "figure_id": [f"Fig{n // 3 % 2}" for n in position],
        "panel_id": [str(n % 3) for n in position],
        "source": ["open_pmc"] * rows,
        "licence": ["CC BY"] * rows,
        "width": rng.integers(100, 2000, rows),
        "height": rng.integers(100, 2000, rows),
        "split": np.where(position // 6 % 20 < 18, "train", "test"),
        "record_bytes": rng.integers(10_000, 80_000, rows),
        "image_sha256": [hashes[64 * i : 64 * i + 64] for i in range(rows)],
        "modality": np.array(MODALITIES)[rng.integers(0, len(MODALITIES), rows)],
        "caption_tokens": rng.integers(1, 200, rows),
        "sharpness": rng.random(rows),
        "texts_hash": rng.integers(-(2**63), 2**63, rows),
        "perceptual_hash": rng.integers(-(2**63), 2**63, rows),
    }
    for field in ("caption", "panel_caption", "references", "summary"):
        columns[f"{field}_chars"] = rng.integers(0, 1000, rows)
    return pa.table(columns)


def make_dataset(folder: pathlib.Path, rows: int) -> Dataset:
    """One real record, and the metadata of `rows`."""
    folder.mkdir()
    record = Record(image=b"x", width=64, height=64, caption="x")
    found = signals(record, np.zeros((64, 64, 3), np.uint8))
    write_shard(folder, 0, [Example(record=record, split="train", signals=found)])
    finish_dataset(folder, 1, {})
    rng, step = np.random.default_rng(0), 250_000
    assert {*table(rng, 0, 1).column_names} <= {*Dataset(folder).column_names}
    with pq.ParquetWriter(folder / "metadata.parquet", table(rng, 0, 1).schema) as writer:
        for first in range(0, rows, step):
            writer.write_table(table(rng, first, min(step, rows - first)))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"] |= {"in": rows, "out": rows}
    manifest["metadata"] |= {"bytes": (folder / "metadata.parquet").stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Dataset(folder)


def measure(folder: pathlib.Path, out: pathlib.Path, size: int, options: list[str]) -> dict:
    program = [sys.executable, "-m", "data_pipelines.subset", f"--dataset={folder}"]
    program += [f"--out={out}", f"--size={size}", *options]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(program, cwd=command.ROOT, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise ValueError(f"{' '.join(program)} failed.")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}


def resident(pid: int) -> int:
    """The most memory that a process has had, bytes; 0 when it is gone. Linux."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def main(_) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        dataset = make_dataset(folder / "dataset", _ROWS.value)
        results = {
            name: measure(folder / "dataset", folder / name, _SIZE.value, options)
            for name, options in QUERIES.items()
        }
        size = (folder / "dataset" / "metadata.parquet").stat().st_size
    for name, result in results.items():
        print(
            f"{name:12} {result['seconds']:5.2f} s, {result['cpu_seconds']:5.2f} CPU s, "
            f"peak {result['peak_bytes'] / 2**30:.2f} GiB"
        )
    report = {"rows": len(dataset), "size": _SIZE.value, "parquet_bytes": size}
    report |= {"python": platform.python_version(), "results": results}
    pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    command.run(main)
