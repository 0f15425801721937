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


def test_a_job_that_is_interrupted_is_queued_again(tmp_path):
    job = slurm.Job(fake_run(tmp_path, "a", train="pass"))
    again = job.checkpoint().function
    assert again.run_dir == job.run_dir and job() == "stopped" and again() == "done"


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """A study in ./W with one run, its task file, and what was said."""
    monkeypatch.chdir(tmp_path)
    run_dir = fake_run(Path("W"), "a_b.c", train="pass")
    skypilot.write_tasks(
        [run_dir], Path("W/sky"), accelerators="tpu-v6e-8", bucket="gs://mine/W",
        mounts=("/data=gs://mine/data",),
    )  # fmt: skip
    return tmp_path / "W/sky/a_b.c.yaml", capsys.readouterr().out


def test_a_task_file_says_all_that_the_machine_needs(written):
    file, out = written
    task = yaml.safe_load(file.read_text())
    assert task["resources"] == {"accelerators": "tpu-v6e-8", "use_spot": True}
    assert task["file_mounts"] == {
        "~/sky_workdir/W": {"source": "gs://mine/W", "mode": "MOUNT"},
        "/data": {"source": "gs://mine/data", "mode": "MOUNT"},
    }
    assert task["name"] == "a-b-c" and "[tpu,pipelines]" in task["setup"]
    assert "sky jobs launch" in out


def test_skypilots_own_parser_takes_it(written):
    sky = pytest.importorskip("sky", reason="SkyPilot is not here: it has versions of its own")
    from sky.utils import common_utils, schemas

    content = yaml.safe_load(written[0].read_text())
    common_utils.validate_schema(content, schemas.get_task_schema(), "Invalid task: ")
    # opening a bucket asks the cloud: everything else is parsed as SkyPilot does
    assert (
        sky.Task.from_yaml_config({**content, "workdir": None, "file_mounts": None}).num_nodes == 1
    )


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
    """python3 -m venv is stood in for by a script that says what it was asked for."""
    home, bin_dir = tmp_path / "home", tmp_path / "bin"
    for folder in (home, bin_dir):
        folder.mkdir()
    fake = bin_dir / "python3"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/said\nmkdir -p $3/bin\n'
        f'printf "#!/bin/sh\\necho pip \\"\\$@\\" >> {tmp_path}/said\\n" > $3/bin/pip\n'
        "chmod +x $3/bin/pip\n"
    )
    fake.chmod(0o755)
    env = os.environ | {"HOME": str(home), "PATH": f"{bin_dir}:{os.environ['PATH']}"}
    setup = yaml.safe_load(written[0].read_text())["setup"]
    for _ in range(2):
        subprocess.run(["bash", "-c", setup], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "said").read_text().splitlines() == [
        f"-m venv {home}/jaxclip-env",
        "pip install --quiet -c constraints.txt -e .[tpu,pipelines]",
    ]


def test_what_skypilot_needs_to_be_told(tmp_path):
    run_dir = fake_run(tmp_path, "a", train="pass")
    with pytest.raises(ValueError, match="must be set: --accelerators"):
        skypilot.write_tasks([run_dir], tmp_path, accelerators="", bucket="gs://b/W")
    with pytest.raises(ValueError, match="must be PATH=BUCKET"):
        skypilot.parse_mount("datasets")
