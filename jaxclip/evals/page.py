"""One HTML file to look at: results, retrieval examples, neighbours, confusions, a map.

Pictures are inside the file, drawings are SVG, nothing is loaded from elsewhere and no script runs;
captions and labels are escaped.

Shape letters: N images, M texts, C classes, E embedding.
"""

import base64
import collections
import html
from collections.abc import Sequence

import numpy as np
import simplejpeg
from etils import epath

from jaxclip.data.files import write_atomically
from jaxclip.data.image import decode_image, resize
from jaxclip.evals.base import Embeddings
from jaxclip.evals.classification import predictions, softmax
from jaxclip.evals.embed import EmbeddingCache, embed_set
from jaxclip.evals.representation import MAPS, plane
from jaxclip.evals.results import Row, shown
from jaxclip.evals.sets import EvalSplit
from jaxclip.evals.zero_shot import class_scores, load_prompts, prompts_name

EXAMPLES, NEAREST, MAPPED = 8, 5, 500
THUMBNAIL = 120  # pixels
COLOURS = (
    "#1b6ca8", "#d1495b", "#2e8b57", "#8a5fbf", "#d98e04", "#17a2b8", "#7a5230", "#777777"
)  # fmt: skip
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; color: #222 }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 3rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse } td, th { padding: .2rem .6rem; text-align: left }
.results { font-variant-numeric: tabular-nums; white-space: nowrap; font-size: 14px }
.scroll { overflow-x: auto }
.results tr:nth-child(even) { background: #f5f6f8 } .method { color: #667; font-size: 12px }
figure { display: inline-block; margin: .3rem; width: 130px; vertical-align: top }
figcaption { font-size: 12px; overflow-wrap: anywhere } img { display: block; max-width: 120px }
.example { border-top: 1px solid #ddd; padding: .6rem 0; display: flex; gap: 1rem }
.right { color: #18703c; font-weight: 600 } .wrong { color: #a32035 } ol { margin: 0 }
svg text { font: 11px system-ui, sans-serif }
"""


def section(
    name: str, cache: EmbeddingCache, split: EvalSplit, templates: str = "", method: str = "tsne"
) -> str:
    """What a model makes of a split, in pictures: HTML. `method` is of representation.MAPS."""
    embeddings = embed_set(cache, split)
    parts = [f"<h2>{_text(name)} on {_text(split.name)}/{_text(split.split)}</h2>"]
    if split.captions is not None:
        parts.append(_retrieval_examples(embeddings, split))
    parts.append(_map(embeddings, split, method))
    parts.append(_neighbours(embeddings, split))
    for file in split.labels:
        prompts = load_prompts(file, templates)
        if "negative_templates" not in prompts:
            parts.append(_confusions(embeddings, split, file, prompts, cache))
    return "".join(parts)


def write_page(
    out: epath.Path, rows: Sequence[Row], sections: Sequence[str], notes: Sequence[str] = ()
) -> epath.Path:
    """Writes OUT/index.html: tables of results, what was left out of them, then the sections."""
    told = "".join(f"<li>{_text(note)}" for note in notes)
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>jaxclip evaluation</title>"
        "<meta name=viewport content='width=device-width'>"
        f"<style>{STYLE}</style><body><h1>Evaluation</h1>{_results(rows)}<ul>{told}</ul>"
        f"{''.join(sections)}"
        "</body></html>"
    )
    write_atomically(out / "index.html", page)
    return out / "index.html"


def _text(value: object) -> str:
    return html.escape(str(value))


def _results(rows: Sequence[Row]) -> str:
    """A table for each set: metrics down, models across; counts are in results.json."""
    parts = [
        "<p>Values with 95&nbsp;% bootstrap intervals in brackets; articles or patients are drawn "
        "whole, and so are seeds.</p>"
    ]
    shown_rows = [
        row for row in rows if row["replicates"] is not None or row["evaluator"] == "representation"
    ]
    for name in dict.fromkeys(f"{row['set']}/{row['split']}" for row in shown_rows):
        of_set = [row for row in shown_rows if f"{row['set']}/{row['split']}" == name]
        plain = [row for row in of_set if "_severity_" not in row["metric"]]
        parts.append(f"<h2>{_text(name)}</h2>{_by_model(plain)}")
        if len(plain) < len(of_set):
            parts.append(_by_severity([row for row in of_set if "_severity_" in row["metric"]]))
    return "".join(parts)


def _by_model(rows: Sequence[Row]) -> str:
    models = list(dict.fromkeys(row["model"] for row in rows))
    heads = "".join(f"<th>{_text(model)}" for model in models)
    lines: list[str] = []
    started: collections.Counter[str] = collections.Counter()  # lines of an evaluator so far
    for evaluator, metric in dict.fromkeys((row["evaluator"], row["metric"]) for row in rows):
        found = {
            r["model"]: r for r in rows if (r["evaluator"], r["metric"]) == (evaluator, metric)
        }
        one = next(iter(found.values()))
        cells = "".join(
            f"<td>{shown(found[m], chance=False) if m in found else ''}" for m in models
        )
        chance = "" if one["chance"] is None else f"{one['chance']:.4f}"
        units = f"{one['units']:,} in {one['groups']:,}"
        head = (f"<td>{_text(evaluator)}", f"<td class=method>{_text(one['method'])}", "<td>")
        first = head[min(started[evaluator], 2)]
        lines.append(f"<tr>{first}<td>{_text(metric)}{cells}<td>{chance}<td>{units}")
        started[evaluator] += 1
    return (
        f"<div class=scroll><table class=results><tr><th>Evaluator<th>Metric{heads}<th>Chance"
        f"<th>Units in groups{''.join(lines)}</table></div>"
    )


def _by_severity(rows: Sequence[Row]) -> str:
    """A line for each model, corruption and metric; from clean to the worst."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        metric, _, severity = row["metric"].partition("_severity_")
        key = (row["model"], row["evaluator"].removeprefix("robustness/"), metric)
        found.setdefault(key, {})[severity] = row["value"]
    severities = sorted({severity for values in found.values() for severity in values})
    lines = [
        f"<tr>{''.join(f'<td>{_text(part)}' for part in key)}"
        + "".join(f"<td>{values.get(s, float('nan')):.3f}" for s in severities)
        for key, values in found.items()
    ]
    heads = "".join(f"<th>{'clean' if s == '0' else s}" for s in severities)
    return (
        "<h3>Robustness by severity</h3><div class=scroll><table class=results><tr><th>Model"
        f"<th>Changed, measured by<th>Metric{heads}{''.join(lines)}</table></div>"
    )


def _picture(split: EvalSplit, index: int, caption: str = "", mark: str = "") -> str:
    image = split.images[index]
    pixels = decode_image(image) if isinstance(image, bytes) else image
    scale = THUMBNAIL / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    pixels = resize(np.ascontiguousarray(pixels), height, width, "bicubic")
    data = base64.b64encode(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 85)).decode()
    return (
        f"<figure><img width={width} height={height} alt='image {index}' "
        f"src='data:image/jpeg;base64,{data}'><figcaption class='{mark}'>{_text(caption)}"
        "</figcaption></figure>"
    )


def _spread(number: int) -> np.ndarray:
    """The same few of so many, evenly."""
    return np.unique(np.linspace(0, number - 1, min(EXAMPLES, number)).astype(int))


def _retrieval_examples(embeddings: Embeddings, split: EvalSplit) -> str:
    captions, first = np.unique(embeddings.caption_id_N, return_index=True)
    lines = []
    for query in _spread(len(embeddings.image_NE)):
        score_M = embeddings.text_NE[first] @ embeddings.image_NE[query]
        right = set(embeddings.caption_id_N[embeddings.image_id_N == embeddings.image_id_N[query]])
        order = np.argsort(-score_M, kind="stable")
        place = 1 + next(i for i, j in enumerate(order) if captions[j] in right)
        items = "".join(
            f"<li class={'right' if captions[j] in right else 'wrong'}>{score_M[j]:.3f} "
            f"{_text(_short(split.captions[first[j]]))}"  # pyright: ignore[reportOptionalSubscript]
            for j in order[:NEAREST]
        )
        picture = _picture(split, query, f"right at place {place}")
        lines.append(f"<div class=example>{picture}<ol>{items}</ol></div>")
    return f"<h3>Retrieval: image to text</h3>{''.join(lines)}"


def _short(caption: str, chars: int = 200) -> str:
    return caption if len(caption) <= chars else caption[: chars - 1] + "…"


def _classes(split: EvalSplit) -> list[str] | None:
    """Of each image, by the first prompt file; None: not known, or several findings an image."""
    label_N = next(iter(split.labels.values()), None)
    if label_N is None or any(isinstance(label, tuple) for label in label_N):
        return None
    return [str(label) for label in label_N]


def _neighbours(embeddings: Embeddings, split: EvalSplit) -> str:
    class_N, lines = _classes(split), []
    label_N = next(iter(split.labels.values()), None)
    name_N = [""] * len(embeddings.image_NE)
    if label_N is not None:
        name_N = class_N or [", ".join(label) or "no finding" for label in label_N]
    for query in _spread(len(embeddings.image_NE)):
        score_N = embeddings.image_NE @ embeddings.image_NE[query]
        score_N[query] = -np.inf
        near = np.argsort(-score_N, kind="stable")[:NEAREST]
        pictures = [_picture(split, query, f"query {name_N[query]}")]
        for j in near:
            mark = "" if class_N is None else "right" if class_N[j] == class_N[query] else "wrong"
            pictures.append(_picture(split, j, f"{score_N[j]:.3f} {name_N[j]}", mark))
        lines.append(f"<div class=example>{''.join(pictures)}</div>")
    return f"<h3>Nearest neighbours</h3>{''.join(lines)}"


def _confusions(embeddings, split, file, prompts, cache) -> str:
    classes = list(prompts["classes"])
    true_N = np.array([classes.index(label) for label in split.labels[file]])
    score_NC = class_scores(embeddings.image_NE, prompts, cache.texts)
    said_N = predictions(score_NC, true_N)
    share_NC = softmax(score_NC.astype(np.float64) * cache.embedder.logit_scale)
    confusion_CC = np.zeros((len(classes),) * 2, int)
    np.add.at(confusion_CC, (true_N, said_N), 1)
    wrong = np.flatnonzero(said_N != true_N)
    worst = wrong[np.argsort(-share_NC[wrong, said_N[wrong]], kind="stable")][:EXAMPLES]
    pictures = [
        _picture(
            split, i, f"{classes[true_N[i]]}, taken for {classes[said_N[i]]} "
            f"({share_NC[i, said_N[i]]:.2f})", "wrong",
        )
        for i in worst
    ]  # fmt: skip
    return (
        f"<h3>Zero-shot: {_text(prompts_name(file))}</h3>{_matrix(confusion_CC, classes)}"
        f"<h3>Hardest confusions</h3>{''.join(pictures) or 'None: every image was right.'}"
    )


def _matrix(confusion_CC: np.ndarray, classes: Sequence[str]) -> str:
    """Rows: true, with counts; colour: share of the row."""
    names = [name if len(name) <= 24 else name[:23] + "…" for name in classes]
    longest = max(map(len, names))  # of letters 6.5 pixels wide, on top turned by 45 degrees
    cell, left, top = 46, 20 + 6.5 * longest, 20 + 4.6 * longest
    size = cell * len(classes)
    share_CC = confusion_CC / np.maximum(confusion_CC.sum(axis=1, keepdims=True), 1)
    drawn = []
    for i, short in enumerate(map(_text, names)):
        x, y = left + i * cell + cell / 2, top + i * cell + cell / 2
        drawn.append(f"<text x={left - 8} y={y + 4} text-anchor=end>{short}</text>")
        drawn.append(
            f"<text x={x} y={top - 8} transform='rotate(-45 {x} {top - 8})'>{short}</text>"
        )
        for j, count in enumerate(confusion_CC[i]):
            share = share_CC[i, j]
            ink = "#fff" if share > 0.5 else "#222"
            fill = ",".join(f"{255 - depth * share:.0f}" for depth in (228, 147, 87))
            drawn.append(
                f"<rect x={left + j * cell} y={top + i * cell} width={cell} height={cell} "
                f"fill='rgb({fill})' stroke='#ddd'/>"
                f"<text x={left + j * cell + cell / 2} y={y + 4} fill='{ink}' "
                f"text-anchor=middle>{count}</text>"
            )
    return (
        f"<svg role=img aria-label='confusion matrix' width={left + size + 130} "
        f"height={top + size + 30}>{''.join(drawn)}"
        f"<text x={left} y={top + size + 20}>columns: predicted, rows: true</text></svg>"
    )


def _map(embeddings: Embeddings, split: EvalSplit, method: str) -> str:
    """Images as discs and texts as rings, in the colours of their imaging modality or class.

    Where neither is known, in one colour each. t-SNE or UMAP; principal components where
    scikit-learn is not installed.
    """
    chosen = np.linspace(0, len(embeddings.image_NE) - 1, min(MAPPED, len(embeddings.image_NE)))
    chosen = np.unique(chosen.astype(int))
    if len(chosen) < 5:
        return ""
    sides = ["image"] if split.captions is None else ["image", "text"]
    both = np.concatenate([getattr(embeddings, f"{side}_NE")[chosen] for side in sides])
    kinds = [f"{side}s" for side in sides for _ in chosen]
    of_N = _classes(split) if split.modalities is None else split.modalities
    if of_N is not None:
        kinds = [str(of_N[i]) for i in chosen] * len(sides)
    try:
        points, drawn_by = plane(both, method), MAPS[method].name
    except ValueError:
        centered = both - both.mean(axis=0)
        points = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
        drawn_by = f"principal components ({MAPS[method].library} is not installed)"
    return (
        f"<h3>Map of the embeddings: {drawn_by}{'; texts are rings' if len(sides) > 1 else ''}</h3>"
        f"{_scatter(points, kinds, [side == 'text' for side in sides for _ in chosen])}"
    )


def _scatter(points_N2: np.ndarray, kinds: Sequence[str], is_ring: Sequence[bool]) -> str:
    """SVG; beyond the COLOURS the rarer kinds share the last one."""
    names = [name for name, _ in collections.Counter(kinds).most_common()]
    if len(names) > len(COLOURS):
        names[len(COLOURS) - 1 :] = [f"{len(names) - len(COLOURS) + 1} others"]
    low, high = points_N2.min(axis=0), points_N2.max(axis=0)
    xy_N2 = 10 + 480 * (points_N2 - low) / np.maximum(high - low, 1e-9)
    dots = []
    for (x, y), kind, ring in zip(xy_N2, kinds, is_ring, strict=True):
        colour = COLOURS[names.index(kind) if kind in names else -1]
        paint = f"fill=none stroke='{colour}'" if ring else f"fill='{colour}'"
        dots.append(f"<circle cx={x:.1f} cy={y:.1f} r=3 {paint} opacity=.6 />")
    key = "".join(
        f"<circle cx=520 cy={20 + 20 * i} r=5 fill='{colour}' /><text x=532 y={24 + 20 * i}>"
        f"{_text(name)}</text>"
        for i, (colour, name) in enumerate(zip(COLOURS, names, strict=False))
    )
    return f"<svg role=img aria-label=map width=720 height=500>{''.join(dots)}{key}</svg>"
