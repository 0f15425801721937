"""Trains the modality classifier and writes data_pipelines/modality.{npz,json}: half a minute.

    python -m experiments.train_modality --shared=../shared/data

Learned from: radiographs, CT, ultrasound of VQA-RAD and MedNIST, drawings of
data_pipelines.synthetic, PMC figures whose caption names one modality only (weak labels: wrong for
some), and 135 PMC figures labelled by looking at them. Held out: 133 other PMC figures labelled by
looking at them, and all of their articles (tests/pipelines/modalities.json has both lists). Needs
scikit-learn, which using the classifier does not.
Shape letters: N images, F features, C classes.
"""

import argparse
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from data_pipelines.images import ImageZip
from data_pipelines.modality import (
    FOREST,
    MEASURED,
    MODALITIES,
    image_probabilities,
    image_statistics,
    modality_of,
    named_modalities,
)
from data_pipelines.synthetic_captions import CATALOGUE, sample_facts
from data_pipelines.synthetic_figures import draw
from jaxclip.data.image import decode_image

GOLD = pathlib.Path(__file__).parents[1] / "tests/pipelines/modalities.json"
DRAWN = {"histology": "microscopy", "fluorescence": "microscopy", "chart": "chart"}
NUM_TREES, MAX_DEPTH = 120, 10  # beyond, accuracy stays and the file grows
LEARNED_WEIGHT = 3.0  # of a figure that was looked at, beside one with a weak label


def drawn_and_radiology(shared: pathlib.Path) -> Iterator[tuple[np.ndarray, str, float]]:
    """(pixels, modality, weight)."""
    rng = np.random.default_rng(0)
    for kind in CATALOGUE:
        for _ in range(30):
            pixels = draw(rng, sample_facts(rng, kind), 256)
            yield pixels, DRAWN.get(kind, "radiology"), 0.15
    for file in sorted((shared / "vqa_rad").rglob("*.jpg")):
        yield decode_image(file.read_bytes()), "radiology", 0.5
    for archive in sorted((shared / "mednist").glob("*.zip")):
        images = ImageZip(str(archive))
        for name in sorted(images.names())[::90]:
            yield decode_image(images.read(name)), "radiology", 0.1


def from_pmc(
    shared: pathlib.Path, held_out: set[str], learned: dict[str, str]
) -> Iterator[tuple[np.ndarray, str, float, str]]:
    """(pixels, modality, weight, article) of figures looked at, or whose caption names one."""
    with open(shared / "pmc_articles/figures.jsonl") as opened:
        rows = [json.loads(line) for line in opened]
    for row in rows:
        named = named_modalities(row["caption"])
        looked_at = learned.get(row["file"])
        if row["pmcid"] not in held_out and (looked_at or len(named) == 1):
            data = (shared / "pmc_articles" / row["file"]).read_bytes()
            weight = LEARNED_WEIGHT if looked_at else 1.0
            yield decode_image(data), looked_at or next(iter(named)), weight, row["pmcid"]


def fit(features_NF: np.ndarray, class_N: np.ndarray, weight_N: np.ndarray) -> Any:
    """A random forest; classes are balanced to the power of a half."""
    mass_C = np.bincount(class_N, weight_N, len(MODALITIES))
    forest = RandomForestClassifier(
        NUM_TREES, max_depth=MAX_DEPTH, min_samples_leaf=2, random_state=0
    )
    return forest.fit(features_NF.astype(np.float32), class_N, weight_N / np.sqrt(mass_C[class_N]))


def to_arrays(forest: Any) -> dict[str, np.ndarray]:
    """The trees one after the other, as modality.image_probabilities reads them."""
    trees = [estimator.tree_ for estimator in forest.estimators_]
    start_T = np.cumsum([0] + [tree.node_count for tree in trees[:-1]])
    moved = list(zip(trees, start_T, strict=True))
    values = {
        "feature_N": [np.maximum(tree.feature, -1) for tree in trees],
        "threshold_N": [tree.threshold for tree in trees],
        "left_N": [tree.children_left + start for tree, start in moved],
        "right_N": [tree.children_right + start for tree, start in moved],
        "odds_NC": [np.rint(255 * tree.value[:, 0]) for tree in trees],
    }
    types = dict(feature_N="i2", threshold_N="f4", left_N="i4", right_N="i4", odds_NC="u1")
    arrays = {name: np.concatenate(parts).astype(types[name]) for name, parts in values.items()}
    return {"root_T": start_T.astype(np.int32), **arrays}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    options = parser.parse_args()
    labels = json.loads(GOLD.read_text())
    gold = labels["held_out"]
    held_out = {file.split("/")[0] for file in gold}
    rows = [(*row, "") for row in drawn_and_radiology(options.shared)]
    rows += list(from_pmc(options.shared, held_out, labels["learned"]))
    features_NF = np.stack([image_statistics(pixels) for pixels, *_ in rows])
    class_N = np.array([MODALITIES.index(row[1]) for row in rows])
    weight_N = np.array([row[2] for row in rows])
    articles = np.array([row[3] for row in rows])
    validation = np.array([a != "" and hash_fifth(a) for a in articles])
    looked_at = validation & (weight_N == LEARNED_WEIGHT)
    trial = fit(features_NF[~validation], class_N[~validation], weight_N[~validation])
    accuracy = (trial.predict(features_NF[looked_at]) == class_N[looked_at]).mean()
    forest = fit(features_NF, class_N, weight_N)
    files = [options.shared / "pmc_articles" / file for file in gold]
    gold_pixels = [decode_image(file.read_bytes()) for file in files]
    gold_NF = np.stack([image_statistics(pixels) for pixels in gold_pixels])
    gold_N = np.array([MODALITIES.index(name) for name in gold.values()])
    right = forest.predict(gold_NF.astype(np.float32)) == gold_N
    recall = {
        name: round(float(right[gold_N == i].mean()), 3)
        for i, name in enumerate(MODALITIES)
        if (gold_N == i).any()
    }
    measured = {
        "trained_on": dict(zip(MODALITIES, np.bincount(class_N).tolist(), strict=True)),
        "validation_accuracy": round(float(accuracy), 3),
        "held_out_figures": len(gold),
        "held_out_accuracy": round(float(right.mean()), 3),
        "held_out_largest_class": round(float(np.bincount(gold_N).max() / len(gold_N)), 3),
        "held_out_recall": recall,
    }
    np.savez_compressed(FOREST, **to_arrays(forest))
    measured |= as_recorded(gold_pixels, captions(options.shared, gold), list(gold.values()))
    print(json.dumps(measured, indent=1))
    MEASURED.write_text(json.dumps(measured, indent=1) + "\n")


def captions(shared: pathlib.Path, files: Iterable[str]) -> list[str]:
    with open(shared / "pmc_articles/figures.jsonl") as opened:
        by_file = {row["file"]: row["caption"] for row in map(json.loads, opened)}
    return [by_file[file] for file in files]


def as_recorded(pixels: list[np.ndarray], captions: list[str], truth: list[str]) -> dict[str, Any]:
    """Accuracy and calibration of the columns modality and modality_confidence, by the forest that
    was written: words of the caption count, too."""
    found = [
        modality_of(named_modalities(caption), image_probabilities(image))
        for image, caption in zip(pixels, captions, strict=True)
    ]
    right_N = np.array([name == wanted for (name, _), wanted in zip(found, truth, strict=True)])
    confidence_N = np.array([confidence for _, confidence in found])
    return {
        "held_out_accuracy_with_caption": round(float(right_N.mean()), 3),
        "held_out_mean_confidence": round(float(confidence_N.mean()), 3),
        "held_out_calibration_error": round(calibration_error(confidence_N, right_N), 3),
    }


def calibration_error(confidence_N: np.ndarray, right_N: np.ndarray, num_bins: int = 5) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3), in bins of equally many."""
    bins = np.array_split(np.argsort(confidence_N), num_bins)
    gaps = [len(bin) * abs(confidence_N[bin].mean() - right_N[bin].mean()) for bin in bins]
    return float(sum(gaps) / len(confidence_N))


def hash_fifth(article: str) -> bool:
    """The same fifth of all articles every time."""
    from jaxclip.data.record import split_of

    return split_of(article, (0.8, 0.2, 0.0)) != "train"


if __name__ == "__main__":
    main()
