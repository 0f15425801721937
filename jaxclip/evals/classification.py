"""Metrics of classification from scores, as functions of the images that are counted.

Everything that needs sorting is sorted once, so that a thousand bootstrap draws cost a thousand
passes and no more. Equal to scikit-learn's and torchmetrics' (tests/evals/test_classification.py).

Shape letters: N images, C classes, U images that are counted (with repetitions).
"""

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
    name: str, logit_NC: np.ndarray, true_N: np.ndarray, group_N: np.ndarray, positive: int = 1
) -> Measured:
    """One of C classes is right.

    accuracy; balanced_accuracy, mean recall of the classes there are; macro_f1 of the classes that
    are true or predicted; auroc, one against the rest, mean of the classes that are there but not
    alone; calibration_error, expected, of the predicted class's softmax in 15 even bins. With two
    classes also sensitivity and specificity, NaN where none of their class is counted.

    Args:
      logit_NC: scores of the classes, already at the temperature that calibration refers to.
      positive: of two classes the one that is looked for, as a disease.
    """
    num_classes = logit_NC.shape[1]
    predicted_N = predictions(logit_NC, true_N)
    cell_N = true_N * num_classes + predicted_N
    probability_NC = softmax(logit_NC.astype(np.float64))
    confidence_N = probability_NC.max(axis=1)
    surplus_N = confidence_N - (predicted_N == true_N)
    bin_N = np.clip(np.ceil(confidence_N * BINS).astype(int) - 1, 0, BINS - 1)
    ranking = Ranking(probability_NC, true_N[:, None] == np.arange(num_classes))

    def metrics(units):
        confusion_CC = np.bincount(cell_N[units], minlength=num_classes**2).reshape(num_classes, -1)
        gap = np.bincount(bin_N[units], surplus_N[units], minlength=BINS)
        found = of_confusion(confusion_CC, positive)
        weight_N = np.bincount(units, minlength=len(true_N))
        return found | {
            "auroc": _mean(ranking.area_under_roc(weight_N)),
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

    auroc; average_precision; macro_f1 and balanced_accuracy, mean of sensitivity and specificity,
    at probability 0.5, a threshold that no batch moves; calibration_error, expected, of the
    finding's probability against its share in 15 even bins, of all findings.
    """
    num_classes = true_NC.shape[1]
    ranking = Ranking(probability_NC, true_NC)
    said_NC = probability_NC > 0.5
    surplus_NC = probability_NC - true_NC
    bin_NC = np.clip(np.ceil(probability_NC * BINS).astype(int) - 1, 0, BINS - 1)
    cell_NC = bin_NC + BINS * np.arange(num_classes)

    def metrics(units):
        weight_N = np.bincount(units, minlength=len(true_NC))
        both = weight_N @ (said_NC & true_NC)
        said, true = weight_N @ said_NC, weight_N @ true_NC
        total, false = said + true, len(units) - true
        there = total > 0
        balanced_C = (_share(both, true) + _share(false - said + both, false)) / 2
        gap = np.bincount(
            cell_NC.ravel(), (weight_N[:, None] * surplus_NC).ravel(), BINS * num_classes
        )
        gap_C = np.abs(gap.reshape(num_classes, BINS)).sum(axis=1) / len(units)
        return {
            "balanced_accuracy": _mean(balanced_C),
            "calibration_error": float(gap_C.mean()),
            "auroc": _mean(ranking.area_under_roc(weight_N)),
            "average_precision": _mean(ranking.average_precision(weight_N)),
            "macro_f1": float((2 * both[there] / total[there]).mean()) if there.any() else np.nan,
        }

    share_C = true_NC.mean(axis=0)
    used_C = (share_C > 0) & (share_C < 1)
    chance = {"auroc": 0.5, "balanced_accuracy": 0.5}
    if used_C.any():
        chance["average_precision"] = float(share_C[used_C].mean())
    return Measured(
        name=name, metrics=metrics, num_units=len(true_NC), group_U=group_N,
        chance=chance,
        counts={"images": len(true_NC), "classes": num_classes, "classes_scored": used_C.sum()},
    )  # fmt: skip


def of_confusion(confusion_CC: np.ndarray, positive: int = 1) -> dict[str, float]:
    """What a confusion matrix (rows: true) says; of two classes, one is the positive one."""
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
        share_C = _share(right_C, true_C)
        found |= {"sensitivity": float(share_C[positive])}
        found |= {"specificity": float(share_C[1 - positive])}
    return found


class Ranking:
    """Areas under curves of scores that are sorted once, as functions of the images' weights.

    Args:
      score_NC: an order a class.
      true_NC: bool.
    """

    def __init__(self, score_NC: np.ndarray, true_NC: np.ndarray):
        num_images = len(score_NC)
        self.order_CN = np.argsort(score_NC.T, axis=1, kind="stable")
        self.true_CN = np.take_along_axis(np.asarray(true_NC, bool).T, self.order_CN, axis=1)
        score_CN = np.take_along_axis(score_NC.T, self.order_CN, axis=1)
        starts_CN = np.diff(score_CN, axis=1, prepend=-np.inf) != 0
        place_N = np.arange(num_images)
        # of the images that score the same, the first, and the one past the last
        self.first_CN = np.maximum.accumulate(np.where(starts_CN, place_N, 0), axis=1)
        ends_CN = np.pad(starts_CN[:, 1:], ((0, 0), (0, 1)), constant_values=True)
        last_CN = np.where(ends_CN, place_N + 1, num_images)[:, ::-1]
        self.last_CN = np.minimum.accumulate(last_CN, axis=1)[:, ::-1]

    def _weights(self, weight_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight_CN = weight_N[self.order_CN]
        true_CN = weight_CN * self.true_CN
        return true_CN, weight_CN - true_CN

    def area_under_roc(self, weight_N: np.ndarray) -> np.ndarray:
        """[C]: probability that a true one scores above a false one; a tie is half of that.

        NaN where only one of the two is there; so is average_precision.
        """
        true_CN, false_CN = self._weights(weight_N)
        below_CN = _cumulated(false_CN)
        twice_CN = _at(below_CN, self.first_CN) + _at(below_CN, self.last_CN)
        pairs_C = true_CN.sum(axis=1) * false_CN.sum(axis=1)
        return _share((true_CN * twice_CN).sum(axis=1) / 2, pairs_C)

    def average_precision(self, weight_N: np.ndarray) -> np.ndarray:
        """[C]: sum of precision x gain in recall, from the highest score down; ties are a step."""
        true_CN, false_CN = self._weights(weight_N)
        both = []
        for of_CN in (true_CN, false_CN):
            both.append(of_CN.sum(axis=1)[:, None] - _at(_cumulated(of_CN), self.first_CN))
        precision_CN = both[0] / np.maximum(both[0] + both[1], 1)
        there_C = true_CN.sum(axis=1) * (false_CN.sum(axis=1) > 0)
        return _share((true_CN * precision_CN).sum(axis=1), there_C)


def _cumulated(x_CN: np.ndarray) -> np.ndarray:
    """[C, N + 1]: the sum of those before each place."""
    return np.pad(np.cumsum(x_CN, axis=1), ((0, 0), (1, 0)))


def _at(x_CM: np.ndarray, place_CN: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x_CM, place_CN, axis=1)


def _share(part_C: np.ndarray, whole_C: np.ndarray) -> np.ndarray:
    return np.divide(part_C, whole_C, out=np.full(len(part_C), np.nan), where=whole_C > 0)


def _mean(value_C: np.ndarray) -> float:
    """Mean of what is defined; NaN if nothing is."""
    defined_C = np.isfinite(value_C)
    return float(value_C[defined_C].mean()) if defined_C.any() else np.nan
