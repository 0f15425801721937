"""How fast is the train step alone, and how near does it come to what the device can do?

  python -m experiments.benchmarks.step --config=configs/clip_vit_b16.py --out=step.json \
      [--config.batch_size=512] [--config.sharding.fsdp=8] [--steps=10]

Times the very step that jaxclip.train runs, on a synthetic batch that stays on the devices: no
reading, no copying, no metrics read. Needs no dataset. Runs on whatever jax finds: a CPU, one GPU,
many devices (--config.sharding).

The limit is measured in the same run, in turn with the step: the products by the MLPs' kernels (of
a ResNet, by those of the 1 x 1 convolutions of its last stage), with the batch's number of rows, in
the compute dtype, on all devices at once; the better tower's.
Of FLOPs only the model's count (clip.flops_per_pair x 3), not what remat computes again, nor the
loss.
"""

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from jaxclip import command
from jaxclip.config import TrainConfig, check_types, to_dict
from jaxclip.data.files import write_atomically
from jaxclip.losses import RELATIONS
from jaxclip.metrics import PEAK_FLOPS
from jaxclip.models import clip
from jaxclip.models.resnet import ResNetConfig
from jaxclip.optimizer import make_schedule
from jaxclip.sharding import (
    AXES,
    batch_sharding,
    check_batch,
    initialize_distributed,
    make_mesh,
)
from jaxclip.train_step import StepBatch, make_training

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
TOTAL_STEPS = 1_000_000  # of the schedule: room for any warm-up and cooldown

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file with get_config() -> TrainConfig."
)
_OUT = flags.DEFINE_string("out", None, "JSON to write.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps that are timed in a repeat.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Repeats.", lower_bound=1)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 49_408, "Of the tokenizer; CLIP's.", lower_bound=3)


def main(argv: Sequence[str]) -> None:
    del argv
    if _CONFIG.value is None or not _OUT.value:
        raise ValueError(
            "--config and --out must both be set: --config=configs/NAME.py --out=FILE."
        )
    initialize_distributed()
    found = benchmark(_CONFIG.value, _VOCAB_SIZE.value, _STEPS.value, _REPEATS.value)
    if jax.process_index() == 0:
        write_atomically(epath.Path(_OUT.value), json.dumps(found, indent=1) + "\n")
        print(*summary(found), f"Written to {_OUT.value}", sep="\n")


def benchmark(config: TrainConfig, vocab_size: int, steps: int, repeats: int) -> dict[str, Any]:
    """Compiles the step and times it; see the file's head."""
    check_types(config)
    config.model.validate(config.data.image.size)
    for part in (config.loss, config.optimizer):
        part.validate()
    mesh = make_mesh(config.sharding)
    check_batch(mesh, batch_size=config.batch_size, micro_batch_size=config.micro_batch_size)
    image = config.data.image
    inputs = clip.Inputs(
        image_size=image.size, mean=image.mean, std=image.std, vocab_size=vocab_size,
        context_length=config.data.tokenizer.context_length, pad_id=0, eos_id=1,
    )  # fmt: skip
    batch = synthetic_batch(inputs, config.batch_size, mesh, image.naflex_patch_size)
    compiled, state, compile_seconds = compile_step(config, inputs, mesh, batch)

    def run(num_steps: int) -> float:
        """Seconds."""
        nonlocal state
        start = time.perf_counter()
        for _ in range(num_steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        if not jnp.isfinite(metrics["loss"]):
            raise FloatingPointError("The loss is not finite: the time of such steps says nothing.")
        return time.perf_counter() - start

    limits = [
        make_limit(config.model, inputs, config.batch_size, mesh, t) for t in ("image", "text")
    ]
    run(2)  # warm
    seconds, limit_flops = [], []
    for _ in range(repeats):
        limit_flops.append(max(limit() for limit in limits))
        seconds.append(run(steps))

    pairs = [steps * config.batch_size / s for s in seconds]
    flops_per_pair = 3 * sum(clip.flops_per_pair(config.model, inputs).values())
    flops = statistics.median(pairs) * flops_per_pair
    device = jax.devices()[0]
    peak = next((f for name, f in PEAK_FLOPS.items() if name in device.device_kind), None)
    return {
        "pairs_per_second": spread(pairs),
        "step_seconds": spread([s / steps for s in seconds]),
        "compile_seconds": compile_seconds,
        "train_flops_per_pair": flops_per_pair,
        "flops_per_second": flops,
        "limit_flops_per_second": spread(limit_flops),
        "mfu_of_limit": flops / statistics.median(limit_flops),
        "data_sheet_flops_per_second": peak and peak * jax.device_count(),
        "mfu_of_data_sheet": peak and flops / (peak * jax.device_count()),
        "memory_per_device": memory(compiled),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "mesh": dict(mesh.shape),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "vocab_size": vocab_size,
        "config": to_dict(config),
    }


def synthetic_batch(
    inputs: clip.Inputs, batch_size: int, mesh: Mesh, naflex_patch_size: int = 0
) -> StepBatch:
    """Noise for images; texts of every length; no two pairs of one article, figure or label.

    For NaFlex square images, which have as many patches as there may be.
    """

    def draw():
        keys = jax.random.split(jax.random.key(0), 3)
        T, S, P = inputs.context_length, inputs.image_size, naflex_patch_size
        tokens = jax.random.randint(keys[0], (batch_size, T), 2, inputs.vocab_size)
        end = jax.random.randint(keys[1], (batch_size, 1), 0, T)
        place = jnp.arange(T)
        tokens = jnp.where(place == end, inputs.eos_id, tokens)
        number_B1 = jnp.arange(batch_size, dtype=jnp.int32)[:, None]
        ids_B2 = jnp.pad(number_B1, ((0, 0), (0, 1)))
        shape = ((S // P) ** 2, P * P * 3) if P else (S, S, 3)
        batch = {
            "image": jax.random.bits(keys[2], (batch_size, *shape), jnp.uint8),
            "tokens": jnp.where(place > end, inputs.pad_id, tokens),
            "relations": dict.fromkeys(RELATIONS, ids_B2) | {"labels": number_B1},
        }
        return batch | ({"grid": jnp.full((batch_size, 2), S // P, jnp.int32)} if P else {})

    return jax.jit(draw, out_shardings=batch_sharding(mesh))()


def compile_step(
    config: TrainConfig, inputs: clip.Inputs, mesh: Mesh, batch: StepBatch
) -> tuple[jax.stages.Compiled, Any, dict[str, float]]:
    """The step as jaxclip.train compiles it, a fresh state, and seconds to trace and to compile."""
    schedule = make_schedule(
        config.optimizer, batch_size=config.batch_size, samples_per_epoch=1000 * config.batch_size,
        total_steps=TOTAL_STEPS,
    )  # fmt: skip
    training = make_training(config, inputs, schedule, mesh)
    start = time.perf_counter()
    lowered = training.step.lower(training.state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"trace": traced - start, "compile": time.perf_counter() - traced}
    return compiled, training.init(), seconds


def make_limit(
    config: clip.ClipConfig, inputs: clip.Inputs, batch_size: int, mesh: Mesh, tower: str
) -> Callable[[], float]:
    """A function that measures FLOP/s of all devices together, multiplying alone.

    Rows [B * T, D] by [D, F] and back by [F, D], over and over inside one program, for about half a
    second.
    """
    length, D, F = product_sizes(config, inputs, tower)
    devices = mesh.size
    rows = batch_size * length // devices * devices
    dtype = clip.DTYPES[config.dtype]
    split = NamedSharding(mesh, PartitionSpec(AXES))

    @jax.jit
    def make():
        keys = jax.random.split(jax.random.key(0), 3)
        up = jax.random.normal(keys[0], (D, F), dtype) * D**-0.5
        down = jax.random.normal(keys[1], (F, D), dtype) * F**-0.5
        x = jax.random.normal(keys[2], (rows, D), dtype)
        return jax.lax.with_sharding_constraint(x, split), up, down

    @jax.jit
    def multiply(x, up, down, times):
        return jax.lax.fori_loop(0, times, lambda _, x: (x @ up) @ down, x)

    operands = make()

    def seconds(times: int) -> float:
        start = time.perf_counter()
        multiply(*operands, times).block_until_ready()
        return time.perf_counter() - start

    seconds(1)  # compiles
    times = max(1, round(0.5 / seconds(1)))
    flops = 4 * rows * D * F
    return lambda: times * flops / seconds(times)


def product_sizes(config: clip.ClipConfig, inputs: clip.Inputs, tower: str) -> tuple[int, int, int]:
    """Rows an image or text, and the width and hidden width of the products that cost most."""
    if tower == "text":
        length, t = inputs.context_length, config.text.transformer
    elif isinstance(config.image, ResNetConfig):
        width = config.image.width
        return (inputs.image_size // config.image.stride) ** 2, width, width // 4
    else:
        length, t = (inputs.image_size // config.image.patch_size) ** 2, config.image.transformer
    return length, t.width, t.hidden_width


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on one device, as the compiler planned them; and the most in use, where it is known."""
    plan = compiled.memory_analysis()
    found = {
        "arguments": plan.argument_size_in_bytes,  # the state and the batch
        "temporary": plan.temp_size_in_bytes,  # activations, gradients
        "output": plan.output_size_in_bytes - plan.alias_size_in_bytes,  # not written in place
    }
    found["total"] = sum(found.values())
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["peak_in_use"] = stats["peak_bytes_in_use"]
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(found: dict[str, Any]) -> list[str]:
    rate, limit = found["pairs_per_second"], found["limit_flops_per_second"]
    lines = [
        f"{found['devices']} x {found['device']}, mesh {found['mesh']}, "
        f"batch {found['config']['batch_size']:,}",
        f"{rate['median']:,.1f} pairs/s (from {rate['min']:,.1f} to {rate['max']:,.1f}); "
        f"{found['step_seconds']['median']:.4f} s a step",
        f"{found['train_flops_per_pair'] / 1e9:,.2f} GFLOP a pair: "
        f"{found['flops_per_second'] / 1e12:,.3f} TFLOP/s, {found['mfu_of_limit']:.1%} of the "
        f"{limit['median'] / 1e12:,.3f} TFLOP/s of matrix products alone",
    ]
    if found["mfu_of_data_sheet"]:
        lines.append(f"MFU {found['mfu_of_data_sheet']:.1%} of the data sheet's peak")
    return lines + [
        f"{found['memory_per_device']['total'] / 2**30:.3f} GiB a device; traced in "
        f"{found['compile_seconds']['trace']:.1f} s, compiled in "
        f"{found['compile_seconds']['compile']:.1f} s"
    ]


if __name__ == "__main__":
    command.run(main)
