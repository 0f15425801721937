"""Trains a CLIP or SigLIP model.

  python -m jaxclip.train --config=configs/NAME.py --workdir=RUN [--config.FIELD=VALUE ...]

Run the same command again to resume. Exit codes: 0 done; 2 a mistake in what was asked, or a loss
that is not finite, told in one line; 75 stopped by SIGTERM after saving.
"""

import json
import signal
import time
from collections.abc import Sequence
from typing import NoReturn

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import config_flags

from jaxclip import command
from jaxclip.checkpoint import Checkpoints
from jaxclip.config import TrainConfig, to_dict
from jaxclip.data.files import write_atomically
from jaxclip.data.pipeline import Batch, TrainInput
from jaxclip.data.sources import open_sources
from jaxclip.evals.suite import make_evaluate
from jaxclip.metrics import MetricWriter, Progress, read_scores, score_lines
from jaxclip.optimizer import make_schedule
from jaxclip.sharding import (
    check_batch,
    gather_to_hosts,
    initialize_distributed,
    make_mesh,
    put_batch,
)
from jaxclip.start import model_inputs, start_params
from jaxclip.train_step import (
    StepBatch,
    make_training,
    start_from,
    step_batch,
    train_flops_per_pair,
)
from jaxclip.workdir import claim_workdir, describe, open_tokenizer, summarize

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file with get_config() -> TrainConfig."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: made, or resumed from.")


def main(argv: Sequence[str]) -> int:
    del argv
    if _CONFIG.value is None or not _WORKDIR.value:
        raise ValueError(
            "--config and --workdir must be set: --config=configs/NAME.py --workdir=RUN."
        )
    _CONFIG.value.validate()  # before any device is touched
    say(initialize_distributed())
    finished = train(_CONFIG.value, _WORKDIR.value)
    return 0 if finished else command.EXIT_PREEMPTED


def say(*lines: str) -> None:
    """Prints, in the first process only."""
    if lines and jax.process_index() == 0:
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
    check_batch(
        mesh,
        batch_size=config.batch_size,
        contrastive_batch_size=config.contrastive_batch_size,
        micro_batch_size=config.micro_batch_size,
    )

    # Data and tokenizer
    sources = open_sources(config.data, "train")
    tokenizer = open_tokenizer(config, sources)
    inputs = model_inputs(config, tokenizer)
    samples_per_epoch = sum(len(source.positions) for source in sources)
    sizes = {"batch_size": config.batch_size, "samples_per_epoch": samples_per_epoch}
    total_steps = config.duration.resolve(**sizes, total_steps=None)
    evaluate = make_evaluate(config, inputs, tokenizer, mesh)

    # Model and optimizer
    schedule = make_schedule(config.optimizer, **sizes, total_steps=total_steps)
    training = make_training(config, inputs, schedule, mesh)
    flops = train_flops_per_pair(config, inputs, training.state.params)
    progress = Progress(
        total_steps=total_steps, batch_size=config.batch_size, train_flops_per_pair=flops
    )
    claim_workdir(workdir, config, sources, tokenizer)
    say(*describe(config, sources, tokenizer, training.state.params, total_steps, flops))
    say(f"Peak for MFU: {progress.peak_source}")

    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        # Start or resume
        step, next_sample = checkpoints.latest_step() or 0, 0
        if step:
            state, next_sample = checkpoints.restore(step, training.state)
            say(f"Resumed from step {step:,}, sample {next_sample:,}.")
        else:
            state = training.init()
            if config.init or config.init_image or config.init_text:
                params, lines = start_params(config, tokenizer, state.params)
                shardings = jax.tree.map(lambda x: x.sharding, training.state)
                state = jax.device_put(start_from(state, params), shardings)
                say(*lines)

        def report(step: int, metrics: dict[str, jax.Array], batch: Batch) -> None:
            """Reads a step's metrics off the device, which waits for it, and writes them."""
            scalars = {name: float(value) for name, value in metrics.items()}
            if not np.isfinite([scalars["loss"], scalars["grad_norm"]]).all():
                stop_at_nonfinite(step, scalars, batch, config, workdir, checkpoints)
            scalars["samples_seen"] = step * config.batch_size
            if step % config.log.every == 0 or step == total_steps:
                rates = progress.rates(step)
                say(progress.line(step, scalars["loss"], rates))
                scalars |= rates
            writer.write(step, scalars)
            if step == first_step:
                progress.restart(step)  # compilation is no training

        def is_scored(step: int) -> bool:
            every = config.eval.every
            return evaluate is not None and (
                step == total_steps or (every > 0 and step % every == 0)
            )

        def score(step: int) -> None:
            assert evaluate is not None
            params = state.ema_params if config.eval.ema else state.params
            assert params is not None
            scores = evaluate(params)
            writer.write(step, scores)
            say(*(f"  {line}" for line in score_lines(scores)))

        with (
            StopSignal() as stop,
            MetricWriter(workdir, config.log, step=step, run_config=to_dict(config)) as writer,
            TrainInput(
                sources,
                config.data,
                tokenizer,
                seed=config.seed,
                batch_size=config.batch_size,
                host=jax.process_index(),
                num_hosts=jax.process_count(),
                next_sample=next_sample,
            ) as train_input,
        ):
            if step and is_scored(step) and not read_scores(workdir, step):
                score(step)  # it was stopped between saving and this
            first_step = step + 1
            progress.restart(step)
            unread = None  # metrics of the last step: read while the device works on the next one
            ahead = None  # the next batch, already on its way to the device
            stopped = False
            while step < total_steps and not stopped:
                batch, on_device = ahead or fetch(train_input, mesh, progress)
                state, metrics = training.step(state, on_device)
                step += 1
                if unread:
                    report(*unread)
                unread = step, metrics, batch
                ahead = fetch(train_input, mesh, progress, metrics) if step < total_steps else None

                stopped = stop.requested(step)
                is_saved = step == total_steps or stopped or step % config.checkpoint.every == 0
                if is_saved or is_scored(step):
                    report(*unread)
                    unread, start = None, time.perf_counter()
                    if is_saved:
                        checkpoints.save(step, state, step * config.batch_size)
                    if is_scored(step) and not stopped:  # there may be little time left
                        score(step)
                    progress.skip(time.perf_counter() - start)
    if stopped:
        say(f"Stopped by SIGTERM; step {step:,} is saved. Run the same command again to go on.")
        return False
    say(summarize(workdir, config, step, sources, flops))
    return True


def fetch(
    train_input: TrainInput,
    mesh: Mesh,
    progress: Progress,
    running: dict[str, jax.Array] | None = None,
) -> tuple[Batch, StepBatch]:
    """The next batch, on the host and on its way to the devices.

    Args:
      running: metrics of the step under way: while it runs, the devices do not wait for data.
    """
    start = time.perf_counter()
    batch = next(train_input)
    if running is None or running["loss"].is_ready():  # pyright: ignore[reportAttributeAccessIssue]
        progress.waited(time.perf_counter() - start)
    return batch, put_batch(step_batch(batch), mesh)


def stop_at_nonfinite(
    step: int,
    scalars: dict[str, float],
    batch: Batch,
    config: TrainConfig,
    workdir: epath.Path,
    checkpoints: Checkpoints,
) -> NoReturn:
    """Raises FloatingPointError naming the step, its records and the last good checkpoint."""
    refs = gather_to_hosts(np.stack([batch["source"], batch["record"]], axis=1)).tolist()
    records = {path: [r for s, r in refs if s == i] for i, path in enumerate(config.data.path)}
    file = workdir / f"not_finite_step_{step}.json"
    if jax.process_index() == 0:
        write_atomically(file, json.dumps({"step": step, "records": records}))
    # the parameters of step - 1 are those that failed
    good_steps = [saved for saved in checkpoints.steps() if saved < step - 1]
    good = f"step {good_steps[-1]}" if good_steps else "none"
    raise FloatingPointError(
        f"loss ({scalars['loss']}) or gradient norm ({scalars['grad_norm']}) of step {step} is not "
        f"finite. Records of its batch: {', '.join(str(r) for _, r in refs[:4])}, ... (all "
        f"{len(refs)} in {file}). Last good checkpoint: {good}. "
        "Begin anew in another --workdir with a lower optimizer.peak_lr, with "
        "optimizer.grad_clip_norm, or with a longer optimizer.warmup."
    )


class StopSignal:
    """Whether SIGTERM has asked this job to stop; all hosts agree on the step to stop at."""

    def __init__(self):
        self._received = False
        # with several processes, jax's preemption service listens to the signal
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "StopSignal":
        if self._alone:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_) -> None:
        self._received = True

    def requested(self, step: int) -> bool:
        return (
            self._received if self._alone else multihost_utils.reached_preemption_sync_point(step)
        )


if __name__ == "__main__":
    command.run(main)
