"""Writes a DATASET: one job, one shard, in a pool of processes; what is finished stays finished.

    build_dataset(out, jobs=..., make_items=..., made_by={"module": ..., "options": ...})

While it is being made, a directory also holds build.json (what it is going to be) and whatever the
jobs need; the same command goes on where it stopped, another command is refused. A directory may be
at a URL: there a worker uploads its shard, and the program that was started the rest.
"""

import concurrent.futures
import functools
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from etils import epath

from data_pipelines import remote
from data_pipelines.claim import (
    FINISHED,
    claim,
    claim_jobs,
    done_shards,
    read_json,
    remove_dataset,
    tidy,
)
from jaxclip.command import num_cores
from jaxclip.data.dataset import Dataset, finish_dataset, shard_name, write_shard
from jaxclip.data.files import copying
from jaxclip.data.record import Drop, Example, Record

Job = TypeVar("Job")

STAGED_ROWS = "rows.parquet"  # a table on its way into a dataset; see table.py
TOKENIZER_RECORDS = 200_000  # more do not change a vocabulary
TOKENIZER_SHARDS = 512  # that they are read from; at a URL each is fetched
CONTENT_PACKAGES = ("pillow", "simplejpeg")  # another version may encode other bytes


def build_dataset(
    out: str,
    *,
    jobs: Sequence[Job] | Callable[[], Sequence[Job]],
    make_items: Callable[[Job], Iterable[Example | Drop]],
    made_by: Mapping[str, Any],
    workers: int = 0,
    beam: Sequence[str] = (),
    tokenizer_vocab: int = 8192,
    add_columns: Callable[[epath.Path, int, remote.Shards], pa.Table] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Writes the dataset of `jobs` at `out`, or goes on with it, or reports that it is there.

    Args:
      out: a path, or a URL of a bucket, gs:// or s3://.
      jobs: one a shard, in order. A function is called once it is clear that there is work to do,
        and may leave a file STAGED_ROWS in `out` for the workers.
      make_items: the records and drops of a job, in order, one by one: a shard streams. Runs in a
        worker process, so it is picklable: a module's function, or functools.partial of one.
      made_by: what makes the dataset, as JSON: module, options. Not what leaves its content as it
        is (out, workers). tokenizer_vocab and the versions of CONTENT_PACKAGES are added.
      workers: processes; 0 means one per core, 1 runs in this process.
      beam: options of Apache Beam ("--runner=..."), which then runs the jobs instead: the same
        jobs, the same bytes. `out` is a URL, or a path that driver and workers share.
      tokenizer_vocab: size of the WordPiece vocabulary trained on the train split; 0: none.
      add_columns: what can be told only of all records together: given a folder with the tables of
        the shards, their number and their records, columns for metadata.parquet with a row a
        record. Runs here, after the shards.
      overwrite: removes a dataset at `out` first, finished or not, and nothing else.
    Returns:
      The dataset; of one at a URL its `path` is a temporary folder with all of it but the shards.
    Raises:
      ValueError: `out` holds something else; the jobs are not those of before; no record came
        through.
      RuntimeError: make_items raised (the message names the item), or a worker was killed.
    """
    directory = out.rstrip("/") or "/"
    made_by = {**made_by, "tokenizer_vocab": tokenizer_vocab, "versions": _versions()}
    made_by = json.loads(json.dumps(made_by))
    if overwrite:
        remove_dataset(directory)
    if dataset := claim(directory, made_by):
        tidy(directory, dataset)
        print(f"Already done, nothing to do: {summary(dataset, directory)}")
        return dataset
    jobs = jobs() if callable(jobs) else jobs
    claim_jobs(directory, len(jobs))
    try:
        if beam:
            _write_shards_with_beam(directory, jobs, make_items, beam)
        else:
            _write_shards(directory, jobs, make_items, workers)
    except KeyboardInterrupt:
        finished = len(done_shards(directory))
        print(
            f"\nStopped with {finished} of {len(jobs)} shards; the same command goes on from there."
        )
        raise
    dataset = _finish(directory, len(jobs), made_by, tokenizer_vocab, add_columns)
    tidy(directory, dataset)
    print(summary(dataset, directory))
    return dataset


def summary(dataset: Dataset, directory: str) -> str:
    """What went in and came out, and where to go from here; several lines."""
    counts = dataset.manifest["counts"]
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in counts["dropped"].items())
    splits = ", ".join(f"{split} {n:,}" for split, n in counts["splits"].items())
    size = sum(shard["bytes"] for shard in dataset.manifest["shards"])
    train = "python -m jaxclip.train --config=... --config.data.path="
    is_far = remote.is_url(directory)
    return "\n".join(
        [
            f"{directory}: {counts['out']:,} records, {size / 1e6:,.1f} MB, "
            f"content hash {dataset.content_hash[:12]}",
            f"  in       {counts['in']:,}",
            f"  dropped  {counts['in'] - counts['out']:,}{' (' if dropped else ''}{dropped}"
            f"{'), see dropped.jsonl' if dropped else ''}",
            f"  splits   {splits}",
            f"  next     {copying(directory) if is_far else train + directory}",
        ]
    )


# --- Shards ------------------------------------------------------------------------------------


def _write_shards(directory: str, jobs: Sequence[Job], make_items: Callable, workers: int) -> None:
    finished = len(done_shards(directory))
    if finished:
        print(f"{directory} was begun: {finished} of {len(jobs)} shards are there already.")
    dropped, written = 0, 0
    write = functools.partial(_write_one, directory, make_items)
    with tqdm.tqdm(unit=" records", smoothing=0) as bar:
        for info in _run(write, jobs, workers):
            dropped, written = dropped + len(info["dropped"]), written + 1
            bar.set_postfix(dropped=dropped, shards=f"{written}/{len(jobs)}", refresh=False)
            bar.update(info["records"])


def _write_shards_with_beam(
    directory: str, jobs: Sequence[Job], make_items: Callable, beam: Sequence[str]
) -> None:
    import apache_beam  # takes seconds, and only a job on a cluster needs it
    from apache_beam.options.pipeline_options import PipelineOptions

    write = functools.partial(_write_and_count, directory, make_items, _versions())
    done = set(done_shards(directory))
    waiting = [job for job in enumerate(jobs) if f"{shard_name(job[0])}.json" not in done]
    print(f"{len(waiting):,} of {len(jobs):,} shards to write with Beam ({' '.join(beam)}) ...")
    with apache_beam.Pipeline(options=PipelineOptions(list(beam))) as pipeline:
        _ = pipeline | apache_beam.Create(waiting, reshuffle=True) | apache_beam.MapTuple(write)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in CONTENT_PACKAGES}


def _write_and_count(
    directory: str, make_items: Callable, versions: dict[str, str], index: int, job: Any
) -> None:
    """Nothing of a shard but its counts leaves the worker; a monitoring page shows them."""
    from apache_beam.metrics import Metrics

    if not remote.exists(f"{directory}/build.json"):
        raise RuntimeError(
            f"{directory} is not on this worker. --out must be a URL (gs://, s3://), or a path "
            "that all workers share."
        )
    if _versions() != versions:
        raise RuntimeError(
            f"This worker has {_versions()}, the machine that it was started from {versions}: its "
            "images would be others. Install the same there, with constraints.txt."
        )
    info = _write_one(directory, make_items, index, job)
    Metrics.counter("jaxclip", "shards").inc()
    Metrics.counter("jaxclip", "records").inc(info["records"])
    Metrics.counter("jaxclip", "dropped").inc(len(info["dropped"]))


def _write_one(directory: str, make_items: Callable, index: int, job: Any) -> dict:
    count = 0

    def counted() -> Iterator[Example | Drop]:
        nonlocal count
        for item in make_items(job):
            yield item
            count += 1

    try:
        return _write_shard(directory, index, counted())
    except Exception as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        raise RuntimeError(
            f"Item {count} of job {job!r} (shard {index}) failed{f' ({notes})' if notes else ''}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _write_shard(directory: str, index: int, items: Iterable[Example | Drop]) -> dict:
    """write_shard, also at a URL."""
    if not remote.is_url(directory):
        return write_shard(directory, index, items)
    name = shard_name(index)
    if done := read_json(f"{directory}/{name}.json"):
        return done
    with tempfile.TemporaryDirectory() as local:
        info = write_shard(local, index, items)
        kinds = ("array_record", "parquet", "json")  # the last one says that it is done
        remote.upload(local, [f"{name}.{kind}" for kind in kinds], directory)
    return info


def _run(write: Callable[[int, Job], dict], jobs: Sequence[Job], workers: int) -> Iterator[dict]:
    """Yields write(index, job) of every job, in the order they finish."""
    workers = min(workers or num_cores(), len(jobs))
    if workers <= 1:
        yield from itertools.starmap(write, enumerate(jobs))
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),  # Ctrl-C ends them without a traceback each
    )
    waiting = enumerate(jobs)
    with pool:
        # Only as many as there are workers: an error or Ctrl-C has nothing more to wait for.
        running = {pool.submit(write, *job) for job in itertools.islice(waiting, workers)}
        while running:
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            try:
                results = [future.result() for future in done]
            except BrokenProcessPool:
                raise RuntimeError(
                    "A worker process was killed, most likely for want of memory. The same command "
                    "goes on where it stopped; --workers with a smaller number needs less."
                ) from None
            running |= {pool.submit(write, *job) for job in itertools.islice(waiting, len(done))}
            yield from results


# --- What all shards together make -----------------------------------------------------------


def _finish(
    directory: str,
    num_shards: int,
    made_by: Mapping[str, Any],
    tokenizer_vocab: int,
    add_columns: Callable[..., pa.Table] | None,
) -> Dataset:
    names = [shard_name(i) for i in range(num_shards)]
    small = [f"{name}.{kind}" for name in names for kind in ("json", "parquet")]
    local = epath.Path(remote.local_folder(directory, small))
    counts = [pq.read_metadata(local / f"{name}.parquet").num_rows for name in names]
    shards = remote.Shards([f"{directory}/{name}.array_record" for name in names], counts)
    if tokenizer_vocab:
        _write_tokenizer(local, num_shards, shards, tokenizer_vocab)
    columns = add_columns(local, num_shards, shards) if add_columns and any(counts) else None
    try:
        source = shards if remote.is_url(directory) else None
        return finish_dataset(local, num_shards, made_by, columns, source)
    finally:  # what was dropped also where that was all
        remote.upload(local, [name for name in FINISHED if (local / name).exists()], directory)


def _write_tokenizer(
    directory: epath.Path, num_shards: int, shards: remote.Shards, vocab_size: int
) -> None:
    """Trains on the finished shards, so that the tokenizer is there before the manifest is."""
    from data_pipelines import tokenizer  # not on top: the workers can do without

    texts = list(train_texts(directory, num_shards, shards))
    if not texts:
        print("No tokenizer: the train split is empty.")
        return
    print(f"Training a vocabulary of {vocab_size:,} on {len(texts):,} texts of the train split ...")
    trained = tokenizer.train_tokenizer(texts, vocab_size=vocab_size, kind="wordpiece")
    tokenizer.save_tokenizer(trained, os.fspath(directory / "tokenizer.json"))


def train_texts(
    directory: epath.Path, num_shards: int, shards: remote.Shards, most: int = TOKENIZER_RECORDS
) -> Iterator[str]:
    """All texts of at most `most` records of the train split, evenly spaced over shards that are
    evenly spaced themselves."""
    is_train = []
    for i in range(num_shards):
        file = os.fspath(directory / f"{shard_name(i)}.parquet")
        if pq.read_metadata(file).num_rows:
            splits = pq.read_table(file, columns=["split"])["split"].to_numpy()
            is_train.append((splits == "train") & (i % -(-num_shards // TOKENIZER_SHARDS) == 0))
    positions = np.flatnonzero(np.concatenate(is_train)) if is_train else np.array([], np.int64)
    for position in positions[:: max(1, math.ceil(len(positions) / most))]:
        yield from filter(None, Record.unpack(shards[position]).texts().values())
