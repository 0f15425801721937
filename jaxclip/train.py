"""Trains a CLIP or SigLIP model.

  python -m jaxclip.train --config=configs/NAME.py --workdir=RUN [--config.FIELD=VALUE ...]

Run the same command again to resume. Exit codes: 0 done; 2 a mistake in what was asked, or a loss that
is not finite, told in one line; 75 stopped by SIGTERM after saving.
"""

import dataclasses
import importlib.metadata
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_flags

from jaxclip import command
from jaxclip.checkpoint import Checkpoints
from jaxclip.config import TrainConfig, differences, to_dict
from jaxclip.data.pipeline import Batch, Source, TrainInput, open_sources
from jaxclip.data.record import write_atomically
from jaxclip.data.text import Tokenizer, load_tokenizer
from jaxclip.evals.suite import make_evaluate, model_inputs, score_lines
from jaxclip.metrics import MetricWriter, Progress, read_metrics
from jaxclip.models import clip
from jaxclip.optimizer import make_optimizer, make_schedule
from jaxclip.sharding import (
    batch_sharding,
    check_batch,
    gather_to_hosts,
    initialize_distributed,
    make_mesh,
    put_batch,
    tree_sharding,
)
from jaxclip.train_step import init_state, make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file with get_config() -> TrainConfig.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: made, or resumed from.")


def main(argv: Sequence[str]) -> int:
    del argv
    if _CONFIG.value is None or not _WORKDIR.value:
        raise ValueError("--config and --workdir must both be set: --config=configs/NAME.py --workdir=RUN.")
    _CONFIG.value.validate()  # before any device is touched
    say(initialize_distributed())
    finished = train(_CONFIG.value, _WORKDIR.value)
    return 0 if finished else command.EXIT_PREEMPTED


def say(*lines: str) -> None:
    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)


def train(config: TrainConfig, workdir: epath.PathLike) -> bool:
    """Trains to the end, from the newest checkpoint in `workdir` if there is one.

    Returns:
      True when done, False when stopped by SIGTERM; then all is saved.
    Raises:
      ValueError, FileNotFoundError: a wrong config, dataset or workdir; before training starts.
      FloatingPointError: the loss or the gradient is not finite.
    """
    config.validate()
    workdir = epath.Path(workdir).absolute()
    mesh = make_mesh(config.sharding)
    check_batch(config.batch_size, mesh)

    # Data and tokenizer
    sources = open_sources(config.data, "train")
    tokenizer = open_tokenizer(config, sources)
    inputs = model_inputs(config, tokenizer)
    claim_workdir(workdir, config, sources, tokenizer)
    samples_per_epoch = sum(len(source.positions) for source in sources)
    sizes = {"batch_size": config.batch_size, "samples_per_epoch": samples_per_epoch}
    total_steps = config.duration.resolve(**sizes, total_steps=None)
    evaluate = make_evaluate(config, inputs, tokenizer, mesh) if config.eval.split else lambda _: {}

    # Model and optimizer: the state is made where it will live
    params_shape = jax.eval_shape(lambda: clip.init(config.model, inputs, jax.random.key(0)))
    schedule = make_schedule(config.optimizer, **sizes, total_steps=total_steps)
    optimizer = make_optimizer(config.optimizer, schedule, params_shape)
    state_shape = jax.eval_shape(lambda: init_state(config, inputs, optimizer))
    state_sharding = tree_sharding(state_shape, mesh)
    train_step = jax.jit(
        make_train_step(config, inputs, optimizer, schedule),
        in_shardings=(state_sharding, batch_sharding(mesh)),
        out_shardings=(state_sharding, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
    flops = 3 * sum(clip.flops_per_pair(config.model, inputs).values())
    progress = Progress(
        total_steps=total_steps, batch_size=config.batch_size, train_flops_per_pair=flops
    )
    say(*describe(config, sources, tokenizer, params_shape, total_steps, flops, progress.peak_source))

    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        # Resume or start
        step, next_sample = checkpoints.latest_step() or 0, 0
        if step:
            like = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state_shape, state_sharding
            )
            state, next_sample = checkpoints.restore(step, like)
            say(f"Resumed from step {step:,}, sample {next_sample:,}.")
        else:
            state = jax.jit(lambda: init_state(config, inputs, optimizer), out_shardings=state_sharding)()
        writer = MetricWriter(workdir, config.log, step=step, run_config=to_dict(config))
        stop = StopSignal()
        train_input = TrainInput(
            sources, config.data, tokenizer, seed=config.seed, batch_size=config.batch_size,
            host=jax.process_index(), num_hosts=jax.process_count(), next_sample=next_sample,
        )  # fmt: skip

        with train_input:
            progress.restart(step)
            unread = None  # the last step's metrics: read while the device works on the next step
            ahead = None  # the next batch, already on its way to the device
            stopped = False
            while step < total_steps and not stopped:
                batch, on_device = ahead or fetch(train_input, mesh, progress)
                state, metrics = train_step(state, on_device)
                step += 1
                if unread:
                    report(*unread, config, writer, progress, checkpoints)
                unread = (step, metrics, batch)
                ahead = fetch(train_input, mesh, progress) if step < total_steps else None

                stopped = stop.requested(step)
                last = step == total_steps
                is_eval = last or (config.eval.every and step % config.eval.every == 0)
                is_save = last or stopped or step % config.checkpoint.every == 0
                if is_eval or is_save:
                    # a step is evaluated before it is saved, so that resuming repeats or has both
                    report(*unread, config, writer, progress, checkpoints)
                    unread, start = None, time.perf_counter()
                    if is_eval:
                        scores = evaluate(state.ema_params if config.eval.ema else state.params)
                        writer.write(step, scores)
                        say(*(f"  {line}" for line in score_lines(scores)))
                    if is_save:
                        checkpoints.save(step, state, step * config.batch_size)
                    progress.skip(time.perf_counter() - start)
        writer.close()
    if stopped and step < total_steps:
        say(f"Stopped by SIGTERM; step {step:,} is saved. Run the same command again to go on.")
        return False
    say(summarize(workdir, config, step))
    return True


def fetch(train_input: TrainInput, mesh, progress: Progress) -> tuple[Batch, dict[str, jax.Array]]:
    """The next batch, on the host and on its way to the devices."""
    start = time.perf_counter()
    batch = next(train_input)
    progress.waited(time.perf_counter() - start)
    return batch, put_batch({key: batch[key] for key in ("image", "tokens")}, mesh)


def report(
    step: int,
    metrics: dict[str, jax.Array],
    batch: Batch,
    config: TrainConfig,
    writer: MetricWriter,
    progress: Progress,
    checkpoints: Checkpoints,
) -> None:
    """Reads a step's metrics off the device and writes them. Raises FloatingPointError."""
    scalars = {name: float(value) for name, value in metrics.items()}
    if not all(np.isfinite(scalars[name]) for name in ("loss", "grad_norm")):
        stop_at_nonfinite(step, scalars, batch, config, writer, checkpoints)
    samples = {"samples_seen": step * config.batch_size}
    if step % config.log.every == 0:
        rates = progress.scalars(step)
        say(progress.line(step, scalars["loss"], rates))
        samples |= {k: v for k, v in rates.items() if k != "seconds_left"}
        progress.restart(step)
    writer.write(step, scalars | samples)


def stop_at_nonfinite(step, scalars, batch, config, writer, checkpoints) -> None:
    """Names the step, the batch's records and the last good checkpoint, and gives up."""
    refs = gather_to_hosts(np.stack([batch["source"], batch["record"]], axis=1)).tolist()
    writer.write(step, {k: str(v) for k, v in scalars.items()} | {"not_finite": 1})
    file = writer.workdir / f"not_finite_step_{step}.json"
    records = {path: [r for s, r in refs if s == i] for i, path in enumerate(config.data.path)}
    if jax.process_index() == 0:
        write_atomically(file, json.dumps({"step": step, "records": records}))
    good = checkpoints.latest_step()
    shown = ", ".join(str(r) for _, r in refs[:4])
    raise FloatingPointError(
        f"loss ({scalars['loss']}) or gradient norm ({scalars['grad_norm']}) of step {step} is not finite. "
        f"Records of its batch: {shown}, ... ({len(refs)}, listed in {file}). Last good checkpoint: "
        f"{'none' if good is None else f'step {good}'}. Lower optimizer.peak_lr, set "
        "optimizer.grad_clip_norm, or lengthen optimizer.warmup."
    )


class StopSignal:
    """Whether SIGTERM has asked this job to stop; all hosts agree on the step."""

    def __init__(self):
        self._received = False
        if jax.process_count() == 1:  # else jax's preemption service listens
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_) -> None:
        self._received = True

    def requested(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)


def open_tokenizer(config: TrainConfig, sources: Sequence[Source]) -> Tokenizer:
    """The configured tokenizer, or the one that the first dataset brings along."""
    chosen = config.data.tokenizer
    if not chosen.path:
        file = sources[0].dataset.path / "tokenizer.json"
        if not file.exists():
            raise FileNotFoundError(
                f"data.tokenizer.path is empty, and {sources[0].dataset.path} has no tokenizer.json. Set "
                "it, or make one: python -m data_pipelines.tokenizer --input=DATASET --out=FILE."
            )
        chosen = dataclasses.replace(chosen, path=str(file))
    return load_tokenizer(chosen)


def claim_workdir(
    workdir: epath.Path, config: TrainConfig, sources: Sequence[Source], tokenizer: Tokenizer
) -> None:
    """Writes what the run is into a new workdir, or checks that a used one holds the same run.

    Raises:
      ValueError: the workdir belongs to another run; names the fields, dataset or tokenizer.
    """
    identity = {
        "datasets": [source.dataset.content_hash for source in sources],
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
    if jax.process_index() == 0:
        (workdir / "tokenizer").mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / "tokenizer" / "tokenizer.json", tokenizer._content)
        write_atomically(run_file, json.dumps(identity | environment(), indent=1))
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
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
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
    peak_source: str,
) -> list[str]:
    """What is about to happen, a line a fact."""
    samples = total_steps * config.batch_size
    lines = []
    for source in sources:
        records = len(source.positions)
        without = f", {source.without_text:,} without text left out" if source.without_text else ""
        lines.append(
            f"{source.dataset.path}: {records:,} training pairs{without}; "
            f"{source.weight:.1%} of the samples, {samples * source.weight / records:.2f} epochs"
        )
    towers = {t: sum(x.size for x in jax.tree.leaves(params_shape[t])) for t in ("image", "text")}
    return lines + [
        f"Tokenizer: {tokenizer.vocab_size:,} tokens, "
        f"context length {tokenizer.context_length}",
        f"Model: {sum(towers.values()) / 1e6:.1f} M parameters (image {towers['image'] / 1e6:.1f}, text "
        f"{towers['text'] / 1e6:.1f}); {train_flops_per_pair / 1e9:.2f} GFLOP a pair and step",
        f"Run: {total_steps:,} steps of {config.batch_size:,} pairs = {samples:,} samples seen; "
        f"loss {config.loss.name}; optimizer {config.optimizer.name}",
        f"Peak for MFU: {peak_source}",
    ]


def summarize(workdir: epath.Path, config: TrainConfig, step: int) -> str:
    """One page on a finished run; also left as WORKDIR/summary.md."""
    metrics = read_metrics(workdir)
    train_lines = [line for line in metrics if "loss" in line]
    scores: dict[str, Any] = {}
    for line in metrics:
        if "loss" not in line:
            scores = {k: v for k, v in line.items() if k != "step"}
    rates = [line["pairs_per_second"] for line in train_lines if "pairs_per_second" in line]
    tail = [line["loss"] for line in train_lines[-20:]]
    text = "\n".join(
        [
            f"# Run {workdir.name}",
            "",
            f"Finished: {step:,} steps, {step * config.batch_size:,} samples seen.",
            f"Loss: {train_lines[0]['loss']:.4f} at first, {np.mean(tail):.4f} over the last {len(tail)} "
            f"steps; chance is log(batch) = {np.log(config.batch_size):.4f} for the softmax loss.",
            f"Speed: {np.median(rates):,.0f} pairs/s (median)." if rates else "",
            "",
            f"## Scores after step {step:,}",
            "",
            *(f"- {line}" for line in score_lines(scores)),
            "",
            "## Where things are",
            "",
            f"- run: {workdir}",
            "- metrics.jsonl: every step; tensorboard/: the same as curves",
            "- checkpoints/: the newest is the finished model; config.json, run.json, tokenizer/: what made it",
            f"- score it again: python -m jaxclip.evaluate --workdir={workdir} --split=test",
            "",
        ]
    )
    if jax.process_index() == 0:
        write_atomically(workdir / "summary.md", text)
    return text


if __name__ == "__main__":
    command.run(main)
