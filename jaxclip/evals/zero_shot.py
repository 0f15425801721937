"""Zero-shot classification by class names and prompt templates.

A prompt file is JSON:

    {"version": 1, "source": where the prompts are from, "label_column": a column of the labels,
     "templates": ["an image of {}.", ...], "classes": {label: [names], ...}}

With "negative_templates" (["no {}."]) the set is multi-label: each class is a finding that is there
or not, and an image's label a list of them (sets.dataset_labels). Of two classes "positive" is the
label of the one that is looked for; without it, the second. "children" are more special labels
{finding: [labels]} that say that a finding is there. prompts/_templates.json has other templates by
name.

Shape letters: N records, C classes, E embedding.
"""

import collections
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxclip.evals.base import Embeddings, Measured
from jaxclip.evals.classification import multi_label, single_label

PROMPTS = epath.resource_path("jaxclip") / "evals" / "prompts"
EncodeText = Callable[[list[str]], np.ndarray]


def load_prompts(name_or_path: str, templates: str = "") -> dict[str, Any]:
    """A prompt file of ours by name ("mednist"), or any by path.

    Args:
      templates: a name in prompts/_templates.json, whose templates, and class names where it has
        some, take the place of the file's: "open_pmc_histology" is what the papers used on all
        their sets, chest X-rays too. A file by path keeps its class names.
    Raises:
      FileNotFoundError: names the files there are.
      ValueError: the file is not as above; no templates of this name, or not for this file.
    """
    path = epath.Path(name_or_path)
    if not name_or_path.endswith(".json"):
        path = PROMPTS / f"{name_or_path}.json"
    if not path.exists():
        ours = ", ".join(sorted(p.stem for p in PROMPTS.glob("[!_]*.json")))
        raise FileNotFoundError(f"{path} is no prompt file. Give a path to one, or a name: {ours}.")
    try:
        prompts = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    _check(path, prompts)
    if templates:
        _choose(templates, name_or_path, prompts)
    return prompts


def _check(path: epath.Path, prompts: Any) -> None:
    """Raises ValueError: a prompt file is not as in the module's docstring."""
    for field in ("label_column", "templates", "classes"):
        if not isinstance(prompts, dict) or not prompts.get(field):
            raise ValueError(f"{path} lacks the field {field!r}.")
    for field in ("templates", "negative_templates"):
        templates = prompts.get(field, [])
        if not _is_texts(templates):
            raise ValueError(f"{path}: {field} ({templates!r}) must be a list of texts.")
        for template in templates:
            if template.count("{}") != 1 or re.search("[{}]", template.replace("{}", "")):
                raise ValueError(
                    f"{path}: the template {template!r} must have one {{}}, for the name, and no "
                    "other braces."
                )
    least = 1 if "negative_templates" in prompts else 2
    if not isinstance(prompts["classes"], dict) or len(prompts["classes"]) < least:
        raise ValueError(f"{path}: classes must be {{label: [names], ...}}, of {least} or more.")
    for label, names in prompts["classes"].items():
        if not names or not _is_texts(names):  # of a text, each letter would be a name
            raise ValueError(
                f"{path}: the names of the class {label!r} ({names!r}) must be a list of texts, at "
                "least one."
            )
    if prompts.get("positive", next(iter(prompts["classes"]))) not in prompts["classes"]:
        raise ValueError(f"{path}: positive ({prompts['positive']!r}) must be one of its classes.")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _choose(choice: str, file: str, prompts: dict[str, Any]) -> None:
    """Gives prompts the templates, and the class names, of a choice in _templates.json."""
    named = named_templates()
    if choice not in named:
        raise ValueError(f"templates ({choice!r}) must be one of {', '.join(named)}.")
    chosen = named[choice]
    if "negative_templates" in prompts and "negative_templates" not in chosen:
        raise ValueError(
            f"templates ({choice}) do not say that something is absent, and {file} is multi-label: "
            "leave the set or the choice out."
        )
    names = chosen.get("classes", {})
    if file in names:
        its = {label: [names[file].get(label, label)] for label in prompts["classes"]}
        prompts["classes"] = its
    elif names and not file.endswith(".json"):  # a file of the user's keeps its class names
        raise ValueError(
            f"templates ({choice}) have no class names for {file}, as the papers did not score it. "
            f"They have those of {', '.join(names)}."
        )
    for field in ("templates", "negative_templates"):
        if field in prompts:
            prompts[field] = chosen[field]
    prompts["templates_name"] = choice


def classes_of(name: str) -> tuple[str, ...]:
    """Labels of a prompt file: the names of the columns, where a table has one a class."""
    return tuple(load_prompts(name)["classes"])


def prompts_name(file: str) -> str:
    """`"mednist"`, `"a/mine.json"` -> mednist, mine: what its scores are called, wherever it is."""
    return epath.Path(file).stem


def check_names(files: Sequence[str]) -> None:
    """Raises ValueError: scores of two prompt files would have one name."""
    names = collections.Counter(map(prompts_name, files))
    for name, often in names.items():
        if often > 1:
            raise ValueError(
                f"zero_shot ({', '.join(files)}) has {often} prompt files named {name}: rename one."
            )


def positive_class(prompts: dict[str, Any]) -> int:
    """Number of the class whose recall is the sensitivity, where there are two."""
    classes = list(prompts["classes"])
    return classes.index(prompts["positive"]) if "positive" in prompts else 1


def named_templates() -> dict[str, Any]:
    return json.loads((PROMPTS / "_templates.json").read_text())


def prompts_id(prompts: dict[str, Any]) -> str:
    """`prompts v1 4f0c2a91` and the templates' name: two prompt files of one id say the same."""
    told = {key: value for key, value in prompts.items() if key != "source"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    name = prompts.get("templates_name", "")
    return f"prompts v{prompts.get('version', 0)} {digest[:8]} {name}".rstrip()


def check_labels(label_N: np.ndarray, prompts: dict[str, Any]) -> None:
    """Raises ValueError if a label, or a finding of one, is not a class of the prompt file."""
    classes = list(prompts["classes"])
    if "negative_templates" in prompts:
        label_N = np.array([finding for label in label_N for finding in label], object)
    if unknown := sorted(set(label_N.tolist()) - set(classes), key=str):
        raise ValueError(
            f"column {prompts['label_column']!r} has the labels {unknown}, which the prompt file "
            f"does not have. Its classes: {', '.join(classes)}."
        )


def class_embeddings(
    prompts: dict[str, Any], encode_text: EncodeText, templates: str = "templates"
) -> np.ndarray:
    """Mean over names x templates of the unit-norm text embeddings, made unit-norm again: [C, E].

    As CLIP ensembles prompts (Radford et al. 2021, arXiv:2103.00020, section 3.1.4).

    Args:
      encode_text: texts -> unit-norm embeddings.
      templates: the prompt file's field; "negative_templates" for the absence of each class.
    """
    texts = [
        [_said(template, name) for name in names for template in prompts[templates]]
        for names in prompts["classes"].values()
    ]
    embedding_PE = encode_text([text for of_class in texts for text in of_class])
    ends = np.cumsum([len(of_class) for of_class in texts])[:-1]
    mean_CE = np.stack([of_class.mean(axis=0) for of_class in np.split(embedding_PE, ends)])
    return mean_CE / np.linalg.norm(mean_CE, axis=1, keepdims=True)


def _said(template: str, name: str) -> str:
    """`"no {}."` and `"a mass"` -> `"no mass."`: there is no article after "no"."""
    return re.sub(r"\bno an? ", "no ", template.format(name))


def class_scores(
    image_NE: np.ndarray, prompts: dict[str, Any], encode_text: EncodeText
) -> np.ndarray:
    """Cosine of each image with each class; multi-label: with its presence less its absence."""
    score_NC = image_NE @ class_embeddings(prompts, encode_text).T
    if "negative_templates" in prompts:
        absent_CE = class_embeddings(prompts, encode_text, "negative_templates")
        score_NC = score_NC - image_NE @ absent_CE.T
    return score_NC


def zero_shot(
    embeddings: Embeddings,
    labels: np.ndarray,
    prompts: dict[str, Any],
    encode_text: EncodeText,
    *,
    name: str = "zero_shot",
    logit_scale: float = 100.0,
) -> Measured:
    """The nearest class, see classification.single_label; for findings, multi_label.

    Args:
      labels: of all records of the dataset, by position: a class's label each; multi-label: a
        sequence of the labels of the findings.
      logit_scale: what a cosine is multiplied by to be a logit: calibration depends on it.
    Raises:
      ValueError: a record's label is not a class of the prompt file.
    """
    classes = {label: c for c, label in enumerate(prompts["classes"])}
    score_NC = class_scores(embeddings.image_NE, prompts, encode_text) * logit_scale
    group_N = np.asarray(embeddings.group_N)
    label_N = labels[embeddings.record_N]
    check_labels(label_N, prompts)
    if "negative_templates" in prompts:
        true_NC = np.zeros(score_NC.shape, bool)
        for row, found in enumerate(label_N):
            true_NC[row, [classes[label] for label in found]] = True
        return multi_label(name, 1 / (1 + np.exp(-score_NC.astype(np.float64))), true_NC, group_N)
    true_N = np.array([classes[label] for label in label_N])
    return single_label(name, score_NC, true_N, group_N, positive_class(prompts))
