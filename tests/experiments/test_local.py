"""Many runs on one machine: failures do not spread, and a killed sweep goes on."""

import json
import signal
import subprocess
import sys
import time

from experiments.launchers import local
from experiments.progress import Watch, look
from experiments.worker import is_done, read_status
from tests.experiments.fake import fake_run, starts

SWEEP = """
import sys
from pathlib import Path
from experiments.launchers import local
from experiments.progress import Watch
local.POLL = 0.05
run_dirs = [Path(sys.argv[1]) / "runs" / name for name in "abcd"]
local.launch(run_dirs, Watch(run_dirs), devices=2)
"""


def test_a_failed_run_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "POLL", 0.05)
    run_dirs = [
        fake_run(tmp_path, name, train="sys.exit('Error: out of luck.')" if name == "b" else "pass")
        for name in "abc"
    ]
    local.launch(run_dirs, Watch(run_dirs), devices=2)
    assert [is_done(run_dir) for run_dir in run_dirs] == [True, False, True]
    out = capsys.readouterr().out
    assert "Error: out of luck." in out and "2 of 3 done, 1 failed" in out
    fake_run(tmp_path, "b", train="pass")
    local.launch(run_dirs, Watch(run_dirs), devices=1)
    assert all(map(is_done, run_dirs)) and [starts(r, "train") for r in run_dirs] == [1, 2, 1]


def test_killed_in_the_middle_it_redoes_nothing_that_is_finished(tmp_path):
    run_dirs = [fake_run(tmp_path, name, train="pass") for name in "ab"]
    slow = "import time; time.sleep(3)"
    run_dirs += [fake_run(tmp_path, name, train=slow) for name in "cd"]
    command = [sys.executable, "-c", SWEEP, str(tmp_path)]
    process = subprocess.Popen(command)
    deadline = time.time() + 60
    while not all(starts(run_dir, "train") for run_dir in run_dirs[2:]):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # what it had started goes on, is waited for, and is not started beside itself
    assert subprocess.run(command, check=False).returncode == 0
    assert all(map(is_done, run_dirs)) and [starts(r, "train") for r in run_dirs] == [1, 1, 1, 1]


def test_sigterm_stops_all_after_saving(tmp_path):
    saves = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    saves += "(f.parent / 'ready').touch(); time.sleep(60)"
    run_dirs = [fake_run(tmp_path, name, train=saves) for name in "abcd"]
    process = subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path)], stderr=subprocess.PIPE)
    deadline = time.time() + 60
    while sum((run_dir / "ready").exists() for run_dir in run_dirs) < 2:
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=60)
    states = sorted(read_status(run_dir)["state"] for run_dir in run_dirs)
    assert states == ["stopped", "stopped", "waiting", "waiting"]


def test_progress_is_read_from_the_metrics(tmp_path):
    run_dir = fake_run(tmp_path, "a", train="pass")
    assert (look(run_dir).state, look(run_dir).share) == ("waiting", 0.0)
    line = '{"step": 2, "loss": 4.5, "samples_seen": 25}\n'
    (run_dir / "metrics.jsonl").write_text(line + '{"step": 3, "lo')
    assert (look(run_dir).share, look(run_dir).loss) == (0.25, 4.5)


def test_what_is_left_takes_as_long_as_what_was_done_by_its_work(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    small, large = (fake_run(tmp_path, name, train="pass") for name in ("small", "large"))
    plan = json.loads((large / "plan.json").read_text())
    (large / "plan.json").write_text(json.dumps(plan | {"flops": 3 * plan["flops"]}))
    seen = '{{"step": 1, "loss": 4.5, "samples_seen": {}}}\n'
    (small / "metrics.jsonl").write_text(seen.format(50))  # done before, and no part of the pace
    watch = Watch([small, large])
    (small / "metrics.jsonl").write_text(seen.format(100))
    monkeypatch.setattr(time, "time", lambda: 1100.0)
    # in 100 s half a small run; three small ones, which the large one is, are left: 600 s
    assert watch.summary(watch._look()) == "0 of 2 done; ETA 0:10:00"


def test_devices_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    assert local.list_gpus() == ["2", "3", "5", "7"]
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kw: started.append((command, kw)))
    run_dir = fake_run(tmp_path, "a", train="pass")
    for slot in range(2):
        local.start(run_dir, slot, 2, local.list_gpus())
    assert [kw["env"]["CUDA_VISIBLE_DEVICES"] for _, kw in started] == ["2,5", "3,7"]
