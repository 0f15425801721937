"""How often the interval of the exchange rate holds the truth, and how far off the rate is.

    python -m experiments.benchmarks.exchange_rate --draws=500 [--cases=one_shape,own_floor]

Draws studies from known laws, with the noise of seeds and of items that are hard in all runs, and
puts each through what experiments.report does. `off` is the median of |estimate / truth - 1|,
`bias` the mean of log(estimate / truth), `width` the median of high / low of intervals with two
ends; `bounds` is the share of intervals with one end. The truth is that of the place quoted.
`enough` is how often the interval of the pairs that are enough (experiments.budgets) holds them.
"""

import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np
from scipy import optimize

from data_pipelines.options import option, run
from experiments import budgets
from experiments.benchmarks.simulated_study import (
    METRIC,
    Simulated,
    Truth,
    broken,
    floored,
    saturating,
)  # fmt: skip
from experiments.ensemble import REPLICATES, fit_many
from experiments.means import Items
from experiments.scaling import Analysis, ExchangeRate, design_of, read_off
from experiments.tables import Row, Scores, mean_log_error

TOGETHER = 50  # studies fitted at once


def repeated(pairs, samples, decay: float = 15.0):
    """Muennighoff et al. 2023, eq. 5; see laws.effective_pairs."""
    repeats = np.maximum(samples / pairs - 1, 0)
    return np.minimum(pairs, samples) * (1 + decay * (1 - np.exp(-repeats / decay)))


def of_repeated(worth: float, unit: float = 5e6) -> Truth:
    """0.5 where so many pairs' worth of data was seen; the floor is 0.2."""
    return lambda pairs, samples: 0.2 + 0.3 * (worth * repeated(pairs, samples) / unit) ** -0.35


CASES = {
    "one_shape": Simulated(
        truth={"A": floored(0.5, 0.35, 0.2), "B": floored(0.5, 0.35, 0.2, worth=0.5)},
        pairs=(2_500, 5_000, 10_000, 20_000),
    ),
    "own_floor": Simulated(
        truth={"A": floored(0.5, 0.35, 0.2), "B": floored(0.58, 0.35, 0.3)},
        pairs=(2_500, 5_000, 10_000, 20_000, 40_000),
    ),
    "own_exponent": Simulated(
        truth={"A": floored(0.5, 0.35, 0.1), "B": floored(0.58, 0.22, 0.1)},
        pairs=(2_500, 5_000, 10_000, 20_000, 40_000),
    ),
    "saturating": Simulated(
        truth={"A": saturating(0.7, 0.8, 0.4), "B": saturating(0.7, 0.8, 0.4, worth=1 / 3)},
        pairs=(2_500, 5_000, 10_000, 20_000, 40_000),
    ),
    "equal": Simulated(
        truth={"A": floored(0.5, 0.35, 0.2), "B": floored(0.5, 0.35, 0.2)},
        pairs=(2_500, 5_000, 10_000, 20_000),
    ),
}
BASE = CASES["one_shape"]
CASES |= {
    "noise_of_3_percent": dataclasses.replace(BASE, noise=0.03),
    "two_seeds_three_sizes": dataclasses.replace(BASE, seeds=2, pairs=(2_500, 7_000, 20_000)),
    "few_items": dataclasses.replace(BASE, items=200, items_a_group=10),
    "heavy_tails": dataclasses.replace(BASE, tails=3.0),
    "noise_grows_fourfold": dataclasses.replace(BASE, noise=0.005, noise_at_largest=4.0),
    "broken_law": Simulated(
        truth={"A": broken(0.5, 0.1, 0.4, 8e3), "B": broken(0.5, 0.1, 0.4, 8e3, worth=0.5)},
        pairs=(2_500, 5_000, 10_000, 20_000, 40_000),
    ),
    "broken_own_law": Simulated(
        truth={"A": broken(0.5, 0.1, 0.4, 8e3), "B": broken(0.55, 0.3, 0.1, 8e3)},
        pairs=(2_500, 5_000, 10_000, 20_000, 40_000),
    ),
    "samples_vary": Simulated(
        truth={
            "A": of_repeated(1, unit=1e4), "B": of_repeated(0.5, unit=1e4),
        },
        pairs=(2_500, 5_000, 10_000, 20_000), samples=(50_000, 200_000, 800_000),
    ),
    # experiments/quality_vs_scale: fixed samples and fixed epochs of three sources, as far as each
    # goes
    "quality_vs_scale": Simulated(
        truth={name: of_repeated(worth) for name, worth in (("A", 1), ("B", 0.7), ("C", 0.4))},
        pairs=(100_000, 300_000, 1_000_000), larger={"A": (1_600_000,), "C": (5_000_000,)},
        samples=(112_000_000,), epochs=32,
    ),
}  # fmt: skip


def true_rate(reference: Truth, source: Truth, pairs: float, samples: float) -> float:
    """inf: the source never gets there."""
    wanted = float(reference(np.float64(pairs), np.float64(samples)))

    def gap(log_rate):
        return float(source(np.float64(pairs * math.exp(log_rate)), np.float64(samples))) - wanted

    if gap(20.0) > 0:
        return math.inf
    return math.exp(optimize.brentq(gap, -20.0, 20.0))


def measured(simulated: Simulated, seed: int) -> tuple[list[Row], Scores]:
    """Runs and scores of one study."""
    rng = np.random.default_rng(seed)
    wrong_RI, group_I = simulated.wrong(simulated.errors(rng), rng)
    runs = [
        {"run_id": f"{place}", "source": place[0], "unique_pairs": place[1],
         "samples_seen": place[2], "seed": place[3], "flops": 1e9 * place[2]}
        for place in simulated.grid()
    ]  # fmt: skip
    return runs, Scores(
        metric=METRIC, value_R=1 - wrong_RI.mean(axis=1), error_R=np.full(len(runs), np.nan),
        items=Items(value_RI=1.0 - wrong_RI, group_I=group_I), higher_is_better=True,
        chance=1 / len(group_I), num_items=len(group_I),
    )  # fmt: skip


def draws(
    simulated: Simulated, count: int, replicates: int = REPLICATES
) -> list[tuple[ExchangeRate, float]]:
    """(the rate quoted, the truth there) of every source but the first, of so many studies."""
    return [
        pair for analysis in analyses(simulated, count, replicates)
        for pair in rates(simulated, analysis)
    ]  # fmt: skip


def analyses(simulated: Simulated, count: int, replicates: int) -> Iterator[Analysis]:
    first = next(iter(simulated.truth))
    for start in range(0, count, TOGETHER):
        studies = [measured(simulated, seed) for seed in range(start, min(start + TOGETHER, count))]
        places = [design_of(runs, scores, first) for runs, scores in studies]
        means = [mean_log_error(s, c) for (_, s), (_, c) in zip(studies, places, strict=True)]
        fitted = fit_many(places[0][0], means, replicates=replicates, seed=start)
        for ensemble, (runs, scores) in zip(fitted, studies, strict=True):
            yield read_off(ensemble, runs, scores, {})


def rates(simulated: Simulated, analysis: Analysis) -> list[tuple[ExchangeRate, float]]:
    found = []
    for rate in (exchange.quoted for exchange in analysis.exchanges):
        truths = (simulated.truth[name] for name in (rate.reference, rate.source))
        found.append((rate, true_rate(*truths, rate.pairs, analysis.samples)))
    return found


def enough_held(simulated: Simulated, analysis: Analysis) -> list[bool]:
    """Whether the interval of the pairs that are enough holds the truth, at each budget that has
    one."""
    held = []
    for choice in budgets.choose(analysis):
        truth, (_, low, high) = simulated.truth[choice.source], choice.enough
        wanted = budgets.ENOUGH * truth(np.float64(choice.pairs), choice.samples)
        if low > 0 and truth(np.float64(min(simulated.pairs)), choice.samples) > wanted:
            held.append(
                truth(np.float64(high), choice.samples) <= wanted <= truth(low, choice.samples)
            )
    return held


def summary(found: list[tuple[ExchangeRate, float]]) -> dict[str, float]:
    off = [math.log(rate.value / true) for rate, true in found if math.isfinite(rate.value + true)]
    widths = [rate.high / rate.low for rate, _ in found if rate.is_bounded]
    return {
        "coverage": float(np.mean([rate.low <= true <= rate.high for rate, true in found])),
        "off": float(np.median(np.abs(np.expm1(off)))) if off else math.nan,
        "bias": float(np.mean(off)) if off else math.nan,
        "width": float(np.median(widths)) if widths else math.nan,
        "bounds": 1 - len(widths) / len(found),
    }


@dataclasses.dataclass(slots=True, kw_only=True)
class CoverageOptions:
    """The command line."""

    draws: int = option(500, "studies of each case")
    cases: tuple[str, ...] = option(tuple(CASES), "which")
    replicates: int = option(REPLICATES, "bootstrap replicates of each study")


def main(options: CoverageOptions) -> None:
    print(
        f"{'case':24}{'coverage':>9}{'off':>8}{'bias':>9}{'width':>8}{'bounds':>8}"
        f"{'enough':>8}{'s':>7}"
    )
    for name in options.cases:
        if name not in CASES:
            raise ValueError(f"cases ({name}) must be of {', '.join(CASES)}.")
        start = time.process_time()
        done = list(analyses(CASES[name], options.draws, options.replicates))
        s = summary([pair for analysis in done for pair in rates(CASES[name], analysis)])
        held = [held for analysis in done for held in enough_held(CASES[name], analysis)]
        enough = np.mean(held) if held else math.nan
        print(
            f"{name:24}{s['coverage']:9.1%}{s['off']:8.1%}{s['bias']:+9.3f}{s['width']:8.2f}"
            f"{s['bounds']:8.1%}{enough:8.1%}{time.process_time() - start:7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    run(main, CoverageOptions)
