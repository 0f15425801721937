"""The suite of jaxclip.evaluate: named evaluators of one set under one embedder.

Shape letters: N images, C classes, E embedding.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from jaxclip.data.record import hash64, split_of
from jaxclip.evals import robustness
from jaxclip.evals.base import Embeddings, Measured
from jaxclip.evals.embed import EmbeddingCache, embed_set, has_text
from jaxclip.evals.probe import probe
from jaxclip.evals.readers import LazyImages
from jaxclip.evals.representation import representation
from jaxclip.evals.retrieval import label_retrieval, repeated, retrieval
from jaxclip.evals.sets import EvalSplit
from jaxclip.evals.zero_shot import (
    check_labels,
    load_prompts,
    named_templates,
    positive_class,
    prompts_id,
    prompts_name,
    zero_shot,
)


@dataclasses.dataclass(slots=True, kw_only=True)
class SuiteOptions:
    suite: tuple[str, ...] = ("retrieval", "zero_shot")
    protocol: str = "all_right"
    templates: str = ""

    def validate(self, split: str) -> None:
        """Raises ValueError, before anything is embedded."""
        if unknown := set(self.suite) - set(EVALUATORS):
            raise ValueError(f"--suite ({', '.join(unknown)}) must be of {', '.join(EVALUATORS)}.")
        if self.templates and self.templates not in named_templates():
            raise ValueError(
                f"--templates ({self.templates}) must be one of {', '.join(named_templates())}."
            )
        if "probe" in self.suite and split not in ("validation", "test"):
            raise ValueError(
                f"--split={split} with --suite=probe would score images that the probe is trained "
                "on. Score test or validation, or leave the probe out."
            )


@dataclasses.dataclass(slots=True, kw_only=True)
class Context:
    """What an evaluator of the suite is given."""

    cache: EmbeddingCache
    splits: Mapping[str, EvalSplit]
    split: str
    embeddings: Embeddings
    options: SuiteOptions
    notes: list[str] = dataclasses.field(default_factory=list)  # on what cannot be scored

    @property
    def scored(self) -> EvalSplit:
        return self.splits[self.split]

    def prompts(self, file: str) -> dict:
        return load_prompts(file, self.options.templates)

    def targets(self, file: str, split: EvalSplit) -> np.ndarray:
        """bool [N, C]: one-hot, or the findings. Raises ValueError for an unknown label."""
        prompts = self.prompts(file)
        several = "negative_templates" in prompts
        found = [label if several else (label,) for label in split.labels[file]]
        check_labels(split.labels[file], prompts)
        classes = {label: c for c, label in enumerate(prompts["classes"])}
        target_NC = np.zeros((len(found), len(classes)), bool)
        for row, labels in enumerate(found):
            target_NC[row, [classes[label] for label in labels]] = True
        return target_NC


def evaluate_split(
    cache: EmbeddingCache, splits: Mapping[str, EvalSplit], split: str, options: SuiteOptions
) -> tuple[list[Measured], list[str]]:
    """All evaluators of options.suite on splits[split]; the others are there to train probes on.

    Returns:
      What was measured; a line on each evaluator, or part of one, with nothing to score there.
    """
    options.validate(split)
    scored, found = splits[split], []
    embeddings = embed_set(cache, scored)
    if not has_text(cache.embedder):
        splits = dict(splits) | {split: dataclasses.replace(scored, captions=None)}
    context = Context(
        cache=cache, splits=splits, split=split, embeddings=embeddings, options=options
    )
    for name in options.suite:
        measured = EVALUATORS[name](context)
        found += measured
        if not measured:
            why = f"captions: {scored.captions is not None}, labels: {list(scored.labels) or None}"
            if not has_text(cache.embedder):
                why += "; the model has no text tower, or no vocabulary: --tokenizer=FILE"
            context.notes.append(f"{name} of {scored.name} ({why}; splits: {', '.join(splits)}).")
    return found, context.notes


def _retrieval(context: Context) -> list[Measured]:
    found = []
    if context.scored.captions is not None:
        found = retrieval(context.embeddings, context.options.protocol)
    for file in context.scored.labels:
        target_NC = context.targets(file, context.scored)
        if "negative_templates" in context.prompts(file):
            continue
        label_N = target_NC.argmax(axis=1)
        if np.bincount(label_N).max() < 2:
            context.notes.append(
                f"image_to_image/{prompts_name(file)} of {context.scored.name}: each is a class."
            )
            continue
        measured = label_retrieval(
            context.embeddings.image_NE, label_N, np.asarray(context.embeddings.group_N)
        )
        measured.name += f"/{prompts_name(file)}"
        # copies of the query are right answers, and first: it has to be known that there are some
        measured.counts["records_of_repeated_images"] = repeated(context.embeddings.image_id_N)
        found.append(measured)
    return found


def _zero_shot(context: Context, embeddings: Embeddings | None = None) -> list[Measured]:
    found = []
    for file, labels in context.scored.labels.items() if has_text(context.cache.embedder) else ():
        prompts = context.prompts(file)
        measured = zero_shot(
            embeddings or context.embeddings, labels, prompts, context.cache.texts,
            name=f"zero_shot/{prompts_name(file)}",
            logit_scale=float(context.cache.embedder.logit_scale),
        )  # fmt: skip
        measured.method = prompts_id(prompts)
        found.append(measured)
    return found


def _probe(context: Context) -> list[Measured]:
    found = []
    if "train" not in context.splits:
        return found
    train = context.splits["train"]
    others = [s.identity[:8] for name, s in context.splits.items() if name != context.split]
    for file in context.scored.labels:
        image_NE = context.cache.images(train.content_hash, train.images)
        target_NC = context.targets(file, train)
        if context.split != "validation" and "validation" in context.splits:
            held = context.splits["validation"]
            validation = (
                context.cache.images(held.content_hash, held.images), context.targets(file, held)
            )  # fmt: skip
            fitted = image_NE, target_NC
        else:  # a fifth of the train split, by group
            groups = np.arange(len(image_NE)) if train.groups is None else train.groups
            # salted: the set's own split may be by this hash, and would leave nobody to hold
            is_held = np.array(
                [split_of(str(g), (0.8, 0.2, 0), "probe") != "train" for g in groups]
            )
            fitted = image_NE[~is_held], target_NC[~is_held]
            validation = image_NE[is_held], target_NC[is_held]
        if not len(fitted[0]) or not len(validation[0]):
            context.notes.append(
                f"probe of {context.scored.name}: too few groups to hold some for validation."
            )
            continue
        probed = probe(
            fitted, validation,
            (context.embeddings.image_NE, context.targets(file, context.scored)),
            np.asarray(context.embeddings.group_N), prompts_name(file),
            "negative_templates" in context.prompts(file), positive_class(context.prompts(file)),
        )  # fmt: skip
        for measured in probed:
            measured.method = f"trained on {' '.join(others)}"
        found += probed
    return found


def _representation(context: Context) -> list[Measured]:
    scored, embeddings = context.scored, context.embeddings
    text_NE = embeddings.text_NE if scored.captions is not None else None
    groups = np.asarray(embeddings.group_N)
    return [representation(embeddings.image_NE, text_NE, groups, scored.modalities)]


def _robustness(context: Context) -> list[Measured]:
    """Retrieval and zero-shot under each corruption and severity, and the mean relative drop."""
    found = _changes(context, _corrupted, robustness.CORRUPTIONS, "all_corruptions")
    if context.scored.captions is not None:
        found += _changes(context, _perturbed, robustness.PERTURBATIONS, "all_perturbations")
    return found


def _changes(context: Context, change: Callable, names: Iterable[str], together: str):
    clean, found = change(context, "", 0), []
    harder = {
        name: [change(context, name, severity) for severity in robustness.SEVERITIES]
        for name in names
    }
    for name, of_severities in harder.items():
        found += _drops(f"robustness/{name}", clean, of_severities)
    # of each severity the mean over all changes, and so their mean relative drop
    every = [
        [_mean_of([harder[name][s][i] for name in harder]) for i in range(len(clean))]
        for s in range(len(robustness.SEVERITIES))
    ]
    return found + _drops(f"robustness/{together}", clean, every)


def _mean_of(several: list[Measured]) -> Measured:
    def metrics(units):
        found = [measured.metrics(units) for measured in several]
        return {key: float(np.mean([one[key] for one in found])) for key in found[0]}

    return dataclasses.replace(several[0], metrics=metrics)


def _corrupted(context: Context, corruption: str, severity: int) -> list[Measured]:
    scored = context.scored
    name = f"{scored.content_hash} {corruption} {severity}" if severity else scored.content_hash
    images = LazyImages(
        lambda i: robustness.corrupt_image(scored.images[i], corruption, severity, i),
        len(scored.images),
    )
    image_NE = context.cache.images(f"{name} at {robustness.SHORT_SIDE}", images)
    embeddings = dataclasses.replace(context.embeddings, image_NE=image_NE)
    found = _zero_shot(context, embeddings)
    if scored.captions is not None:
        found += retrieval(embeddings, context.options.protocol)[:1]
    return found


def _perturbed(context: Context, perturbation: str, severity: int) -> list[Measured]:
    captions = context.scored.captions or []
    texts = [
        robustness.perturb_caption(text, perturbation, severity, hash64(text) % 2**32)
        for text in captions
    ]
    embeddings = dataclasses.replace(context.embeddings, text_NE=context.cache.texts(texts))
    return retrieval(embeddings, context.options.protocol)[1:]


SHOWN = {"accuracy", "auroc", "recall@1", "recall@10"}  # of the metrics, what drops are told of


def _drops(name: str, clean: list[Measured], harder: list[list[Measured]]) -> list[Measured]:
    """SHOWN metrics at each severity, and mean_relative_drop: mean of (clean - it) / clean."""

    def metrics(of_severities, before, units):
        was = before.metrics(units)
        scores = [measured.metrics(units) for measured in of_severities]
        found = {}
        for metric in sorted(SHOWN & was.keys()):
            values = [score[metric] for score in scores]
            found |= {f"{metric}_severity_{s}": v for s, v in enumerate([was[metric], *values])}
            drop = (was[metric] - np.mean(values)) / was[metric] if was[metric] else np.nan
            found[f"{metric}_mean_relative_drop"] = float(drop)
        return found

    return [
        Measured(
            name=f"{name}/{before.name}", num_units=before.num_units, group_U=before.group_U,
            method=before.method,
            metrics=functools.partial(metrics, [one[i] for one in harder], before),
        )
        for i, before in enumerate(clean)
    ]  # fmt: skip


EVALUATORS: dict[str, Callable[[Context], list[Measured]]] = {
    "retrieval": _retrieval,
    "zero_shot": _zero_shot,
    "probe": _probe,
    "representation": _representation,
    "robustness": _robustness,
}
