"""One run: its steps in order, what is done stays done, and who holds it."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.progress import look
from experiments.worker import EXIT_BUSY, Worker, claim, is_done, read_status
from jaxclip.command import EXIT_PREEMPTED
from tests.experiments.fake import fake_run, starts

ENDLESS = "import time; time.sleep(60)"
SAVES = (
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    "(f.parent / 'ready').touch(); time.sleep(60)"
)


def start_worker(run_dir):
    return subprocess.Popen([sys.executable, "-m", "experiments.worker", f"--run={run_dir}"])


def wait_for(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


def test_steps_run_in_order_and_once(tmp_path):
    run_dir = fake_run(
        tmp_path, "a", train="pass", test="assert (f.parent / 'train.count').exists()"
    )
    assert not is_done(run_dir)
    assert Worker(run_dir)() == "done" and is_done(run_dir)
    assert Worker(run_dir)() == "done"
    assert (starts(run_dir, "train"), starts(run_dir, "test")) == (1, 1)
    assert read_status(run_dir)["seconds"].keys() == {"train", "test"}


def test_a_failed_step_is_told_and_tried_again_without_what_was_finished(tmp_path):
    code = "sys.exit('Error: no such split.') if len(f.read_text()) < 2 else None"
    run_dir = fake_run(tmp_path, "a", train="pass", test=code)
    assert Worker(run_dir)() == "failed"
    error = read_status(run_dir)["error"]
    assert error.startswith("test: Error: no such split. (exit code 1; see ")
    assert Worker(run_dir)() == "done" and read_status(run_dir)["error"] == ""
    assert (starts(run_dir, "train"), starts(run_dir, "test")) == (1, 2)


def test_another_evaluation_is_missing_and_alone_is_done(tmp_path):
    run_dir = fake_run(tmp_path, "a", train="pass", test="pass")
    Worker(run_dir)()
    fake_run(tmp_path, "a", train="pass", test="pass  # on another split")
    assert not is_done(run_dir)
    assert read_status(run_dir)["state"] == "done" and look(run_dir).state == "waiting"
    Worker(run_dir)()
    assert look(run_dir).state == "done"
    assert (starts(run_dir, "train"), starts(run_dir, "test")) == (1, 2)


def test_a_set_that_was_missing_is_scored_when_it_has_come(tmp_path):
    bach = tmp_path / "evals" / "bach"
    code = "import json; out = f.parent / 'evaluation' / 'test'; out.mkdir(0o755, True, True); "
    code += f"(out / 'results.json').write_text(json.dumps({{'missing': ['{bach}']}}))"
    run_dir = fake_run(tmp_path, "a", train="pass", test=code)
    assert Worker(run_dir)() == "done" and is_done(run_dir)
    bach.mkdir(parents=True)  # empty, so it is not found again
    assert not is_done(run_dir) and Worker(run_dir)() == "done" and is_done(run_dir)
    (bach / "images").mkdir()
    fake_run(tmp_path, "a", train="pass", test=code)
    assert not is_done(run_dir) and Worker(run_dir)() == "done" and is_done(run_dir)
    assert (starts(run_dir, "train"), starts(run_dir, "test")) == (1, 3)


def test_sigterm_lets_the_step_save(tmp_path):
    run_dir = fake_run(tmp_path, "a", train=SAVES)
    process = start_worker(run_dir)
    wait_for((run_dir / "ready").exists)
    process.terminate()
    assert process.wait() == EXIT_PREEMPTED and read_status(run_dir)["state"] == "stopped"


def test_a_run_is_held_by_one_worker_and_by_the_step_that_outlives_it(tmp_path):
    run_dir = fake_run(
        tmp_path,
        "a",
        train="(f.parent / 'pid').write_text(str(__import__('os').getpid())); " + ENDLESS,
    )
    process = start_worker(run_dir)
    wait_for(lambda: (run_dir / "pid").exists() and (run_dir / "pid").read_text())
    second = start_worker(run_dir)
    assert second.wait() == EXIT_BUSY
    process.kill()
    process.wait()
    with claim(run_dir) as lock:
        assert lock is None  # the step is still at work
    os.kill(int((run_dir / "pid").read_text()), signal.SIGKILL)

    def is_free():
        with claim(run_dir) as lock:
            return lock is not None

    wait_for(is_free)
    assert starts(run_dir, "train") == 1


def test_where_files_cannot_be_locked_a_run_is_carried_out_with_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("experiments.worker.fcntl.flock", refuse)
    run_dir = fake_run(tmp_path, "a", train="pass")
    with pytest.warns(UserWarning, match="cannot be locked .No locks available."):
        assert Worker(run_dir)() == "done"


def test_a_folder_without_a_plan_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no plan.json"):
        is_done(tmp_path)
