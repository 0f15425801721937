"""Variants are told against their own base, on each source, and all of a table together."""

import numpy as np
import pytest
from etils import epath

from experiments import figures, variants
from experiments.tables import Study

SEEDS = 3
# value of the run without a variant, and what each variant adds on each source
BASES = {"a": 0.50, "b": 0.30}
EFFECTS = {
    ("sharp", "a"): 0.06, ("sharp", "b"): -0.06, ("all", "a"): 0.10, ("all", "b"): 0.10,
    ("without_sharp", "a"): 0.07, ("without_sharp", "b"): 0.13,
}  # fmt: skip


def study(tmp_path, effects=EFFECTS, noise=0.002, width=0.0, leave_out=()) -> Study:
    """Of every variant and the base, with the noise of seeds; without_sharp is told against all."""
    rng, runs, results = np.random.default_rng(0), [], []
    for (variant, source), effect in ({("", s): 0.0 for s in BASES} | effects).items():
        for seed in range(SEEDS):
            run_id = f"{variant}-{source}-{seed}"
            if run_id in leave_out:
                continue
            value = BASES[source] + effect + noise * rng.standard_normal()
            base = "all" if variant == "without_sharp" else ""
            runs.append(
                {"run_id": run_id, "source": source, "unique_pairs": 100, "samples_seen": 1000,
                 "seed": seed, "variant": variant, "base": base, "model": "m", "status": "done",
                 "config": run_id, "error": ""}
            )  # fmt: skip
            results.append(
                {"run_id": run_id, "task": "t", "metric": "recall", "value": value, "chance": 0.1,
                 "low": value - width, "high": value + width, "items": 100,
                 "higher_is_better": True}
            )  # fmt: skip
    return Study(workdir=epath.Path(tmp_path), about={}, runs=runs, results=results)


def test_what_differs_between_sources_is_not_averaged(tmp_path):
    found = {a.name: a for a in variants.ablations(study(tmp_path), "t/recall")}
    assert found["sharp on a"].value == pytest.approx(0.06, abs=0.005)
    assert found["sharp on b"].value == pytest.approx(-0.06, abs=0.005)
    assert [found[f"sharp on {s}"].verdict for s in "ab"] == ["better", "worse"]
    assert found["sharp on a"].high - found["sharp on a"].low < 0.02  # seeds, not sources, vary
    assert {a.runs for a in found.values()} == {SEEDS}
    assert not any(a.also_differs for a in found.values())


def test_one_left_out_is_told_against_all(tmp_path):
    found = {a.name: a for a in variants.ablations(study(tmp_path), "t/recall")}
    assert found["without_sharp on a"].value == pytest.approx(-0.03, abs=0.005)
    assert found["without_sharp on b"].value == pytest.approx(0.03, abs=0.005)
    assert [a.base for _, a in sorted(found.items())] == ["", "", "", "", "all", "all"]


def test_variants_without_their_base_are_said(tmp_path):
    lone = study(tmp_path, leave_out=[f"all-a-{seed}" for seed in range(SEEDS)])
    names = [a.name for a in variants.ablations(lone, "t/recall")]
    assert "without_sharp on a" not in names and "without_sharp on b" in names
    (said,) = variants.without_base(lone)
    assert "What 3 runs of variants are worth, the first without_sharp-a-0" in said


def test_verdicts_hold_for_the_whole_table(tmp_path):
    """Of 40 that change nothing, about two have an interval that misses zero, and none is told."""
    nothing = {(f"v{i:02}", "a"): 0.0 for i in range(40)}
    found = variants.ablations(study(tmp_path, nothing, noise=0.02), "t/recall")
    assert any(a.low > 0 or a.high < 0 for a in found)
    assert {a.verdict for a in found} == {"not distinguished"}
    (said,) = variants.answer(found, "t/recall")
    assert said.startswith("None of 40 variants is told apart from its base in t/recall; the large")


def test_the_answer_names_those_told_apart(tmp_path):
    effects = {("up", "a"): 0.1, ("same", "a"): 0.0}
    (said,) = variants.answer(variants.ablations(study(tmp_path, effects), "t/recall"), "t/recall")
    assert said.startswith("up +0.10") and said.endswith(
        ": 1 of 2 variants told apart from their base in t/recall."
    )
    assert variants.answer([], "t/recall") == []


def test_bars_are_as_long_as_the_differences(tmp_path):
    found = variants.ablations(study(tmp_path), "t/recall")
    (axes,) = figures.ablations(found, "t/recall").axes
    labels = dict(
        zip(axes.get_yticks(), (t.get_text() for t in axes.get_yticklabels()), strict=True)
    )
    heads = {t.get_text(): t.xy[1] for t in axes.texts if t.get_text() in BASES}
    drawn = {}
    for bar in axes.patches:
        y = bar.get_y() + bar.get_height() / 2
        place = min((at, name) for name, at in heads.items() if at > y)[1]
        drawn[f"{labels[round(y)]} on {place}"] = bar.get_width()
    assert drawn == pytest.approx({a.name: a.value for a in found})
