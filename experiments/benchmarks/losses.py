"""What do dense, gathered and ring losses cost, in memory and in time?

  python -m experiments.benchmarks.losses --out=losses.json [--devices=8] [--batch_sizes=8192,32768]

Value and gradients of the loss alone, of random unit-norm embeddings, split over --devices CPU
devices, which the program forces. Memory is what the compiler planned for temporaries on one
device. `gathered` is the idea of open_clip's --local-loss --gather-with-grad: each device gathers
the other side's embeddings and has its own rows of the logits, twice for softmax. Times are medians
of --repeats runs, the implementations in turn; all devices share the machine's cores, so they say
what the arithmetic costs, and nothing of networks. What would not fit into 80 % of the machine's
memory is not run. --repeats=0 only compiles. The batch of 32,768 takes half a minute a run.
"""

import functools
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable

from absl import flags

from jaxclip import command
from jaxclip.data.record import write_atomically

_OUT = flags.DEFINE_string("out", None, "JSON to write", required=True)
_DEVICES = flags.DEFINE_integer("devices", 8, "CPU devices to force", lower_bound=1)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["8192", "32768"], "pairs, global")
_EMBED_DIM = flags.DEFINE_integer("embed_dim", 512, "numbers an embedding")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed runs of each; 0: memory only", lower_bound=0)

IMPLEMENTATIONS = ("dense", "gathered", "ring")


def gathered(name: str, mesh) -> Callable:
    """The loss with one side's embeddings gathered on each device, for comparison only."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    rows, whole = PartitionSpec("data"), PartitionSpec()

    def local(image_nE, text_nE, scale, bias):
        n, first = len(image_nE), jax.lax.axis_index("data") * len(image_nE)
        matched = jnp.arange(n), first + jnp.arange(n)

        def against_all(x_nE, y_nE):
            y_BE = jax.lax.all_gather(y_nE, "data", tiled=True)
            return scale * jnp.matmul(x_nE, y_BE.T, precision="highest")

        logits = against_all(image_nE, text_nE)
        if name == "sigmoid":
            signed = (logits + bias).at[matched].multiply(-1)
            loss = jax.nn.softplus(signed).sum() / n
        else:
            both = (logits, against_all(text_nE, image_nE))
            loss = sum((jax.nn.logsumexp(x, 1) - x[matched]).mean() for x in both) / 2
        return jax.lax.pmean(loss, "data")

    return jax.shard_map(
        local, mesh=mesh, in_specs=(rows, rows, whole, whole), out_specs=whole, check_vma=False
    )


def measure(name: str, batch_size: int, mesh) -> dict[str, dict]:
    """Implementation -> temporary bytes a device, collectives, seconds and value."""
    import jax
    import jax.numpy as jnp

    from jaxclip.losses import LossConfig, make_loss
    from jaxclip.sharding import batch_sharding

    def unit(key):
        x = jax.random.normal(key, (batch_size, _EMBED_DIM.value))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    keys = jax.random.split(jax.random.key(0))
    split = batch_sharding(mesh)
    embeddings = [jax.jit(unit, out_shardings=split)(key) for key in keys]
    arguments = (*embeddings, jnp.float32(20.0), jnp.float32(-10.0))
    found, run = {}, {}
    for implementation in IMPLEMENTATIONS:
        if implementation == "gathered":
            loss = gathered(name, mesh)
        else:
            loss = make_loss(LossConfig(name=name, implementation=implementation), mesh)
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
        compiled = step.lower(*arguments).compile()
        operations = re.findall(
            r" (all-gather|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(",
            compiled.as_text(),
        )
        found[implementation] = {
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "collectives": {name: operations.count(name) for name in sorted(set(operations))},
        }
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if found[implementation]["temporary_bytes"] * mesh.size < 0.8 * memory:
            run[implementation] = functools.partial(compiled, *arguments)
    seconds = {implementation: [] for implementation in IMPLEMENTATIONS}
    for _ in range(_REPEATS.value):
        for implementation in run:
            start = time.perf_counter()
            value, _ = jax.block_until_ready(run[implementation]())
            seconds[implementation].append(time.perf_counter() - start)
            found[implementation]["loss"] = float(value)
    for implementation, times in seconds.items():
        found[implementation]["seconds"] = statistics.median(times) if times else None
    return found


def table(rows: list[dict]) -> list[str]:
    """Markdown."""
    lines = ["| loss | pairs | | MiB a device | s | collectives |", "|---|---|---|---|---|---|"]
    for row in rows:
        for implementation in IMPLEMENTATIONS:
            found = row[implementation]
            seconds = "" if found["seconds"] is None else f"{found['seconds']:.2f}"
            collectives = ", ".join(f"{n} {name}" for name, n in found["collectives"].items())
            lines.append(
                f"| {row['loss']} | {row['batch_size']:,} | {implementation} | "
                f"{found['temporary_bytes'] / 2**20:,.0f} | {seconds} | {collectives} |"
            )
    return lines


def main(_) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={_DEVICES.value}"
    )
    from jaxclip.sharding import ShardingConfig, make_mesh  # jax reads the environment once

    mesh = make_mesh(ShardingConfig())
    rows = []
    for batch_size in map(int, _BATCH_SIZES.value):
        for name in ("sigmoid", "softmax"):
            found = measure(name, batch_size, mesh)
            rows.append({"loss": name, "batch_size": batch_size} | found)
            print(*table(rows[-1:])[0 if len(rows) == 1 else 2 :], sep="\n", flush=True)
    result = {
        "devices": _DEVICES.value,
        "embed_dim": _EMBED_DIM.value,
        "repeats": _REPEATS.value,
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "python": platform.python_version(),
        "rows": rows,
    }
    write_atomically(_OUT.value, json.dumps(result, indent=1))


if __name__ == "__main__":
    command.run(main)
