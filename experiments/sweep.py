r"""Carries out a study: a Python file that lists complete runs (see study.py).

    python -m experiments.sweep experiments/miniature/sweep.py --workdir=W --make_data
    python -m experiments.sweep experiments/quality_vs_scale/sweep.py:DATA --workdir=W --dry-run
    ... FILE:DATA,h100 --launcher=local                 # on this machine, a run a GPU
    ... FILE:DATA,h100x8 --launcher=local --devices=1   # all GPUs to one run
    ... FILE:DATA,h100x8 --launcher=slurm \
        --slurm=timeout_min=2880,gpus_per_node=8,slurm_partition=gpu
    ... FILE:DATA,v6e-8 --launcher=skypilot --accelerators=tpu-v6e-8 --bucket=gs://B/W \
        --mounts=DATA=gs://B/data

What stands behind the colon is given to the file's get_sweep: in the studies of real corpora where
the data are, and what a run has to itself, which sizes its micro-batches. A run is one host's.

The same command again carries out what is missing, and no more: a run that was killed goes on where
it stopped, one that failed is tried again, one that is finished is left alone. A run whose subset
cannot be drawn has failed, and the others go on. At the end everything is collected (collect.py).

WORKDIR/study.json      the question, and what the report has to know
        subsets/NAME    what the runs are trained on
        runs/RUN_ID     a workdir of jaxclip.train, see also worker.py
        cache/          compiled programs, shared by the runs
        runs.parquet    and results.parquet, items.parquet, see collect.py

Exit codes: 0 all done; 1 some runs failed or are not done, or cannot be (--dry-run); 75 stopped,
all runs saved.
"""

import collections
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from data_pipelines.options import option, run
from data_pipelines.subset import check_subset, make_subset
from experiments import collect, cost
from experiments.launchers import local, skypilot, slurm
from experiments.progress import Watch
from experiments.study import Run, Sweep, load_sweep
from experiments.worker import TRAIN, is_done, read_status, write_json
from jaxclip.command import EXIT_PREEMPTED
from jaxclip.config import TrainConfig, differences, to_dict
from jaxclip.data.subset import Subset

LAUNCHERS = ("local", "slurm", "skypilot")


@dataclasses.dataclass(slots=True, kw_only=True)
class SweepOptions:
    """The command line."""

    file: str = option("", "the study's file, or FILE:ARGUMENT; also without --file=")
    workdir: str = option("", "the study's folder: made, or gone on with")
    launcher: str = option("local", f"what carries out the runs: {', '.join(LAUNCHERS)}")
    dry_run: bool = option(False, "tell runs, device hours and bytes, and start nothing")
    mfu: float = option(cost.MFU, "dry run: the share of a device's peak that training reaches")
    make_data: bool = option(False, "run the study's commands for datasets that are not there")
    devices: int = option(0, "local: runs at a time; 0: one a GPU or, without, one a core")
    slurm: tuple[str, ...] = option((), "slurm: NAME=VALUE,... of submitit")
    cluster: str = option("slurm", "slurm: what submitit submits to: slurm, local, debug")
    accelerators: str = option("", "skypilot: H100:8, tpu-v6e-8, ...")
    bucket: str = option("", "skypilot: gs://, s3:// ... of the study's folder")
    mounts: tuple[str, ...] = option((), "skypilot: PATH=BUCKET,... of the datasets, copied")
    spot: bool = option(True, "skypilot: capacity that may be taken away")
    disk_size: int = option(0, "skypilot: GB, for the datasets, too; 0: its default")
    extras: tuple[str, ...] = option(("pipelines", "tfds"), "skypilot: of jaxclip, to install")

    def __post_init__(self):
        for name in ("slurm", "mounts", "extras"):
            setattr(self, name, tuple(getattr(self, name)))

    def validate(self) -> None:
        if not self.file:
            raise ValueError("file is not set. Name a study: experiments/NAME/sweep.py.")
        if not self.workdir and not self.dry_run:
            raise ValueError("workdir is not set. Give the study a folder: --workdir=W.")
        if self.launcher not in LAUNCHERS:
            raise ValueError(f"launcher ({self.launcher!r}) must be one of {', '.join(LAUNCHERS)}.")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu ({self.mfu}) must be above 0 and at most 1.")


def main(options: SweepOptions) -> int:
    options.validate()
    jax.config.update("jax_platforms", "cpu")  # devices are the runs'; here is nothing to compute
    sweep = load_sweep(options.file)
    if options.dry_run:
        impossible = infeasible(sweep)
        print(*cost.estimate(sweep, options.mfu), *impossible, sep="\n")
        return int(bool(impossible))
    workdir = Path(options.workdir)
    if prepare_data(sweep, options.make_data):
        sweep = load_sweep(options.file)  # ids hold what is in lists
    run_dirs, impossible = prepare_runs(sweep, workdir)
    done = sum(map(is_done, run_dirs))
    missing = [run for run in run_dirs if run not in impossible and not is_done(run)]
    left_out = f" {len(impossible)} cannot be carried out: see below." if impossible else ""
    print(f"{sweep.name}: {len(run_dirs)} runs, {done} done before.{left_out}", flush=True)
    if missing:
        try:
            launch(options, missing, Watch(run_dirs), workdir)
        except KeyboardInterrupt:
            return EXIT_PREEMPTED
    collect.collect(workdir)
    return tell_failures([run for run in run_dirs if run in impossible or not is_done(run)])


def launch(options: SweepOptions, missing: list[Path], watch: Watch, workdir: Path) -> None:
    if options.launcher == "local":
        local.launch(missing, watch, options.devices)
    elif options.launcher == "slurm":
        slurm.launch(missing, watch, workdir / "slurm", options.slurm, options.cluster)
    else:
        machine = skypilot.Machine(
            accelerators=options.accelerators, bucket=options.bucket, mounts=options.mounts,
            spot=options.spot, disk_size=options.disk_size, extras=options.extras,
        )  # fmt: skip
        skypilot.write_tasks(missing, workdir / "sky", machine)


def tell_failures(failed: Sequence[Path]) -> int:
    """A line a reason, and 1 if there is any."""
    alike = collections.defaultdict(list)
    for run_dir in failed:
        status = read_status(run_dir)
        alike[f"{status['state']} {status['error']}".rstrip()].append(run_dir.name)
    for why, names in alike.items():
        print(f"{named(names)}: {why}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} runs are not done. Run the same command again.", file=sys.stderr)
    return int(bool(failed))


def named(names: Sequence[str]) -> str:
    """`A`, `A and 2 more`"""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


# --- What runs need before they start -------------------------------------------------------------


def infeasible(sweep: Sweep) -> list[str]:
    """A line a subset that cannot be drawn, of datasets that are there; seeds are alike."""
    runs = collections.defaultdict(list)
    for one in sweep.runs:
        if cost.is_there(one.data.dataset):
            runs[dataclasses.astuple(dataclasses.replace(one.data, seed=0))].append(one)
    lines = []
    for alike in runs.values():
        try:
            check_subset(alike[0].data)
        except (ValueError, FileNotFoundError) as error:
            lines.append(f"Cannot be drawn: {named([one.run_id for one in alike])}: {error}")
    return lines


def prepare_data(sweep: Sweep, make_data: bool) -> bool:
    """Makes sure that every dataset is there; whether one was made.

    Raises:
      FileNotFoundError: one is not, with the command that makes it.
      ValueError: the command failed.
    """
    missing = {path: cmd for path, cmd in sweep.make_data.items() if not Path(path).exists()}
    for path, command in missing.items():
        if not make_data:
            raise FileNotFoundError(
                f"{path} of {sweep.name} is not there. Make it with --make_data, or: {command}"
            )
        print(f"Making {path}: {command}", flush=True)
        parts = shlex.split(command)
        parts = [sys.executable, *parts[1:]] if parts[0] == "python" else parts
        if code := subprocess.run(parts, check=False).returncode:
            raise ValueError(f"{command} ended with code {code}: {path} was not made.")
    return bool(missing)


def prepare_runs(sweep: Sweep, workdir: Path) -> tuple[list[Path], dict[Path, str]]:
    """Subsets, configs and plans of all runs; what is there already stays.

    Returns:
      The runs' folders; and why, of each that cannot be carried out. Such a run has failed.
    """
    undrawn = {}
    for path, one in {each.subset_path(workdir): each for each in sweep.runs}.items():
        try:
            prepare_subset(one, workdir)
        except (ValueError, FileNotFoundError) as error:
            undrawn[path] = str(error)
    write_json(workdir / "study.json", about(sweep))
    impossible = {}
    run_dirs = {workdir / "runs" / one.run_id: one for one in sweep.runs}
    for run_dir, one in run_dirs.items():
        why = changed(run_dir, one.at(workdir))
        if not why:
            prepare_run(one, sweep, run_dir, workdir)
            why = undrawn.get(one.subset_path(workdir))
        if why:
            impossible[run_dir] = why
            status = read_status(run_dir) | {"state": "failed", "error": why}
            write_json(run_dir / "status.json", status)
    return list(run_dirs), impossible


def about(sweep: Sweep) -> dict[str, Any]:
    """What the report has to know."""
    return {
        "name": sweep.name,
        "question": sweep.question,
        "reference": sweep.reference,
        "metric": sweep.metric,
        "planted": {source: list(bounds) for source, bounds in sweep.planted.items()},
        "command": ["python", "-m", "experiments.sweep", *sys.argv[1:]],
        "runs": [one.run_id for one in sweep.runs],
    }


def changed(run_dir: Path, config: TrainConfig) -> str:
    """Why what has begun there is not this run: a default is another since. "": it is."""
    file = run_dir / "config.json"
    if not file.exists():
        return ""
    lines = differences(json.loads(file.read_text()), to_dict(config))
    return f"begun with another config ({', '.join(lines)}): remove {run_dir}." if lines else ""


def prepare_subset(one: Run, workdir: Path) -> None:
    path = one.subset_path(workdir)
    if not (path / "manifest.json").exists():  # written last
        make_subset(dataclasses.replace(one.data, out=str(path)))
    Subset(path)  # of this version of its dataset, and not damaged


def prepare_run(one: Run, sweep: Sweep, run_dir: Path, workdir: Path) -> None:
    """The run's folder with its config, its axes and its plan."""
    run_dir.mkdir(parents=True, exist_ok=True)
    config = one.at(workdir)
    write_json(run_dir / "config.json", to_dict(config))
    write_json(run_dir / "axes.json", dict(one.axes))
    plan: dict[str, Any] = {
        "config_hash": one.config_hash,
        "samples": one.axes["samples_seen"],
        "flops": one.axes["samples_seen"] * cost.flops_per_pair(config),
        "steps": {
            TRAIN: [
                "python", "-m", "jaxclip.train", "--config=configs/saved.py:{run}",
                "--workdir={run}",
            ]
        },
    }  # fmt: skip
    for name, arguments in sweep.evaluations.items():
        plan["steps"][name] = [
            "python", "-m", "jaxclip.evaluate", "--model={run}",
            f"--out={{run}}/evaluation/{name}", *arguments,
        ]  # fmt: skip
    write_json(run_dir / "plan.json", plan)


if __name__ == "__main__":
    # the file may stand without --file=, and --dry-run is spelled as everywhere else
    sys.argv = [argument.replace("--dry-run", "--dry_run") for argument in sys.argv]
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"--file={sys.argv[1]}"
    run(lambda options: sys.exit(main(options)), SweepOptions)
