"""The report says what the tables say, loads nothing, and looks like a page in a browser."""

import dataclasses
import html.parser
import json
import math
import pathlib
import shutil
import subprocess

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from experiments import context, report, tables, variants, words
from experiments.benchmarks import simulated_study
from experiments.benchmarks.simulated_study import METRIC, SHOWN, SHOWN_ABOUT, TASK

NAME = f"{TASK}/{METRIC}"
EVIL = "<script>document.title='evil'</script>|x|"
SMALL = dataclasses.replace(SHOWN, pairs=(2_500, 10_000, 40_000), items=200)


def add(workdir: pathlib.Path, table: str, rows: list[dict]) -> None:
    before = pq.read_table(workdir / f"{table}.parquet")
    after = pa.concat_tables([before, pa.Table.from_pylist(rows, schema=before.schema)])
    pq.write_table(after, workdir / f"{table}.parquet")


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> pathlib.Path:
    """A simulated study with two variants of the reference, one of them named maliciously."""
    workdir = tmp_path_factory.mktemp("study")
    about = SHOWN_ABOUT | {"cards": {"clean": "clean/card.html", "bad": "javascript://x"}}
    simulated_study.write(SMALL, workdir, about)
    runs = [
        r for r in pq.read_table(workdir / "runs.parquet").to_pylist() if r["source"] == "clean"
    ]
    runs = [run for run in runs if run["unique_pairs"] == 40_000]
    items = pq.read_table(workdir / "items.parquet").to_pylist()
    results = pq.read_table(workdir / "results.parquet").to_pylist()
    for variant, every in (("every third right one wrong", 3), (EVIL, 10**9)):
        for run in runs:
            run_id = f"{run['run_id']}-{every}"
            mine = [dict(i, run_id=run_id) for i in items if i["run_id"] == run["run_id"]]
            right = [item for item in mine if item["value"] == 1]
            for item in right[::every] if every < 10**9 else []:
                item["value"] = 0.0
            (result,) = [dict(r, run_id=run_id) for r in results if r["run_id"] == run["run_id"]]
            result["value"] = float(np.mean([item["value"] for item in mine]))
            add(workdir, "items", mine)
            add(workdir, "results", [result])
            add(workdir, "runs", [run | {"run_id": run_id, "variant": variant}])
    failed = runs[0] | {"run_id": "failed", "status": "failed", "seed": 9}
    add(workdir, "runs", [failed])
    report.write(workdir, replicates=100)
    return workdir


class Page(html.parser.HTMLParser):
    def __init__(self, file: pathlib.Path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_answer_comes_first_and_agrees_with_what_was_planted(studied):
    page = Page(studied / "report/index.html")
    answer = page.text.index("One clean pair is worth")
    assert answer < page.text.index("Error against pairs") < page.text.index("Runs")
    planted = page.text[
        page.text.index("Measured against planted") : page.text.index("Error against")
    ]
    assert planted.count("agrees") == 2 and "does not agree" not in planted
    assert "at least 4" in planted
    text = (studied / "report/report.md").read_text()
    assert "1 of 2 variants told apart from their base" in text[: text.index("## ")]


def test_nothing_is_loaded_and_names_are_text(studied):
    page = Page(studied / "report/index.html")
    assert EVIL in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "link", "object", "img")]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == ["clean/card.html"]
    for tag, attrs in page.tags:
        for name in ("xlink:href", "src"):
            assert attrs.get(name, "#").startswith("#"), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))  # of several drawings in one page
    used = {attrs["xlink:href"][1:] for _, attrs in page.tags if "xlink:href" in attrs}
    assert used <= set(ids)


def test_ablations_are_paired_with_their_base(studied):
    study = tables.read(studied)
    same, third = sorted(variants.ablations(study, NAME), key=lambda a: -a.value)
    assert (same.variant, same.value, same.verdict) == (EVIL, 0.0, "not distinguished")
    value = {row["run_id"]: row["value"] for row in study.results}
    base = np.mean([value[f"clean-40000-1000000-{seed}"] for seed in range(3)])
    assert third.value == pytest.approx(-base / 3, abs=0.01)
    assert third.low < third.value < third.high < 0 and third.verdict == "worse"
    assert third.runs == 3 and third.also_differs == ()


def test_the_task_table_is_the_means_of_the_largest_size(studied):
    study = tables.read(studied)
    at = tables.largest_cell([run for run in study.done if not run["variant"]])
    assert {run["unique_pairs"] for run in at} == {40_000} and len(at) == 9
    runs = [run for run in study.done if not run["variant"]]
    found = tables.compare_sources(study, runs, NAME, "clean")
    assert found.names == ("clean", "mismatched", "repeated")
    values = {row["run_id"]: row["value"] for row in study.results}
    for name, interval in zip(found.names, found.intervals, strict=True):
        mine = [values[run["run_id"]] for run in at if run["source"] == name]
        assert interval[0] == pytest.approx(np.mean(mine))
        assert interval[1] < interval[0] < interval[2]
    assert found.differences[1][2] < 0  # mismatched is below clean
    assert tables.modalities(study) == ["CT", "MRI", "histology"]
    parts = [
        tables.compare_sources(study, runs, NAME, "clean", m) for m in tables.modalities(study)
    ]
    whole = np.mean([part.intervals[0][0] for part in parts])
    assert whole == pytest.approx(found.intervals[0][0], abs=0.01)  # thirds of nearly equal size


def test_what_is_missing_is_said(studied):
    text = (studied / "report/report.md").read_text()
    missing = text[text.index("## What could not be concluded") :]
    assert "1 of 34 runs are not finished" in missing
    assert "every run saw 1M" in missing
    assert "overlap: it was not measured" in missing
    assert "mismatched: 3 sizes fit a curve and cannot test it" in missing


def test_files_are_whole_and_the_same_again(studied, capsys):
    directory = studied / "report"
    before = {file: file.read_bytes() for file in directory.rglob("*.*") if file.is_file()}
    names = {file.name for file in before}
    assert {"index.html", "report.md"} < names
    for name in ("curves", "exchange", "ablations"):
        assert {f"{name}.svg", f"{name}.pdf"} < names
    assert all(content[:5] == b"%PDF-" for file, content in before.items() if file.suffix == ".pdf")
    report.write(studied, replicates=100)
    assert {file: file.read_bytes() for file in before} == before
    results = pq.read_table(studied / "results.parquet").to_pylist()
    best = max(results, key=lambda row: row["value"])
    assert f"The best run: {studied}/runs/{best['run_id']}: {NAME} " in capsys.readouterr().out


def test_mistakes_are_named(studied, tmp_path):
    with pytest.raises(FileNotFoundError, match="runs.parquet does not exist. Make it"):
        report.write(tmp_path)
    with pytest.raises(ValueError, match=r"metric \(x\) is not in the results. There are: sim"):
        report.write(studied, metric="x")
    copy = tmp_path / "copy"
    shutil.copytree(studied, copy)
    items = pq.read_table(copy / "items.parquet")
    pq.write_table(items.slice(5), copy / "items.parquet")
    with pytest.raises(ValueError, match="clean-2500-1000000-0 lacks 5 of 200 items"):
        report.write(copy)
    doubled = items.set_column(3, "value", pa.compute.multiply(items["value"], 0.5))
    pq.write_table(doubled, copy / "items.parquet")
    with pytest.raises(ValueError, match=r"have the mean 0[.][0-9]{4}, and its simulated"):
        report.write(copy)
    (copy / "items.parquet").unlink()
    runs = pq.read_table(copy / "runs.parquet")
    results = pq.read_table(copy / "results.parquet")
    waiting = pa.array(["waiting"] * len(runs))
    place = runs.column_names.index("status")
    pq.write_table(runs.set_column(place, "status", waiting), copy / "runs.parquet")
    pq.write_table(results.slice(0, 0), copy / "results.parquet")
    with pytest.raises(ValueError, match="runs.parquet has no finished run. Finish the sweep"):
        report.write(copy)
    pq.write_table(runs, copy / "runs.parquet")
    with pytest.raises(ValueError, match=r"There are: none: nothing was scored"):
        report.write(copy)
    pq.write_table(results.slice(1), copy / "results.parquet")
    with pytest.raises(ValueError, match="1 finished runs have no simulated/test/image_to_text"):
        report.write(copy)
    pq.write_table(results.drop_columns("chance"), copy / "results.parquet")
    with pytest.raises(ValueError, match=r"results.parquet lacks the columns \['chance'\]"):
        report.write(copy)


def test_without_items_the_runs_intervals_are_used(studied, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(studied, copy)
    (copy / "items.parquet").unlink()
    page = Page(report.write(copy, replicates=100))
    assert "there are no scores by item" in page.text.replace("\n", " ")
    assert "One clean pair is worth" in page.text


def test_one_size_is_compared_and_no_curve_is_drawn(tmp_path):
    one = dataclasses.replace(SHOWN, pairs=(10_000,), items=200)
    simulated_study.write(one, tmp_path, {"reference": "clean"})
    page = Page(report.write(tmp_path, replicates=50))
    assert "cannot be concluded: no source has finished runs at two sizes" in page.text
    assert "trained at one size only" in page.text
    assert "repeated less clean" in page.text


def test_sets_of_runs_that_differ_otherwise_are_apart(tmp_path):
    """Two models: each has its own curves; a metric of one run alone is named and left out."""
    simulated_study.write(SMALL, tmp_path, SHOWN_ABOUT)
    for table in ("runs", "results", "items"):
        rows = pq.read_table(tmp_path / f"{table}.parquet").to_pylist()
        small = [row | {"run_id": f"small-{row['run_id']}"} for row in rows]
        if table == "runs":
            small = [row | {"model": "small"} for row in small if row["seed"] < 2]
        add(tmp_path, table, small)
    at = {"run_id": "clean-40000-1000000-0", "metric": "lonely"}
    result = pq.read_table(tmp_path / "results.parquet").to_pylist()[0]
    add(tmp_path, "results", [result | at])
    page = Page(report.write(tmp_path, replicates=50))
    assert "The same with model small" in page.text
    assert "Models at 1e15 FLOPs" in page.text and "told apart" in page.text
    assert "pairs (model small)" in page.text  # its own table of tasks
    answer = page.text[: page.text.index("Measured against planted")]
    assert "on 40k pairs of clean does best" in answer
    assert "; not told apart from it: " in answer  # the two models' runs are the same
    assert "Not every run was scored on simulated/test/lonely" in page.text
    found = tables.slices(tables.read(tmp_path).done)
    assert [(axes["model"], len(runs)) for axes, runs in found] == [("none", 27), ("small", 18)]


def test_cards_beside_the_data_are_linked(tmp_path, tiny_dataset):
    simulated_study.write(dataclasses.replace(SMALL, pairs=(10_000,)), tmp_path / "study", {})
    dataset = tmp_path / "data" / "clean"
    shutil.copytree(tiny_dataset, dataset)
    (dataset / "card.html").write_text("the card")
    run = tmp_path / "study" / "runs" / "clean-10000-1000000-0"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"data": {"path": [str(dataset)]}}))
    study = tables.read(tmp_path / "study")
    assert context.cards(study) == [("clean", "../../data/clean/card.html")]
    study.about["cards"] = {"clean": "https://example.org/card", "b": "file:///etc/passwd"}
    assert context.cards(study) == [("clean", "https://example.org/card")]


def test_numbers_as_people_write_them():
    found = [words.number(x) for x in (1234567, 45000, 1500, 999.9999, 0.04567, 0, math.inf)]
    assert found == ["1.23M", "45k", "1,500", "1,000", "0.0457", "0", "∞"]


def test_a_browser_shows_it(studied, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip("needs a headless Chromium")
    page = (studied / "report/index.html").as_uri()
    headless = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    headless += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,3000"]
    shot = tmp_path / "report.png"
    for dark in ([], ["--blink-settings=preferredColorScheme=0"]):
        subprocess.run(
            [*headless, *dark, f"--screenshot={shot}", page], check=True, timeout=120,
            capture_output=True,
        )  # fmt: skip
        pixels = cv2.imread(str(shot)).astype(int)
        assert pixels.shape == (3000, 1200, 3)
        assert pixels[:, :10].std(axis=(0, 1)).max() == 0  # margins: nothing is wider than the page
        assert pixels[:, -10:].std(axis=(0, 1)).max() == 0
        assert (pixels[0, 0].mean() < 60) == bool(dark)
        colourful = pixels.max(axis=2) - pixels.min(axis=2) > 60
        assert colourful.mean() > 0.003  # curves, bands
    dom = subprocess.run(
        [*headless, "--dump-dom", page], check=True, timeout=120, capture_output=True
    )
    assert "<title>Study: simulated</title>" in dom.stdout.decode()  # no script has run


def test_study_json_is_optional(tmp_path):
    simulated_study.write(SMALL, tmp_path, {})
    (tmp_path / "study.json").unlink()
    study = tables.read(tmp_path)
    assert study.about == {} and report._default_metric(study) == NAME
