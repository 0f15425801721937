import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.checkpoint import CheckpointConfig, Checkpoints, directory, load_params
from jaxclip.sharding import ShardingConfig, make_mesh, tree_sharding

STATE = {
    "step": jnp.int32(7),
    "params": {"up": {"kernel": jnp.arange(64.0).reshape(8, 8)}},
    "opt_state": {"mu": {"up": {"kernel": jnp.ones((8, 8))}}},
}


def placed(mesh):
    shapes = jax.eval_shape(lambda: STATE)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        tree_sharding(shapes, mesh),
    )
    return like, jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), STATE, like)


@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_restored_to_another_mesh(tmp_path, fsdp):
    _, state = placed(make_mesh(ShardingConfig(fsdp=2, tensor=2)))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(7, state, next_sample=123)
    like, _ = placed(make_mesh(ShardingConfig(fsdp=fsdp)))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.latest_step() == 7
        restored, next_sample = checkpoints.restore(7, like)
    assert next_sample == 123
    jax.tree.map(np.testing.assert_array_equal, restored, STATE)
    assert restored["params"]["up"]["kernel"].sharding == like["params"]["up"]["kernel"].sharding


def test_parameters_alone(tmp_path):
    like, state = placed(make_mesh(ShardingConfig()))
    with pytest.raises(FileNotFoundError, match="holds no finished checkpoint"):
        load_params(tmp_path, like["params"])
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(7, state, next_sample=0)
    step, params = load_params(tmp_path, like["params"])
    assert step == 7
    np.testing.assert_array_equal(params["up"]["kernel"], STATE["params"]["up"]["kernel"])


def test_what_is_kept(tmp_path):
    config = CheckpointConfig(every=1, keep_last=2, keep_every=3)
    with Checkpoints(tmp_path, config) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, STATE, next_sample=step)
    kept = {int(p.name) for p in directory(tmp_path).iterdir() if p.name.isdigit()}
    assert kept == {3, 6, 7, 8}


def test_a_save_that_was_cut_off_does_not_count(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(4, STATE, next_sample=4)
    (directory(tmp_path) / "8.orbax-checkpoint-tmp-1").mkdir()
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.latest_step() == 4
