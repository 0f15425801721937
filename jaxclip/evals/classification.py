"""Metrics of classification from scores, as functions of the images that are counted.

Everything that needs sorting is sorted once, so that a thousand bootstrap draws cost a thousand
passes and no more. Equal to scikit-learn's and torchmetrics' (tests/evals/test_classification.py).

Shape letters: N images, C classes, U images that are counted (with repetitions), K score levels.
"""

from collections.abc import Callable

import numpy as np

from jaxclip.evals.base import Measured

BINS = 15  # of the calibration error, as Guo et al. 2017 (arXiv:1706.04599)


def predictions(score_NC: np.ndarray, true_N: np.ndarray) -> np.ndarray:
    """The class with the highest score; where another ties with the true one, that other."""
    rows = np.arange(len(true_N))
    others_NC = score_NC.copy()
    others_NC[rows, true_N] = -np.inf
    right_N = score_NC[rows, true_N] > others_NC.max(axis=1)
    return np.where(right_N, true_N, others_NC.argmax(axis=1))


def softmax(logit_NC: np.ndarray) -> np.ndarray:
    exp_NC = np.exp(logit_NC - logit_NC.max(axis=1, keepdims=True))
    return exp_NC / exp_NC.sum(axis=1, keepdims=True)


def single_label(
    name: str, logit_NC: np.ndarray, true_N: np.ndarray, group_N: np.ndarray
) -> Measured:
    """One of C classes is right.

    accuracy; balanced_accuracy, mean recall of the classes there are; macro_f1 of the classes that
    are true or predicted; auroc, one against the rest, mean of the classes that are there but not
    alone; calibration_error, expected, of the predicted class's softmax in 15 even bins. With two
    classes also sensitivity and specificity; the second class is the positive one.

    Args:
      logit_NC: scores of the classes, already at the temperature that calibration refers to.
    """
    num_classes = logit_NC.shape[1]
    predicted_N = predictions(logit_NC, true_N)
    cell_N = true_N * num_classes + predicted_N
    probability_NC = softmax(logit_NC.astype(np.float64))
    confidence_N = probability_NC.max(axis=1)
    surplus_N = confidence_N - (predicted_N == true_N)
    bin_N = np.clip(np.ceil(confidence_N * BINS).astype(int) - 1, 0, BINS - 1)
    aurocs = [
        ranking(probability_NC[:, c], true_N == c, area_under_roc) for c in range(num_classes)
    ]

    def metrics(units):
        confusion_CC = np.bincount(cell_N[units], minlength=num_classes**2).reshape(num_classes, -1)
        gap = np.bincount(bin_N[units], surplus_N[units], minlength=BINS)
        found = of_confusion(confusion_CC)
        weight_N = np.bincount(units, minlength=len(true_N))
        return found | {
            "auroc": _mean([auroc(weight_N) for auroc in aurocs]),
            "calibration_error": float(np.abs(gap).sum() / len(units)),
        }

    largest = np.bincount(true_N).max() / len(true_N)
    present = len(np.unique(true_N))
    return Measured(
        name=name, metrics=metrics, num_units=len(true_N), group_U=group_N,
        chance={"accuracy": float(largest), "balanced_accuracy": 1 / present, "auroc": 0.5},
        counts={"images": len(true_N), "classes": num_classes, "classes_present": present},
        items={"accuracy": predicted_N == true_N},
    )  # fmt: skip


def multi_label(
    name: str, probability_NC: np.ndarray, true_NC: np.ndarray, group_N: np.ndarray
) -> Measured:
    """Any of C findings may be right: macro means over the findings that are there but not always.

    auroc; average_precision; macro_f1 at probability 0.5, a threshold that no batch moves.
    """
    num_classes = true_NC.shape[1]
    curves = [
        [ranking(probability_NC[:, c], true_NC[:, c], area) for c in range(num_classes)]
        for area in (area_under_roc, average_precision)
    ]
    said_NC = probability_NC > 0.5

    def metrics(units):
        weight_N = np.bincount(units, minlength=len(true_NC))
        auroc, precision = ([curve(weight_N) for curve in of_metric] for of_metric in curves)
        both = weight_N @ (said_NC & true_NC)
        total = weight_N @ said_NC + weight_N @ true_NC
        there = total > 0
        return {
            "auroc": _mean(auroc),
            "average_precision": _mean(precision),
            "macro_f1": float((2 * both[there] / total[there]).mean()) if there.any() else np.nan,
        }

    share_C = true_NC.mean(axis=0)
    used_C = (share_C > 0) & (share_C < 1)
    return Measured(
        name=name, metrics=metrics, num_units=len(true_NC), group_U=group_N,
        chance={"auroc": 0.5, "average_precision": float(share_C[used_C].mean())},
        counts={"images": len(true_NC), "classes": num_classes, "classes_scored": used_C.sum()},
    )  # fmt: skip


def of_confusion(confusion_CC: np.ndarray) -> dict[str, float]:
    """What a confusion matrix (rows: true) says."""
    right_C, true_C, predicted_C = (
        confusion_CC.diagonal(), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    )  # fmt: skip
    recall_C = right_C / np.maximum(true_C, 1)
    there_C = true_C + predicted_C > 0
    found = {
        "accuracy": float(right_C.sum() / confusion_CC.sum()),
        "balanced_accuracy": float(recall_C[true_C > 0].mean()),
        "macro_f1": float((2 * right_C / np.maximum(true_C + predicted_C, 1))[there_C].mean()),
    }
    if len(confusion_CC) == 2:
        found |= {"sensitivity": float(recall_C[1]), "specificity": float(recall_C[0])}
    return found


def ranking(
    score_N: np.ndarray, true_N: np.ndarray, area: Callable[[np.ndarray, np.ndarray], float]
) -> Callable[[np.ndarray], float]:
    """`area` of (true, false) per distinct score, ascending, as a function of weights [N].

    NaN where only one of the two is there.
    """
    _, level_N = np.unique(score_N, return_inverse=True)
    true_N = np.asarray(true_N, bool)

    def of_weights(weight_N):
        true_K = np.bincount(level_N, weight_N * true_N)
        false_K = np.bincount(level_N, weight_N * ~true_N)
        if not true_K.any() or not false_K.any():
            return np.nan
        return area(true_K, false_K)

    return of_weights


def area_under_roc(true_K: np.ndarray, false_K: np.ndarray) -> float:
    """Probability that a true one scores above a false one; a tie is half of that."""
    below_K = np.cumsum(false_K) - false_K / 2
    return float(true_K @ below_K / (true_K.sum() * false_K.sum()))


def average_precision(true_K: np.ndarray, false_K: np.ndarray) -> float:
    """Sum of precision x gain in recall, from the highest score down; ties are one step."""
    true_K, false_K = true_K[::-1], false_K[::-1]
    all_K = np.cumsum(true_K + false_K)
    precision_K = np.cumsum(true_K) / np.maximum(all_K, 1)
    return float(true_K @ precision_K / true_K.sum())


def _mean(values: list[float]) -> float:
    """Mean of what is defined; NaN if nothing is."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else np.nan
