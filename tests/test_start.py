"""What a run starts from and what it hands on: the right parameters, the right vocabulary."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from configs import fine_tune
from data_pipelines.tokenizer import save_tokenizer, train_tokenizer
from jaxclip.checkpoint import Checkpoints
from jaxclip.data.sources import open_sources
from jaxclip.data.text import TokenizerConfig, load_tokenizer
from jaxclip.evals.run import RunEmbedder
from jaxclip.models import clip
from jaxclip.models.pretrained import leaves_of, load_params
from jaxclip.sharding import ShardingConfig, make_mesh
from jaxclip.start import model_inputs, open_model, start_params
from jaxclip.train_step import TrainState
from jaxclip.workdir import claim_workdir, open_tokenizer
from tests import tiny_config
from tests.models.pretrained.fixtures import read_fixture, write_folder


@pytest.fixture(scope="module")
def run(tiny_dataset, tmp_path_factory):
    """(config, workdir, parameters) of a run that scores its averaged parameters, as after 2 steps.

    The averages are 1 more than the parameters.
    """
    config = tiny_config.get_config()
    config.data.path = (str(tiny_dataset),)
    config.eval.ema = True
    workdir = tmp_path_factory.mktemp("run")
    sources = open_sources(config.data, "train")
    tokenizer = open_tokenizer(config, sources)
    claim_workdir(epath.Path(workdir), config, sources, tokenizer)
    shapes = jax.eval_shape(
        lambda: clip.init(config.model, model_inputs(config, tokenizer), jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    state = TrainState(
        jax.numpy.int32(2), *(jax.tree.map(jax.numpy.asarray, x) for x in (params, None)),
        jax.tree.map(lambda x: jax.numpy.asarray(x + 1), params),
    )  # fmt: skip
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoints.save(2, state, 32)
    return config, workdir, leaves_of(params)


def test_what_is_scored_is_what_is_loaded_and_exported(run):
    config, workdir, params = run
    family = open_model(str(workdir))
    assert family.name == "run of jaxclip, step 2, averaged parameters"
    found = leaves_of(load_params(family)[0])
    scored = leaves_of(RunEmbedder(workdir, make_mesh(ShardingConfig())).params)
    assert found.keys() == scored.keys() == params.keys()
    for path, x in params.items():
        np.testing.assert_array_equal(found[path], x + 1, err_msg=path)
        np.testing.assert_array_equal(found[path], scored[path], err_msg=path)


def test_a_run_that_scores_its_last_parameters_hands_on_these(run):
    config, workdir, params = run
    file = workdir / "config.json"
    before = file.read_text()
    values = json.loads(before)
    values["eval"]["ema"] = False
    try:
        file.write_text(json.dumps(values))
        found = leaves_of(load_params(open_model(str(workdir)))[0])
    finally:
        file.write_text(before)
    path = "image/projection/kernel"
    np.testing.assert_array_equal(found[path], params[path])


def fresh(config, tokenizer):
    return clip.init(config.model, model_inputs(config, tokenizer), jax.random.key(0))


def shapes_of(config, tokenizer):
    return jax.eval_shape(lambda: fresh(config, tokenizer))


def test_another_vocabulary_than_the_runs_is_refused(run, tiny_dataset, tmp_path):
    config, workdir, _ = run
    config = dataclasses.replace(config, init=str(workdir))
    texts = ["histology of the lung", "chest radiograph at day 7", "immunofluorescence section"]
    save_tokenizer(train_tokenizer(texts * 9, vocab_size=150), tmp_path / "tokenizer.json")
    foreign = load_tokenizer(TokenizerConfig(path=str(tmp_path / "tokenizer.json")))
    with pytest.raises(ValueError, match="was trained with another vocabulary.* Set data.tokeniz"):
        start_params(config, foreign, {})
    # the same file elsewhere is no other
    copy = tmp_path / "copy.json"
    copy.write_bytes((tiny_dataset / "tokenizer.json").read_bytes())
    same = load_tokenizer(dataclasses.replace(config.data.tokenizer, path=str(copy)))
    params, lines = start_params(config, same, shapes_of(config, same))
    assert lines[0].startswith(f"init from {workdir} (run of jaxclip, step 2, averaged")
    assert "Loaded" in lines[1] and len(lines) == 2


def test_a_checkpoint_without_fine_tune_needs_its_vocabulary_too(tiny_dataset, tmp_path):
    """And what the config does otherwise with the same vocabulary is said."""
    config = tiny_config.get_config()
    fixture = read_fixture("hf_clip_gelu")
    folder = write_folder(tmp_path / "clip", fixture)
    config.init = str(folder)
    theirs = load_tokenizer(TokenizerConfig(path=str(tiny_dataset / "tokenizer.json")))
    with pytest.raises(ValueError, match="99 token embeddings, and data.tokenizer .* has 150 ids"):
        start_params(config, theirs, {})
    fixture["tensors"]["text_model.embeddings.token_embedding.weight"][0] = theirs.vocab_size
    fixture["files"]["config.json"]["text_config"]["vocab_size"] = theirs.vocab_size
    write_folder(folder, fixture)
    family = open_model(str(folder))
    config.model, config.data.image = family.model, family.image
    config.data.image.mean = (0.5, 0.5, 0.5)
    lines = start_params(config, theirs, shapes_of_family(family))[1]
    assert any("No vocabulary comes with it" in line for line in lines)
    (folder / "tokenizer.json").write_bytes((tiny_dataset / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({f"{name}_token": theirs.special_tokens[name] for name in ("eos", "pad")})
    )
    here = load_tokenizer(
        TokenizerConfig(path=str(tiny_dataset / "tokenizer.json"), bos="", clean="lower_ascii")
    )
    lines = start_params(config, here, shapes_of_family(open_model(str(folder))))[1]
    text = "\n".join(lines)
    assert "tokenizer's clean is 'lower_ascii' here, and was 'none' there" in text
    assert "tokenizer's bos_id is None here" in text
    assert "data.image.mean is (0.5, 0.5, 0.5) here" in text


@pytest.mark.parametrize("name", ["hf_clip_gelu", "hf_siglip"])
def test_fine_tuning_starts_from_the_checkpoint_with_all_that_is_its_own(name, tmp_path):
    folder = str(write_folder(tmp_path / name, read_fixture(name)))
    config, family = fine_tune.get_config(folder), open_model(folder)
    assert config.init == folder and not config.init_image and not config.init_text
    assert config.model == dataclasses.replace(family.model, dtype="bfloat16")
    assert config.data.image == family.image and config.data.tokenizer == family.tokenizer
    assert config.loss.name == {"hf_clip_gelu": "softmax", "hf_siglip": "sigmoid"}[name]
    with pytest.raises(ValueError, match="fine_tune.py must name a checkpoint"):
        fine_tune.get_config()


def shapes_of_family(family):
    return jax.eval_shape(lambda: clip.init(family.model, family.inputs, jax.random.key(0)))
