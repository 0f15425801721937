"""Charts of known content."""

import functools

import cv2
import numpy as np

from data_pipelines.synthetic_captions import Facts

_COLOURS = (
    (31, 119, 180),
    (214, 39, 40),
    (44, 160, 44),
    (120, 120, 120),
    (255, 127, 14),
    (60, 60, 60),
)


def write_text(image, text, x, y, scale=0.0017):
    """Writes on a square image from (x, y), in place."""
    size = len(image)
    where = round(x * size), round(y * size)
    cv2.putText(
        image, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale * size, (0, 0, 0), 1, cv2.LINE_AA
    )


def draw_chart(rng: np.random.Generator, facts: Facts, size: int) -> np.ndarray:
    """Axes in a square, then what is plotted: data 0..1 lie in x 0.18..0.94, y 0.82..0.1."""
    image = np.full((size, size, 3), 255, np.uint8)
    pixel = functools.partial(_chart_pixel, size)
    colours = [_COLOURS[i] for i in rng.permutation(len(_COLOURS))]
    _PLOTS[facts.finding](rng, facts, image, pixel, colours)
    axes = np.array([pixel(0, 1.05), pixel(0, 0), pixel(1.04, 0)])
    cv2.polylines(image, [axes], False, (0, 0, 0), 1)
    titles = _AXES[facts.finding]
    x_title, y_title, top = titles[rng.integers(len(titles))]
    for tick in (0, 0.5, 1):
        cv2.line(image, pixel(-0.02, tick), pixel(0, tick), (0, 0, 0), 1)
        write_text(image, f"{tick * top:g}", 0.095, 0.835 - 0.72 * tick, 0.0014)
    write_text(image, x_title, 0.56 - 0.014 * len(x_title), 0.96)
    sideways = np.ascontiguousarray(np.rot90(image, -1))
    write_text(sideways, y_title, 0.54 - 0.014 * len(y_title), 0.06)
    return np.ascontiguousarray(np.rot90(sideways))


def _chart_pixel(size, x, y):
    return round((0.18 + 0.76 * x) * size), round((0.82 - 0.72 * y) * size)


def _trend_values(rng, facts, count, low=0.25, high=0.95):
    jitter = rng.uniform(-0.3, 0.3, count) * (high - low) / (count + 1)  # keeps the order
    values = np.linspace(low, high, count) + jitter
    return values if facts.trend == "increasing" else values[::-1]


def _plot_bars(rng, facts, image, pixel, colours):
    same = rng.random() < 0.5
    for k, value in enumerate(_trend_values(rng, facts, facts.count)):
        left, right = (k + 0.2) / facts.count, (k + 0.8) / facts.count
        cv2.rectangle(image, pixel(left, value), pixel(right, 0), colours[0 if same else k], -1)
        middle, top = (left + right) / 2, value + rng.uniform(0.02, 0.06)
        cv2.line(image, pixel(middle, top), pixel(middle, value), (0, 0, 0), 1)
        cv2.line(image, pixel(middle - 0.02, top), pixel(middle + 0.02, top), (0, 0, 0), 1)


def _plot_lines(rng, facts, image, pixel, colours):
    for k in range(facts.count):
        spread = 0.55 * (k + 0.5) / facts.count
        low, high = (0.08, 0.45 + spread) if facts.count > 1 else (0.1, 0.9)
        x, y = np.linspace(0.05, 0.97, 6), _trend_values(rng, facts, 6, low, high)
        points = [pixel(*point) for point in zip(x, y, strict=True)]
        cv2.polylines(image, [np.array(points)], False, colours[k], 2, cv2.LINE_AA)
        for point in points:
            cv2.circle(image, point, max(2, len(image) // 64), colours[k], -1, cv2.LINE_AA)


def _plot_scatter(rng, facts, image, pixel, colours):
    x = rng.uniform(0.04, 0.98, 60)
    rise = x if facts.trend == "increasing" else 1 - x
    y = np.clip(0.12 + 0.76 * rise + rng.normal(0, 0.07, 60), 0.02, 1)
    for point in zip(x, y, strict=True):
        cv2.circle(image, pixel(*point), max(2, len(image) // 80), colours[0], -1, cv2.LINE_AA)
    ends = (0.12, 0.88) if facts.trend == "increasing" else (0.88, 0.12)
    cv2.line(image, pixel(0, ends[0]), pixel(1, ends[1]), (0, 0, 0), 1, cv2.LINE_AA)


def _plot_survival(rng, facts, image, pixel, colours):
    for k in range(facts.count):
        times = np.sort(rng.uniform(0.05, 0.98, 9))
        final = 0.9 - 0.8 * (k + rng.uniform(0.3, 0.7)) / facts.count
        levels = 1 - (1 - final) * np.arange(10) / 9
        x, y = np.repeat(np.r_[0, times, 1], 2)[1:-1], np.repeat(levels, 2)
        points = [pixel(*point) for point in zip(x, y, strict=True)]
        cv2.polylines(image, [np.array(points)], False, colours[k], 2)


_PLOTS = {
    "bar chart": _plot_bars,
    "line chart": _plot_lines,
    "scatter plot": _plot_scatter,
    "survival curve": _plot_survival,
}
_AXES = {  # titles of x and y, top of the y axis
    "bar chart": (("Group", "Expression", 2), ("Treatment", "Viability (%)", 100)),
    "line chart": (("Time (h)", "Signal (a.u.)", 4), ("Day", "Weight (g)", 40)),
    "scatter plot": (("Marker A", "Marker B", 10), ("Age (y)", "Score", 50)),
    "survival curve": (("Months", "Survival (%)", 100), ("Days", "Event-free", 1)),
}
