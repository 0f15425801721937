"""Runs as SkyPilot tasks: TPU VMs and GPU clouds, on spot capacity.

A task file a run. SkyPilot brings the repository to the machine, mounts the bucket that the study's
folder lies in, copies the datasets to the machine's disk, and starts the worker; when the machine
is taken away, `sky jobs` finds another, and the run goes on from its newest checkpoint. Datasets
are copied, as training reads records at random, 11,500 a second on 8 H100, for which a mounted
bucket is too slow: the disk must hold them (--disk_size).

A run is one host's: at most 8 GPUs, v5e-8 or v6e-8. On the hosts of a larger slice every worker
would hold the run for itself; there, jaxclip.train is started on all of them by hand. SkyPilot
itself is not needed here, and is best installed apart (pipx): it pins versions that others of ours
exclude.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# The environment is kept outside of the repository's copy, and made once a machine; by uv, as the
# machine's own Python may be too old.
SETUP = """\
set -e
ENV="$HOME/jaxclip-env"
if [ ! -e "$ENV/.done" ]; then
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  rm -rf "$ENV"
  uv venv --quiet --python 3.11 "$ENV"
  uv pip install --quiet --python "$ENV/bin/python" -c constraints.txt -e '.[{extras}]'
  touch "$ENV/.done"
fi
"""
RUN = """\
set -e
"$HOME/jaxclip-env/bin/python" -m experiments.worker --run={run}
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is rented for a run, and what is brought to it."""

    accelerators: str  # H100:8, tpu-v6e-8, ...
    bucket: str  # gs://, s3://, ... that holds the study's folder
    mounts: Sequence[str] = ()  # PATH=BUCKET of the datasets
    spot: bool = True  # capacity that may be taken away
    disk_size: int = 0  # GB; 0: SkyPilot's default
    extras: Sequence[str] = ("pipelines", "tfds")  # of jaxclip's installation, besides jax's

    def validate(self) -> None:
        if not self.accelerators or "://" not in self.bucket:
            raise ValueError(
                f"accelerators ({self.accelerators!r}) and bucket ({self.bucket!r}) must be set: "
                "--accelerators=tpu-v6e-8 --bucket=gs://BUCKET/STUDY."
            )


def task(run_dir: Path, machine: Machine) -> dict[str, Any]:
    """The task of one run, as SkyPilot's YAML has it."""
    study, m = remote_path(str(run_dir.parent.parent)), machine
    jax = "tpu" if m.accelerators.startswith("tpu") else "cuda"
    disk = {"disk_size": m.disk_size} if m.disk_size else {}
    return {
        "name": run_dir.name.replace("_", "-").replace(".", "-").lower(),
        "workdir": ".",
        "resources": {"accelerators": m.accelerators, "use_spot": m.spot} | disk,
        "file_mounts": {study: {"source": m.bucket, "mode": "MOUNT"}}
        | {
            remote_path(path): {"source": source, "mode": "COPY"}
            for path, source in map(parse_mount, m.mounts)
        },
        "setup": SETUP.format(extras=",".join((jax, *m.extras))),
        "run": RUN.format(run=shlex.quote(str(run_dir))),
    }


def remote_path(path: str) -> str:
    """A relative path is one in the repository, which SkyPilot puts in ~/sky_workdir."""
    return path if path.startswith("/") else f"~/sky_workdir/{path}"


def parse_mount(mount: str) -> tuple[str, str]:
    path, separator, bucket = mount.partition("=")
    if not separator or "://" not in bucket:
        raise ValueError(f"mounts ({mount!r}) must be PATH=BUCKET, as datasets=gs://mine/datasets.")
    return path, bucket


def write_tasks(run_dirs: Sequence[Path], folder: Path, machine: Machine) -> None:
    """Writes folder/RUN_ID.yaml of these runs alone, and tells the commands that start them.

    Raises:
      ValueError: no accelerators or bucket, a mount that is none.
    """
    machine.validate()
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.yaml"):  # of runs that are done by now
        file.unlink()
    for run_dir in run_dirs:
        content = task(run_dir, machine)
        (folder / f"{run_dir.name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    workdir = run_dirs[0].parent.parent
    print(
        f"{len(run_dirs)} task files in {folder}. Copy the study to its bucket, start them, and "
        "copy it back to collect:",
        f"  gcloud storage rsync -r {workdir} {machine.bucket}",
        f"  for task in {folder}/*.yaml; do sky jobs launch -y -d $task; done",
        f"  gcloud storage rsync -r {machine.bucket} {workdir} -x '.*checkpoints.*'",
        sep="\n",
        flush=True,
    )
