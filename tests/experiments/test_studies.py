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
from experiments.designs import FILTERS
from experiments.miniature import sweep as miniature
from experiments.quality_vs_scale import sweep as quality_vs_scale
from experiments.study import load_sweep
from jaxclip.config import flatten, to_dict
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import hash64
from jaxclip.data.text import choose_text
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
    for source, seed in itertools.product(quality_vs_scale.SOURCES, quality_vs_scale.SEEDS):
        choices = {
            dataclasses.astuple(dataclasses.replace(run.data, size=0)): None
            for run in sweep.runs
            if (run.axes["source"], run.axes["seed"]) == (source, seed) and not run.axes["variant"]
        }
        assert len(choices) == 1  # all sizes by one query, order and list: nested
    for run in sweep.runs:  # matched between the sources
        assert run.data.mix == (() if run.axes["variant"] == "own_mix" else quality_vs_scale.MIX)


SIGLIP = {"loss.name", "loss.max_logit_scale", "model.init_temperature", "model.init_logit_bias"}
CONTEXT, WHERE = {"data.tokenizer.context_length"}, {"where"}
CHANGES = {  # what each variant changes of its base; of filters see below
    "context_77": ("", CONTEXT),
    "context_512": ("", CONTEXT),
    "references": ("context_512", {"data.text.append"}),
    "summary": ("context_512", {"data.text.append"}),
    "one_text_a_step": ("", {"data.text.combine"}),
    "whole_caption": ("", {"data.text.fields"}),
    "whole_figures": ("", {"dataset", "exclude"}),
    "all_filters": ("", WHERE),
    "alignment_0.3": ("", WHERE),
    "alignment_0.5": ("", WHERE),
    "alignment_0.7": ("", WHERE),
    "deduplicated": ("", WHERE),
    "radiology": ("", WHERE),
    "microscopy": ("", WHERE),
    "visible_light": ("", WHERE),
    "siblings_are_negatives": ("", {"loss.ignore"}),
    "articles_are_no_negatives": ("", {"loss.ignore"}),
    "same_captions_match": ("", {"loss.positives"}),
    "sigmoid": ("", SIGLIP),
    "decoupled": ("", {"loss.name", "loss.hard_negatives"}),
    "size_160": ("", {"data.image.size"}),
    "size_384": ("", {"data.image.size"}),
    "from_public": ("", {"init", "optimizer.peak_lr"}),
}


@pytest.fixture(scope="module")
def ablated():
    """{(variant, seed): run}"""
    return {(r.axes["variant"], r.axes["seed"]): r for r in ablations.get_sweep("D").runs}


def test_each_ablation_changes_one_thing_of_its_base(ablated):
    changes = dict(CHANGES)
    for name in ablations.FILTERS:
        changes[f"without_{name}"], changes[f"only_{name}"] = ("all_filters", WHERE), ("", WHERE)
    assert {variant for variant, _ in ablated} == {*changes, ""}
    for (variant, seed), run in ablated.items():
        if variant:
            base, expected = changes[variant]
            assert run.axes["base"] == base
            assert differing(run, ablated[base, seed]) == expected, variant


def differing(run, other):
    """Fields of the config and of the subset in which two runs are not alike."""
    one, two = (flatten(to_dict(r.config)) | dataclasses.asdict(r.data) for r in (run, other))
    return {field for field in one if one[field] != two[field]}


def test_ablations_are_what_their_names_say(ablated):
    of = {variant: run for (variant, seed), run in ablated.items() if seed == 0}
    texts = {"panel_caption": "CT.", "caption": "(a) CT.", "references": "R.", "summary": "S."}
    told = {name: choose_text(texts, of[name].config.data.text, None) for name in of}
    assert (told[""], told["context_512"], told["whole_caption"]) == ("CT.", "CT.", "(a) CT.")
    assert (told["references"], told["summary"]) == ("CT. R.", "CT. S.")
    policy, rng = of["one_text_a_step"].config.data.text, np.random.default_rng(0)
    assert {choose_text(texts, policy, rng) for _ in range(30)} == {"CT.", "(a) CT."}
    lengths = {name: run.config.data.tokenizer.context_length for name, run in of.items()}
    assert (lengths["context_77"], lengths[""], lengths["references"]) == (77, 256, 512)
    assert of["alignment_0.7"].data.where == "(alignment_score >= 0.7)"
    assert of["only_sharp"].data.where == "(sharpness >= 100)"
    rules = list(ablations.FILTERS.values())
    assert of["all_filters"].data.where == " AND ".join(f"({rule})" for rule in rules)
    rules.remove("sharpness >= 100")
    assert of["without_sharp"].data.where == " AND ".join(f"({rule})" for rule in rules)
    assert of["from_public"].config.init == "D/biomedclip"
    assert of["from_public"].config.optimizer.peak_lr == pytest.approx(5e-5)
    assert of["whole_figures"].data.dataset == "D/pmc_figures"
    for run in of.values():  # metrics are of public sets, Quilt-1M's has images of papers
        name = run.data.dataset.removeprefix("D/")
        assert run.data.exclude == (f"D/overlap/exclude/{name}-in-evals.npy",)


def test_a_filters_name_means_one_thing():
    for study in (ablations, quality_vs_scale):
        for run in study.get_sweep("D").runs:
            name = run.axes["variant"].removeprefix("only_")
            if name in FILTERS:
                assert run.data.where.strip("()") == FILTERS[name].strip("()")


@pytest.mark.parametrize("study", [ablations, quality_vs_scale])
def test_a_study_runs_on_the_hardware_that_it_is_given(study):
    on_gpus, on_gpu, on_tpu = (study.get_sweep(f"D{h}").runs[0] for h in ("", ",h100", ",v6e-8"))
    assert on_gpus.run_id == on_gpu.run_id == on_tpu.run_id  # only where it runs
    of = [run.config.model.image.transformer.attention for run in (on_gpus, on_gpu, on_tpu)]
    assert of == ["cudnn", "cudnn", "xla"]
    assert [run.config.micro_batch_size for run in (on_gpus, on_gpu, on_tpu)] == [2048, 256, 512]
    with pytest.raises(ValueError, match=r"'v6e-64'.* one of h100x8, h100, v5e-8, v6e-8: a run"):
        study.get_sweep("D,v6e-64")


def test_quality_vs_scale_leaves_out_what_is_scored_and_transfers_the_optimizer():
    sweep = quality_vs_scale.get_sweep("D")
    for run in sweep.runs:
        assert run.data.exclude == (f"D/overlap/exclude/{run.axes['source']}-in-evals.npy",)
    of_model = {run.axes["model"]: run.config.optimizer for run in sweep.runs}
    # hidden matrices of S/16, 384 wide, learn at 768 / 384 = 2 times B/16's rate; L/14's at 3/4
    slowed = r"image/.*blocks/.*/kernel"
    assert of_model["S/16"].lr_multipliers == ((slowed, 2.0),)
    assert of_model["L/14"].lr_multipliers == ((slowed, 0.75),)
    assert of_model["B/16"].lr_multipliers == ()
    assert {optimizer.peak_lr for optimizer in of_model.values()} == {5e-4}


def test_a_dry_run_by_hand():
    """One B/16 run: 112 M pairs of 243 GFLOP at 35 % of 989 TFLOP/s; 45 kB a record; parameters and
    two moments of 197.5 M numbers in float32, two checkpoints."""
    run = quality_vs_scale.get_sweep("D").runs[0]
    found = cost.cost_of(run)
    assert found.samples == 112_000_000 and found.flops == pytest.approx(2.7226e19, rel=1e-3)
    assert cost.device_hours(found.flops, "H100") == pytest.approx(21.85, abs=0.01)
    assert found.bytes_read == 5.04e12
    assert found.bytes_written == pytest.approx(4.74e9, rel=2e-3)
    one = dataclasses.replace(quality_vs_scale.get_sweep("D"), runs=[run])
    row = cost.estimate(one)[2].split()
    assert row == ["fixed_samples", "B/16", "1", "112M", "2.72e+19", "21.8", "109.7", "23.5",
                   "5.0", "TB", "4.7", "GB"]  # fmt: skip
    assert cost.estimate(one, mfu=0.7)[2].split()[5] == "10.9"


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
