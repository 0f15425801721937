"""Which device holds what, by the rule table, on meshes of eight devices."""

import dataclasses
import importlib.util
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxclip.models import clip
from jaxclip.models.clip import ClipConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.text import siglip_text
from jaxclip.models.vit import ViTConfig, vit
from jaxclip.optimizer import OptimizerConfig, make_optimizer, param_paths
from jaxclip.sharding import (
    ShardingConfig,
    check_batch,
    from_parts,
    initialize_distributed,
    make_mesh,
    to_parts,
    tree_sharding,
    use_mesh,
)
from tests import xla

INPUTS = clip.Inputs(
    image_size=224, mean=(0,), std=(1,), vocab_size=49_408, context_length=77, pad_id=0, eos_id=1
)


def mesh_of(data, fsdp, tensor):
    return make_mesh(
        ShardingConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor]
    )


def shapes_of(config, inputs=INPUTS):
    return jax.eval_shape(lambda: clip.init(config, inputs, jax.random.key(0)))


def specs(tree, mesh):
    """{path: its spec, without what is whole at the end}."""
    paths = jax.tree.leaves(param_paths(tree))
    leaves = jax.tree.leaves(tree_sharding(tree, mesh))
    found = {path: list(leaf.spec) for path, leaf in zip(paths, leaves, strict=True)}
    for spec in found.values():
        while spec and spec[-1] is None:
            spec.pop()
    return {path: P(*spec) for path, spec in found.items()}


@pytest.fixture(scope="module")
def siglip_b16():
    return shapes_of(
        ClipConfig(
            image=vit("B", 16, family="siglip"), text=siglip_text(768, 12, 12), embed_dim=768,
            image_projection=False, projection_bias=True,
        )
    )  # fmt: skip


def test_every_kernel_is_split_as_intended(siglip_b16):
    found = specs(siglip_b16, mesh_of(2, 2, 2))
    column, row = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")  # the blocks are stacked
    block = {
        **{f"attention/{name}/kernel": column for name in ("query", "key", "value")},
        **{f"attention/{name}/bias": P(None, "tensor") for name in ("query", "key", "value")},
        "attention/out/kernel": row,
        "mlp/up/kernel": column,
        "mlp/up/bias": P(None, "tensor"),
        "mlp/down/kernel": row,
    }
    expected = {
        "image/patch_embedding/kernel": P(None, "fsdp"),
        "text/token_embedding/embedding": P(None, "fsdp"),
        "text/projection/kernel": P(None, "fsdp"),
    }
    for name, spec in block.items():
        expected[f"image/transformer/blocks/{name}"] = spec
        expected[f"text/transformer/blocks/{name}"] = spec
        expected[f"image/map_head/{name}"] = P(*spec[1:])
    assert {path: spec for path, spec in found.items() if spec != P()} == expected


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_optimizer_state_lies_where_its_parameter_does(siglip_b16, name):
    mesh, config = mesh_of(2, 2, 2), OptimizerConfig(name=name)
    optimizer = make_optimizer(config, lambda step: 1e-3, siglip_b16)
    state = jax.eval_shape(optimizer.init, siglip_b16)
    params, shapes = specs(siglip_b16, mesh), _by_path(siglip_b16)
    state_shapes, of_parameters = _by_path(state), 0
    for path, spec in specs(state, mesh).items():
        owner = next((p for p in params if path.endswith("/" + p)), None)
        if owner and state_shapes[path].shape == shapes[owner].shape:
            assert spec == params[owner], path
            of_parameters += 1
        else:  # counts, and what Adafactor keeps of rows and columns: small
            assert spec == P(), path
            assert state_shapes[path].size < 1e6, path
    assert of_parameters >= len(params)


def _by_path(tree):
    return dict(zip(jax.tree.leaves(param_paths(tree)), jax.tree.leaves(tree), strict=True))


def test_fsdp_leaves_no_big_parameter_whole(siglip_b16):
    mesh = mesh_of(1, 8, 1)
    for params in (siglip_b16, shapes_of(ClipConfig(image=vit("B", 16)))):
        sharding, per_device = tree_sharding(params, mesh), 0
        for path, leaf in _by_path(params).items():
            part = math.prod(_by_path(sharding)[path].shard_shape(leaf.shape))
            per_device += part
            assert part == leaf.size / 8 or leaf.size < 200_000, path
        total = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert per_device < 1.02 * total / 8


def test_a_dimension_that_does_not_divide_stays_whole():
    narrow = TransformerConfig(width=12, depth=2, num_heads=2, mlp_width=20)
    config = ClipConfig(image=ViTConfig(patch_size=112, transformer=narrow), embed_dim=10)
    found = specs(shapes_of(config), mesh_of(1, 4, 2))
    blocks = "image/transformer/blocks"
    assert found[f"{blocks}/mlp/up/kernel"] == P(None, "fsdp", "tensor")  # 12 / 4, 20 / 2
    assert found["image/projection/kernel"] == P()  # 10 columns on 4
    found = specs(shapes_of(config), mesh_of(1, 1, 8))
    assert found[f"{blocks}/mlp/up/kernel"] == P(None, "fsdp")  # 20 columns on 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": 3, "fsdp": 2}, r"data \(3\) x .*fsdp \(2\) x .*tensor \(1\) = 6, but there are 8 "
         r"devices. Set sharding.data=-1"),
        ({"fsdp": 3}, r"sharding.fsdp \(3\) x sharding.tensor \(1\) = 3 must divide the number of "
         r"devices \(8\)"),
        ({"fsdp": 16}, r"16 must divide the number of devices \(8\)"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"tensor": 0}, "must be at least 1"),
    ],
)  # fmt: skip
def test_mesh_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(ShardingConfig(**fields), jax.devices()[:8])


def test_one_axis_takes_what_is_left():
    for axis in ("data", "fsdp", "tensor"):
        config = dataclasses.replace(ShardingConfig(data=1), **{axis: -1})
        assert dict(make_mesh(config, jax.devices()[:8]).shape)[axis] == 8
    assert dict(make_mesh(ShardingConfig(fsdp=4), jax.devices()[:8]).shape)["data"] == 2


def test_batch_must_divide():
    check_batch(mesh_of(2, 2, 2), batch_size=16, micro_batch_size=0)
    with pytest.raises(ValueError, match=r"micro_batch_size \(6\) must divide by .*fsdp \(4\)"):
        check_batch(mesh_of(2, 2, 2), batch_size=12, micro_batch_size=6)


@pytest.mark.parametrize(
    ("env", "device_files", "libtpu", "expected"),
    [
        ({}, (), True, "one process"),
        ({"COORDINATOR_ADDRESS": "h:1", "NUM_PROCESSES": "4", "PROCESS_ID": "2"}, (), True, "h:1"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, (), True, "one process"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, (), True, "TPU slice"),
        ({}, ("/dev/accel0",), True, "TPU slice"),
        ({}, ("/dev/vfio/0",), True, "TPU slice"),
        ({}, ("/dev/accel0",), False, "one process"),  # jax cannot use it
        ({"JAX_PLATFORMS": "cpu"}, ("/dev/accel0",), True, "one process"),  # jax may not
    ],
)
def test_start_up_by_what_the_machine_says(env, device_files, libtpu, expected, monkeypatch):
    for name in ("JAX_PLATFORMS", "COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os.path, "exists", lambda path: path in device_files)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: libtpu or None)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    assert expected in initialize_distributed()
    assert calls == ([] if expected == "one process" else [("h:1", 4, 2)] if env.get("PROCESS_ID")
                     else [()])  # fmt: skip


JOIN = """
import jax, numpy
from jax.experimental import multihost_utils
from jaxclip.sharding import initialize_distributed
print(initialize_distributed())
print(multihost_utils.process_allgather(numpy.int32(7 + jax.process_index())).tolist())
"""


def free_job_id() -> int:
    """One whose port for the coordinator, 61440 + id in jax, nobody listens at."""
    for job in range(os.getpid() % 4000, 4096):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 61440 + job)):
                return job
    raise AssertionError("no free port")


def test_a_slurm_step_of_two_tasks_joins():
    """jax's own reading of what srun sets, on one node; nothing is faked but srun."""
    job = free_job_id()
    slurm = {"JOB_ID": job, "STEP_NODELIST": "localhost", "STEP_NUM_TASKS": 2, "NTASKS": 2}
    tasks = []
    for i in range(2):
        env = {f"SLURM_{k}": str(v) for k, v in (slurm | {"PROCID": i, "LOCALID": i}).items()}
        env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(devices=1)}
        tasks.append(
            subprocess.Popen(
                [sys.executable, "-c", JOIN],
                cwd=Path(__file__).parent.parent,
                env=os.environ | env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    for i, (out, err) in enumerate([task.communicate(timeout=300) for task in tasks]):
        assert tasks[i].returncode == 0, err
        assert f"process {i} of 2 (SLURM job {job})" in out.splitlines()  # Gloo prints, too
        assert "[7, 8]" in out  # each has heard of the other


def test_a_coordinator_alone_is_not_enough(monkeypatch):
    monkeypatch.setenv("COORDINATOR_ADDRESS", "h:1")
    with pytest.raises(ValueError, match=r"\(h:1\) is set, so NUM_PROCESSES and PROCESS_ID must"):
        initialize_distributed()


def test_a_tpu_without_a_slice_is_one_process(monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    assert initialize_distributed() == "one process"


def test_parts_hold_rows_of_every_device_and_go_back_in_order():
    x = jnp.arange(48).reshape(24, 2)
    for mesh in (None, mesh_of(2, 2, 2)):

        def there_and_back(x, mesh=mesh):
            with use_mesh(mesh):
                parts = to_parts(x, 3)
                return parts, from_parts(parts)

        parts, back = jax.jit(there_and_back)(x)
        assert parts.shape == (3, 8, 2)
        np.testing.assert_array_equal(back, x)
    # of each of 4 x 6 rows the second two
    assert parts[1, :, 0].tolist() == [4, 6, 16, 18, 28, 30, 40, 42]
