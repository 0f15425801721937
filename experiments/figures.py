"""The report's drawings, once for the page and for a paper: SVG and PDF.

Colours are those of Okabe and Ito (2008), told apart by the colour-blind; every curve has its name
at its end and a marker of its own. In the page, ink and colours follow the reader's light or dark
theme: see `inline`.
"""

import html
import io
import math
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.conclusions import rate_text
from experiments.scaling import Analysis, Curve, ExchangeRate
from experiments.tables import Row
from experiments.variants import Ablation
from experiments.words import number
from jaxclip.data.files import write_atomically

INK = "#1d2530"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
GOOD, BAD, NEITHER = COLOURS[2], COLOURS[1], "#7f8a96"
STYLE = {
    "font.size": 9, "font.family": "sans-serif", "svg.fonttype": "none", "pdf.fonttype": 42,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False, "axes.linewidth": 0.6, "savefig.transparent": True,
    "svg.hashsalt": "jaxclip",
}  # fmt: skip
WIDTH, HEIGHT = 6.6, 3.6  # inches
ROOM = {"left": 0.1, "right": 0.85, "top": 0.97, "bottom": 0.135}  # right: for the names


def save(figure: Figure, directory: epath.Path, name: str, alt: str) -> str:
    """Writes NAME.svg and NAME.pdf; returns the SVG to put into a page.

    Args:
      alt: what is to be seen, for those who do not see it.
    """
    texts = {}
    for kind, about in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format=kind, metadata=about)
        write_atomically(directory / f"{name}.{kind}", buffer.getvalue())
        texts[kind] = buffer.getvalue()
    return inline(texts["svg"].decode(), name, alt)


def inline(svg: str, name: str, alt: str) -> str:
    """SVG as part of a page: no prolog, sized by the page, ink and colours by its style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    width, height = (
        float(re.search(rf'{side}="([\d.]+)pt"', svg)[1]) for side in ("width", "height")
    )
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace(INK, "currentColor")
    for place, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{place})")
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    shape = f'style="aspect-ratio: {width:.0f} / {height:.0f}"'
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" {shape} ', 1)


# --- What is to be seen, in words ----------------------------------------------------------------


def curves_alt(analysis: Analysis, drawn: Sequence[Curve]) -> str:
    along = drawn[0].along.replace("_", " ")
    parts = []
    for curve in drawn:
        first, last = np.flatnonzero(curve.measured_G)[[0, -1]]
        parts.append(
            f"{curve.source} from {curve.error_G[first]:.3f} at {number(curve.x_G[first])} to "
            f"{curve.error_G[last]:.3f} at {number(curve.x_G[last])}"
        )
    return f"Curves of error ({analysis.scores.error_name}) against {along}: {'; '.join(parts)}."


def exchange_alt(analysis: Analysis) -> str:
    parts = [
        f"{found.source} {rate_text(found.quoted)} at {number(found.quoted.pairs)} pairs"
        for found in analysis.exchanges
    ]
    one = f"one {analysis.reference} pair"
    return f"Curves of the pairs that {one} is worth, along its pairs: {'; '.join(parts)}."


def ablations_alt(found: Sequence[Ablation], metric: str) -> str:
    parts = [f"{a.name} {a.value:+.3f} ({a.verdict})" for a in found]
    return f"Bars of {metric}, variant less its base: {'; '.join(parts)}."


# --- Drawings ------------------------------------------------------------------------------------


def _axes() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        figure.subplots_adjust(**ROOM)
        return figure, figure.add_subplot()


def _log_axis(axis, low: float, high: float, most: int = 7) -> None:
    """Ticks at round numbers, at most so many, with numbers as people write them."""
    steps = ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for step in steps:
        ticks = np.outer(decades, step).ravel()
        ticks = ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)]
        if len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """(x, y, name, colour) of each curve's end -> names beside them that do not overlap."""
    if not ends:
        return
    low, high = np.log(axes.get_ylim())
    least = 0.062 * (high - low)
    placed = -np.inf
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        placed = max(math.log(y), placed + least)
        axes.annotate(
            name, (x, y), xytext=(x * 1.06, math.exp(placed)), color=colour, va="center",
            annotation_clip=False,
        )  # fmt: skip


def curves(analysis: Analysis, drawn: Sequence[Curve]) -> Figure:
    """Error against unique pairs, or samples seen, with every run that is on a curve."""
    figure, axes = _axes()
    error_R = analysis.scores.to_error(analysis.scores.value_R)
    label = {"unique_pairs": "unique pairs", "samples_seen": "samples seen"}[drawn[0].along]
    ends, shown = [], []
    with matplotlib.rc_context(STYLE):
        for s, curve in enumerate(drawn):
            colour = COLOURS[s % len(COLOURS)]
            _band(axes, curve.x_G, curve.low_G, curve.high_G, colour)
            _line(axes, curve, colour)
            mine = [r for r, run in enumerate(analysis.runs) if _is_on(run, curve)]
            axes.plot(
                [analysis.runs[r][curve.along] for r in mine], error_R[mine], linestyle="",
                marker=MARKERS[s % len(MARKERS)], color=colour, markersize=4, alpha=0.8,
            )  # fmt: skip
            ends.append((curve.x_G[-1], curve.error_G[-1], curve.source, colour))
            shown += [error_R[mine], curve.error_G]
        shown = np.concatenate(shown)
        axes.set(
            xscale="log", yscale="log", xlabel=label,
            ylabel=f"error: {analysis.scores.error_name}",
            ylim=(shown.min() * 0.95, shown.max() * 1.05),
        )  # fmt: skip
        _log_axis(axes.yaxis, *axes.get_ylim())
        _log_axis(axes.xaxis, min(c.x_G[0] for c in drawn), max(c.x_G[-1] for c in drawn))
        _name_ends(axes, ends)
    return figure


def _is_on(run: Row, curve: Curve) -> bool:
    """Whether a run is one of those that the curve is of."""
    other = "samples_seen" if curve.along == "unique_pairs" else "unique_pairs"
    return run["source"] == curve.source and (run[other] == curve.at or math.isnan(curve.at))


def _band(axes: Axes, x_G, low_G, high_G, colour: str) -> None:
    axes.fill_between(x_G, low_G, high_G, color=colour, alpha=0.18, linewidth=0)


def _line(axes: Axes, curve: Curve, colour: str) -> None:
    """Solid between what was trained, dotted beyond."""
    inside = np.flatnonzero(curve.measured_G)
    for part, style in (
        (slice(inside[0], inside[-1] + 1), "-"),
        (slice(0, inside[0] + 1), ":"),
        (slice(inside[-1], None), ":"),
    ):
        axes.plot(curve.x_G[part], curve.error_G[part], style, color=colour, linewidth=1.4)


def exchange(analysis: Analysis, planted: dict[str, tuple[float, float]]) -> Figure:
    """The exchange rate along the reference's sizes."""
    figure, axes = _axes()
    sources, limits, ends = list(analysis.ensemble.design.sources), [0.8, 1.5], []
    colours = {source: COLOURS[s % len(COLOURS)] for s, source in enumerate(sources)}
    shown = {source: limit for source, limit in planted.items() if source in sources}
    with matplotlib.rc_context(STYLE):
        for found in analysis.exchanges:
            limits += _rates(axes, found.curve, colours[found.source])
            last = [r for r in found.curve if math.isfinite(r.value) and r.is_bounded]
            last = last[-1] if last else found.quoted
            end = next(x for x in (last.value, last.low or last.high, 1) if math.isfinite(x))
            ends.append((last.pairs, end, found.source, colours[found.source]))
        limits += [limit for pair in shown.values() for limit in pair if math.isfinite(limit)]
        low, high = min(limits) / 1.1, max(limits) * 1.15
        for source, (least, most) in shown.items():
            _planted(axes, least, min(most, high), math.isinf(most), colours[source])
        axes.axhline(1, color=INK, linewidth=0.6)
        axes.annotate(
            "one for one", (0.005, 1), xycoords=("axes fraction", "data"), va="bottom", fontsize=8
        )
        sizes = [rate.pairs for found in analysis.exchanges for rate in found.curve]
        axes.set(
            xscale="log", yscale="log", ylim=(low, high), xlim=(min(sizes), max(sizes)),
            xlabel=f"unique pairs of {analysis.reference}",
            ylabel=f"pairs that one {analysis.reference} pair is worth",
        )  # fmt: skip
        _log_axis(axes.yaxis, low, high)
        _log_axis(axes.xaxis, *axes.get_xlim())
        _name_ends(axes, ends)
    return figure


def _rates(axes: Axes, curve: Sequence[ExchangeRate], colour: str) -> list[float]:
    """Line and band where there is an interval, else its one bound, with arrows; what is shown."""
    pairs, value, low, high = np.array([(r.pairs, r.value, r.low, r.high) for r in curve]).T
    beyond = np.array([rate.extrapolated for rate in curve])
    bounded = np.array([rate.is_bounded and math.isfinite(rate.value) for rate in curve])
    axes.fill_between(pairs, low, high, where=bounded, color=colour, alpha=0.18, linewidth=0)
    axes.plot(pairs, np.where(beyond | ~bounded, np.nan, value), color=colour, linewidth=1.6)
    axes.plot(pairs, np.where(bounded, value, np.nan), ":", color=colour, linewidth=1.2)
    for bound, is_one, away in (
        (low, ~bounded & (low > 0), 1.25),
        (high, ~bounded & (low <= 0) & np.isfinite(high), 1 / 1.25),
    ):
        axes.plot(pairs, np.where(is_one, bound, np.nan), "--", color=colour, linewidth=0.8)
        places = np.flatnonzero(is_one)
        for i in places[:: max(len(places) // 4, 1)]:
            axes.annotate(
                "", (pairs[i], bound[i] * away), xytext=(pairs[i], bound[i]),
                arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.9},
            )  # fmt: skip
    shown = [*low[bounded], *high[bounded], *low[~bounded & (low > 0)] * 1.3]
    return [*shown, *high[~bounded & (low <= 0) & np.isfinite(high)]]


def _planted(axes: Axes, low: float, high: float, is_open: bool, colour: str) -> None:
    text = f"planted: {number(low)}"
    if is_open:
        text = f"planted: at least {number(low)}"
    elif high > low:
        text += f" to {number(high)}"
    axes.axhspan(low, high, color=colour, alpha=0.06, linewidth=0)
    axes.axhline(low, color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
        text, (0.995, low), xycoords=("axes fraction", "data"), va="bottom", ha="right",
        fontsize=8, color=colour,
    )  # fmt: skip


def ablations(found: Sequence[Ablation], metric: str) -> Figure:
    """Each variant's difference from its base, with its interval; a group of bars a source."""
    places = sorted({a.place for a in found})
    ordered = sorted(found, key=lambda a: (-places.index(a.place), a.value))  # the first on top
    headed = len(places) > 1
    y = np.arange(len(ordered)) + np.array([places[::-1].index(a.place) for a in ordered]) * headed
    with matplotlib.rc_context(STYLE):
        height = 0.7 + 0.3 * (y[-1] + 1 + headed)
        figure = Figure(figsize=(WIDTH, height))
        figure.subplots_adjust(left=0.28, right=0.78, top=1 - 0.08 / height, bottom=0.5 / height)
        axes = figure.add_subplot()
        for place, a in zip(y, ordered, strict=True):
            _bar(axes, place, a)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_yticks(y, [_short(a.variant) for a in ordered])
        for name in places if headed else ():
            top = max(at for at, a in zip(y, ordered, strict=True) if a.place == name) + 0.9
            axes.annotate(
                name, (0, top), xycoords=("axes fraction", "data"), xytext=(-4, 0), ha="right",
                textcoords="offset points", va="center", weight="bold", annotation_clip=False,
            )  # fmt: skip
        axes.set(xlabel=f"{metric}: variant less base", ylim=(-0.6, y[-1] + 0.6 + headed))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def _bar(axes: Axes, y: float, a: Ablation) -> None:
    colour = {"better": GOOD, "worse": BAD}.get(a.verdict, NEITHER)
    axes.barh(y, a.value, color=colour, height=0.62, alpha=0.85)
    axes.plot([a.low, a.high], [y, y], color=INK, linewidth=1.2, solid_capstyle="butt")
    end = max(a.high if math.isfinite(a.high) else a.value, 0)
    axes.annotate(
        f"{a.value:+.3f} {a.verdict}", (end, y), xytext=(5, 0), textcoords="offset points",
        va="center", fontsize=8, annotation_clip=False,
    )  # fmt: skip


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
