import dataclasses
import importlib
import inspect
import json
import math
import typing
from pathlib import Path

import pytest

from jaxclip.config import (
    TrainConfig,
    differences,
    field_type,
    flatten,
    from_dict,
    load_config,
    near_fields,
    to_dict,
)
from jaxclip.models.bert import BertConfig
from jaxclip.models.resnet import ResNetConfig
from tests import tiny_config
from tests.models.pretrained.fixtures import read_fixture, write_folder

CONFIGS = Path(__file__).parent.parent / "configs"
NO_CONFIGS = ("__init__", "common", "biomedical", "saved")  # parts, and a run's own: tested apart
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in NO_CONFIGS)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_valid_and_says_what_it_asks(name, tmp_path):
    module = importlib.import_module(f"configs.{name}")
    if "checkpoint" in inspect.signature(module.get_config).parameters:
        with pytest.raises(ValueError, match=f"--config=configs/{name}.py:CHECKPOINT"):
            module.get_config()
        config = module.get_config(str(write_folder(tmp_path, read_fixture("hf_siglip"))))
        assert config.model.text.transformer.width == 64 and not config.model.text.is_causal
    else:
        config = module.get_config()
    with pytest.raises(ValueError, match="data.path is empty. Set it"):
        config.validate()  # the one thing a config cannot know
    config.data.path = ("somewhere",)
    config.validate()
    assert module.__doc__.splitlines()[0].endswith("?") or "?" in module.__doc__.splitlines()[0]
    assert f"--config=configs/{name}.py" in module.__doc__


def test_a_config_survives_json():
    config = tiny_config.get_config()
    config.data.path = ("a", "b")
    config.optimizer.lr_multipliers = (("image/.*", 0.1),)
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and isinstance(again.optimizer.lr_multipliers[0], tuple)


def test_a_tower_of_another_class_survives_json_and_takes_flags():
    config = tiny_config.get_config()
    config.data.path = ("a",)
    config.model.image = ResNetConfig(stages=(1, 1), stem_width=8, num_heads=2, norm="group")
    config.model.text = BertConfig(transformer=config.model.text.transformer)
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and type(again.model.text) is BertConfig
    config.validate()
    assert field_type("model.image.stages") == "tuple[int, ...]"  # of either class
    assert field_type("model.image.pre_norm") == "bool"
    config.model.image = TrainConfig()
    with pytest.raises(ValueError, match="model.image .* must be a ViTConfig or ResNetConfig"):
        config.validate()


def test_fields_of_another_version_are_named():
    values = to_dict(TrainConfig())
    values["model"]["colour"] = 1
    with pytest.raises(ValueError, match=r"ClipConfig has no field \['colour'\]"):
        from_dict(values)


def test_only_what_changes_the_result_is_a_difference():
    old, new = TrainConfig(), TrainConfig()
    new.log.every, new.sharding.fsdp, new.data.num_threads, new.checkpoint.every = 7, 2, 3, 5
    new.data.path = ("moved",)  # its content is compared by hash
    new.model.image.transformer.attention = new.model.text.transformer.attention = "cudnn"
    new.model.image.transformer.remat, new.model.text.transformer.scan = "full", False
    assert differences(to_dict(old), to_dict(new)) == []
    before_it_was_there = to_dict(old)
    del before_it_was_there["data"]["text"]["append"]
    assert differences(before_it_was_there, to_dict(new)) == []
    new.data.text.append = ("summary",)
    assert differences(before_it_was_there, to_dict(new)) == ["data.text.append: [] -> ['summary']"]
    new.data.text.append = ()
    new.seed, new.optimizer.warmup.amount = 1, 2.0
    assert differences(to_dict(old), to_dict(new)) == ["optimizer.warmup.amount: 5.0 -> 2.0",
                                                       "seed: 0 -> 1"]  # fmt: skip


def test_a_run_goes_on_after_an_upgrade_that_adds_a_field():
    config = tiny_config.get_config()
    config.model.image = ResNetConfig(stages=(1, 1))
    old = json.loads(json.dumps(to_dict(config)))
    del old["model"]["image"]["norm"], old["seed"], old["data"]["text"], old["loss"]["ignore"]
    assert differences(old, to_dict(config)) == []
    config.seed = 1
    assert differences(old, to_dict(config)) == ["seed: 0 -> 1"]
    old["model"]["colour"] = "red"  # a field that is gone decided something
    assert "model.colour: 'red' -> None" in differences(old, to_dict(config))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("batch_size", 1, "batch_size (1) must be at least 2"),
        ("batch_size", 8.0, "batch_size (8.0) must be of type int."),
        ("seed", True, "seed (True) must be of type int."),
        ("seed", -1, "seed (-1) must be 0 or more."),
        ("duration.unit", "percent", "must be more than 0 steps, samples or epochs"),
        ("duration.unit", "weeks", "duration.unit ('weeks') must be one of"),
        ("data.weights", (0.5,), "must have one number for each of the 2 datasets"),
        ("data.weights", (0.5, 0.0), "must be positive. Leave a dataset out"),
        ("data.image.crop_scale", (0.5,), "data.image.crop_scale ((0.5,)) must be of type tuple"),
        ("data.image.crop_scale", (0.9, 0.5), "must be 0 < low <= high <= 1"),
        ("data.image.mean", (0.5, 0.5), "data.image.mean (0.5, 0.5) must be 3 numbers"),
        (
            "data.image.std",
            (0.5, 0.0, 0.5),
            "std (0.5, 0.0, 0.5) must be 3 numbers (RGB), each more",
        ),
        ("data.text.fields", ("title",), "data.text.fields (('title',)) must be one or more of"),
        ("data.text.combine", "mix", "data.text.combine ('mix') must be one of"),
        ("data.tokenizer.kind", "gpt2", "data.tokenizer.kind ('gpt2') must be one of"),
        ("model.dtype", "float16", "model.dtype ('float16') must be one of"),
        ("model.embed_dim", 0, "model.embed_dim (0) must be at least 1"),
        (
            "model.image.transformer.num_heads",
            3,
            "must divide by model.image.transformer.num_heads",
        ),
        ("model.image.transformer.mlp_width", -4, "transformer.mlp_width (-4) must be at least 1"),
        ("model.text.transformer.norm_epsilon", -1.0, "norm_epsilon (-1.0) must be in (0, 1)"),
        ("model.init_temperature", 0.0, "model.init_temperature (0.0) must be positive"),
        ("model.init_temperature", math.nan, "model.init_temperature (nan) must be a number"),
        ("data.image.crop_scale", (0.5, math.nan), "(0.5, nan)) must be a number: it is NaN"),
        ("eval.split", "val", "validation, test, or '' for no evaluation while training. Write 'v"),
        ("eval.split", "all", "eval.split ('all') must be one of train, validation, test, or ''"),
        ("model.text.pool", "max", "model.text.pool ('max') must be one of"),
        ("model.image.transformer.attention", "cudnn", "needs model.dtype 'bfloat16'"),
        ("loss.name", "triplet", "loss.name ('triplet') must be one of"),
        ("loss.name", "sigmoid", "learns a bias, and model.init_logit_bias (0.0) says"),
        ("optimizer.peak_lr", 0.0, "optimizer.peak_lr (0.0) must be > 0"),
        ("optimizer.freeze", ("(",), "must be a regular expression"),
        ("checkpoint.keep_every", 6, "must be 0 or a multiple of checkpoint.every (4)"),
        ("log.every", 0, "log.every (0) must be at least 1"),
    ],
)
def test_a_wrong_field_is_named_with_value_and_rule(path, value, said):
    config = tiny_config.get_config()
    config.data.path = ("a", "b")
    *parents, name = path.split(".")
    owner = config
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, value)
    with pytest.raises(ValueError) as error:
        config.validate()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_eval_of_an_average_needs_one():
    config = tiny_config.get_config()
    config.data.path = ("a",)
    config.eval.ema, config.optimizer.ema_decay = True, 0.0
    with pytest.raises(ValueError, match="eval.ema needs an average: set optimizer.ema_decay"):
        config.validate()


def test_fields_by_path():
    assert field_type("optimizer.warmup.amount") == "float"
    assert field_type("data.path") == "tuple[str, ...]"
    assert field_type("optimizer.warmth") is None and field_type("seed.x") is None
    assert "optimizer.peak_lr" in near_fields("optimizer.peak_learning")


def test_every_field_has_a_plain_type_that_a_flag_can_set():
    for path, value in flatten(to_dict(TrainConfig())).items():
        kind = field_type(path)
        assert kind in ("int", "float", "bool", "str") or kind.startswith("tuple["), path
        assert isinstance(value, tuple) == kind.startswith("tuple["), path


def groups_of(cls):
    """All dataclasses that a config is made of."""
    yield cls
    for expected in typing.get_type_hints(cls).values():
        for group in filter(dataclasses.is_dataclass, (expected, *typing.get_args(expected))):
            yield from groups_of(group)


def test_every_field_has_a_comment():
    """As README promises: beside it, or above it where that is where a class has them."""
    for cls in set(groups_of(TrainConfig)):
        lines = inspect.getsource(cls).splitlines()
        for name, expected in typing.get_type_hints(cls).items():
            if any(map(dataclasses.is_dataclass, (expected, *typing.get_args(expected)))):
                continue  # a group says itself what it is
            (at,) = [i for i, line in enumerate(lines) if line.startswith(f"    {name}: ")]
            assert "  # " in lines[at] or lines[at - 1].strip().startswith("# "), (cls, name)


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run of jaxclip.train"):
        load_config(tmp_path)
