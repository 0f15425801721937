"""SLURM through submitit's local executor; SkyPilot's files by its parser, and by running them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.launchers import skypilot, slurm
from experiments.progress import Watch
from experiments.worker import is_done, read_status
from tests.experiments.fake import fake_run, starts

OFTEN = ("slurm_max_num_timeout=20", "timeout_min=90", "slurm_signal_delay_s=300")
ROOT = Path(__file__).parent.parent.parent


def test_an_array_of_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slurm, "POLL", 0.1)
    steps = ("pass", "sys.exit('Error: no luck.')", "pass")
    run_dirs = [fake_run(tmp_path, name, train=s) for name, s in zip("abc", steps, strict=True)]
    slurm.launch(run_dirs, Watch(run_dirs), tmp_path / "slurm", ("timeout_min=5",), cluster="local")
    assert [is_done(run_dir) for run_dir in run_dirs] == [True, False, True]
    assert "no luck" in read_status(run_dirs[1])["error"]
    assert "2 of 3 done, 1 failed" in capsys.readouterr().out
    slurm.launch(run_dirs, Watch(run_dirs), tmp_path / "slurm", cluster="local")
    assert [starts(run_dir, "train") for run_dir in run_dirs] == [1, 2, 1]


def test_settings_of_submitit(tmp_path):
    assert slurm.parse_setting("gpus_per_node=8") == ("gpus_per_node", 8)
    assert slurm.parse_setting("slurm_partition=gpu") == ("slurm_partition", "gpu")
    with pytest.raises(ValueError, match="must be NAME=VALUE"):
        slurm.parse_setting("timeout_min")
    run_dir = fake_run(tmp_path, "a", train="pass")
    with pytest.raises(ValueError, match="no_such_setting"):
        slurm.launch([run_dir], Watch([run_dir]), tmp_path, ("no_such_setting=1",), "local")


def test_how_often_a_job_that_runs_out_of_time_is_queued_again(tmp_path, monkeypatch):
    srun = tmp_path / "srun"  # submitit looks for it, and does not start it here
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for settings, times in (((), 10), (OFTEN, 20)):
        executor = slurm.make_executor(tmp_path, settings, "slurm")
        assert executor._executor.max_num_timeout == times
    parameters = executor._executor.parameters
    assert (parameters["time"], parameters["signal_delay_s"]) == (90, 300)


def test_a_job_that_is_interrupted_is_queued_again(tmp_path):
    job = slurm.Job(fake_run(tmp_path, "a", train="pass"))
    again = job.checkpoint().function
    assert again.run_dir == job.run_dir and job() == "stopped" and again() == "done"


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """A study in ./W with one run, its task file, and what was said."""
    monkeypatch.chdir(tmp_path)
    run_dir = fake_run(Path("W"), "a_b.c", train="pass")
    machine = skypilot.Machine(
        accelerators="tpu-v6e-8", bucket="gs://mine/W", mounts=("/data=gs://mine/data",),
        disk_size=500,
    )  # fmt: skip
    skypilot.write_tasks([fake_run(Path("W"), "done-by-now")], Path("W/sky"), machine)
    skypilot.write_tasks([run_dir], Path("W/sky"), machine)
    return tmp_path / "W/sky/a_b.c.yaml", capsys.readouterr().out


def test_a_task_file_says_all_that_the_machine_needs(written):
    file, out = written
    assert list(file.parent.iterdir()) == [file]  # what the loop that is told starts
    task = yaml.safe_load(file.read_text())
    assert task["resources"] == {
        "accelerators": "tpu-v6e-8", "use_spot": True, "disk_size": 500,
    }  # fmt: skip
    assert task["file_mounts"] == {
        "~/sky_workdir/W": {"source": "gs://mine/W", "mode": "MOUNT"},
        "/data": {"source": "gs://mine/data", "mode": "COPY"},  # read at random
    }
    assert task["name"] == "a-b-c" and "[tpu,pipelines,tfds]" in task["setup"]
    assert "sky jobs launch" in out


PARSE = """
import sys, sky, yaml
from sky.utils import common_utils, schemas
content = yaml.safe_load(open(sys.argv[1]))
common_utils.validate_schema(content, schemas.get_task_schema(), "Invalid task: ")
# opening a bucket asks the cloud: everything else is parsed as SkyPilot does
task = sky.Task.from_yaml_config({**content, "workdir": None, "file_mounts": None})
(resources,) = task.resources
print(task.num_nodes, resources.accelerators, resources.use_spot, resources.disk_size)
"""


@pytest.mark.skipif("SKY_PYTHON" not in os.environ, reason="SkyPilot is apart: make test-sky")
def test_skypilots_own_parser_takes_it(written, tmp_path, monkeypatch):
    """SKY_PYTHON: of an environment of its own, as it has versions that others of ours exclude."""
    command = [ROOT / os.environ["SKY_PYTHON"], "-c", PARSE, written[0]]
    monkeypatch.setenv("HOME", str(tmp_path))  # it leaves files there
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()
    assert said and said[-1] == "1 {'tpu-v6e-8': 1} True 500", done.stdout + done.stderr
    written[0].write_text(written[0].read_text().replace("use_spot: true", "use_spot: maybe"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and "$.use_spot" in done.stderr  # it does look


def test_setup_and_run_work_here(written, tmp_path):
    """With an environment that is there already, as on a machine that was used before."""
    home = tmp_path / "home"
    (home / "jaxclip-env" / "bin").mkdir(parents=True)
    (home / "jaxclip-env" / ".done").touch()
    python = home / "jaxclip-env" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')  # a link would leave its packages
    python.chmod(0o755)
    env = os.environ | {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    task = yaml.safe_load(written[0].read_text())
    for section in ("setup", "run"):
        subprocess.run(["bash", "-c", task[section]], cwd=tmp_path, env=env, check=True)
    assert is_done(tmp_path / "W/runs/a_b.c")


def test_setup_makes_the_environment_once(written, tmp_path):
    """uv's installer is stood in for by one whose uv says what it was asked for."""
    home, bin_dir = tmp_path / "home", tmp_path / "bin"
    for folder in (home, bin_dir):
        folder.mkdir()
    (home / "jaxclip-env").mkdir()
    (home / "jaxclip-env" / "half").touch()  # of a setup that was killed
    uv = f'#!/bin/sh\necho "$@" >> {tmp_path}/said; [ $1 = pip ] || mkdir $5'
    (tmp_path / "uv").write_text(uv)
    install = f"mkdir -p $HOME/.local/bin; install {tmp_path}/uv $HOME/.local/bin/uv"
    for name, content in {"curl": f'#!/bin/sh\necho "{install}"'}.items():
        (bin_dir / name).write_text(content)
        (bin_dir / name).chmod(0o755)
    env = {"HOME": str(home), "PATH": f"{bin_dir}:/usr/bin:/bin"}
    setup = yaml.safe_load(written[0].read_text())["setup"]
    for _ in range(2):
        subprocess.run(["bash", "-c", setup], cwd=tmp_path, env=env, check=True)
    env_dir = home / "jaxclip-env"
    assert (tmp_path / "said").read_text().splitlines() == [
        f"venv --quiet --python 3.11 {env_dir}",
        f"pip install --quiet --python {env_dir}/bin/python -c constraints.txt "
        "-e .[tpu,pipelines,tfds]",
    ]
    assert not (env_dir / "half").exists()


def test_what_skypilot_needs_to_be_told(tmp_path):
    run_dir = fake_run(tmp_path, "a", train="pass")
    with pytest.raises(ValueError, match="must be set: --accelerators"):
        skypilot.write_tasks(
            [run_dir], tmp_path, skypilot.Machine(accelerators="", bucket="gs://b/W")
        )
    with pytest.raises(ValueError, match="must be PATH=BUCKET"):
        skypilot.parse_mount("datasets")
