import sys
import types

import pytest

from jaxclip import metrics
from jaxclip.metrics import LogConfig, MetricWriter, Progress, read_metrics


def write(workdir, steps, *, resumed=0, **config):
    config = LogConfig(**{"tensorboard": False} | config)
    with MetricWriter(workdir, config, step=resumed, run_config={}) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 10})


def test_a_resumed_run_has_each_step_once(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    write(tmp_path, [3, 4, 5], resumed=2)
    assert read_metrics(tmp_path) == [{"step": s, "loss": s / 10} for s in (1, 2, 3, 4, 5)]


def test_tensorboard_gets_the_same(tmp_path):
    write(tmp_path, [1, 2], tensorboard=True)
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()


def test_wandb_goes_on_in_the_same_charts(tmp_path, monkeypatch):
    logged, started = [], []
    run = types.SimpleNamespace(
        log=lambda scalars, step: logged.append((step, scalars)),
        finish=lambda: logged.append("end"),
    )
    fake = types.SimpleNamespace(init=lambda **kwargs: started.append(kwargs) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    write(tmp_path, [1], wandb_project="figures")
    assert logged == [(1, {"loss": 0.1}), "end"]
    assert started[0]["project"] == "figures" and started[0]["resume"] == "allow"


def test_wandb_missing_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install jaxclip\[wandb\]"):
        write(tmp_path, [], wandb_project="figures")


def test_rates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(metrics, "peak_flops", lambda: (1000.0, "a test"))
    progress = Progress(total_steps=100, batch_size=8, train_flops_per_pair=50.0)
    progress.restart(10)
    now[0] = 6.0
    progress.skip(2.0)  # of the 6 s, 2 were an evaluation
    progress.waited(1.0)
    rates = progress.rates(20)  # 10 steps of 8 pairs in 4 s
    assert rates == {"pairs_per_second": 20.0, "mfu": 1.0, "data_wait_share": 0.25}
    # 80 steps of 8 pairs are left, at 20 pairs/s: 32 s
    assert "ETA 0:00:32" in progress.line(20, 1.5, rates)
    now[0] = 8.0
    assert progress.rates(21)["pairs_per_second"] == 4.0  # counted anew since the last call


def test_the_data_sheet_peak_is_that_of_the_device(monkeypatch):
    for kind, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v4", 275e12),
    ):
        devices = [types.SimpleNamespace(device_kind=kind, platform="x")] * 4
        monkeypatch.setattr(metrics.jax, "devices", lambda devices=devices: devices)
        assert metrics.peak_flops()[0] == 4 * peak
