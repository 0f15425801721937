"""What a study says in words: the answer first, and what could not be concluded."""

import math

import numpy as np

from experiments.scaling import Analysis, Crossing, Exchange, ExchangeRate
from experiments.tables import Study
from experiments.words import number

OUTLYING = 3.0  # standard deviations of a run from its cell's mean
DISAGREE = 0.5  # share of the variance from which disagreeing laws are worth a word


def rate_text(rate: ExchangeRate) -> str:
    """`2.1 (1.8 to 2.5)`, `more than 4`, `less than 0.3`, or `not known`."""
    if rate.is_bounded and math.isfinite(rate.value):
        return f"{rate.value:.2f} ({rate.low:.2f} to {rate.high:.2f})"
    if rate.low > 0:
        middle = f"{rate.value:.2f}, " if math.isfinite(rate.value) else ""
        return f"{middle}more than {rate.low:.2f}"
    if math.isfinite(rate.high):
        return f"less than {rate.high:.2f}"
    return "not known"


def answer(exchange: Exchange) -> str:
    """One sentence of one source: a rate with its interval, a bound, or why there is neither."""
    rate, one = exchange.quoted, f"One {exchange.reference} pair is worth"
    place = f"at {number(rate.pairs)} pairs of {exchange.reference}"
    if rate.is_bounded and math.isfinite(rate.value):
        beyond = ", partly beyond the sizes trained" if rate.extrapolated else ""
        text = (
            f"{one} {rate.value:.2f} {exchange.source} pairs "
            f"(95 % interval {rate.low:.2f} to {rate.high:.2f}; {place}{beyond})."
        )
        if rate.low <= 1 <= rate.high:
            text += " That is not distinguished from one for one."
        return text
    if rate.low > 0:
        return (
            f"{one} more than {rate.low:.2f} {exchange.source} pairs ({place}; 97.5 % sure): with "
            f"the most pairs that were trained, {exchange.source} does not get to the reference's "
            "error or has flattened out, so the data give no upper bound."
        )
    if math.isfinite(rate.high):
        return (
            f"{one} less than {rate.high:.2f} {exchange.source} pairs ({place}; 97.5 % sure): with "
            f"the fewest pairs that were trained, {exchange.source} already has less error."
        )
    return (
        f"How many {exchange.source} pairs one {exchange.reference} pair is worth cannot be "
        "concluded: errors at different sizes are not told apart. More sizes or seeds are needed."
    )


def agrees(rate: ExchangeRate, planted: tuple[float, float]) -> str:
    """Whether the measured rate is the planted one, as far as the measurement goes.

    "agrees": an interval with two ends that has a planted rate in it, or a bound that a planted
    bound follows from. "not contradicted": a bound that leaves room for the planted rate.
    """
    low, high = planted
    if rate.low <= 0 and math.isinf(rate.high):
        return "not concluded"
    if rate.low > high or rate.high < low:
        return "does not agree"
    is_met = rate.low >= low and math.isinf(high) or rate.high <= high and low <= 0
    return "agrees" if rate.is_bounded or is_met else "not contradicted"


def planted(study: Study) -> dict[str, tuple[float, float]]:
    """{source: (low, high)} of study.json; a high of null: at least low."""
    return {
        source: (float(low or 0), math.inf if high is None else float(high))
        for source, (low, high) in (study.about.get("planted") or {}).items()
    }


# --- What could not be concluded -----------------------------------------------------------------


def crossing_text(crossing: Crossing) -> str:
    below, above = crossing.lower_below, crossing.lower_above
    if math.isnan(crossing.low):
        return f"{below} has less error at every size that both have."
    low, high = number(crossing.low), number(crossing.high)
    where = f"at {low}" if low == high else f"between {low} and {high}"
    unclear = f"{where} pairs they are not told apart"
    if below and above and below != above:
        return (
            f"They cross at {number(crossing.pairs)} pairs: below, {below} has less error, above "
            f"{above}; {unclear}."
        )
    ends = ((below, "smallest"), (above, "largest"))
    sides = [f"{name} has less error at the {size} size" for name, size in ends if name]
    if not sides:
        return f"{unclear[0].upper()}{unclear[1:]}."
    return f"{'; '.join([*sides, unclear])}."


def unresolved(analysis: Analysis | None, study: Study) -> list[str]:
    """What this study does not tell, and what would."""
    parts = (_of_design, _of_noise, _of_rates) if analysis else ()
    return [*(text for part in parts for text in part(analysis)), *_of_runs(study)]


def _of_design(analysis: Analysis) -> list[str]:
    design, said = analysis.ensemble.design, []
    seen = np.unique(design.samples_C)
    if len(seen) == 1:
        said.append(
            f"How error falls with samples seen: every run saw {number(seen[0])}. The laws are of "
            "unique pairs alone, at that many samples, and repeated pairs are part of them."
        )
    elif design.is_tied:
        said.append(
            "Pairs and samples apart: where one grew, the other did. The laws are of both together."
        )
    for s, source in enumerate(design.sources):
        sizes = len(np.unique(design.pairs_C[design.source_C == s]))
        if sizes < 4:
            said.append(
                f"The irreducible error of {source}: {sizes} sizes fit a curve and cannot test it."
            )
    if not design.knows_worst:
        said.append("Laws that flatten at chance were not tried: the error of chance is not known.")
    return said


def _of_noise(analysis: Analysis) -> list[str]:
    means, said = analysis.ensemble.means, []
    if analysis.ensemble.assumed_noise:
        said.append(
            f"Noise from seed to seed: every run has one seed. It was "
            f"{analysis.ensemble.assumed_noise}. Train two more seeds at one size."
        )
    if not means.num_groups:
        said.append(
            "How much of the uncertainty sources share, being scored on the same items: there are "
            "no scores by item. Runs' own intervals were taken as independent, which is too wide."
        )
    if analysis.ensemble.misfit > 1:
        said.append(
            "Which law holds: none fits as well as seeds agree. The variance of a run was raised "
            f"{analysis.ensemble.misfit:.1f} times, to what the best one misses."
        )
    if means.equal_p < 0.01:
        said.append(
            f"Whether the noise is the same everywhere: Bartlett's test says it is not "
            f"(p = {means.equal_p:.2g}); intervals are right on average over cells."
        )
    for run, deviation in zip(analysis.runs, means.deviation_R, strict=True):
        if abs(deviation) > OUTLYING:
            said.append(
                f"Whether {run['run_id']} went as it should: it lies {abs(deviation):.1f} standard "
                "deviations from its other seeds. It is in the fit."
            )
    return said


def _of_rates(analysis: Analysis) -> list[str]:
    said = []
    for exchange in analysis.exchanges:
        if not exchange.quoted.is_bounded:
            said.append(answer(exchange))
        rates = [rate for _, weight, rate in exchange.by_law if weight]
        if exchange.shares[2] > DISAGREE:
            said.append(
                f"Which law holds for {exchange.source}: laws that do equally well on held-out "
                f"cells put its rate from {np.nanmin(rates):.2f} to {np.nanmax(rates):.2f}; "
                "the interval has that in it."
            )
        ends = [r for r in exchange.curve if math.isfinite(r.value) and r.is_bounded]
        if len(ends) > 1 and ends[0].low <= ends[-1].high and ends[-1].low <= ends[0].high:
            said.append(
                f"Whether the rate of {exchange.source} changes with scale: "
                f"{rate_text(ends[0])} at {number(ends[0].pairs)} pairs and {rate_text(ends[-1])} "
                f"at {number(ends[-1].pairs)} are not told apart."
            )
    return said


def _of_runs(study: Study) -> list[str]:
    said = []
    if missing := len(study.runs) - len(study.done):
        said.append(f"{missing} of {len(study.runs)} runs are not finished and not in the figures.")
    shares = [run["overlap_share"] for run in study.done if run.get("overlap_share") is not None]
    told = {task for run in study.done for task in (run.get("overlap_of") or "").split(", ")}
    untold = sorted({row["task"] for row in study.results} - told)
    if not shares:
        said.append("Whether training and evaluation overlap: it was not measured.")
    elif untold and told - {""}:
        said.append(
            f"Whether training overlaps with {', '.join(untold)}: their groups are no articles. "
            "See data_pipelines.overlap."
        )
    if shares and max(shares) > 0:
        said.append(
            f"What is due to overlap with the evaluation items: up to {max(shares):.2%} of their "
            "articles are in a training subset."
        )
    return said
