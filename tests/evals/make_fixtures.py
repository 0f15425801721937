"""Writes tests/evals/fixtures/metrics.npz: random inputs and what other libraries make of them.

Run it in an environment with torch, torchmetrics, scikit-learn and clip-benchmark:

    python tests/evals/make_fixtures.py
"""

import importlib.metadata
import json
import pathlib

import numpy as np
import sklearn.linear_model
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
import torchmetrics.functional.retrieval as tr
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k

PACKAGES = ("torch", "torchmetrics", "scikit-learn", "clip-benchmark", "numpy")
OUT = pathlib.Path(__file__).parent / "fixtures" / "metrics.npz"
RECALL_AT = (1, 5, 10)


def single_label(rng):
    logits = rng.standard_normal((200, 5)).astype(np.float32) * 2
    true = rng.integers(0, 5, 200)
    logits[np.arange(200), true] += 1.5
    probability, target = torch.softmax(torch.tensor(logits), 1), torch.tensor(true)
    said = logits.argmax(1)
    return {"logits": logits, "true": true}, {
        "accuracy": tm.multiclass_accuracy(probability, target, 5, average="micro"),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(true, said),
        "macro_f1": tm.multiclass_f1_score(probability, target, 5, average="macro"),
        "auroc": tm.multiclass_auroc(probability, target, 5, average="macro"),
        "calibration_error": tm.multiclass_calibration_error(probability, target, 5, n_bins=15),
    }


def binary(rng):
    logits = np.round(rng.standard_normal((150, 2)) * 4).astype(np.float32) / 4
    logits += np.array([0.125, 0], np.float32)  # exact: ties stay ties, and none at the threshold
    true = rng.integers(0, 2, 150)
    logits[np.arange(150), true] += 0.5
    probability = torch.softmax(torch.tensor(logits), 1)[:, 1]
    target = torch.tensor(true)
    return {"logits": logits, "true": true}, {
        "accuracy": tm.binary_accuracy(probability, target),
        "sensitivity": tm.binary_recall(probability, target),
        "specificity": tm.binary_specificity(probability, target),
        "auroc": tm.binary_auroc(probability, target),
        "macro_f1": sklearn.metrics.f1_score(true, probability > 0.5, average="macro"),
    }


def multi_label(rng):
    true = rng.random((120, 4)) < [0.5, 0.2, 0.1, 0.05]
    probability = np.round(np.clip(rng.random((120, 4)) + 0.2 * true, 0, 1), 2)  # with ties
    score, target = torch.tensor(probability), torch.tensor(true.astype(int))
    return {"probability": probability, "true": true}, {
        "auroc": tm.multilabel_auroc(score, target, 4),
        "average_precision": sklearn.metrics.average_precision_score(true, probability),
        "macro_f1": tm.multilabel_f1_score(score, target, 4),
    }


def retrieval(rng):
    """40 images, 30 captions; some captions under several images, some images with several."""
    image, text = (rng.standard_normal((n, 16)).astype(np.float32) for n in (40, 30))
    positive = rng.random((40, 30)) < 0.03
    positive[np.arange(40), np.arange(40) % 30] = True
    for row, column in np.argwhere(positive):
        image[row] += 0.7 * text[column]
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    found = {}
    sides = {
        "image_to_text": (image @ text.T, positive),
        "text_to_image": (text @ image.T, positive.T),
    }
    for name, (scores, right) in sides.items():
        # torchmetrics takes a right answer whose score is not above 0 for a wrong one
        scores, right = torch.tensor(scores + 2), torch.tensor(right)
        for k in RECALL_AT:
            hits = (recall_at_k(scores, right, k) > 0).float().mean()
            assert (
                hits
                == torch.stack(
                    [tr.retrieval_hit_rate(s, r, k) for s, r in zip(scores, right, strict=True)]
                ).mean()
            )
            found[f"{name}/recall@{k}"] = hits
        for metric, of_query in (
            ("mrr", tr.retrieval_reciprocal_rank),
            ("map", tr.retrieval_average_precision),
        ):
            values = [of_query(s, r) for s, r in zip(scores, right, strict=True)]
            found[f"{name}/{metric}"] = torch.stack(values).mean()
    return {"image": image, "text": text, "positive": positive}, found


def probe(rng):
    x = rng.standard_normal((90, 12)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    true = (x[:, :3] + 0.3 * rng.standard_normal((90, 3))).argmax(1)
    found = {}
    for l2 in (1e-1, 1e-3, 1e-5):
        model = sklearn.linear_model.LogisticRegression(
            C=1 / (l2 * 90), tol=1e-10, max_iter=100_000
        )
        found[f"probability/{l2}"] = model.fit(x.astype(np.float64), true).predict_proba(x)
    return {"x": x, "true": true}, found


def main():
    arrays = {"versions": json.dumps({p: importlib.metadata.version(p) for p in PACKAGES})}
    for number, make in enumerate((single_label, binary, multi_label, retrieval, probe)):
        given, expected = make(np.random.default_rng(number))
        arrays |= {f"{make.__name__}/in/{k}": v for k, v in given.items()}
        arrays |= {f"{make.__name__}/out/{k}": np.asarray(v) for k, v in expected.items()}
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **arrays)
    print(arrays["versions"], OUT.stat().st_size)


if __name__ == "__main__":
    main()
