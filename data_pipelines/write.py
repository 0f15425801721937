"""Writes a DATASET: one job, one shard, in a pool of processes; what is finished stays finished.

    build_dataset(out, jobs=..., make_items=..., made_by={"module": ..., "options": ...})

While it is being made, a directory also holds build.json (what it is going to be) and whatever the
jobs need; the same command goes on where it stopped, another command is refused.
"""

import concurrent.futures
import functools
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from array_record.python import array_record_data_source
from etils import epath

from jaxclip.data.record import (
    Dataset,
    Drop,
    Example,
    Record,
    finish_dataset,
    write_atomically,
    write_shard,
)

Job = TypeVar("Job")

STAGED_ROWS = "rows.parquet"  # a table on its way into a dataset; see table.py
OWN_FILES = re.compile(  # what a dataset, finished or not, consists of
    r"(records-\d{5,}\.(array_record|parquet|json)|(metadata|rows)\.parquet|dropped\.jsonl"
    r"|(manifest|build|tokenizer|card)\.json|card\.html)(\.tmp)?"
)
TOKENIZER_RECORDS = 200_000  # more do not change a vocabulary
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
    add_columns: Callable[[epath.Path, int], pa.Table] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Writes the dataset of `jobs` at `out`, or goes on with it, or reports that it is there.

    Args:
      jobs: one a shard, in order. A function is called once it is clear that there is work to do,
        and may leave a file STAGED_ROWS in `out` for the workers.
      make_items: the records and drops of a job, in order, one by one: a shard streams. Runs in a
        worker process, so it is picklable: a module's function, or functools.partial of one.
      made_by: what makes the dataset, as JSON: module, options. Not what leaves its content as it
        is (out, workers). tokenizer_vocab and the versions of CONTENT_PACKAGES are added.
      workers: processes; 0 means one per core, 1 runs in this process.
      beam: options of Apache Beam ("--runner=..."), which then runs the jobs instead: the same
        jobs, the same bytes. `out` must be a path that driver and workers share.
      tokenizer_vocab: size of the WordPiece vocabulary trained on the train split; 0: none.
      add_columns: what can be told only of all records together: given the directory and the number
        of shards, columns for metadata.parquet with a row a record. Runs here, after the shards.
      overwrite: removes a dataset at `out` first, finished or not, and nothing else.
    Raises:
      ValueError: `out` holds something else; the jobs are not those of before; no record came
        through.
      RuntimeError: make_items raised (the message names the item), or a worker was killed.
    """
    directory = epath.Path(out)
    versions = {name: importlib.metadata.version(name) for name in CONTENT_PACKAGES}
    made_by = json.loads(
        json.dumps({**made_by, "tokenizer_vocab": tokenizer_vocab, "versions": versions})
    )
    if overwrite:
        _remove_dataset(directory)
    if dataset := _claim(directory, made_by):
        print(f"Already done, nothing to do: {summary(dataset)}")
        return dataset
    jobs = jobs() if callable(jobs) else jobs
    _claim_jobs(directory, len(jobs))
    try:
        if beam:
            _write_shards_with_beam(directory, jobs, make_items, beam)
        else:
            _write_shards(directory, jobs, make_items, workers)
    except KeyboardInterrupt:
        finished = len(list(directory.glob("records-*.json")))
        print(
            f"\nStopped with {finished} of {len(jobs)} shards; the same command goes on from there."
        )
        raise
    if tokenizer_vocab:
        _write_tokenizer(directory, tokenizer_vocab)
    columns = add_columns(directory, len(jobs)) if add_columns else None
    dataset = finish_dataset(directory, len(jobs), made_by, columns)
    for name in ("build.json", STAGED_ROWS):
        (directory / name).unlink(missing_ok=True)
    print(summary(dataset))
    return dataset


def summary(dataset: Dataset) -> str:
    """What went in and came out, and where to go from here; several lines."""
    counts = dataset.manifest["counts"]
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in counts["dropped"].items())
    splits = ", ".join(f"{split} {n:,}" for split, n in counts["splits"].items())
    size = sum(shard["bytes"] for shard in dataset.manifest["shards"])
    return "\n".join(
        [
            f"{dataset.path}: {counts['out']:,} records, {size / 1e6:,.1f} MB, "
            f"content hash {dataset.content_hash[:12]}",
            f"  in       {counts['in']:,}",
            f"  dropped  {counts['in'] - counts['out']:,}{' (' if dropped else ''}{dropped}"
            f"{'), see dropped.jsonl' if dropped else ''}",
            f"  splits   {splits}",
            f"  next     python -m jaxclip.train --config=... --config.data.path={dataset.path}",
        ]
    )


# --- Whose directory is it ---------------------------------------------------------------------


def _claim(directory: epath.Path, made_by: Mapping[str, Any]) -> Dataset | None:
    """Makes sure that `directory` is for the dataset of `made_by`; returns it if it is finished."""
    if (directory / "manifest.json").exists():
        dataset = Dataset(directory)
        _refuse_other(directory, dataset.manifest["made_by"], made_by)
        return dataset
    shards_made_by = {key: made_by[key] for key in made_by if key != "tokenizer_vocab"}
    if before := _read_build(directory):
        _refuse_other(directory, before["made_by"], shards_made_by)
        return None
    _refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write_build(directory, made_by=shards_made_by, jobs=None)
    return None


def _claim_jobs(directory: epath.Path, num_jobs: int) -> None:
    build = _read_build(directory)
    before = build["jobs"]
    if before not in (None, num_jobs):
        raise ValueError(
            f"{directory} was begun with {before} shards; now there are {num_jobs}: the input is "
            "not what it was. Use --overwrite to begin again, or another --out."
        )
    _write_build(directory, made_by=build["made_by"], jobs=num_jobs)


def _refuse_other(directory: epath.Path, before: Mapping, now: Mapping) -> None:
    before, now = dict(_flat(before)), dict(_flat(now))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        lines = (f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in differing)
        raise ValueError(
            f"{directory} holds a dataset of another command. These differ:\n"
            + "\n".join(lines)
            + "\nUse --overwrite to replace it, or another --out."
        )


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"a": {"b": 1}} -> ("a.b", 1)"""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _own_files(directory: epath.Path) -> list[epath.Path]:
    if not directory.exists():
        return []
    return sorted(file for file in directory.iterdir() if OWN_FILES.fullmatch(file.name))


def _refuse_foreign(directory: epath.Path) -> None:
    if own := _own_files(directory):
        raise ValueError(
            f"{directory} is not a dataset, finished or begun, but has {own[0].name}, which a "
            "dataset would replace. Choose another --out, or move the file away."
        )


def _remove_dataset(directory: epath.Path) -> None:
    """Removes a dataset and no other file. Killed half way, it leaves what can be removed again."""
    manifest = directory / "manifest.json"
    is_dataset = manifest.exists() and _read_json(manifest).get("format") == "jaxclip-dataset"
    if not is_dataset and not _read_build(directory):
        return _refuse_foreign(directory)
    _write_build(directory, made_by={"state": "being removed"}, jobs=None)
    manifest.unlink(missing_ok=True)
    for file in _own_files(directory):
        if file.name != "build.json":
            file.unlink()
    (directory / "build.json").unlink()


def _read_json(file: epath.Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_build(directory: epath.Path) -> dict | None:
    build = _read_json(directory / "build.json")
    return build if build.get("format") == "jaxclip-build" else None


def _write_build(directory: epath.Path, *, made_by: Mapping, jobs: int | None) -> None:
    build = {"format": "jaxclip-build", "made_by": made_by, "jobs": jobs}
    write_atomically(directory / "build.json", json.dumps(build, indent=1))


# --- Shards ------------------------------------------------------------------------------------


def _write_shards(
    directory: epath.Path, jobs: Sequence[Job], make_items: Callable, workers: int
) -> None:
    finished = len(list(directory.glob("records-*.json")))
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
    directory: epath.Path, jobs: Sequence[Job], make_items: Callable, beam: Sequence[str]
) -> None:
    import apache_beam  # takes seconds, and only a job on a cluster needs it
    from apache_beam.options.pipeline_options import PipelineOptions

    write = functools.partial(_write_one, directory, make_items)
    done = {file.name for file in directory.glob("records-*.json")}
    waiting = [job for job in enumerate(jobs) if f"records-{job[0]:05d}.json" not in done]
    print(f"{len(waiting):,} of {len(jobs):,} shards to write with Beam ({' '.join(beam)}) ...")
    with apache_beam.Pipeline(options=PipelineOptions(list(beam))) as pipeline:
        write_shards = apache_beam.MapTuple(functools.partial(_write_and_count, write))
        _ = pipeline | apache_beam.Create(waiting, reshuffle=True) | write_shards


def _write_and_count(write: Callable[[int, Job], dict], index: int, job: Any) -> None:
    """Nothing of a shard but its counts leaves the worker; a monitoring page shows them."""
    from apache_beam.metrics import Metrics

    info = write(index, job)
    Metrics.counter("jaxclip", "shards").inc()
    Metrics.counter("jaxclip", "records").inc(info["records"])
    Metrics.counter("jaxclip", "dropped").inc(len(info["dropped"]))


def _write_one(directory: epath.Path, make_items: Callable, index: int, job: Any) -> dict:
    count = 0

    def counted() -> Iterator[Example | Drop]:
        nonlocal count
        for item in make_items(job):
            yield item
            count += 1

    try:
        return write_shard(directory, index, counted())
    except Exception as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        raise RuntimeError(
            f"Item {count} of job {job!r} (shard {index}) failed{f' ({notes})' if notes else ''}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _run(write: Callable[[int, Job], dict], jobs: Sequence[Job], workers: int) -> Iterator[dict]:
    """Yields write(index, job) of every job, in the order they finish."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
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


# --- Tokenizer ---------------------------------------------------------------------------------


def _write_tokenizer(directory: epath.Path, vocab_size: int) -> None:
    """Trains on the finished shards, so that the tokenizer is there before the manifest is."""
    from data_pipelines import tokenizer  # not on top: the workers can do without

    texts = list(train_texts(directory))
    if not texts:
        print("No tokenizer: the train split is empty.")
        return
    print(f"Training a vocabulary of {vocab_size:,} on {len(texts):,} texts of the train split ...")
    trained = tokenizer.train_tokenizer(texts, vocab_size=vocab_size, kind="wordpiece")
    tokenizer.save_tokenizer(trained, os.fspath(directory / "tokenizer.json"))


def train_texts(directory: epath.Path, most: int = TOKENIZER_RECORDS) -> Iterator[str]:
    """All texts of at most `most` records of the train split, evenly spaced over the shards."""
    rows = {}
    for file in sorted(directory.glob("records-*.parquet")):
        if pq.read_metadata(os.fspath(file)).num_rows:
            splits = pq.read_table(os.fspath(file), columns=["split"])["split"]
            rows[file] = np.flatnonzero(splits.to_numpy() == "train")
    step = max(1, math.ceil(sum(map(len, rows.values())) / most))
    seen = 0
    for file, train_rows in rows.items():
        shard = os.fspath(file.with_suffix(".array_record"))
        source = array_record_data_source.ArrayRecordDataSource([shard])
        for row in train_rows[-seen % step :: step]:
            yield from filter(None, Record.unpack(source[int(row)]).texts().values())
        seen += len(train_rows)
