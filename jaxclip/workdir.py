"""The folder of a run: what it says about the run, and the check that it is this one's.

WORKDIR/config.json      every field of the config
        run.json         hashes of the data and tokenizer, versions, commit, devices, command
        tokenizer/       a copy of the vocabulary
        metrics.jsonl    a line a step, a line an evaluation     tensorboard/   the same
        checkpoints/     see checkpoint.py
        summary.md       one page, when done
"""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxclip import command
from jaxclip.config import TrainConfig, differences, to_dict
from jaxclip.data.files import write_atomically
from jaxclip.data.sources import Source, seen_of
from jaxclip.data.text import Tokenizer, TokenizerConfig, load_tokenizer
from jaxclip.data.tfds import TfdsDataset
from jaxclip.metrics import read_metrics, read_scores, score_lines
from jaxclip.models import clip


def open_tokenizer(config: TrainConfig, sources: Sequence[Source]) -> Tokenizer:
    """The configured tokenizer, or the one that the first dataset brings along."""
    chosen = config.data.tokenizer
    if not chosen.path:
        file = sources[0].dataset.path / "tokenizer.json"
        if not file.exists():
            raise FileNotFoundError(
                f"data.tokenizer.path is empty, and {sources[0].dataset.path} has no "
                "tokenizer.json. Set it, or make one: "
                "python -m data_pipelines.tokenizer --input=DATASET --out=FILE."
            )
        chosen = dataclasses.replace(chosen, path=str(file))
    return load_tokenizer(chosen)


def run_tokenizer(workdir: epath.PathLike, config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a run keeps a copy of."""
    (file,) = (epath.Path(workdir) / "tokenizer").iterdir()
    return load_tokenizer(dataclasses.replace(config, path=str(file)))


def claim_workdir(
    workdir: epath.Path, config: TrainConfig, sources: Sequence[Source], tokenizer: Tokenizer
) -> None:
    """Writes what the run is into a new workdir, or checks that a used one holds the same run.

    Raises:
      ValueError: the workdir belongs to another run; names the fields, dataset or tokenizer.
    """
    identity = {
        "datasets": [source.content_hash for source in sources],
        "tokenizer": tokenizer.fingerprint,
    }
    config_file, run_file = workdir / "config.json", workdir / "run.json"
    if config_file.exists() and run_file.exists():
        changed = differences(json.loads(config_file.read_text()), to_dict(config))
        old = json.loads(run_file.read_text())
        changed += [f"content of {name}" for name in identity if old[name] != identity[name]]
        if changed:
            raise ValueError(
                f"--workdir ({workdir}) holds a run of another config: {'; '.join(changed)}. "
                "Use another --workdir, or the old config."
            )
    elif (workdir / "checkpoints").exists():
        raise ValueError(
            f"--workdir ({workdir}) has checkpoints but no config.json and run.json, so nobody can "
            "tell of which run. Use another --workdir, or bring those files back."
        )
    if jax.process_index() == 0:
        (workdir / "tokenizer").mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / "tokenizer" / tokenizer.file_name, tokenizer.content)
        # a run that goes on with other versions or devices does not forget the earlier ones
        earlier = json.loads(run_file.read_text())["starts"] if run_file.exists() else []
        run = identity | {"starts": [*earlier, environment()]}
        write_atomically(run_file, json.dumps(run, indent=1))
        write_atomically(config_file, json.dumps(to_dict(config), indent=1))


def environment() -> dict[str, Any]:
    """Versions, commit and devices: what else decided the run."""
    packages = ("jaxclip", "jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    git = ["git", "-C", str(command.ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(
            git, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return {
        "command": sys.argv,
        "commit": commit,
        "python": platform.python_version(),
        "versions": versions,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
    }


def describe(
    config: TrainConfig,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    params_shape: clip.Params,
    total_steps: int,
    train_flops_per_pair: float,
) -> list[str]:
    """What is about to happen, a line a fact."""
    samples = total_steps * config.batch_size
    lines = []
    for source, seen in zip(sources, seen_of(sources, samples), strict=True):
        records = len(source.positions)
        without = f", {source.without_text:,} without text left out" if source.without_text else ""
        lines.append(
            f"{source.path}: {records:,} training pairs{without}; "
            f"{source.weight:.1%} of the samples, {seen.epochs:.2f} epochs"
        )
        if isinstance(source.dataset, TfdsDataset) and (left_out := source.dataset.left_out):
            lines.append(f"{source.path}: left out are the splits {', '.join(left_out)}")
    image, text = (
        sum(x.size for x in jax.tree.leaves(params_shape[tower])) / 1e6
        for tower in ("image", "text")
    )
    pairs = sum(len(source.positions) for source in sources)
    if config.contrasted > pairs:
        lines.append(
            f"Warning: {config.contrasted:,} pairs are contrasted and there are {pairs:,}: a batch "
            "holds pairs twice, as negatives of each other. A smaller batch_size, or "
            "loss.ignore=('same_image',), avoids that."
        )
    return lines + [
        f"Tokenizer: {tokenizer.file_name}, {tokenizer.vocab_size:,} tokens, "
        f"context length {tokenizer.context_length}",
        f"Model: {image + text:.1f} M parameters (image {image:.1f}, text {text:.1f}); "
        f"{train_flops_per_pair / 1e9:.2f} GFLOP a pair and step",
        f"Run: {total_steps:,} steps of {config.batch_size:,} pairs = {samples:,} samples seen; "
        f"loss {config.loss.name}; optimizer {config.optimizer.name}",
        f"Batches: optimizer {config.batch_size:,}, contrastive {config.contrasted:,}, "
        f"in memory {config.micro_batch_size or config.batch_size:,} pairs at a time",
    ]


def budget_lines(sources: Sequence[Source], samples: int, train_flops_per_pair: float) -> list[str]:
    """What a run has cost and seen: samples, unique pairs and epochs of each source, FLOPs."""
    seen = seen_of(sources, samples)
    unique = sum(s.unique_pairs for s in seen)
    lines = [
        f"Budget: {samples:,} samples seen of {unique:,} unique pairs; "
        f"{samples * train_flops_per_pair:.3g} FLOPs."
    ]
    return lines + [
        f"- {source.path}: {s.samples:,} samples, {s.unique_pairs:,} unique pairs of "
        f"{len(source.positions):,}, {s.epochs:.2f} epochs"
        for source, s in zip(sources, seen, strict=True)
    ]


def summarize(
    workdir: epath.Path,
    config: TrainConfig,
    step: int,
    sources: Sequence[Source],
    train_flops_per_pair: float,
) -> str:
    """One page on a finished run; also left as WORKDIR/summary.md."""
    train_lines = [line for line in read_metrics(workdir) if "loss" in line]
    rates = [line["pairs_per_second"] for line in train_lines if "pairs_per_second" in line]
    tail = [line["loss"] for line in train_lines[-20:]]
    chance = (
        f" (chance {np.log(config.contrasted):.4f})"
        if config.loss.name == "softmax" and not config.loss.ignore
        else ""
    )
    text = "\n".join(
        [
            f"# Run {workdir.name}",
            "",
            f"Finished: {step:,} steps, {step * config.batch_size:,} samples seen.",
            f"Batches: optimizer {config.batch_size:,}, contrastive {config.contrasted:,} pairs.",
            *budget_lines(sources, step * config.batch_size, train_flops_per_pair),
            f"Loss: {train_lines[0]['loss']:.4f} at first, {np.mean(tail):.4f} in the mean of the "
            f"last {len(tail)} steps{chance}.",
            f"Speed: {np.median(rates):,.0f} pairs/s (median).",
            "",
            f"## Scores after step {step:,}",
            "",
            *(f"- {line}" for line in score_lines(read_scores(workdir, step))),
            "",
            "## Where things are",
            "",
            f"- the run: {workdir}",
            "- every step: metrics.jsonl; as curves: tensorboard --logdir=RUN/tensorboard",
            "- the model: the newest of checkpoints/",
            "- what made it: config.json, run.json, tokenizer/",
            f"- scores on the test split: python -m jaxclip.evaluate --workdir={workdir}",
            "",
        ]
    )
    if jax.process_index() == 0:
        write_atomically(workdir / "summary.md", text)
    return text
