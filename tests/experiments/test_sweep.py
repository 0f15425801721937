"""A true study of two runs, from its file to the tables."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments import report, sweep
from experiments.collect import collect
from experiments.sweep import SweepOptions, main
from experiments.worker import read_status
from tests.xla import flags

ROOT = Path(__file__).parent.parent.parent
STUDY = """
from data_pipelines.subset import SubsetOptions
from experiments.study import Sweep, make_run
from tests import tiny_config


def get_sweep(data):
    config = tiny_config.get_config()
    config.eval.split = ""
    runs = []
    for size in (20, 40):
        subset = SubsetOptions(dataset=data, size=size)
        runs.append(make_run(config, subset, source="tiny", samples_seen=48, model="tiny"))
    return Sweep(
        name="pair", question="Does it work?", runs=runs, reference="tiny",
        evaluations={
            "test": (f"--data={data}", "--split=test", "--suite=retrieval", "--draws=20",
                     "--set=bach", "--sets_dir=nowhere"),
        },
        metric="tiny/test/image_to_text/recall@1", planted={"tiny": (1, None)},
    )
"""


@pytest.fixture(scope="module")
def study(tiny_dataset, tmp_path_factory):
    """The study's file, its folder when done, and what was said."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "sweep.py").write_text(STUDY)
    command = [sys.executable, "-m", "experiments.sweep", f"{folder / 'sweep.py'}:{tiny_dataset}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", flags(devices=1))
        done = subprocess.run(
            [*command, f"--workdir={folder / 'W'}", "--devices=1"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return f"{folder / 'sweep.py'}:{tiny_dataset}", folder / "W", done.stdout


def tables(workdir):
    return [
        pq.read_table(workdir / f"{name}.parquet").to_pylist()
        for name in ("runs", "results", "items")
    ]


def test_every_run_is_a_row_with_what_it_was(study):
    file, workdir, _ = study
    dataset = Path(file.split(":")[1])
    runs, _, _ = tables(workdir)
    assert [(r["unique_pairs"], r["samples_seen"], r["epochs"]) for r in runs] == [
        (20, 48, 2.4), (40, 48, 1.2),
    ]  # fmt: skip
    for row in runs:
        assert row["status"] == "done" and row["seconds"] > 0 and row["flops"] > 0
        assert (row["contrastive_batch"], row["optimizer_batch"]) == (16, 16)
        assert row["overlap_share"] == 0.0  # every article of the tiny set is in one split
        assert row["overlap_of"] == f"{dataset.name}/test"
        assert json.loads(row["config"])["optimizer"]["peak_lr"] > 0
        assert row["command"].startswith("python -m jaxclip.train --config=configs/saved.py:")
        saved = json.loads((workdir / "runs" / row["run_id"] / "run.json").read_text())
        assert saved["datasets"] == [row["data_hash"]]
    assert len({row["config_hash"] for row in runs}) == 2


def test_items_average_to_the_results(study):
    _, workdir, _ = study
    runs, results, items = tables(workdir)
    for row in results:
        assert row["task"] == f"{row['task'].split('/')[0]}/test" and row["items"] == 6
        of_it = [i for i in items if all(i[k] == row[k] for k in ("run_id", "task", "metric"))]
        if row["metric"].endswith("median_rank"):
            assert not of_it and not row["higher_is_better"]
            continue
        assert np.mean([i["value"] for i in of_it]) == pytest.approx(row["value"], abs=1e-12)
        assert row["low"] <= row["value"] <= row["high"] and row["higher_is_better"]
        assert len({i["item"] for i in of_it}) == 6
        if row["metric"].endswith("recall@1"):
            assert row["chance"] == pytest.approx(1 / 6)  # of six, one is right
    assert {row["run_id"] for row in results} == {row["run_id"] for row in runs}


def test_the_report_says_what_the_runs_scored(study, tmp_path):
    """From the sweep's file to the page: the larger run's recall, and both runs' commands."""
    file, workdir, _ = study
    copy = shutil.copytree(workdir, tmp_path / "W", ignore=shutil.ignore_patterns("cache"))
    metric = f"{Path(file.split(':')[1]).name}/test/image_to_text/recall@1"
    page = report.write(copy, metric=metric, replicates=20)
    text = page.with_name("report.md").read_text()
    runs, results, _ = tables(workdir)
    value = {r["run_id"]: r["value"] for r in results if f"{r['task']}/{r['metric']}" == metric}
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {metric} |")]
    larger = next(run["run_id"] for run in runs if run["unique_pairs"] == 40)
    assert row.split("|")[2].strip().startswith(f"{value[larger]:.3f}")
    assert "tiny: 2 sizes fit a curve and cannot test it" in text
    assert all(run["run_id"] in text and run["command"] in text for run in runs)
    assert "How much quality is worth in scale cannot be concluded" in text  # there is one source
    assert "| config |" not in text  # too long for a page; it is in the table


def test_started_again_it_does_nothing_and_gives_the_same_tables(study, capsys):
    file, workdir, _ = study
    before = tables(workdir)
    states = [read_status(run_dir) for run_dir in (workdir / "runs").iterdir()]
    assert main(SweepOptions(file=file, workdir=str(workdir))) == 0
    assert "2 runs, 2 done before" in capsys.readouterr().out
    assert tables(workdir) == before
    assert [read_status(run_dir) for run_dir in (workdir / "runs").iterdir()] == states


def test_what_is_lost_alone_is_done_again_and_is_the_same(study):
    file, workdir, _ = study
    before = tables(workdir)
    run_dir = workdir / "runs" / before[0][1]["run_id"]
    status = read_status(run_dir)
    del status["finished"]["test"]  # as if it had been killed while it was scored
    (run_dir / "status.json").write_text(json.dumps(status))
    collect(workdir)
    half = tables(workdir)
    assert half[0][1]["overlap_share"] is None
    assert {row["run_id"] for row in half[1]} == {before[0][0]["run_id"]}
    assert main(SweepOptions(file=file, workdir=str(workdir))) == 0
    after = tables(workdir)
    assert after[1:] == before[1:]
    assert (run_dir / "log.txt").read_text().count("Finished: 3 steps") == 1  # trained once


def test_a_set_that_is_not_there_is_remembered_and_does_not_stop_the_run(study):
    _, workdir, said = study
    for run_dir in (workdir / "runs").iterdir():
        assert read_status(run_dir)["lacked"] == {"train": {}, "test": {"nowhere/bach": 0}}
    assert "is not in nowhere/bach" in said


def test_the_study_says_what_the_report_must_know(study):
    _, workdir, _ = study
    told = json.loads((workdir / "study.json").read_text())
    assert told["planted"] == {"tiny": [1, None]} and told["reference"] == "tiny"
    assert told["metric"] == "tiny/test/image_to_text/recall@1"
    assert [(workdir / "runs" / run_id).is_dir() for run_id in told["runs"]] == [True, True]


def test_a_dry_run_starts_nothing(study, tmp_path, capsys):
    file, _, _ = study
    assert main(SweepOptions(file=file, workdir=str(tmp_path / "none"), dry_run=True)) == 0
    out = capsys.readouterr().out
    assert "pair: Does it work?" in out and "H100 h" in out and not (tmp_path / "none").exists()
    assert "at 35% of its" in out
    main(SweepOptions(file=file, dry_run=True, mfu=0.7))
    assert "at 70% of its" in capsys.readouterr().out


def test_a_subset_that_cannot_be_drawn_stops_no_other_run(study, tmp_path, monkeypatch, capsys):
    file, _, _ = study
    path = tmp_path / "sweep.py"
    path.write_text(STUDY.replace("(20, 40)", "(20, 10_000)"))
    options = SweepOptions(file=f"{path}:{file.partition(':')[2]}", workdir=str(tmp_path / "W"))
    assert main(dataclasses.replace(options, dry_run=True)) == 1
    assert "Cannot be drawn: tiny-10k-of-48-tiny-s0-" in capsys.readouterr().out
    launched = []
    monkeypatch.setattr(sweep.local, "launch", lambda runs, *_: launched.extend(runs))
    assert main(options) == 1
    assert [run_dir.name[:8] for run_dir in launched] == ["tiny-20-"]
    said = capsys.readouterr().err
    assert "tiny-10k-of-48" in said and "size (10,000): only 42 records are eligible" in said
    rows = {row["unique_pairs"]: row for row in tables(tmp_path / "W")[0]}
    assert "only 42 records" in rows[10_000]["error"] and rows[10_000]["status"] == "failed"
    assert rows[20]["status"] == "waiting" and rows[20]["error"] == ""


def test_a_run_that_began_with_another_default_is_not_gone_on_with(study, tmp_path, capsys):
    file, workdir, _ = study
    shutil.copytree(workdir, tmp_path / "W", symlinks=True)
    changed = next((tmp_path / "W" / "runs").iterdir()) / "config.json"
    config = json.loads(changed.read_text())
    config["optimizer"]["b2"] = 0.5  # as if that had been the default when it began
    changed.write_text(json.dumps(config))
    assert main(SweepOptions(file=file, workdir=str(tmp_path / "W"))) == 1
    assert "begun with another config (optimizer.b2: 0.5 -> 0.95)" in capsys.readouterr().err
    assert json.loads(changed.read_text())["optimizer"]["b2"] == 0.5


def test_a_dataset_that_is_not_there_is_told_with_its_command(tmp_path):
    made = tmp_path / "data" / "manifest.json"
    command = f"sh -c 'mkdir {made.parent} && touch {made}'"
    one = type("Study", (), {"name": "s", "make_data": {str(made): command}})
    with pytest.raises(FileNotFoundError, match="--make_data, or: sh -c"):
        sweep.prepare_data(one, make_data=False)
    sweep.prepare_data(one, make_data=True)
    assert made.exists()
    one.make_data = {str(tmp_path / "x"): "false"}
    with pytest.raises(ValueError, match="ended with code 1"):
        sweep.prepare_data(one, make_data=True)
