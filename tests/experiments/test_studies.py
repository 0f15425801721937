"""The studies that are here: what they list, what they cost, and what the miniature plants."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from data_pipelines.query import check_where, connect
from data_pipelines.subset import SubsetOptions, make_subset
from data_pipelines.synthetic import SyntheticConfig, build_synthetic
from data_pipelines.table import TableOptions, build_table
from experiments import cost
from experiments.ablations import sweep as ablations
from experiments.miniature import sweep as miniature
from experiments.quality_vs_scale import sweep as quality_vs_scale
from experiments.study import load_sweep
from jaxclip.data.record import Dataset, hash64
from jaxclip.evals.declared import DECLARED


@pytest.mark.parametrize(
    "name, runs",
    [("miniature", 18), ("real_small", 12), ("quality_vs_scale", 132), ("ablations", 114)],
)
def test_every_study_is_valid_and_tells_its_cost(name, runs):
    sweep = load_sweep(f"experiments/{name}/sweep.py")
    assert len(sweep.runs) == runs
    lines = cost.estimate(sweep)
    assert sweep.question in lines[0] and any("assumed" in line for line in lines)


def test_sizes_of_a_source_are_nested_and_budgets_are_the_designs():
    sweep = quality_vs_scale.get_sweep("D")
    of_design = {d: [r for r in sweep.runs if r.axes["design"] == d] for d in
                 ("fixed_samples", "fixed_epochs", "fixed_compute")}  # fmt: skip
    assert {r.axes["samples_seen"] for r in of_design["fixed_samples"]} == {112_000_000}
    for run in of_design["fixed_epochs"]:
        assert run.axes["samples_seen"] == 32 * run.axes["unique_pairs"]
    budget = 112_000_000 * cost.flops_per_pair(quality_vs_scale.get_config("D"))
    for run in of_design["fixed_compute"]:
        spent = run.axes["samples_seen"] * cost.flops_per_pair(run.config)
        assert 0.99 * budget < spent <= budget
    for run in sweep.runs:  # matched between the sources
        assert run.data.mix == (() if run.axes["variant"] == "own_mix" else quality_vs_scale.MIX)


def test_each_ablation_changes_one_thing_of_the_base():
    sweep = ablations.get_sweep("D")
    by_variant = {r.axes["variant"]: r for r in sweep.runs if r.axes["seed"] == 0}
    assert len(sweep.runs) == 3 * len(ablations.VARIANTS)
    base = by_variant.pop("")
    assert len({run.config_hash for run in by_variant.values()} | {base.config_hash}) == len(
        ablations.VARIANTS
    )
    for name, run in by_variant.items():
        same = [run.config == base.config, run.data == base.data]
        assert sorted(same) == [False, True], name  # the recipe or the data, not both
    all_but_one = by_variant["without_sharp"].data.where
    assert "sharpness" not in all_but_one and "short_side >= 224" in all_but_one


# --- What the miniature plants --------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    config = SyntheticConfig(size=120, image_size=64, test_fraction=0.2, validation_fraction=0.05)
    dials = {
        "clean": {},
        "repeated": {"copies": miniature.COPIES},
        "mismatched": {"swap_fraction": miniature.MISMATCHED},
    }
    assert dials.keys() == miniature.SOURCES.keys()
    return {
        name: build_synthetic(
            dataclasses.replace(config, **dial), str(folder / name), workers=1, tokenizer_vocab=0
        )
        for name, dial in dials.items()
    }


def pairs(dataset, positions):
    """Of each record, its image and caption."""
    records = [dataset[int(i)] for i in positions]
    return sorted(hash64(record.image + record.caption.encode()) for record in records)


def test_a_repeated_subset_is_a_clean_one_of_a_sixth_six_times(corpora, tmp_path):
    for size, seed in itertools.product((9, 36), (0, 1)):
        subsets = [
            make_subset(
                SubsetOptions(
                    dataset=str(corpora[name].path), size=n, seed=seed,
                    out=str(tmp_path / f"{name}{n}-{seed}"),
                )
            )
            for name, n in (("clean", size), ("repeated", 6 * size))
        ]  # fmt: skip
        clean, repeated = (pairs(s.dataset, s.positions("train")) for s in subsets)
        assert repeated == sorted(6 * clean) and len(set(clean)) == size


def test_held_out_figures_are_the_same_and_clean(corpora):
    held_out = {}
    for name, dataset in corpora.items():
        positions = dataset.positions("test")
        held_out[name] = pairs(dataset, positions)
        assert not dataset.columns(["caption_is_swapped"])[0].to_numpy()[positions].any()
    assert held_out["clean"] == held_out["repeated"] == held_out["mismatched"]
    articles = [
        {name: set(np.asarray(d.columns(["article_id"])[0])[d.positions(name)])
         for name in ("train", "test")}
        for d in corpora.values()
    ]  # fmt: skip
    assert all(not of["train"] & of["test"] for of in articles)


def test_seven_of_eight_captions_are_of_other_figures(corpora):
    dataset = corpora["mismatched"]
    swapped = dataset.columns(["caption_is_swapped"])[0].to_numpy()[dataset.positions("train")]
    n = len(swapped)
    assert abs(swapped.mean() - 0.875) < 4 * np.sqrt(0.875 * 0.125 / n)


def test_the_planted_rates_are_those_of_the_corpora():
    sweep = miniature.get_sweep("D")
    assert sweep.planted == {"repeated": (6, 6), "mismatched": (8, None)}
    steps = set(np.divide(miniature.SIZES[1:], miniature.SIZES[:-1]))
    assert steps == {miniature.COPIES} and miniature.SIZES[0] % miniature.COPIES == 0
    assert all(run.config.loss.ignore == ("same_image",) for run in sweep.runs)


@pytest.fixture(scope="module")
def measured(tiny_dataset, tmp_path_factory):
    """Three records with every signal."""
    folder = tmp_path_factory.mktemp("measured")
    records = [Dataset(tiny_dataset)[i] for i in range(3)]
    rows = [{"file": f"{i}.jpg", "caption": r.caption, "id": f"{i}"} for i, r in enumerate(records)]
    for row in rows:  # data_pipelines.pmc has this one
        row["duplicate_cluster"] = 0
    for row, record in zip(rows, records, strict=True):
        (folder / row["file"]).write_bytes(record.image)
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = TableOptions(
        table=str(folder / "t.jsonl"), images=str(folder), image="file", caption="caption",
        group="id", signals=True, keep=("duplicate_cluster",), out=str(folder / "D"), workers=1,
        tokenizer_vocab=0,
    )  # fmt: skip
    return build_table(options)


@pytest.mark.parametrize("name", ["quality_vs_scale", "ablations", "real_small"])
def test_filters_are_over_signals_that_there_are(name, measured):
    connection = connect(measured)
    filters = {run.data.where for run in load_sweep(f"experiments/{name}/sweep.py").runs}
    assert len(filters) > 4
    for where in filters:
        check_where(connection, where)  # raises for a column that is not there


@pytest.mark.parametrize("name", ["quality_vs_scale", "ablations", "real_small"])
def test_evaluations_ask_of_a_set_what_it_can_give(name):
    for arguments in load_sweep(f"experiments/{name}/sweep.py").evaluations.values():
        of_flag = [argument.partition("=")[::2] for argument in arguments]
        for one in (DECLARED[value] for flag, value in of_flag if flag == "--set"):
            if "probe" in dict(of_flag).get("--suite", ""):
                assert one.prompts and one.split in ("official", "hash"), one.title  # has a train
            if dict(of_flag).get("--split") == "validation":
                assert one.split == "official", one.title
