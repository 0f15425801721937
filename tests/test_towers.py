"""Every kind of tower trains: three steps of jaxclip.train, on two meshes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import clip_resnet50, lit_text
from jaxclip.checkpoint import load_params
from jaxclip.config import load_config
from jaxclip.models import clip
from jaxclip.models.bert import BertConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.pretrained import leaves_of, open_checkpoint
from jaxclip.models.pretrained import load_params as load_checkpoint
from jaxclip.models.resnet import ResNetConfig
from jaxclip.models.vit import ViTConfig
from jaxclip.optimizer import Duration
from jaxclip.sharding import ShardingConfig, make_mesh, tree_sharding
from jaxclip.start import model_inputs
from jaxclip.train import train
from jaxclip.workdir import run_tokenizer
from tests import tiny_config
from tests.models.pretrained.fixtures import read_fixture, write_folder

STEPS = 3


def short(config, dataset):
    """Three steps on the tiny dataset, without evaluation."""
    config.data.path, config.data.num_threads = (str(dataset),), 2
    config.batch_size, config.duration = 16, Duration(amount=STEPS, unit="steps")
    config.optimizer.warmup = Duration(amount=0, unit="steps")
    config.model.dtype = "float32"
    config.eval.split, config.log.tensorboard = "", False
    return config


def resnet_and_bert():
    config = clip_resnet50.get_config()
    config.data.image.size, config.data.tokenizer.context_length = 32, 12
    config.model.image = dataclasses.replace(
        config.model.image, stages=(1, 1), stem_width=8, num_heads=2
    )
    transformer = TransformerConfig(width=16, depth=1, num_heads=2, norm_epsilon=1e-12)
    config.model.text = BertConfig(transformer=transformer, max_positions=16)
    config.model.text_projection, config.model.embed_dim = "mlp", 8
    return config


def make_naflex(config):
    config.data.image.size, config.data.image.naflex_patch_size = 32, 8
    transformer = TransformerConfig(width=16, depth=1, num_heads=2)
    config.model.image = ViTConfig(
        patch_size=8, transformer=transformer, pool="map", pre_norm=False, naflex=True
    )


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def parameters(workdir):
    config = load_config(workdir)
    inputs = model_inputs(config, run_tokenizer(workdir, config.data.tokenizer))
    shapes = jax.eval_shape(lambda: clip.init(config.model, inputs, jax.random.key(0)))
    on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_one), shapes)
    return leaves_of(load_params(workdir, like)[1])


def test_a_resnet_and_a_bert_train_on_a_mesh(tiny_dataset, tmp_path):
    config = short(resnet_and_bert(), tiny_dataset)
    config.sharding = ShardingConfig(data=2, fsdp=2, tensor=2)
    assert train(config, tmp_path)
    found = losses(tmp_path)
    assert len(found) == STEPS and np.isfinite(found).all()
    inputs = model_inputs(config, run_tokenizer(tmp_path, config.data.tokenizer))
    before = leaves_of(jax.jit(lambda: clip.init(config.model, inputs, jax.random.key(0)))())
    after = parameters(tmp_path)
    still = {path for path in after if np.array_equal(before[path], after[path])}
    # a softmax ignores what is added to all: the bias of the logits, and those of keys
    assert not {path for path in still if not path.endswith(("logit_bias", "key/bias"))}, still


def test_a_resnet_is_split_over_fsdp():
    config = clip_resnet50.get_config().model
    inputs = clip.Inputs(image_size=224, mean=(0,), std=(1,), vocab_size=99, context_length=77,
                         pad_id=0, eos_id=1)  # fmt: skip
    shapes = jax.eval_shape(lambda: clip.init(config, inputs, jax.random.key(0)))["image"]
    mesh = make_mesh(ShardingConfig(data=1, fsdp=8))
    sharding, leaves = leaves_of(tree_sharding(shapes, mesh)), leaves_of(shapes)
    parts = {path: np.prod(sharding[path].shard_shape(x.shape)) for path, x in leaves.items()}
    assert {path for path in parts if parts[path] == leaves[path].size and leaves[path].size > 2e4
            } == {"attention_pool/position_embedding"}  # fmt: skip
    assert sum(parts.values()) < 1.05 * sum(x.size for x in leaves.values()) / 8


def test_a_resnet_from_scratch_needs_a_norm_without_statistics(tiny_dataset):
    config = short(resnet_and_bert(), tiny_dataset)
    config.validate()
    config.model.image = ResNetConfig(stages=(1, 1), stem_width=16, num_heads=2)
    with pytest.raises(ValueError, match="needs the statistics of a checkpoint. Set init"):
        config.validate()
    config.init_image = "somewhere"
    config.validate()


def test_naflex_must_be_said_to_the_model_and_to_the_data(tiny_dataset):
    config = short(tiny_config.get_config(), tiny_dataset)
    make_naflex(config)
    config.validate()
    config.data.image.naflex_patch_size = 0
    with pytest.raises(ValueError, match=r"naflex_patch_size \(0\) must be model.image.patch_size"):
        config.validate()


def test_beside_a_locked_text_tower_a_naflex_tower_learns(tiny_dataset, tmp_path):
    """configs/lit_text.py, from a BERT with its vocabulary; images of many aspects."""
    folder = write_folder(tmp_path / "bert", read_fixture("hf_bert"))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz0123456789.()"]
    tokens += [f"##{token}" for token in tokens[4:]]
    tokens += [f"[unused{i}]" for i in range(99 - len(tokens))]  # as many as its embeddings
    (folder / "vocab.txt").write_text("\n".join(tokens))
    config = short(lit_text.get_config(str(folder)), tiny_dataset)
    assert config.data.tokenizer.path == str(folder / "vocab.txt")
    make_naflex(config)
    assert train(config, tmp_path / "run")
    assert np.isfinite(losses(tmp_path / "run")).all()
    expected = leaves_of(load_checkpoint(open_checkpoint(str(folder)))[0])
    after = parameters(tmp_path / "run")
    text = [path for path in expected if path.startswith("text/")]
    assert len(text) > 10
    for path in text:
        np.testing.assert_array_equal(after[path], expected[path], err_msg=path)
    assert "text/projection/kernel" in after
