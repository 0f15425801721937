"""The sets that models are scored on: one declaration each in DECLARED, and splits of them opened.

A split has images and, as far as it knows them, captions, labels, groups and studies. It comes
from a DATASET of ours (`of_dataset`) or from a public set in its own layout (`open_set`). Images
are read when they are asked for, and none is kept: a set may be larger than the memory.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jaxclip.data.dataset import Dataset
from jaxclip.data.image import ImageError, image_size
from jaxclip.data.record import ALL, SPLITS, hash64, split_of
from jaxclip.data.sources import DataConfig, Source, open_sources
from jaxclip.data.subset import dataset_name
from jaxclip.data.text import choose_text
from jaxclip.data.tfds import TfdsDataset
from jaxclip.evals.readers import Layout, LazyImages, rows
from jaxclip.evals.tables import listed
from jaxclip.evals.zero_shot import check_labels, load_prompts

SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
SPLIT_NAMES |= {"validation": "validation", "validate": "validation", "dev": "validation"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """A public set."""

    title: str
    get: str  # the command or address to get it
    layout: Layout  # inside SETS_DIR/NAME; tables may be several: of the splits, or other copies
    licence: str = "as on its page"
    prompts: str = ""  # the prompt file, which has the classes; "": retrieval only
    excluded: tuple[str, ...] = ()  # labels whose images are left out, and counted
    split: str = "hash"  # official | hash (of the group) | a split's name: all are that
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)  # train, validation, test, of hash
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)  # official names -> ours
    note: str = ""  # what to know before quoting a number
    checked: str = ""  # by whom else the layout is read so; "": by nobody known


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
    modalities: np.ndarray | None = None  # strings: scores are told by modality, too
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


def of_dataset(
    config: DataConfig, split: str, prompt_files: Sequence[str] = (), templates: str = ""
) -> list[EvalSplit]:
    """A split, or ALL, of each dataset of config.path, with the texts that its policy chooses.

    Raises:
      ValueError, FileNotFoundError: as open_sources; a label column that is not there.
    """
    found = []
    sources = open_sources(config, None if split == ALL else split)
    for name, source in zip(set_names(sources), sources, strict=True):
        dataset, positions = source.dataset, source.positions
        columns = dataset.columns(["image_sha256", "article_id"])
        sha, article = (column.to_numpy()[positions] for column in columns.columns)
        labels = {}
        for file in prompt_files:
            prompts = load_prompts(file, templates)
            labels[file] = dataset_labels(dataset, prompts)[positions]
            check_labels(labels[file], prompts)
        has_modality = "modality" in dataset.column_names
        modality = dataset.columns(["modality"])["modality"] if has_modality else None
        captions = [choose_text(dataset[int(i)].texts(), config.text, None) for i in positions]
        found.append(
            EvalSplit(
                name=name,
                split=split,
                images=_records(dataset, positions),
                image_id_N=np.array([hash64(x) for x in sha], np.int64),
                captions=captions,
                labels=labels,
                groups=_each_in_one(article),
                modalities=None if modality is None else modality.to_numpy()[positions],
                left_out={"no text": source.without_text} if source.without_text else {},
            )
        )
    return found


def dataset_labels(dataset: Dataset | TfdsDataset, prompts: Mapping[str, Any]) -> np.ndarray:
    """Labels of all records as prompt files have them: texts; of findings, tuples of texts.

    Findings stand in the column as a list, or as a text, `a|b` or `["a", "b"]`; none is ().
    """
    column = dataset.columns([prompts["label_column"]]).columns[0].to_pylist()
    if "negative_templates" in prompts:
        several = [
            listed(value or "") if isinstance(value, str | None) else value for value in column
        ]
        column = [tuple(str(one) for one in found if one != "") for found in several]
    labels = np.empty(len(column), object)
    labels[:] = [str(one) if isinstance(one, int) else one for one in column]
    return labels


def set_names(sources: Sequence[Source]) -> list[str]:
    """What scores on a run's own datasets are called: by the dataset, or by the path that the run
    has where two sources are of datasets of one name."""
    names = [dataset_name(source.dataset.path) for source in sources]
    often = collections.Counter(names)
    return [n if often[n] < 2 else source.path for n, source in zip(names, sources, strict=True)]


def _records(dataset: Dataset | TfdsDataset, positions: np.ndarray) -> LazyImages:
    return LazyImages(lambda i: dataset[int(positions[i])].image, len(positions))


def open_set(
    name: str,
    declaration: Declaration,
    sets_dir: epath.PathLike,
    splits: Sequence[str] = SPLITS,
    scored: str = "",
) -> dict[str, EvalSplit]:
    """Those of `splits` that a declared set, which lies in SETS_DIR/NAME, has; or ALL of it.

    Args:
      scored: one of `splits` that must be there.
    Raises:
      FileNotFoundError: it is not there; says where to get it, or which splits it has.
      ValueError: it is not as declared.
    """
    root = Path(sets_dir) / name
    by_split, groups, seen = collections.defaultdict(list), collections.defaultdict(set), set()
    left_out, counts = collections.defaultdict(collections.Counter), collections.Counter()
    prompts = load_prompts(declaration.prompts) if declaration.prompts else {}
    try:
        for row in rows(declaration.layout, root) if root.exists() else ():
            split = ALL if ALL in splits else _split(name, declaration, row)
            counts[split] += 1
            groups[split].add(row["group"])
            if split in splits:
                if prompts:
                    row["label"] = _as_declared(declaration, prompts, row["label"])
                if callable(row["caption"]):
                    row["caption"] = row["caption"]()
                if reason := _why_not(row, seen, bool(prompts)):
                    left_out[split][reason] += 1
                else:
                    by_split[split].append(row)
            seen.add(row["name"])
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(name, declaration, root, str(error))) from None
    if not counts:
        why = "no images there" if root.exists() else "no such folder"
        raise FileNotFoundError(_missing(name, declaration, root, why))
    found = {}
    for split in splits:
        kept = _without_later_groups(split, by_split[split], groups, left_out[split])
        if kept:
            found[split] = _eval_split(name, declaration, split, kept, left_out[split])
            if not len(found[split].images):
                why = f"none of {counts[split]:,} images can be read: {found[split].left_out}"
                raise FileNotFoundError(_missing(name, declaration, root, why))
            for label_N in found[split].labels.values():
                check_labels(label_N, prompts)
    if scored and scored not in found:
        there = ", ".join(f"{split} ({number:,})" for split, number in counts.items())
        raise FileNotFoundError(f"{name} has no {scored} split. It has: {there}.")
    return found


def _why_not(row: dict, seen: set[str], is_labelled: bool) -> str:
    """Why a row is left out; "" if it is not. An image has one label, but may have captions."""
    if is_labelled and row["name"] in seen:  # RSNA: a row a box
        return "image in an earlier row"
    if row["label"] is None:
        return "label excluded by the declaration, or none"
    return "" if is_labelled or row["caption"] else "no caption"


def _without_later_groups(
    split: str, found: list[dict], groups: Mapping[str, set[str]], left_out: collections.Counter
) -> list[dict]:
    """Training images without those whose patient or article is in a split that is scored."""
    if split == ALL:
        return found
    later = set().union(*(groups[other] for other in SPLITS[SPLITS.index(split) + 1 :])) - {""}
    kept = [row for row in found if row["group"] not in later]
    if len(kept) < len(found):
        left_out["patient or article is in a later split"] += len(found) - len(kept)
    return kept


def _missing(name: str, declaration: Declaration, root: Path, why: str) -> str:
    return f"{declaration.title} is not in {root} ({why}). Get it: {declaration.get}"


def _split(name: str, declaration: Declaration, row: dict) -> str:
    if declaration.split == "official":
        known = declaration.splits or SPLIT_NAMES
        if row["split"] not in known:
            raise ValueError(f"{name}: split {row['split']!r} must be one of {', '.join(known)}.")
        return known[row["split"]]
    if declaration.split == "hash":
        return split_of(row["group"] or row["name"], declaration.fractions)
    return declaration.split


def _as_declared(declaration: Declaration, prompts: Mapping[str, Any], label: Any) -> Any:
    """A label as in the prompt file; a number counts its classes; None if it is excluded."""
    if label is None:
        return None
    classes = list(prompts["classes"])
    if isinstance(label, tuple):
        if set(label) & set(declaration.excluded):
            return None
        named = {_as_declared(declaration, prompts, one) for one in label}
        children = prompts.get("children", {})
        while more := {finding for finding, c in children.items() if named & set(c)} - named:
            named |= more
        return tuple(one for one in classes if one in named)  # others are not scored
    if label in declaration.excluded:
        return None
    if label in classes:
        return label
    return classes[int(label)] if label.isdigit() and int(label) < len(classes) else label


def _each_in_one(groups: Sequence[str]) -> np.ndarray | None:
    """Groups or studies, where a row without one is one of its own; None: no row has one."""
    if not any(groups):
        return None
    return np.array([group or f"row {i}" for i, group in enumerate(groups)])


def _eval_split(name, declaration, split, found, left_out) -> EvalSplit:
    kept, ids, left_out = [], [], collections.Counter(left_out)
    for row in found:  # one image in memory at a time
        try:
            image = row["image"]()
            if isinstance(image, bytes):
                image_size(image)
        except FileNotFoundError:  # ROCO: the publisher took it back
            left_out["no image file"] += 1
        except ImageError as error:
            left_out[error.reason] += 1
        else:
            kept.append(row)
            ids.append(hash64(image if isinstance(image, bytes) else image.tobytes()))
    labels = np.empty(len(kept), object)
    labels[:] = [row["label"] for row in kept]
    groups, studies = (_each_in_one([row[field] for row in kept]) for field in ("group", "study"))
    return EvalSplit(
        name=name,
        split=split,
        images=LazyImages(lambda i: kept[i]["image"](), len(kept)),
        image_id_N=np.array(ids, np.int64),
        captions=[row["caption"] for row in kept] if any(r["caption"] for r in kept) else None,
        labels={declaration.prompts: labels} if declaration.prompts else {},
        groups=groups,
        studies=None if studies is None else np.unique(studies, return_inverse=True)[1],
        left_out=dict(left_out),
    )
