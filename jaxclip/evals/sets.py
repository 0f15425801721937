"""The sets that models are scored on: one declaration each in DECLARED, and splits of them opened.

A split has images and, as far as it knows them, captions, labels, groups and studies. It comes from
a DATASET of ours (`of_dataset`) or from a public set in its own layout (`open_set`).
"""

import collections
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jaxclip.data.record import SPLITS, hash64, split_of
from jaxclip.data.sources import DataConfig, open_sources
from jaxclip.data.text import choose_text
from jaxclip.evals.readers import Layout, LazyImages, rows
from jaxclip.evals.zero_shot import load_prompts

SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
SPLIT_NAMES |= {"validation": "validation", "validate": "validation", "dev": "validation"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """A public set."""

    title: str
    get: str  # the command or address to get it
    licence: str
    layout: Layout  # inside SETS_DIR/NAME
    prompts: str = ""  # the prompt file, which has the classes; "": retrieval only
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)  # as found -> as in prompts
    excluded: tuple[str, ...] = ()  # labels that are left out, and counted
    split: str = "hash"  # official | hash (of the group, 90/5/5) | a split's name: all are that
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)  # official names -> ours
    note: str = ""  # what to know before quoting a number


@dataclasses.dataclass(slots=True, kw_only=True)
class EvalSplit:
    """One split of one set; lists and arrays are in one order, N long."""

    name: str
    split: str
    images: Sequence[bytes | np.ndarray]  # opened when read
    image_id_N: np.ndarray  # int64, equal where the images are
    captions: list[str] | None = None
    labels: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # by prompt file
    groups: np.ndarray | None = None  # article or patient
    studies: np.ndarray | None = None
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)  # by reason

    @property
    def content_hash(self) -> str:
        """Of the images in order."""
        return hashlib.sha256(self.image_id_N.tobytes()).hexdigest()

    @property
    def identity(self) -> str:
        """Of all that scores depend on: two results with the same one may be compared."""
        parts: list[Any] = [self.content_hash, self.captions, self.groups, self.studies]
        parts += [(name, labels.tolist()) for name, labels in sorted(self.labels.items())]
        lists = [part.tolist() if isinstance(part, np.ndarray) else part for part in parts]
        return hashlib.sha256(repr(lists).encode()).hexdigest()


class _Records(LazyImages):
    """Images of a DATASET by position."""

    def __init__(self, dataset, positions):
        super().__init__(positions, Path())
        self.dataset = dataset

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.dataset[int(position)].image for position in self.images[index]]
        return self.dataset[int(self.images[index])].image


def of_dataset(
    config: DataConfig, split: str, prompt_files: Sequence[str] = (), templates: str = ""
) -> list[EvalSplit]:
    """A split of each dataset of config.path, with the texts that its policy chooses.

    Raises:
      ValueError, FileNotFoundError: as open_sources; a label column that is not there.
    """
    found = []
    for source in open_sources(config, split):
        dataset, positions = source.dataset, source.positions
        columns = dataset.columns(["image_sha256", "article_id"])
        sha, article = (column.to_numpy()[positions] for column in columns.columns)
        labels = {}
        for file in prompt_files:
            column = load_prompts(file, templates)["label_column"]
            labels[file] = dataset.columns([column])[column].to_numpy()[positions]
        captions = [choose_text(dataset[int(i)].texts(), config.text, None) for i in positions]
        found.append(
            EvalSplit(
                name=dataset.path.name,
                split=split,
                images=_Records(dataset, positions),
                image_id_N=np.array([hash64(x) for x in sha], np.int64),
                captions=captions,
                labels=labels,
                groups=article if all(article) else None,
                left_out={"no text": source.without_text} if source.without_text else {},
            )
        )
    return found


def open_set(
    name: str,
    declaration: Declaration,
    sets_dir: epath.PathLike,
    splits: Sequence[str] = SPLITS,
) -> dict[str, EvalSplit]:
    """Those of `splits` that a declared set, which lies in SETS_DIR/NAME, has.

    Raises:
      FileNotFoundError: it is not there; says where to get it.
      ValueError: it is not as declared.
    """
    root = Path(sets_dir) / name
    try:
        found = list(rows(declaration.layout, root)) if root.exists() else []
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(name, declaration, root, str(error))) from None
    if not found:
        raise FileNotFoundError(_missing(name, declaration, root, "no images there"))
    by_split = collections.defaultdict(list)
    left_out, seen = collections.Counter(), set()
    classes = load_prompts(declaration.prompts)["classes"] if declaration.prompts else None
    for row in found:
        row["split"] = _split(name, declaration, row)
        if classes is not None:
            row["label"] = _as_declared(declaration, list(classes), row["label"])
        image = row["image"] if isinstance(row["image"], str | tuple) else None
        if image is not None and image in seen:  # RSNA: a row a box
            left_out["image in an earlier row"] += 1
        elif row["label"] is None:
            left_out["label excluded by the declaration"] += 1
        elif classes is None and not row["caption"]:
            left_out["no caption"] += 1
        else:
            by_split[row["split"]].append(row)
        seen.add(image)
    return {
        split: _eval_split(name, declaration, split, by_split[split], root, dict(left_out))
        for split in splits
        if by_split[split]
    }


def _missing(name: str, declaration: Declaration, root: Path, why: str) -> str:
    return f"{declaration.title} is not in {root} ({why}). Get it: {declaration.get}"


def _split(name: str, declaration: Declaration, row: dict) -> str:
    if declaration.split == "official":
        known = declaration.splits or SPLIT_NAMES
        if row["split"] not in known:
            raise ValueError(f"{name}: split {row['split']!r} must be one of {', '.join(known)}.")
        return known[row["split"]]
    if declaration.split == "hash":
        return split_of(row["group"] or str(row["image"]))
    return declaration.split


def _as_declared(declaration: Declaration, classes: list[str], label: Any) -> Any:
    """A label as in the prompt file; a number counts its classes; None if it is excluded."""
    if isinstance(label, tuple):
        named = [_as_declared(declaration, classes, one) for one in label]
        return tuple(one for one in named if one in classes)  # others are not scored
    if label in declaration.excluded:
        return None
    label = declaration.labels.get(label, label)
    if label in classes:
        return label
    return classes[int(label)] if label.isdigit() and int(label) < len(classes) else label


def _eval_split(name, declaration, split, found, root, left_out) -> EvalSplit:
    images = LazyImages([row["image"] for row in found], root)
    ids = [hash64(x if isinstance(x, bytes) else x.tobytes()) for x in images]
    labels = np.empty(len(found), object)
    labels[:] = [row["label"] for row in found]
    groups, studies = ([row[field] for row in found] for field in ("group", "study"))
    return EvalSplit(
        name=name,
        split=split,
        images=images,
        image_id_N=np.array(ids, np.int64),
        captions=[row["caption"] for row in found] if any(r["caption"] for r in found) else None,
        labels={declaration.prompts: labels} if declaration.prompts else {},
        groups=np.array(groups) if all(groups) else None,
        studies=np.unique(studies, return_inverse=True)[1] if all(studies) else None,
        left_out=left_out,
    )
