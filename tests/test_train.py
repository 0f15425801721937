"""The program from the outside: started, killed, resumed, on one process and on two."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxclip.checkpoint import Checkpoints
from jaxclip.command import EXIT_PREEMPTED, EXIT_USER_ERROR
from jaxclip.data.dataset import Dataset
from jaxclip.metrics import Progress
from jaxclip.sharding import ShardingConfig, make_mesh
from jaxclip.train import StopSignal, fetch, train
from tests import tiny_config, xla

ROOT = Path(__file__).parent.parent
STEPS = 24
CACHE = tempfile.TemporaryDirectory()


def start(dataset, workdir, *overrides, program="jaxclip.train", devices=1, **env):
    """The program in a process of its own."""
    command = [sys.executable, "-m", program]
    if program == "jaxclip.train":
        command += ["--config=tests/tiny_config.py", f"--config.data.path={dataset}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *overrides],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla.flags(devices),
            # a program that another process has compiled is not compiled again
            "JAX_COMPILATION_CACHE_DIR": CACHE.name,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def finish(process, expected_code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == expected_code, f"{out}\n{err}"
    return out, err


def metric_lines(workdir):
    file = Path(workdir) / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def losses(workdir):
    """step -> loss; a step that stands twice fails the test."""
    lines = [json.loads(line) for line in metric_lines(workdir)]
    pairs = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def scores(workdir):
    lines = [json.loads(line) for line in metric_lines(workdir)]
    return {line["step"]: line for line in lines if "loss" not in line}


def wait_for_lines(process, workdir, count):
    deadline = time.time() + 240
    while len(metric_lines(workdir)) < count:
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tiny_dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    out, _ = finish(start(tiny_dataset, workdir))
    return workdir, out


def test_a_run_tells_what_it_does_and_leaves_what_it_promises(undisturbed):
    workdir, out = undisturbed
    assert sorted(losses(workdir)) == list(range(1, STEPS + 1))
    assert sorted(scores(workdir)) == [8, 16, 24]
    for said in (
        "training pairs",
        "parameters",
        "samples seen",
        "pairs/s",
        "MFU",
        "ETA",
        "data wait",
        "Budget: 384 samples seen of 42 unique pairs",
    ):
        assert said in out, said
    summary = (workdir / "summary.md").read_text()
    assert summary in out and "recall@1" in summary and "chance" in summary
    run = json.loads((workdir / "run.json").read_text())
    (first,) = run["starts"]
    assert first["versions"]["jax"] and first["commit"] and first["command"]
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [20, 24]  # keep_last=2


def test_killed_three_times_it_ends_with_the_same_losses_bit_for_bit(
    undisturbed, tiny_dataset, tmp_path
):
    rng = random.Random(0)
    workdir = tmp_path / "run"
    for low, high in ((3, 7), (9, 14), (16, 22)):
        process = start(tiny_dataset, workdir)
        wait_for_lines(process, workdir, rng.randint(low, high))
        time.sleep(rng.uniform(0, 0.02))  # also in the middle of a step, an evaluation or a save
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    out, _ = finish(start(tiny_dataset, workdir))
    assert "Resumed from step" in out
    assert losses(workdir) == losses(undisturbed[0])
    assert scores(workdir) == scores(undisturbed[0])


def test_sigterm_saves_and_exits_with_its_own_code(undisturbed, tiny_dataset, tmp_path):
    workdir = tmp_path / "run"
    process = start(tiny_dataset, workdir, "--config.checkpoint.every=1000")
    wait_for_lines(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process, EXIT_PREEMPTED)
    saved = max(losses(workdir))
    assert f"step {saved:,} is saved" in out and saved < STEPS
    out, _ = finish(start(tiny_dataset, workdir))
    assert f"Resumed from step {saved}," in out
    assert losses(workdir) == losses(undisturbed[0])
    starts = json.loads((workdir / "run.json").read_text())["starts"]
    assert len(starts) == 2 and "--config.checkpoint.every=1000" in starts[0]["command"]


def test_what_a_stop_left_unscored_is_scored_by_the_next_start(tiny_dataset, tmp_path, monkeypatch):
    """Saved first, as there may be little time left; each step is scored once, with the EMA."""
    done, saved = [], {}

    def save(self, step, state, next_sample, save=Checkpoints.save):
        done.append(f"save {step}")
        saved[step] = jax.device_get(state.ema_params)  # the step donates its memory
        save(self, step, state, next_sample)

    def evaluate(params):
        done.append("evaluate")
        jax.tree.map(np.testing.assert_array_equal, params, saved[max(saved)])
        return {"score": 0.5}

    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr("jaxclip.train.make_evaluate", lambda *_: evaluate)
    config = tiny_config.get_config()
    config.data.path, config.eval.every, config.eval.ema = (str(tiny_dataset),), 2, True
    config.duration.amount, config.checkpoint.every = 4, 2
    monkeypatch.setattr(StopSignal, "requested", lambda self, step: step == 4)
    assert not train(config, tmp_path / "run")
    assert done == ["save 2", "evaluate", "save 4"]
    assert train(config, tmp_path / "run")
    assert done[3:] == ["evaluate"]
    assert list(scores(tmp_path / "run")) == [2, 4]
    assert "## Scores after step 4" in (tmp_path / "run/summary.md").read_text()


def test_waiting_for_data_counts_only_while_the_devices_are_idle():
    class Running:
        def __init__(self, ready):
            self.ready = ready

        def is_ready(self):
            return self.ready

    rows = {"image": np.zeros((8, 2, 2, 3), np.uint8), "tokens": np.zeros((8, 3), np.int32)}
    mesh = make_mesh(ShardingConfig(), jax.devices()[:8])
    for running, counted in ((None, True), ({"loss": Running(True)}, True),
                             ({"loss": Running(False)}, False)):  # fmt: skip
        progress = Progress(total_steps=1, batch_size=8, train_flops_per_pair=1.0)
        fetch(iter([rows]), mesh, progress, running)
        assert (progress.rates(1)["data_wait_share"] > 0) == counted


def test_two_processes_save_and_one_resumes(undisturbed, tiny_dataset, tmp_path):
    """2 processes x 4 devices, stopped by SIGTERM; then 1 process x 8 devices takes over."""
    workdir = tmp_path / "run"
    address = free_address()
    processes = [
        start(
            tiny_dataset,
            workdir,
            "--config.sharding.fsdp=2",
            devices=4,
            COORDINATOR_ADDRESS=address,
            NUM_PROCESSES="2",
            PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    wait_for_lines(processes[0], workdir, 6)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outs = [finish(process, EXIT_PREEMPTED)[0] for process in processes]
    assert "process 0 of 2" in outs[0]
    assert "training pairs" not in outs[1]  # the first process speaks for all
    saved = max(losses(workdir))
    out, _ = finish(start(tiny_dataset, workdir, "--config.sharding.fsdp=4", devices=8))
    assert f"Resumed from step {saved}, sample {saved * 16}" in out
    # other batches, or rows in another order under dropout, would differ in the first digits
    assert losses(workdir) == pytest.approx(losses(undisturbed[0]), rel=2e-4)


@pytest.mark.parametrize(("processes", "devices"), [(1, 3), (2, 2)])
def test_evaluate_gives_the_scores_of_training_elsewhere(undisturbed, tmp_path, processes, devices):
    """On 3 devices batches of 16 rows become 18; of two processes the first one writes."""
    workdir, _ = undisturbed
    args = (None, workdir, "--split=validation", f"--out={tmp_path}")
    env = {"COORDINATOR_ADDRESS": free_address(), "NUM_PROCESSES": str(processes)}
    if processes == 1:
        env = {}
    of_all = [
        start(*args, program="jaxclip.evaluate", devices=devices, **env, PROCESS_ID=str(i))
        for i in range(processes)
    ]
    outs = [finish(process)[0] for process in of_all]
    assert ["recall@1" in out for out in outs] == [True, False][:processes]
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    found = {f"validation/{row['evaluator']}/{row['metric']}": row["value"] for row in rows}
    trained = {
        k: v for k, v in scores(workdir)[STEPS].items() if "/chance_" not in k and k != "step"
    }
    assert found == pytest.approx(trained, abs=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_dataset, tmp_path):
    overrides = ["optimizer.peak_lr=1e30", "optimizer.grad_clip_norm=0", "checkpoint.every=1"]
    process = start(tiny_dataset, tmp_path, *(f"--config.{override}" for override in overrides))
    _, err = finish(process, EXIT_USER_ERROR)
    (line,) = [line for line in err.splitlines() if line]
    (file,) = tmp_path.glob("not_finite_step_*.json")
    named = json.loads(file.read_text())
    records = named["records"][str(tiny_dataset)]
    assert len(records) == tiny_config.get_config().batch_size
    assert all(0 <= record < len(Dataset(tiny_dataset)) for record in records)
    assert f"of step {named['step']} is not finite. Records of its batch: {records[0]}," in line
    # the parameters it broke on, saved at the step before, are not called good
    good = named["step"] - 2
    assert f"Last good checkpoint: {f'step {good}' if good else 'none'}. Begin anew" in line


def test_a_workdir_of_another_run_is_refused(undisturbed, tiny_dataset):
    config = tiny_config.get_config()
    config.data.path = (str(tiny_dataset),)
    config.optimizer.peak_lr = 0.5
    config.model.embed_dim = 4
    with pytest.raises(
        ValueError, match=r"model.embed_dim: 8 -> 4; optimizer.peak_lr: 0.001 -> 0.5"
    ):
        train(config, undisturbed[0])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["--config.optimizer.peak_learning=1"],
            "config.optimizer.peak_learning does not exist. Near: ",
        ),
        (["--config.batch_size=many"], "batch_size ('many') must be of type int."),
        (["--config.model.image.patch_size=5"], "data.image.size (16) must divide by"),
        (["--config.data.path=nowhere"], "nowhere is not a dataset (no manifest.json). Make one"),
        (["--config.sharding.data=3"], "sharding.data (3) x sharding.fsdp (1)"),
        (["stray"], "'stray' is not a flag."),
    ],
)
def test_a_mistake_is_told_in_one_line(overrides, said, tiny_dataset, tmp_path):
    if "data.path" in overrides[0]:
        tiny_dataset = "nowhere"
        overrides = []
    _, err = finish(start(tiny_dataset, tmp_path / "run", *overrides), EXIT_USER_ERROR)
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith("Error: ") and said in lines[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_starts_from_another_at_a_larger_image(undisturbed, tiny_dataset, tmp_path):
    """16 patches instead of 4: the position embeddings are resized."""
    overrides = ["data.image.size=32", "duration.amount=1", "optimizer.warmup.amount=0"]
    overrides = [f"--config.init={undisturbed[0]}", *(f"--config.{o}" for o in overrides)]
    out, _ = finish(start(tiny_dataset, tmp_path / "larger", *overrides))
    assert f"init from {undisturbed[0]} (run of jaxclip, step {STEPS}):" in out
    assert "Resized (1): image/position_embedding [4, 16] -> [16, 16]" in out
    # it goes on about where the other run ended, far below the loss of a fresh one
    first, last = losses(undisturbed[0])[1], losses(undisturbed[0])[STEPS]
    assert losses(tmp_path / "larger")[1] < (first + last) / 2
    overrides.append("--config.model.embed_dim=4")
    _, err = finish(start(tiny_dataset, tmp_path / "narrow", *overrides), EXIT_USER_ERROR)
    assert "image/projection/kernel ([16, 8]) does not fit image/projection/kernel" in err
