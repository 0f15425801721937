"""Carries out one run of a study: trains it, scores it, says how far it is.

    python -m experiments.worker --run=WORKDIR/runs/RUN_ID [--cores=0,1]

What every launcher starts, and what alone decides whether a run is done. A run's folder, besides
what jaxclip.train leaves there, has

    plan.json     the steps, as commands: training, then each evaluation; written by the sweep
    status.json   the steps that are finished, seconds of each, the state, the last error; which
                  sets an evaluation lacked: it is done again when such a set's folder changes
    log.txt       what the commands said

Exit codes: 0 done; 1 failed; 75 stopped after saving; 76 another process is at work on it. The
same command goes on where it stopped. Imports no jax.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.options import option, run
from jaxclip.command import EXIT_PREEMPTED
from jaxclip.data.files import write_atomically

EXIT_BUSY = 76
TRAIN = "train"
STATES = ("waiting", "training", "evaluating", "stopped", "failed", "done")
EXIT_CODES = {"done": 0, "failed": 1, "stopped": EXIT_PREEMPTED, "busy": EXIT_BUSY}


def write_json(file: Path, content: Any) -> None:
    write_atomically(file, json.dumps(content, indent=1))


def read_plan(run_dir: Path) -> dict[str, Any]:
    file = run_dir / "plan.json"
    if not file.exists():
        raise FileNotFoundError(f"{run_dir} is no run of a study (no plan.json). Start the sweep.")
    return json.loads(file.read_text())


def read_status(run_dir: Path) -> dict[str, Any]:
    """{"state", "finished": {step: its command}, "seconds": {step: so far}, "error",
    "lacked": {step: {folder of a set: when it had changed}}}"""
    file = run_dir / "status.json"
    status = {"state": "waiting", "finished": {}, "seconds": {}, "error": "", "lacked": {}}
    return status | (json.loads(file.read_text()) if file.exists() else {})


def missing_steps(run_dir: Path) -> list[str]:
    """Steps of the plan that are not finished, were finished by another command, or lacked a set
    whose folder has changed since."""
    status = read_status(run_dir)
    steps: Mapping[str, Sequence[str]] = read_plan(run_dir)["steps"]
    return [
        step
        for step, command in steps.items()
        if status["finished"].get(step) != command
        or any(changed_at(x) != then for x, then in status["lacked"].get(step, {}).items())
    ]


def changed_at(folder: str) -> int:
    """Nanoseconds; 0: it is not there."""
    return os.stat(folder).st_mtime_ns if os.path.exists(folder) else 0


def lacked_sets(run_dir: Path, step: str) -> dict[str, int]:
    """Sets that an evaluation was to score on and did not find, and when their folders changed."""
    file = run_dir / "evaluation" / step / "results.json"
    missing = json.loads(file.read_text()).get("missing", []) if file.exists() else []
    return {folder: changed_at(folder) for folder in missing}


def is_done(run_dir: Path) -> bool:
    return not missing_steps(run_dir)


def command_of(run_dir: Path, step: str) -> list[str]:
    """The command of a step; the plan has {run} where this folder's path belongs."""
    found = [part.replace("{run}", str(run_dir)) for part in read_plan(run_dir)["steps"][step]]
    return [sys.executable, *found[1:]] if found[0] == "python" else found


class Worker:
    """One run, here and now."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._process: subprocess.Popen | None = None
        self._stopping = False

    def __call__(self) -> str:
        """Carries out what is missing; returns the state it ends in, or "busy"."""
        with claim(self.run_dir) as lock:
            if lock is None:
                return "busy"
            for step in missing_steps(self.run_dir):
                self._set(state="training" if step == TRAIN else "evaluating", error="")
                code = self._carry_out(step, lock)
                if self._stopping or code == EXIT_PREEMPTED:
                    return self._set(state="stopped")
                if code:
                    return self._set(state="failed", error=f"{step}: {self._last_words(code)}")
                status = read_status(self.run_dir)
                self._set(
                    finished=status["finished"] | {step: read_plan(self.run_dir)["steps"][step]},
                    lacked=status["lacked"] | {step: lacked_sets(self.run_dir, step)},
                )
            return self._set(state="done")

    def stop(self, *_: Any) -> None:
        """Asks the step under way to save and end; a signal handler."""
        self._stopping = True
        if self._process:
            self._process.terminate()

    def _carry_out(self, step: str, lock: int) -> int:
        if self._stopping:
            return EXIT_PREEMPTED
        start = time.time()
        with (self.run_dir / "log.txt").open("a") as log:
            self._process = subprocess.Popen(
                command_of(self.run_dir, step),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=cached(self.run_dir) | os.environ,
                pass_fds=[lock],  # should this process be killed, the step still holds the run
                preexec_fn=ignore_user_signals,
            )
            if self._stopping:  # the signal came in between
                self._process.terminate()
            code = self._process.wait()
        seconds = read_status(self.run_dir)["seconds"]
        self._set(seconds=seconds | {step: seconds.get(step, 0.0) + time.time() - start})
        return code

    def _set(self, **changes: Any) -> str:
        status = read_status(self.run_dir) | changes
        write_json(self.run_dir / "status.json", status)
        return status["state"]

    def _last_words(self, code: int) -> str:
        """The last line of the log: our programs and Python both end with what went wrong."""
        with (self.run_dir / "log.txt").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            lines = log.read().decode(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{words[-1] if words else 'no output'} ({how}; see {self.run_dir / 'log.txt'})"


@contextlib.contextmanager
def claim(run_dir: Path) -> Iterator[int | None]:
    """Holds the run until this process and the steps it started are gone; None: others hold it.

    Where files cannot be locked (buckets, Lustre without -o flock), it is held by none, with a
    warning.
    """
    with (run_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            warnings.warn(
                f"files of this study cannot be locked ({error.strerror}): take care that no run "
                "is started twice at once.",
                stacklevel=3,
            )
        yield file.fileno()


def ignore_user_signals() -> None:
    """SLURM sends those that submitit listens to to all processes of a job."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def cached(run_dir: Path) -> dict[str, str]:
    """Settings by which the runs of a study compile what they share once."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(run_dir.absolute().parent.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@dataclasses.dataclass(slots=True, kw_only=True)
class WorkerOptions:
    """The command line."""

    run: str = option("", "the run's folder in the study")
    cores: tuple[str, ...] = option((), "processor cores to use; default: all")


def main(options: WorkerOptions) -> int:
    if not options.run:
        raise ValueError("run is not set. Name a run of a study: --run=WORKDIR/runs/RUN_ID.")
    if options.cores and hasattr(os, "sched_setaffinity"):  # not on macOS
        os.sched_setaffinity(0, {int(core) for core in options.cores})
    worker = Worker(Path(options.run))
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    state = worker()
    error = read_status(worker.run_dir)["error"]
    print(f"{worker.run_dir}: {state}", error, file=sys.stderr if error else sys.stdout, flush=True)
    return EXIT_CODES[state]


if __name__ == "__main__":
    run(lambda options: sys.exit(main(options)), WorkerOptions)
