"""Runs as SkyPilot tasks: TPU VMs and GPU clouds, on spot capacity.

A task file a run. SkyPilot brings the repository to the machine, mounts the bucket that the study's
folder and the datasets lie in, and starts the worker; when the machine is taken away, `sky jobs`
finds another, and the run goes on from its newest checkpoint. A run is one host's: at most 8 GPUs,
v5e-8 or v6e-8. SkyPilot itself is not needed here, and is best installed apart (pipx): it pins
versions that others of ours exclude.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# The environment is kept outside of the repository's copy, and made once a machine.
SETUP = """\
set -e
ENV="$HOME/jaxclip-env"
if [ ! -e "$ENV/.done" ]; then
  python3 -m venv "$ENV"
  "$ENV/bin/pip" install --quiet -c constraints.txt -e '.[{extra},pipelines]'
  touch "$ENV/.done"
fi
"""
RUN = """\
set -e
"$HOME/jaxclip-env/bin/python" -m experiments.worker --run={run}
"""


def task(
    run_dir: Path, *, accelerators: str, bucket: str, mounts: Sequence[str], spot: bool
) -> dict[str, Any]:
    """The task of one run, as SkyPilot's YAML has it.

    Args:
      accelerators: H100:8, tpu-v6e-8, ...
      bucket: gs://, s3://, ... that holds the study's folder.
      mounts: PATH=BUCKET of the datasets.
    """
    workdir = run_dir.parent.parent
    extra = "tpu" if accelerators.startswith("tpu") else "cuda"
    resources: dict[str, Any] = {"accelerators": accelerators, "use_spot": spot}
    found = {str(workdir): bucket} | dict(map(parse_mount, mounts))
    return {
        "name": run_dir.name.replace("_", "-").replace(".", "-").lower(),
        "workdir": ".",
        "resources": resources,
        "file_mounts": {
            remote_path(path): {"source": source, "mode": "MOUNT"} for path, source in found.items()
        },
        "setup": SETUP.format(extra=extra),
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


def write_tasks(
    run_dirs: Sequence[Path],
    folder: Path,
    *,
    accelerators: str,
    bucket: str,
    mounts: Sequence[str] = (),
    spot: bool = True,
) -> None:
    """Writes folder/RUN_ID.yaml, and tells the commands that start them.

    Raises:
      ValueError: no accelerators or bucket.
    """
    if not accelerators or "://" not in bucket:
        raise ValueError(
            f"accelerators ({accelerators!r}) and bucket ({bucket!r}) must be set: "
            "--accelerators=tpu-v6e-8 --bucket=gs://BUCKET/STUDY."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for run_dir in run_dirs:
        content = task(run_dir, accelerators=accelerators, bucket=bucket, mounts=mounts, spot=spot)
        (folder / f"{run_dir.name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    workdir = run_dirs[0].parent.parent
    print(
        f"{len(run_dirs)} task files in {folder}. Copy the study to its bucket, start them, and "
        "copy it back to collect:",
        f"  gcloud storage rsync -r {workdir} {bucket}",
        f"  for task in {folder}/*.yaml; do sky jobs launch -y -d $task; done",
        f"  gcloud storage rsync -r {bucket} {workdir} -x '.*checkpoints.*'",
        sep="\n",
        flush=True,
    )
