"""What a run reports: metric files, the progress line, and how fast the hardware could go."""

import dataclasses
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from jaxclip.data.files import write_atomically

# Dense 16-bit matrix products, FLOP/s a device, from the makers' data sheets; the first name that
# is part of jax's device_kind wins.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,  # float16: it has no bfloat16
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,  # a device is a core: half a chip
    "TPU v2": 22.5e12,
}


@dataclasses.dataclass(slots=True, kw_only=True)
class LogConfig:
    """Where metrics go. WORKDIR/metrics.jsonl is always written, a line a step."""

    every: int = 50  # steps between progress lines
    tensorboard: bool = True  # WORKDIR/tensorboard
    wandb_project: str = ""  # "" = no Weights & Biases

    def validate(self, name: str = "log") -> None:
        if self.every < 1:
            raise ValueError(f"{name}.every ({self.every}) must be at least 1.")


def measured_peak_flops(size: int, dtype: str, repeats: int = 5) -> float:
    """FLOP/s of a matrix product on one device: the best of a few, for unlisted devices."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def peak_flops() -> tuple[float, str]:
    """(FLOP/s of all devices together, where the figure is from)."""
    devices = jax.devices()
    for name, flops in PEAK_FLOPS.items():
        if name in devices[0].device_kind:
            return flops * len(devices), f"{len(devices)} x {name}, data sheet, 16 bit"
    if devices[0].platform == "cpu":  # devices share the cores
        return measured_peak_flops(1024, "float32"), "this CPU, measured, float32 1024^3 product"
    flops = measured_peak_flops(8192, "bfloat16") * len(devices)
    return flops, f"{len(devices)} x {devices[0].device_kind}, measured, bfloat16 8192^3 product"


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a killed run left half-written is ignored."""
    file = epath.Path(workdir) / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_scores(workdir: epath.PathLike, step: int) -> dict[str, float]:
    """What the evaluation after `step` found; empty if there was none."""
    for line in read_metrics(workdir):
        if line["step"] == step and "loss" not in line:
            return {name: value for name, value in line.items() if name != "step"}
    return {}


def score_lines(scores: Mapping[str, float]) -> list[str]:
    """`split/name: value (chance c)`, a line each; chance stands beside what it belongs to."""
    lines = []
    for name, value in scores.items():
        group, _, metric = name.rpartition("/")
        if metric.startswith("chance_"):
            continue
        chance = scores.get(f"{group}/chance_{metric}")
        shown = f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
        lines.append(f"{name}: {shown}" + (f" (chance {chance:.4f})" if chance is not None else ""))
    return lines


class MetricWriter:
    """Writes scalars by step to metrics.jsonl, TensorBoard and W&B.

    Resuming at `step` first forgets what was written of later steps, so that each step stands once.
    One process writes; in the others it does nothing.
    """

    def __init__(self, workdir: epath.PathLike, config: LogConfig, *, step: int, run_config: dict):
        self.workdir = epath.Path(workdir)
        self._jsonl = self._tensorboard = self._wandb = None
        if jax.process_index() != 0:
            return
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        file = self.workdir / "metrics.jsonl"
        write_atomically(file, "".join(json.dumps(line) + "\n" for line in kept))
        self._jsonl = file.open("a")
        if config.tensorboard:
            import tensorboardX

            self._tensorboard = tensorboardX.SummaryWriter(
                str(self.workdir / "tensorboard"), purge_step=step + 1
            )
        if config.wandb_project:
            self._wandb = _start_wandb(self.workdir, config.wandb_project, run_config)

    def write(self, step: int, scalars: Mapping[str, float | int]) -> None:
        if self._jsonl is None:
            return
        self._jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
        self._jsonl.flush()
        if self._tensorboard:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name.replace("@", "_"), value, step)
        if self._wandb:
            self._wandb.log(dict(scalars), step=step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        for writer in (self._jsonl, self._tensorboard):
            if writer:
                writer.close()
        if self._wandb:
            self._wandb.finish()


def _start_wandb(workdir: epath.Path, project: str, run_config: dict):
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"log.wandb_project ({project!r}) needs the wandb package. "
            "Install it with `pip install jaxclip[wandb]`, or leave log.wandb_project empty."
        ) from None
    # the same id each time: a resumed run goes on in its own charts
    id_file = workdir / "wandb_id"
    if not id_file.exists():
        write_atomically(id_file, uuid.uuid4().hex)
    return wandb.init(
        project=project, name=workdir.name, id=id_file.read_text(), resume="allow",
        dir=str(workdir), config=run_config,
    )  # fmt: skip


class Progress:
    """How fast the loop goes between progress lines."""

    def __init__(self, *, total_steps: int, batch_size: int, train_flops_per_pair: float):
        self._total_steps, self._batch_size = total_steps, batch_size
        self._flops_per_pair = train_flops_per_pair
        self._peak, self.peak_source = peak_flops()
        self.restart(0)

    def restart(self, step: int) -> None:
        """Forgets the time so far: what comes next is counted from `step`."""
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """Time for which the loop stood still because no batch was ready."""
        self._waited += seconds

    def skip(self, seconds: float) -> None:
        """Time spent on something else than training: evaluation, saving."""
        self._start += seconds

    def rates(self, step: int) -> dict[str, float]:
        """Rates since the last call: pairs_per_second, mfu and data_wait_share in [0, 1]."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        pairs_per_second = (step - self._step) * self._batch_size / elapsed
        rates = {
            "pairs_per_second": pairs_per_second,
            "mfu": pairs_per_second * self._flops_per_pair / self._peak,
            "data_wait_share": min(self._waited / elapsed, 1.0),
        }
        self.restart(step)
        return rates

    def line(self, step: int, loss: float, rates: Mapping[str, float]) -> str:
        pairs_left = (self._total_steps - step) * self._batch_size
        left = int(pairs_left / max(rates["pairs_per_second"], 1e-9))
        return (
            f"step {step:,}/{self._total_steps:,} ({step / self._total_steps:.0%})  "
            f"loss {loss:.4f}  {rates['pairs_per_second']:,.0f} pairs/s  MFU {rates['mfu']:.1%}  "
            f"data wait {rates['data_wait_share']:.0%}  "
            f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        )
