"""Overlap is what training and evaluation name alike, and null where nothing tells."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.collect import overlap, run_table, skipped
from jaxclip.evals.results import ITEM
from tests.experiments.fake import fake_run


def scored(tmp_path, groups: dict[str, list[str]], *flags: str):
    """A run with one evaluation, of these sets and their items' groups."""
    run_dir = fake_run(tmp_path, "a", train="pass", test="pass")
    plan = json.loads((run_dir / "plan.json").read_text())
    plan["steps"]["test"] = ["python", "-m", "jaxclip.evaluate", *flags]
    (run_dir / "plan.json").write_text(json.dumps(plan))
    (run_dir / "evaluation" / "test").mkdir(parents=True)
    rows = [
        {"model": "m", "set": name, "split": "test", "evaluator": "e", "metric": "m", "item": i,
         "group": group, "modality": None, "value": 1.0}
        for name, of_set in groups.items() for i, group in enumerate(of_set)
    ]  # fmt: skip
    pq.write_table(
        pa.Table.from_pylist(rows, schema=ITEM), run_dir / "evaluation/test/items.parquet"
    )
    return run_dir


def trained(*articles: str):
    """A subset whose last record is not for training."""
    table = pa.table({"article_id": list(articles)})
    dataset = SimpleNamespace(columns=lambda names: table.select(names))
    return SimpleNamespace(
        dataset=dataset, positions=lambda split: np.arange(len(articles) - 1) if split else None
    )


@pytest.mark.parametrize(
    "groups, flags, share, of",
    [
        # 2 of 4, though corpora write ids as they please
        ({"own": ["PMC1", "PMC1", "pmc2", "PMC8", "PMC9"]}, ["--data=D/own"], 0.5, "own/test"),
        ({"roco": ["PMC2", "PMC8"]}, ["--set=roco"], 0.5, "roco/test"),
        ({"own": ["synthetic0-1", "synthetic0-2"]}, ["--data=D/own"], 0.0, "own/test"),
        # patients and images are no articles, and neither are the places of records
        ({"vqa_rad": ["synpic1.jpg", "synpic2.jpg"]}, ["--set=vqa_rad"], None, None),
        ({"own": ["1", "2", "3"]}, ["--data=D/own"], None, None),
        ({"roco": ["PMC1", "PMC2"], "ham": ["1", "2"]}, ["--set=roco", "--set=ham"], 1.0,
         "roco/test"),
    ],
)  # fmt: skip
def test_overlap_is_told_where_groups_are_articles(tmp_path, groups, flags, share, of):
    run_dir = scored(tmp_path, groups, *flags)
    found = overlap(run_dir, trained("1", "PMC2.1", "PMC7", "PMC9"))
    assert found == {"overlap_share": share, "overlap_of": of}


def test_columns_of_nulls_have_a_type():
    table = run_table([{"run_id": "a", "overlap_share": None, "overlap_of": None}])
    assert table.schema.field("overlap_share").type == pa.float64()
    assert table.schema.field("overlap_of").type == pa.string()


def test_what_was_skipped_is_told(tmp_path):
    run_dirs = [fake_run(tmp_path, name, train="pass", test="pass") for name in "ab"]
    for run_dir in run_dirs:
        (run_dir / "evaluation" / "test").mkdir(parents=True)
        said = {"skipped": ["BACH is not in D."]}
        (run_dir / "evaluation" / "test" / "results.json").write_text(json.dumps(said))
    assert skipped(run_dirs) == ["Skipped in 2 runs: BACH is not in D."]
