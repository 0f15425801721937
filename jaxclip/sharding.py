"""Which device holds what: the mesh, the rule table, and start-up on many hosts.

The mesh has the axes data x fsdp x tensor. A batch is split over data x fsdp; parameters and the
optimizer's state over fsdp and tensor, by the first rule whose regex is found in the leaf's path.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxclip.optimizer import param_paths

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)

# (regex on the path, spec of the LAST dimensions); leading dimensions (stacked layers) are whole.
# Megatron's scheme (Shoeybi et al. 2019, arXiv:1909.08053): the first matrix of a pair is split by
# column, the second by row, so that a block needs one all-reduce for attention and one for the MLP.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)v_(row|col)/", ()),  # of Adafactor: small, and they lack a dimension of the parameter
    (r"(query|key|value|up)/kernel$", ("fsdp", "tensor")),
    (r"(out|down)/kernel$", ("tensor", "fsdp")),
    (r"(query|key|value|up)/bias$", ("tensor",)),
    (
        r"(embedding|projection|patch_embedding|conv\d|stem\d|shortcut)/(embedding|kernel)$",
        (None, "fsdp"),
    ),
)


@dataclasses.dataclass(slots=True, kw_only=True)
class ShardingConfig:
    """Sizes of the mesh axes; one may be -1: what is left."""

    data: int = -1  # copies of the model
    fsdp: int = 1  # each copy's parameters and optimizer state are spread over so many devices
    tensor: int = 1  # each matrix product is spread over so many devices


def make_mesh(config: ShardingConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Raises ValueError if the axes do not multiply to the number of devices."""
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    given = [size for size in sizes if size != -1]
    if len(given) < len(sizes) - 1 or any(size < 1 for size in given):
        raise ValueError(
            f"sharding.data, .fsdp, .tensor ({sizes}) must be at least 1, and at most one of "
            "them -1."
        )
    named = [f"sharding.{axis} ({n})" for axis, n in zip(AXES, sizes, strict=True) if n != -1]
    product = f"{' x '.join(named)} = {math.prod(given)}"
    if len(given) < len(sizes):
        if len(devices) % math.prod(given):
            raise ValueError(f"{product} must divide the number of devices ({len(devices)}).")
        sizes[sizes.index(-1)] = len(devices) // math.prod(given)
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"{product}, but there are {len(devices)} devices. "
            "Set sharding.data=-1 to use what is left."
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    for pattern, last in RULES:
        if re.search(pattern, path) and len(shape) >= len(last):
            spec = [None] * (len(shape) - len(last)) + list(last)
            # a dimension that does not divide stays whole
            fits = [a and shape[i] % mesh.shape[a] == 0 for i, a in enumerate(spec)]
            return PartitionSpec(*(a if ok else None for a, ok in zip(spec, fits, strict=True)))
    return PartitionSpec()


def tree_sharding(tree: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf of a tree of arrays or shapes, by RULES."""
    return jax.tree.map(
        lambda path, leaf: NamedSharding(mesh, _spec(path, leaf.shape, mesh)),
        param_paths(tree),
        tree,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def use_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[None]:
    """What is traced inside is for this mesh, if it is one: see split_batch."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext()


def split_batch(x: jax.Array) -> jax.Array:
    """Keeps an activation [B, ...] split as the batch is, inside use_mesh; elsewhere x itself.

    To be said at every block: GSPMD would otherwise leave the parameters of fsdp where they are and
    sum activations of the whole batch over devices.
    """
    return _constrain(x, BATCH)


def gather(x: jax.Array) -> jax.Array:
    """All of a parameter on each device, inside use_mesh; elsewhere x itself."""
    return _constrain(x, PartitionSpec())


def to_parts(x: jax.Array, num_parts: int) -> jax.Array:
    """[B, ...] -> [num_parts, B / num_parts, ...]: each part has its share of every device's rows.

    Inside use_mesh nothing moves between devices. Not in order of the rows; from_parts undoes it.
    """
    shards = _num_batch_shards()
    x = x.reshape(shards, num_parts, -1, *x.shape[1:]).swapaxes(0, 1)
    return _constrain(x.reshape(num_parts, -1, *x.shape[3:]), PartitionSpec(None, BATCH_AXES))


def from_parts(x: jax.Array) -> jax.Array:
    """[parts, B / parts, ...] -> [B, ...], in the order that to_parts found."""
    num_parts, shards = len(x), _num_batch_shards()
    x = x.reshape(num_parts, shards, -1, *x.shape[2:]).swapaxes(0, 1)
    return split_batch(x.reshape(-1, *x.shape[3:]))


def _num_batch_shards() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def check_batch(mesh: Mesh, **sizes: int) -> None:
    """Raises ValueError unless these batches split evenly and each process owns rows of its own.

    Args:
      sizes: field of the config -> rows, as batch_size=1024; 0 is no batch.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    for field, size in sizes.items():
        if size % shards:
            raise ValueError(
                f"{field} ({size}) must divide by sharding.data x sharding.fsdp ({shards})."
            )
    if mesh.shape["tensor"] > jax.local_device_count():
        raise ValueError(
            f"sharding.tensor ({mesh.shape['tensor']}) must not exceed the "
            f"{jax.local_device_count()} devices of one process: each process reads its own rows "
            "of the batch."
        )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A tree of this process's rows of the global batch -> of global arrays, split data x fsdp."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def own_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Indices, in order, of the rows of a batch that put_batch takes from this process.

    On the mesh of a TPU slice hosts may take turns: they need not be neighbours.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def gather_to_hosts(rows: np.ndarray) -> np.ndarray:
    """This process's rows -> the rows of all processes, in order of process, on each of them."""
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    # bytes: 64-bit integers would be cut to 32 on their way through a device
    as_bytes = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    gathered = multihost_utils.process_allgather(as_bytes, tiled=True)
    return np.ascontiguousarray(gathered).view(rows.dtype).reshape(-1, *rows.shape[1:])


def initialize_distributed() -> str:
    """Joins the other processes of this job, if it has any; says how it knew.

    Looks, in this order, at COORDINATOR_ADDRESS (with NUM_PROCESSES and PROCESS_ID), at a SLURM
    step of several tasks, and at a TPU slice of several hosts. On a single machine it does nothing.
    To be called before any other use of jax.
    """
    env = os.environ
    if address := env.get("COORDINATOR_ADDRESS"):
        missing = [name for name in ("NUM_PROCESSES", "PROCESS_ID") if name not in env]
        if missing:
            raise ValueError(
                f"COORDINATOR_ADDRESS ({address}) is set, so {' and '.join(missing)} must be set "
                "too."
            )
        if env.get("JAX_PLATFORMS") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(env["NUM_PROCESSES"]), int(env["PROCESS_ID"]))
        how = f"coordinator {address}"
    elif int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        jax.distributed.initialize()
        how = f"SLURM job {env.get('SLURM_JOB_ID')}"
    elif _has_tpu() or len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        try:
            jax.distributed.initialize()  # asks the slice's metadata; one host is fine, too
        except ValueError:  # a TPU without such metadata, as in a notebook
            return "one process"
        how = "TPU slice"
    else:
        return "one process"
    return f"process {jax.process_index()} of {jax.process_count()} ({how})"


def _has_tpu() -> bool:
    """Whether this host has a TPU that jax would use; without starting jax's backends."""
    allowed = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu")
    files = ("/dev/accel0", "/dev/vfio/0")
    installed = importlib.util.find_spec("libtpu") is not None
    return allowed and installed and any(map(os.path.exists, files))
