"""Public sets scored while training, and embedding by several processes that take turns."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxclip.config import EvalConfig
from jaxclip.data.record import ALL
from jaxclip.evals.declared import DECLARED
from jaxclip.evals.embed import EmbeddingCache
from jaxclip.evals.evaluators import SuiteOptions, evaluate_split
from jaxclip.evals.models import load_embedder
from jaxclip.evals.sets import open_set
from jaxclip.evals.suite import flat
from jaxclip.metrics import read_scores
from jaxclip.sharding import ShardingConfig, make_mesh
from jaxclip.train import train
from tests import tiny_config, xla
from tests.evals import published_sets
from tests.test_train import ROOT, finish, free_address

SETS = ("mednist", "retinamnist", "vqa_rad")  # files in a zip, arrays, and a table


@pytest.fixture(scope="module")
def run(tiny_dataset, tmp_path_factory):
    """A run of one step that has scored both sets."""
    folder = tmp_path_factory.mktemp("suite")
    for name in SETS:
        published_sets.WRITERS[name](folder / name)
    config = tiny_config.get_config()
    config.data.path, config.duration.amount = (str(tiny_dataset),), 1
    config.eval.split, config.eval.sets = "", SETS
    config.eval.sets_dir, config.eval.sets_split = str(folder), ALL
    assert train(config, folder / "run")
    return folder / "run"


def test_public_sets_score_while_training_as_after_it(run):
    found = read_scores(run, 1)
    assert {name.split("/")[1] for name in found} == set(SETS)
    assert 0 < found["all/mednist/zero_shot/mednist/chance_accuracy"] < 1
    assert found["all/vqa_rad/left_out/image_in_an_earlier_row"] == 1
    cache = EmbeddingCache(load_embedder(str(run), make_mesh(ShardingConfig())), None)
    for name in SETS:
        splits = open_set(name, DECLARED[name], run.parent, (ALL,))
        measured, _ = evaluate_split(cache, splits, ALL, SuiteOptions())
        expected = {f"all/{name}/{key}": value for key, value in flat(measured).items()}
        assert {key: found[key] for key in expected} == pytest.approx(expected, nan_ok=True)


def test_a_public_set_that_is_not_there_is_told_before_training(tiny_dataset, tmp_path):
    config = tiny_config.get_config()
    config.data.path, config.eval.sets = (str(tiny_dataset),), ("mednist",)
    config.eval.sets_dir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"MedNIST.* Get it: "):
        train(config, tmp_path / "run")
    config.eval.sets = ("medmist",)
    with pytest.raises(ValueError, match=r"eval.sets \['medmist'\] must be of .*mednist"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"eval.sets_split \('val'\) must be train, "):
        EvalConfig(sets_split="val").validate()


IMAGES = list(np.random.default_rng(0).integers(0, 256, (150, 16, 20, 3)).astype(np.uint8))
TEXTS = [f"number {number} of the series" for number in range(150)]
EMBED = """
import sys, jax, numpy as np
from jaxclip.evals.models import load_embedder
from jaxclip.sharding import ShardingConfig, initialize_distributed, make_mesh
from tests.evals.test_suite import IMAGES, TEXTS
run, out = sys.argv[1:]
initialize_distributed()
devices = np.array(jax.devices()).reshape(2, 2).T.ravel()
assert [device.process_index for device in devices] == [0, 1, 0, 1]
embedder = load_embedder(run, make_mesh(ShardingConfig(), devices))
np.savez(f"{out}/{jax.process_index()}", embedder.encode_image(IMAGES), embedder.encode_text(TEXTS))
"""


def test_processes_that_take_turns_on_the_mesh_embed_what_one_does(run, tmp_path):
    """As on a TPU slice, whose mesh follows the wires and not the hosts."""
    env = os.environ | {"XLA_FLAGS": xla.flags(2), "COORDINATOR_ADDRESS": free_address()}
    env |= {"NUM_PROCESSES": "2", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", EMBED, str(run), str(tmp_path)],
            env=env | {"PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        finish(process)
    alone = load_embedder(str(run), make_mesh(ShardingConfig(), jax.devices()[:1]))
    expected = alone.encode_image(IMAGES), alone.encode_text(TEXTS)
    for i in range(2):
        found = np.load(tmp_path / f"{i}.npz")
        for name, rows in zip(("arr_0", "arr_1"), expected, strict=True):
            np.testing.assert_allclose(found[name], rows, atol=2e-6)
            assert len(np.unique(rows.round(4), axis=0)) > 0.9 * len(rows)  # rows can be told apart
