"""Trains the modality classifier and writes data_pipelines/modality.json: about 2 minutes.

    python -m experiments.train_modality --shared=../shared/data

Learned from: radiographs, CT, ultrasound of VQA-RAD and MedNIST, drawings of
data_pipelines.synthetic, and PMC figures whose caption names one modality only (weak labels: wrong
for some). Held out: 130 PMC figures whose modality was written down by looking at them
(tests/pipelines/modalities.json); no article of theirs is trained on.
Shape letters: N images, F features, C classes.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import scipy.optimize

from data_pipelines.images import ImageZip
from data_pipelines.modality import MODALITIES, WEIGHTS, image_statistics, named_modalities
from data_pipelines.synthetic_captions import CATALOGUE, sample_facts
from data_pipelines.synthetic_figures import draw
from jaxclip.data.image import decode_image

GOLD = pathlib.Path(__file__).parents[1] / "tests/pipelines/modalities.json"
DRAWN = {"histology": "microscopy", "fluorescence": "microscopy", "chart": "chart"}
PENALTY = 3e-3  # weight decay; by the accuracy on the weak labels of a fifth of the articles


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


def weakly_labelled(
    shared: pathlib.Path, held_out: set[str]
) -> Iterator[tuple[np.ndarray, str, float, str]]:
    """(pixels, modality, weight, article) of PMC figures whose caption names one modality."""
    with open(shared / "pmc_articles/figures.jsonl") as opened:
        rows = [json.loads(line) for line in opened]
    for row in rows:
        named = named_modalities(row["caption"])
        if len(named) == 1 and row["pmcid"] not in held_out:
            data = (shared / "pmc_articles" / row["file"]).read_bytes()
            yield decode_image(data), next(iter(named)), 1.0, row["pmcid"]


def fit(features_NF: np.ndarray, class_N: np.ndarray, weight_N: np.ndarray) -> dict:
    """Softmax regression, classes balanced to the power of a half; L-BFGS."""
    mean_F, std_F = features_NF.mean(0), features_NF.std(0) + 1e-6
    x_NF = np.clip((features_NF - mean_F) / std_F, -5, 5)
    mass_C = np.bincount(class_N, weight_N, len(MODALITIES))
    weight_N = weight_N / np.sqrt(mass_C[class_N])
    weight_N = weight_N / weight_N.sum()
    target_NC = np.eye(len(MODALITIES))[class_N]
    shape = (x_NF.shape[1] + 1, len(MODALITIES))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat.reshape(shape)[:-1], flat.reshape(shape)[-1]
        logits = x_NF @ kernel + bias
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        error = (np.exp(log_p) - target_NC) * weight_N[:, None]
        gradient = np.vstack([x_NF.T @ error + PENALTY * kernel, error.sum(0)])
        value = -(weight_N[:, None] * target_NC * log_p).sum() + PENALTY / 2 * (kernel**2).sum()
        return float(value), gradient.ravel()

    start = np.zeros(shape).ravel()
    result = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B")
    weights = result.x.reshape(shape)
    return {"mean": mean_F, "std": std_F, "kernel": weights[:-1], "bias": weights[-1]}


def predict(weights: dict, features_NF: np.ndarray) -> np.ndarray:
    x_NF = np.clip((features_NF - weights["mean"]) / weights["std"], -5, 5)
    return (x_NF @ weights["kernel"] + weights["bias"]).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    options = parser.parse_args()
    gold = json.loads(GOLD.read_text())["figures"]
    held_out = {file.split("/")[0] for file in gold}
    rows = [(*row, "") for row in drawn_and_radiology(options.shared)]
    rows += list(weakly_labelled(options.shared, held_out))
    features_NF = np.stack([image_statistics(pixels) for pixels, *_ in rows])
    class_N = np.array([MODALITIES.index(row[1]) for row in rows])
    weight_N = np.array([row[2] for row in rows])
    articles = np.array([row[3] for row in rows])
    validation = np.array([a != "" and hash_fifth(a) for a in articles])
    trial = fit(features_NF[~validation], class_N[~validation], weight_N[~validation])
    weak = (predict(trial, features_NF[validation]) == class_N[validation]).mean()
    weights = fit(features_NF, class_N, weight_N)
    files = [options.shared / "pmc_articles" / file for file in gold]
    gold_NF = np.stack([image_statistics(decode_image(f.read_bytes())) for f in files])
    gold_N = np.array([MODALITIES.index(name) for name in gold.values()])
    right = predict(weights, gold_NF) == gold_N
    recall = {
        name: round(float(right[gold_N == i].mean()), 3)
        for i, name in enumerate(MODALITIES)
        if (gold_N == i).any()
    }
    measured = {
        "trained_on": dict(zip(MODALITIES, np.bincount(class_N).tolist(), strict=True)),
        "weak_label_accuracy": round(float(weak), 3),
        "held_out_figures": len(gold),
        "held_out_accuracy": round(float(right.mean()), 3),
        "held_out_largest_class": round(float(np.bincount(gold_N).max() / len(gold_N)), 3),
        "held_out_recall": recall,
    }
    print(json.dumps(measured, indent=1))
    rounded = {name: np.round(value, 5).tolist() for name, value in weights.items()}
    content = {"modalities": MODALITIES, "measured": measured, **rounded}
    WEIGHTS.write_text(json.dumps(content) + "\n")


def hash_fifth(article: str) -> bool:
    """The same fifth of all articles every time."""
    from jaxclip.data.record import split_of

    return split_of(article, (0.8, 0.2, 0.0)) != "train"


if __name__ == "__main__":
    main()
