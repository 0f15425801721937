"""What a study will cost, before it is started: device hours, bytes read and written.

FLOPs are counted from the shapes, as jaxclip counts them; hours follow from a data sheet's peak and
an assumed share of it that training reaches (MFU), which is printed with them.
"""

import collections
import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.study import Run, Sweep, short
from jaxclip.config import TrainConfig
from jaxclip.data.dataset import Dataset
from jaxclip.metrics import PEAK_FLOPS
from jaxclip.models import clip
from jaxclip.train_step import train_flops_per_pair

MFU = 0.35
DEVICES = {"H100": "H100", "v5e": "TPU v5 lite", "v6e": "TPU v6 lite"}  # shown -> in PEAK_FLOPS
VOCABULARY = 32_768  # where no tokenizer is open yet; embedding tables count in bytes, not in FLOPs
_SHAPES: dict[str, Any] = {}  # by model: a study has few, and a second is needed for each
RECORD_BYTES = 45_000  # of a stored image and its texts, where the dataset is not there


def inputs_of(config: TrainConfig) -> clip.Inputs:
    """What the model takes in, as far as the config alone tells."""
    return clip.Inputs(
        image_size=config.data.image.size, mean=config.data.image.mean, std=config.data.image.std,
        vocab_size=VOCABULARY, context_length=config.data.tokenizer.context_length, pad_id=0,
        eos_id=1,
    )  # fmt: skip


def params_of(config: TrainConfig) -> Any:
    """Shapes of the parameters."""
    model, inputs = copy.deepcopy(config.model), inputs_of(config)
    for tower in (model.image, model.text):
        if transformer := getattr(tower, "transformer", None):
            transformer.attention = "xla"  # the same parameters, and no GPU is needed here
    name = repr((model, inputs))
    if name not in _SHAPES:
        _SHAPES[name] = jax.eval_shape(
            functools.partial(clip.init, model, inputs), jax.random.key(0)
        )
    return _SHAPES[name]


def flops_per_pair(config: TrainConfig) -> float:
    """Of one pair in one training step; what micro-batches and remat compute twice counts once."""
    return train_flops_per_pair(config, inputs_of(config), params_of(config))


def device_hours(flops: float, device: str, mfu: float = MFU) -> float:
    """device: a key of jaxclip.metrics.PEAK_FLOPS."""
    return flops / (PEAK_FLOPS[device] * mfu) / 3600


@dataclasses.dataclass(slots=True)
class Cost:
    runs: int = 0
    samples: int = 0
    flops: float = 0.0
    bytes_read: float = 0.0
    bytes_written: float = 0.0

    def add(self, other: "Cost") -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def cost_of(run: Run) -> Cost:
    """Training alone; checkpoints hold parameters and two moments in float32, and the average."""
    config, samples = run.config, run.axes["samples_seen"]
    params = sum(leaf.size for leaf in jax.tree.leaves(params_of(config)))
    copies = 3 + bool(config.optimizer.ema_decay)
    return Cost(
        runs=1,
        samples=samples,
        flops=samples * flops_per_pair(config),
        bytes_read=samples * record_bytes(run.data.dataset),
        bytes_written=4.0 * params * copies * config.checkpoint.keep_last,
    )


def record_bytes(path: str) -> float:
    """Mean bytes of a record of a dataset; RECORD_BYTES where it is not there."""
    if not (Path(path) / "manifest.json").exists():
        return RECORD_BYTES
    dataset = Dataset(path)
    return sum(shard["bytes"] for shard in dataset.manifest["shards"]) / len(dataset)


def estimate(sweep: Sweep, mfu: float = MFU) -> list[str]:
    """Lines on what the study costs: a row a design and model, and the sum."""
    rows: dict[tuple[str, str], Cost] = collections.defaultdict(Cost)
    total = Cost()
    for run in sweep.runs:
        cost = cost_of(run)
        rows[run.axes["design"], run.axes["variant"] or run.axes["model"]].add(cost)
        total.add(cost)
    head = ["design", "model or variant", "runs", "samples", "FLOPs"]
    head += [f"{name} h" for name in DEVICES] + ["read", "kept"]
    table = [head, *(_row(*key, cost, mfu) for key, cost in rows.items())]
    table.append(_row("all", "", total, mfu))
    missing = sorted({r.data.dataset for r in sweep.runs if not is_there(r.data.dataset)})
    return [
        f"{sweep.name}: {sweep.question}",
        *_aligned(table),
        f"Hours of one device at {mfu:.0%} of its bfloat16 peak by data sheet (assumed, not "
        "measured), training alone; evaluation comes on top.",
        "Read: each sample's stored record once. Kept: the newest checkpoints of every run.",
        *(f"Not there yet, {RECORD_BYTES:,} bytes a record assumed: {path}" for path in missing),
    ]


def is_there(path: str) -> bool:
    return (Path(path) / "manifest.json").exists()


def _row(design: str, name: str, cost: Cost, mfu: float) -> list[str]:
    hours = [f"{device_hours(cost.flops, device, mfu):,.1f}" for device in DEVICES.values()]
    sizes = [size_of(cost.bytes_read), size_of(cost.bytes_written)]
    return [design, name, f"{cost.runs}", short(cost.samples), f"{cost.flops:.2e}", *hours, *sizes]


def size_of(number: float) -> str:
    """3.2e9 -> "3.2 GB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 1e3:.1f} kB"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w)
                 for i, (cell, w) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return lines
