"""What to train: within what was trained, and models beside each other at one budget."""

import math

import numpy as np
import pytest
from etils import epath
from scipy import optimize

from experiments import budgets
from experiments.benchmarks.simulated_study import METRIC
from experiments.scaling import analyse
from experiments.tables import Scores, Study
from tests.experiments.test_scaling import SIZES, THIRD, analysis

# a model, a source, its pairs and its FLOPs -> the mean of the metric
CELLS = {
    ("small", "a", 100, 1.00e9): 0.40, ("small", "b", 100, 1.00e9): 0.30,
    ("base", "a", 100, 1.01e9): 0.50, ("base", "b", 100, 1.01e9): 0.41,
    ("base", "a", 50, 1.01e9): 0.35, ("base", "b", 500, 1.01e9): 0.505,
    ("base", "a", 100, 1e8): 0.20, ("base", "b", 100, 1e8): 0.20,
}  # fmt: skip


def study(tmp_path, noise=0.004) -> Study:
    rng, runs, results = np.random.default_rng(0), [], []
    for place, mean in CELLS.items():
        model, source, pairs, flops = place
        for seed in range(3):
            run_id = f"{place}{seed}"
            runs.append(
                {"run_id": run_id, "source": source, "unique_pairs": pairs, "seed": seed,
                 "samples_seen": int(flops / (1e3 if model == "small" else 1e4)), "model": model,
                 "flops": flops, "variant": "", "base": "", "status": "done"}
            )  # fmt: skip
            value = mean + noise * rng.standard_normal()
            results.append(
                {"run_id": run_id, "task": "t", "metric": "recall", "value": value, "items": 100,
                 "low": value, "high": value, "chance": 0.1, "higher_is_better": True}
            )  # fmt: skip
    return Study(workdir=epath.Path(tmp_path), about={}, runs=runs, results=results)


def test_models_of_one_budget_are_compared(tmp_path):
    (budget,) = budgets.compare_models(study(tmp_path), "t/recall")  # at 1e8 there is one model
    assert budget.flops == 1e9
    found = {(c.model, c.source, c.pairs): c for c in budget.cells}
    # with the most pairs that both models have, and with the most of each
    assert set(found) == {
        ("base", "a", 100), ("base", "b", 100), ("base", "b", 500),
        ("small", "a", 100), ("small", "b", 100),
    }  # fmt: skip
    means = [c.interval[0] for c in budget.cells]
    assert means == sorted(means, reverse=True)
    assert found["small", "a", 100].difference[0] == pytest.approx(-0.1, abs=0.015)
    assert found["small", "a", 100].is_told_apart
    told = {c.name: c.is_told_apart for c in budget.cells[1:]}
    assert [name for name, is_told in told.items() if not is_told] == [budget.cells[1].name]
    assert {budget.cells[0].pairs, budget.cells[1].pairs} == {100, 500}
    said = budgets.answer(budget)
    assert said.startswith("At 1G FLOPs, base on ") and said.count("base on") == 2
    assert "not told apart from it: base on" in said


def test_a_lower_metric_may_be_the_better(tmp_path):
    lower = study(tmp_path)
    for row in lower.results:
        row["higher_is_better"] = False
    (budget,) = budgets.compare_models(lower, "t/recall")
    assert budget.cells[0].name == "small on 100 pairs of b"


def of_both_designs(truth, pairs=(1_000, 4_000, 16_000), epochs=4.0, samples=64_000):
    """Sizes that all saw `samples`, and sizes that were seen `epochs` times."""
    base = analysis(truth, pairs)
    runs, error = [], []
    for run in base.runs:
        for seen in sorted({samples, int(epochs * run["unique_pairs"])}):
            runs.append(run | {"samples_seen": seen, "flops": 1e9 * seen})
            error.append(float(truth[run["source"]](run["unique_pairs"], seen)))
    value_R = 1 - np.array(error) * np.exp(
        1e-4 * np.random.default_rng(1).standard_normal(len(error))
    )
    found = Scores(
        metric=METRIC, value_R=value_R, error_R=np.full(len(runs), np.nan), items=None,
        higher_is_better=True, chance=0.001, num_items=10**9,
    )  # fmt: skip
    return analyse(runs, found, "a", replicates=60)


def test_no_more_pairs_are_chosen_than_were_trained_with_so_many_samples():
    found = of_both_designs(THIRD)
    chosen = {choice.samples: choice for choice in budgets.choose(found)}
    assert {s: c.pairs for s, c in chosen.items()} == {4_000: 1_000, 16_000: 4_000, 64_000: 16_000}
    assert all(c.pairs <= s for s, c in chosen.items())
    assert not any(c.is_beyond for c in chosen.values())
    # along samples, of the most pairs that saw several numbers of them: 16,000 saw one
    assert [curve.at for curve in found.sample_curves] == [4_000, 4_000]
    (fewer,) = budgets.choose(found, [1e9 * 3_000])
    assert fewer.is_beyond and fewer.pairs == 1_000
    assert budgets.enough_text(chosen[4_000]) == "at most 1,000"  # one size: nothing to compare


def test_pairs_are_no_more_than_samples_seen():
    found = analysis(THIRD, SIZES, samples=(5_000, 80_000))
    assert [choice.pairs for choice in budgets.choose(found)] == [5_000, 16_000]


def test_sources_that_were_not_trained_at_a_budget_are_named():
    base = of_both_designs(THIRD)
    kept = [
        r for r, run in enumerate(base.runs)
        if run["source"] == "a" or run["samples_seen"] == 64_000
    ]  # fmt: skip
    scores = base.scores
    few = Scores(
        metric=METRIC, value_R=scores.value_R[kept], error_R=scores.error_R[kept], items=None,
        higher_is_better=True, chance=0.001, num_items=10**9,
    )  # fmt: skip
    found = analyse([base.runs[r] for r in kept], few, "a", replicates=60)
    first = budgets.choose(found)[0]
    assert (first.samples, first.source, first.not_compared) == (4_000, "a", ("b",))


def test_enough_has_an_interval_of_the_noise():
    """With twenty times the noise, the same draw of it, the interval is much wider.

    How often it holds the truth is for benchmarks.exchange_rate to tell.
    """
    curve, widths = THIRD["a"], []
    true = optimize.brentq(lambda n: curve(n, 0) - 1.05 * curve(16_000, 0), 2_000, 16_000)
    for noise in (1e-3, 2e-2):
        (choice,) = budgets.choose(analysis(THIRD, SIZES, noise=noise))
        value, low, high = choice.enough
        assert low < value < high and value == pytest.approx(true, rel=2 * noise)
        assert budgets.enough_text(choice).startswith(f"{value / 1e3:.3g}k (")
        widths.append(math.log(high / low))
    assert widths[1] > 5 * widths[0]
