"""A run on two subsets, from the choice to the report: the chosen, as many samples as asked for."""

import json
import re

from data_pipelines.subset import SubsetOptions, make_subset
from tests.test_train import finish, start


def test_a_mixture_of_subsets_for_a_number_of_samples(tiny_dataset, tmp_path):
    subsets = {}
    for name, size, shape in (("circles", 10, "circle"), ("others", 20, "")):
        where = f"shape = '{shape}'" if shape else "shape <> 'circle'"
        out = tmp_path / name / "small"  # both have this name
        options = SubsetOptions(dataset=str(tiny_dataset), out=str(out), where=where)
        options.size = size
        subsets[name] = make_subset(options)
    run = start(
        tmp_path / "circles" / "small",
        tmp_path / "run",
        f"--config.data.path={tmp_path / 'others' / 'small'}",
        "--config.data.weights=(0.25, 0.75)",
        "--config.duration.amount=160",
        "--config.duration.unit=samples",
    )
    finish(run)
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert f"- {subsets['circles'].path}: 40 samples, 10 unique pairs of 10, 4.00 epochs" in summary
    assert f"- {subsets['others'].path}: 120 samples, 20 unique pairs of 20, 6.00 epochs" in summary
    for subset in subsets.values():  # of each its own scores
        assert f"validation/{subset.path}/image_to_text/recall@1" in summary
    flops = re.search(r"Budget: 160 samples seen of 30 unique pairs; ([\d.e+]+) FLOPs", summary)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert max(line["step"] for line in lines if "loss" in line) == 10  # of 16 samples
    # 2 FLOPs a weight and token, thrice for both directions: 4 patches and 12 tokens through two
    # blocks of 12 * 16^2 weights each, and little besides
    products = 160 * 3 * 2 * (4 + 12) * 2 * 12 * 16**2
    assert flops and products < float(flops[1]) < 2 * products
    run_json = json.loads((tmp_path / "run" / "run.json").read_text())
    for subset in subsets.values():
        assert subset.content_hash in json.dumps(run_json)
