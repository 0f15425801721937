"""How well captions are split: labels and words beside the gold of 98 real captions.

    python -m experiments.benchmarks.captions --layouts=../shared/data/panel_layouts

The rules were written on the development half (by a hash of the file name); the test half was only
scored. A label counts as right if the gold has it too; overlap is the F1 of its words, prefix and
suffix included, averaged over the labels that are right. Then, on panels.csv: how often labels of
a figure, put in reading order, are the letters in order; captions.ORDER_SCORE is that share.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re
import string

from data_pipelines.captions import split_caption
from data_pipelines.panels import Panel, reading_order
from experiments.benchmarks.panels import LayoutPanel, read_layouts


def is_development(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def word_f1(text: str, gold: str) -> float:
    ours, theirs = (collections.Counter(re.findall(r"\w+", t.lower())) for t in (text, gold))
    common = sum((ours & theirs).values())
    return 2 * common / max(1, sum(ours.values()) + sum(theirs.values()))


def score(items: dict[str, dict], show_errors: bool = False) -> dict[str, float]:
    """Label-exact precision, recall, F1 over all labels; mean overlap of the words."""
    right = found = wanted = 0
    overlaps = []
    for name, item in items.items():
        split = split_caption(item["caption"])
        ours = {lb: split.text(i) for i, (labels, _) in enumerate(split.parts) for lb in labels}
        gold = {part["label"]["text"]: part["caption"] for part in item["gt_subfigures"]}
        both = ours.keys() & gold.keys()
        right, found, wanted = right + len(both), found + len(ours), wanted + len(gold)
        overlaps += [word_f1(ours[label], gold[label]) for label in both]
        low = [lb for lb in both if word_f1(ours[lb], gold[lb]) < 0.6]
        if show_errors and (ours.keys() != gold.keys() or low):
            print(f"\n{name}: {''.join(sorted(ours))} for {''.join(sorted(gold))} low {low}")
            print("  ", item["caption"])
            print("  ", split)
            for lb in low[:2]:
                print("   GOLD", lb, gold[lb])
    precision, recall = right / max(1, found), right / max(1, wanted)
    return {
        "captions": len(items),
        "labels": wanted,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-9, precision + recall),
        "text_overlap": sum(overlaps) / max(1, len(overlaps)),
    }


def order_accuracy(layouts: dict[str, list[LayoutPanel]]) -> tuple[float, int]:
    """Share of panels whose label is what reading order gives it, and their number.

    Of figures with labels A, B, C ... without a gap, one a panel.
    """
    right = total = 0
    for layout in layouts.values():
        labels = sorted(panel.label.casefold() for panel in layout)
        if len(labels) < 2 or labels != list(string.ascii_lowercase[: len(labels)]):
            continue
        panels = reading_order([Panel(panel.box, panel.label.casefold()) for panel in layout])
        right += sum(panel.label == label for panel, label in zip(panels, labels, strict=True))
        total += len(labels)
    return right / max(1, total), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layouts", type=pathlib.Path, required=True, help="panel_layouts/")
    parser.add_argument("--show_errors", action="store_true", help="of the development half")
    options = parser.parse_args()
    gold = json.loads((options.layouts / "captions_with_subcaptions.json").read_text())
    halves = {
        "development": {name: item for name, item in gold.items() if is_development(name)},
        "test": {name: item for name, item in gold.items() if not is_development(name)},
    }
    for half, items in halves.items():
        scores = score(items, options.show_errors and half == "development")
        print(half, " ".join(f"{name} {value:.3g}" for name, value in scores.items()))
    share, total = order_accuracy(read_layouts(options.layouts / "panels.csv"))
    print(f"reading order gives the right label to {share:.3f} of {total} panels")


if __name__ == "__main__":
    main()
