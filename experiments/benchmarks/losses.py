"""What do losses cost, dense, as others have them, and in a ring, in memory and in time?

  python -m experiments.benchmarks.losses --out=losses.json [--devices=8] [--repeats=3] \
      [--batch_sizes=8192,32768] [--losses=softmax,sigmoid,...]

Value and gradients of the loss alone, of random unit-norm embeddings, split over --devices CPU
devices, which the program forces. Memory is what the compiler planned for temporaries on one
device. Peers, which know of no relations between pairs:

  plain     the formula on the whole batch, as big_vision (sigmoid) and clip-jax (softmax) write it
  gathered  the idea of open_clip's --local-loss --gather-with-grad: each device gathers the other
            side's embeddings and has its own rows of the logits, twice for softmax

`relations`: captions are positives, and figures and articles are ignored. Times are medians of
--repeats runs, in seconds of the CPU, the implementations in turn; all devices share the machine's
cores, so they say what the arithmetic costs, and nothing of networks. What would not fit into 80 %
of the machine's memory is not run. --repeats=0 only compiles. A batch of 32,768 takes half a minute
or more a run.
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
from typing import Any

from absl import flags

from jaxclip import command
from jaxclip.data.files import write_atomically

RELATED = {"positives": "same_caption", "ignore": ("same_figure", "same_article")}
LOSSES: dict[str, dict[str, Any]] = {  # fields of LossConfig
    "sigmoid": {"name": "sigmoid"},
    "softmax": {"name": "softmax"},
    "sigmoid+relations": {"name": "sigmoid"} | RELATED,
    "softmax+relations": {"name": "softmax"} | RELATED,
    "decoupled": {"name": "decoupled", "hard_negatives": (0.15, 0.15)},
    "soft_labels": {"name": "soft_labels"},
}
OURS, PEERS = ("dense", "ring"), ("plain", "gathered")
NUM_LABELS = 4  # a pair

_OUT = flags.DEFINE_string("out", None, "JSON to write", required=True)
_DEVICES = flags.DEFINE_integer("devices", 8, "CPU devices to force", lower_bound=1)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["8192", "32768"], "pairs, global")
_LOSSES = flags.DEFINE_list("losses", None, f"some of {', '.join(LOSSES)}")
_EMBED_DIM = flags.DEFINE_integer("embed_dim", 512, "numbers an embedding")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed runs of each; 0: memory only", lower_bound=0)


def plain(name: str) -> Callable:
    """The loss as its formula says it, for comparison only."""
    import jax
    import jax.numpy as jnp

    def loss(image_BE, text_BE, scale, bias, _):
        logits = scale * jnp.matmul(image_BE, text_BE.T, precision="highest")
        if name == "sigmoid":
            signs = -jnp.ones_like(logits) + 2 * jnp.eye(len(logits))
            return -jnp.sum(jax.nn.log_sigmoid(signs * (logits + bias)), axis=1).mean()
        both = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
        return -sum(jnp.diagonal(x).mean() for x in both) / 2

    return loss


def gathered(name: str, mesh) -> Callable:
    """The loss with one side's embeddings gathered on each device, for comparison only."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    rows, whole = PartitionSpec("data"), PartitionSpec()

    def local(image_nE, text_nE, scale, bias, _):
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

    inputs = (rows, rows, whole, whole, rows)
    return jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=whole, check_vma=False)


def make_functions(fields: dict[str, Any], mesh) -> dict[str, Callable]:
    """Implementation -> loss."""
    from jaxclip.losses import LossConfig, make_loss

    functions = {
        implementation: make_loss(LossConfig(**fields, implementation=implementation), mesh)
        for implementation in OURS
    }
    if fields in ({"name": "sigmoid"}, {"name": "softmax"}):
        functions |= {"plain": plain(fields["name"]), "gathered": gathered(fields["name"], mesh)}
    return functions


def make_arguments(batch_size: int, embed_dim: int, mesh) -> tuple:
    """Embeddings, scale, bias, and relations of which each id is that of two pairs or so."""
    import jax
    import jax.numpy as jnp

    from jaxclip.losses import RELATIONS
    from jaxclip.sharding import batch_sharding

    def unit(key):
        x = jax.random.normal(key, (batch_size, embed_dim))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    keys = jax.random.split(jax.random.key(0), len(RELATIONS) + 3)
    split = functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    relations = {
        name: split(lambda key: jax.random.randint(key, (batch_size, 2), 0, batch_size // 2))(key)
        for name, key in zip(RELATIONS, keys[3:], strict=True)
    }
    relations["labels"] = split(
        lambda key: (
            jax.random.randint(key, (batch_size, 1), 0, 1000)
            + jnp.arange(NUM_LABELS, dtype=jnp.int32)
        )
    )(keys[2])
    embeddings = [split(unit)(key) for key in keys[:2]]
    return *embeddings, jnp.float32(20.0), jnp.float32(-10.0), relations


def measure(functions: dict[str, Callable], arguments: tuple, mesh, repeats: int) -> dict:
    """Implementation -> temporary bytes a device, collectives, seconds and value."""
    import jax

    found, run = {}, {}
    for implementation, loss in functions.items():
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
            run[implementation] = compiled
    times = {implementation: [] for implementation in run}
    for _ in range(repeats):
        for implementation, compiled in run.items():
            wall, cpu = time.perf_counter(), time.process_time()
            value, _ = jax.block_until_ready(compiled(*arguments))
            times[implementation].append((time.perf_counter() - wall, time.process_time() - cpu))
            found[implementation]["loss"] = float(value)
    for implementation, pairs in times.items():
        for name, seconds in zip(
            ("seconds", "cpu_seconds"), zip(*pairs, strict=True), strict=False
        ):
            found[implementation][name] = statistics.median(seconds)
    return found


def table(rows: list[dict]) -> list[str]:
    """Markdown: a line a loss and batch, a column an implementation, MiB a device (CPU seconds)."""
    columns = (*OURS, *PEERS)
    lines = ["| MiB (s) | pairs | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for row in rows:
        cells = []
        for implementation in columns:
            found = row["found"].get(implementation)
            mib = f"{found['temporary_bytes'] / 2**20:,.0f}" if found else ""
            seconds = f" ({found['cpu_seconds']:.1f})" if found and "cpu_seconds" in found else ""
            cells.append(f"**{mib}**{seconds}" if implementation == "ring" else mib + seconds)
        lines.append(f"| {row['loss']} | {row['batch_size']:,} | " + " | ".join(cells) + " |")
    return lines


def main(_) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={_DEVICES.value}"
    )
    from jaxclip.sharding import ShardingConfig, make_mesh  # jax reads the environment once

    names = _LOSSES.value or list(LOSSES)
    if unknown := [name for name in names if name not in LOSSES]:
        raise ValueError(f"--losses ({unknown}) must be of {tuple(LOSSES)}.")
    mesh = make_mesh(ShardingConfig())
    rows = []
    for batch_size in map(int, _BATCH_SIZES.value):
        arguments = make_arguments(batch_size, _EMBED_DIM.value, mesh)
        for name in names:
            functions = make_functions(LOSSES[name], mesh)
            found = measure(functions, arguments, mesh, _REPEATS.value)
            rows.append({"loss": name, "batch_size": batch_size, "found": found})
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
