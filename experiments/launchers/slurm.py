"""Runs as the tasks of a SLURM array, through submitit.

A job that is preempted or runs out of its time saves and is queued again by submitit; it goes on
where it stopped. Out of time it is queued TIMEOUTS times, or as often as slurm_max_num_timeout
says; after that, the same command goes on. A run is one job on one host, with all of the host's
devices that the job has.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.progress import Watch
from experiments.worker import Worker

POLL = 5.0  # seconds
TIMEOUTS = 10  # submitit's own 3 are few for a partition of short jobs
OF_EXECUTOR = ("slurm_max_num_timeout", "slurm_python")  # what is no parameter of a job


class Job(Worker):
    """A worker that submitit can interrupt and queue again."""

    def checkpoint(self) -> Any:
        self.stop()
        if self._process:
            self._process.wait()
        return import_submitit().helpers.DelayedSubmission(Job(self.run_dir))


def launch(
    run_dirs: Sequence[Path],
    watch: Watch,
    folder: Path,
    settings: Sequence[str] = (),
    cluster: str = "slurm",
) -> None:
    """Submits the runs as one array and waits for them; Ctrl-C leaves them in the queue.

    Submitting a run that is in the queue or at work does no harm: whichever job comes second finds
    the run done, or held by the first, and ends.

    Args:
      folder: of submitit's files.
      settings: NAME=VALUE of submitit.AutoExecutor and its update_parameters: timeout_min=2880,
        gpus_per_node=8, cpus_per_task=96, slurm_partition=gpu, slurm_array_parallelism=16,
        slurm_max_num_timeout=20, slurm_signal_delay_s=300 (seconds left for saving), ...
      cluster: slurm, or what else submitit has: local, debug.
    Raises:
      ValueError: submitit is not installed, or refuses a setting.
    """
    executor = make_executor(folder, settings, cluster)
    with executor.batch():
        jobs = [executor.submit(Job(run_dir)) for run_dir in run_dirs]
    print(f"Submitted {len(jobs)} jobs, {jobs[0].job_id} and on; their files: {folder}", flush=True)
    try:
        while not all(job.done() for job in jobs):
            watch.show()
            time.sleep(POLL)
    except KeyboardInterrupt:
        print("\nThe jobs stay in the queue. The same command shows how far they are.", flush=True)
        raise
    watch.show()
    for job, run_dir in zip(jobs, run_dirs, strict=True):
        if error := job.exception():  # of the worker itself: a run that fails is told by its status
            print(f"{run_dir.name}: {str(error).strip().splitlines()[-1]}", flush=True)


def make_executor(folder: Path, settings: Sequence[str], cluster: str) -> Any:
    """Raises ValueError: submitit is not installed, or refuses a setting."""
    submitit = import_submitit()
    of_jobs = {"slurm_max_num_timeout": TIMEOUTS} | dict(map(parse_setting, settings))
    of_executor = {name: of_jobs.pop(name) for name in OF_EXECUTOR if name in of_jobs}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **of_executor)
        executor.update_parameters(name="jaxclip", **of_jobs)
    except (NameError, RuntimeError, AssertionError) as error:
        raise ValueError(f"slurm {tuple(settings)}: {' '.join(str(error).split())}") from None
    return executor


def import_submitit() -> Any:
    """The module, without its configuration of logging, which closes absl's here; jobs have it."""
    name = "SUBMITIT_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = "NOCONFIG"
    try:
        import submitit
    except ImportError:
        raise ValueError(
            "launcher ('slurm') needs submitit. Install it: pip install jaxclip[slurm]."
        ) from None
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
    return submitit


def parse_setting(setting: str) -> tuple[str, Any]:
    """`"gpus_per_node=8"` -> ("gpus_per_node", 8)."""
    name, separator, value = setting.partition("=")
    if not name or not separator:
        raise ValueError(f"slurm ({setting!r}) must be NAME=VALUE, as timeout_min=2880.")
    return name, int(value) if value.isdigit() else value
