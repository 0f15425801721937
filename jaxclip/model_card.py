"""The README.md of an exported model: what it is, what it saw, how it scores, under which terms."""

import collections
import json
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from jaxclip.config import TrainConfig, load_config
from jaxclip.data.sources import open_sources, seen_of
from jaxclip.data.text import Tokenizer
from jaxclip.evals import results
from jaxclip.metrics import read_metrics, score_lines
from jaxclip.models import clip
from jaxclip.models.pretrained.family import Family
from jaxclip.start import is_run

OPENED = {
    "hf": ("transformers", 'transformers.AutoModel.from_pretrained("DIR")'),
    "openclip": ("open_clip", 'open_clip.create_model_and_transforms("local-dir:DIR")'),
    "big_vision": ("big_vision", "the checkpoint.npz of big_vision's two_towers model"),
}


def model_card(
    family: Family,
    params: clip.Params,
    tokenizer: Tokenizer | None,
    to: str,
    source: str,
    notes: Sequence[str],
) -> str:
    """Markdown; what a converted checkpoint does not say is left out."""
    library, opened = OPENED[to]
    head = ["---", f"library_name: {library}", "pipeline_tag: zero-shot-image-classification",
            "license: other  # see Licence below",
            "tags: [clip, biomedical, jaxclip]", "---", "",
            f"# {epath.Path(source).name}", "",
            f"A dual encoder of images and texts. Open it with `{opened}`, or with "
            '`jaxclip.load("DIR")`.', ""]  # fmt: skip
    if is_run(source):
        about, licences = _training(source)
    else:
        about = ["## Training", "", f"- converted from {family.name}; see there"]
        licences = [f"that of the model it was converted from ({epath.Path(source).name})"]
    lines = [
        *head,
        *_model(family, params),
        "",
        *_preprocessing(family, tokenizer, notes),
        "",
        *about,
    ]
    lines += ["", "## Licence", "", "Nobody has chosen one for these weights: fill in `license` "
              "above. They come from data and weights under these terms:", ""]  # fmt: skip
    return "\n".join([*lines, *(f"- {line}" for line in licences)]) + "\n"


def _model(family: Family, params: clip.Params) -> list[str]:
    model = family.model
    lines = ["## Model", ""]
    for tower in ("image", "text"):
        count = sum(np.size(x) for x in jax.tree.leaves(params[tower]))
        kind = type(getattr(model, tower)).__name__.removesuffix("Config")
        lines.append(f"- {tower} tower: {kind}, {count / 1e6:.1f} M parameters")
    scale = float(np.exp(params["logit_scale"]))
    return lines + [f"- embeddings of {model.embed_dim} numbers, unit norm; logit scale "
                    f"{scale:.2f}, bias {float(params['logit_bias']):.2f}"]  # fmt: skip


def _preprocessing(family: Family, tokenizer: Tokenizer | None, notes: Sequence[str]) -> list[str]:
    image = family.image
    how = "patches of the image's aspect" if image.naflex_patch_size else image.resize
    lines = ["## Preprocessing", "",
             f"- images: {image.size} px, {how}, {image.interpolation}, then mean {image.mean} and "
             f"standard deviation {image.std} of pixels in [0, 1]"]  # fmt: skip
    if tokenizer:
        lines.append(
            f"- texts: {tokenizer.kind} vocabulary of {tokenizer.vocab_size:,}, cleaned by "
            f"{tokenizer.clean!r}, {tokenizer.context_length} tokens, padded with "
            f"{tokenizer.special_tokens['pad']!r}"
        )
    return lines + [f"- {note}" for note in notes]


def _training(workdir: str) -> tuple[list[str], list[str]]:
    """Lines on data, training and scores; lines on licences."""
    config, metrics = load_config(workdir), read_metrics(workdir)
    run = json.loads((epath.Path(workdir) / "run.json").read_text())
    step = max((line["step"] for line in metrics), default=0)
    samples = step * config.batch_size
    data, licences = _data(config, samples, run["datasets"])
    lines = ["## Data", "", *data, "", "## Training", ""]
    lines.append(f"- samples seen: {samples:,} in {step:,} steps of {config.batch_size:,} pairs")
    started = [p for p in (config.init, config.init_image, config.init_text) if p]
    lines += [f"- started from: {epath.Path(path).name}" for path in started]
    lines.append(
        f"- loss: {config.loss.name}; optimizer: {config.optimizer.name}, peak learning rate "
        f"{config.optimizer.peak_lr:g}, weight decay {config.optimizer.weight_decay:g}"
    )
    if config.eval.ema:
        lines.append(f"- parameters: averaged, decay {config.optimizer.ema_decay}")
    commit = run["starts"][-1]["commit"]
    lines.append(f"- jaxclip {run['starts'][-1]['versions']['jaxclip']}, commit {commit}")
    scores = [line for line in metrics if "loss" not in line]
    for line in scores[-1:]:
        values = {k: v for k, v in line.items() if k != "step"}
        lines += ["", f"## Scores after step {line['step']:,}", ""]
        lines += [f"- {text}" for text in score_lines(values)]
    lines += _evaluations(epath.Path(workdir))
    terms = [f"the weights that it started from: {epath.Path(path).name}" for path in started]
    return lines, licences + terms


def _evaluations(workdir: epath.Path) -> list[str]:
    """Lines on what jaxclip.evaluate wrote to the run's folder of this run: sets, intervals."""
    lines = []
    for folder in sorted(file.parent for file in workdir.glob("evaluation/*/results.parquet")):
        rows = [r for r in results.read(folder) if r["model"].split(" step ")[0] == workdir.name]
        lines += ["", f"## Evaluation: {folder.name}", ""] if rows else []
        lines += [  # "  metric: value" below "model on set: evaluator"
            line.replace("  ", "  - ", 1) if line.startswith("  ") else f"- {line}"
            for line in results.summary(rows)
        ]
    return lines


def _data(config: TrainConfig, samples: int, hashes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines on each dataset and its licences, if it is still where it was."""
    try:
        sources = open_sources(config.data, "train")
    except (FileNotFoundError, ValueError):
        lines = [f"- {epath.Path(path).name}, content hash {content[:12]}"
                 for path, content in zip(config.data.path, hashes, strict=False)]  # fmt: skip
        return lines, [f"the data: {epath.Path(path).name}" for path in config.data.path]
    lines, licences = [], []
    for source, seen in zip(sources, seen_of(sources, samples), strict=True):
        name = epath.Path(source.path).name
        lines.append(
            f"- {name}, content hash {source.content_hash[:12]}: {len(source.positions):,} "
            f"training pairs, {seen.samples:,} samples seen ({seen.epochs:.2f} epochs)"
        )
        column = source.dataset.columns(["licence"])["licence"].to_numpy(zero_copy_only=False)
        counts = collections.Counter(column[source.positions]).most_common(8)
        terms = ", ".join(f"{licence or 'not said'} ({n:,})" for licence, n in counts)
        licences.append(f"the images and texts of {name}: {terms}")
    return lines, licences
