"""Runs on this machine: a process a device, each with its share of the cores."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from experiments.progress import Watch
from experiments.worker import EXIT_BUSY, EXIT_CODES, claim, read_status, write_json
from jaxclip.command import num_cores

POLL = 1.0  # seconds


def launch(run_dirs: Sequence[Path], watch: Watch, devices: int = 0) -> None:
    """Carries out the runs, so many at a time, and waits for them.

    A run that fails does not stop the others. What a killed sweep left running is waited for first,
    as it holds the devices. SIGTERM and Ctrl-C stop all runs after saving.

    Args:
      devices: runs at a time; the GPUs and cores of this machine are shared out between them. 0:
        one a GPU, or where there is none, one a core.
    """
    gpus = list_gpus()
    devices = min(devices or len(gpus) or num_cores(), len(run_dirs))
    queue, running = deque(run_dirs), {}
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while any(map(is_held, run_dirs)):
            watch.show()
            time.sleep(POLL)
        while queue or running:
            for slot in [s for s, (_, process) in running.items() if process.poll() is not None]:
                run_dir, process = running.pop(slot)
                if process.returncode == EXIT_BUSY:
                    queue.append(run_dir)
                elif process.returncode not in EXIT_CODES.values():
                    note_crash(run_dir, process.returncode)
            for slot in set(range(devices)) - running.keys():
                if queue:
                    run_dir = queue.popleft()
                    running[slot] = run_dir, start(run_dir, slot, devices, gpus)
            watch.show()
            time.sleep(POLL)
        watch.show()
    except KeyboardInterrupt:
        print("\nStopping: each run saves first. The same command goes on.", flush=True)
        raise
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, previous)


def start(run_dir: Path, slot: int, devices: int, gpus: Sequence[str]) -> subprocess.Popen:
    """A worker with every `devices`-th core and GPU, from `slot` on."""
    command = [sys.executable, "-m", "experiments.worker", f"--run={run_dir}"]
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[slot::devices] or cores
        command.append(f"--cores={','.join(map(str, mine))}")
    env = dict(os.environ)
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot::devices] or [gpus[slot % len(gpus)]])
    # a session of its own: Ctrl-C reaches this process alone, which asks the others to save
    with (run_dir / "log.txt").open("a") as log:
        return subprocess.Popen(
            command, env=env, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )


def is_held(run_dir: Path) -> bool:
    with claim(run_dir) as lock:
        return lock is None


def note_crash(run_dir: Path, code: int) -> None:
    """A worker that was killed said nothing: this is said for it."""
    error = f"the worker ended with code {code}; see {run_dir / 'log.txt'}"
    write_json(run_dir / "status.json", read_status(run_dir) | {"state": "failed", "error": error})


def list_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    if not shutil.which("nvidia-smi"):
        return []
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(found.stdout.splitlines()) if line.startswith("GPU ")]
