"""Zero-shot classification by class names and prompt templates.

A prompt file is JSON: {"label_column": a column of the dataset's metadata.parquet, "source": where
the prompts are from, "templates": ["an image of {}.", ...], "classes": {label: [names], ...}}.

Shape letters: N records, C classes, E embedding.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from jaxclip.evals.base import Embeddings

PROMPTS = epath.resource_path("jaxclip") / "evals" / "prompts"


def load_prompts(name_or_path: str) -> dict[str, Any]:
    """A prompt file of ours by name ("mednist"), or any by path.

    Raises:
      FileNotFoundError: names the files there are.
      ValueError: the file lacks a field, or a template has no {}.
    """
    path = epath.Path(name_or_path)
    if not name_or_path.endswith(".json"):
        path = PROMPTS / f"{name_or_path}.json"
    if not path.exists():
        ours = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.json")))
        raise FileNotFoundError(f"{path} is no prompt file. Give a path to one, or a name: {ours}.")
    prompts = json.loads(path.read_text())
    for field in ("label_column", "templates", "classes"):
        if not prompts.get(field):
            raise ValueError(f"{path} lacks the field {field!r}.")
    if bad := [template for template in prompts["templates"] if "{}" not in template]:
        raise ValueError(f"{path}: the template {bad[0]!r} must have {{}} for the class's name.")
    return prompts


def check_labels(label_N: np.ndarray, prompts: dict[str, Any]) -> None:
    """Raises ValueError if a label is not a class of the prompt file."""
    classes = list(prompts["classes"])
    if unknown := sorted(set(label_N.tolist()) - set(classes), key=str):
        raise ValueError(
            f"column {prompts['label_column']!r} has the labels {unknown}, which the prompt file "
            f"does not have. Its classes: {', '.join(classes)}."
        )


def class_embeddings(
    prompts: dict[str, Any], encode_texts: Callable[[list[str]], np.ndarray]
) -> np.ndarray:
    """Mean over names x templates of the unit-norm text embeddings, made unit-norm again: [C, E].

    As CLIP ensembles prompts (Radford et al. 2021, arXiv:2103.00020, section 3.1.4).

    Args:
      encode_texts: texts -> unit-norm embeddings.
    """
    texts = [
        [template.format(name) for name in names for template in prompts["templates"]]
        for names in prompts["classes"].values()
    ]
    embedding_PE = encode_texts([text for of_class in texts for text in of_class])
    ends = np.cumsum([len(of_class) for of_class in texts])[:-1]
    mean_CE = np.stack([of_class.mean(axis=0) for of_class in np.split(embedding_PE, ends)])
    return mean_CE / np.linalg.norm(mean_CE, axis=1, keepdims=True)


def zero_shot(
    embeddings: Embeddings,
    labels: np.ndarray,
    prompts: dict[str, Any],
    encode_texts: Callable[[list[str]], np.ndarray],
) -> dict[str, float]:
    """Accuracy of the nearest class.

    Args:
      labels: of all records of the dataset, by position.
    Returns:
      accuracy; balanced_accuracy, the mean over classes of their recall; chance, of the largest
      class; and the count images. A tie between classes is an error.
    Raises:
      ValueError: a record's label is not a class of the prompt file.
    """
    classes = list(prompts["classes"])
    label_N = labels[embeddings.record_N]
    check_labels(label_N, prompts)
    class_CE = class_embeddings(prompts, encode_texts)
    score_NC = embeddings.image_NE @ class_CE.T
    true_N = np.array([classes.index(label) for label in label_N])
    rows = np.arange(len(true_N))
    others_NC = score_NC.copy()
    others_NC[rows, true_N] = -np.inf
    correct_N = score_NC[rows, true_N] > others_NC.max(axis=1)
    present = np.unique(true_N)
    return {
        "accuracy": float(correct_N.mean()),
        "balanced_accuracy": float(np.mean([correct_N[true_N == c].mean() for c in present])),
        "chance_balanced_accuracy": 1 / len(classes),
        "chance": float(np.bincount(true_N).max() / len(true_N)),
        "images": len(true_N),
    }
