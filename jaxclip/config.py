"""The config of a run: the dataclasses that live beside their owners, put together.

A config file has get_config() -> TrainConfig; any field can be overridden on the command line:
--config.optimizer.peak_lr=3e-4. Saved as WORKDIR/config.json.
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from typing import Any

from etils import epath

from jaxclip.checkpoint import CheckpointConfig
from jaxclip.data.record import ALL, SPLIT_NAMES, SPLITS
from jaxclip.data.sources import DataConfig
from jaxclip.losses import LossConfig
from jaxclip.metrics import LogConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.resnet import ResNetConfig
from jaxclip.models.vit import ViTConfig
from jaxclip.optimizer import Duration, OptimizerConfig
from jaxclip.sharding import ShardingConfig

# What may differ when a run is resumed: where and how fast it runs, not what it computes, but for
# rounding. Kinds of attention are the same formula; remat computes the same numbers twice.
RESUMABLE = ("log.", "checkpoint.", "sharding.", "eval.", "micro_batch_size",
             "loss.implementation", "loss.chunk_rows", "data.num_threads", "data.num_workers",
             "data.path", "data.tokenizer.path",
             *(f"model.{tower}.transformer.{field}" for tower in ("image", "text")
               for field in ("attention", "remat", "scan")))  # fmt: skip


@dataclasses.dataclass(slots=True, kw_only=True)
class EvalConfig:
    """Evaluation while training."""

    every: int = 1000  # steps; 0: only at the end
    split: str = "validation"  # of the run's datasets that is scored; "": none is
    batch_size: int = 0  # 0: the training batch's
    zero_shot: tuple[str, ...] = ()  # prompt files, by name or path; see evals/zero_shot.py
    sets: tuple[str, ...] = ()  # public sets, by their names in evals/declared.py
    sets_dir: str = ""  # the folder that they are in; "": this one
    sets_split: str = "test"  # of theirs that is scored; all: the whole sets
    ema: bool = False  # score the averaged parameters; needs optimizer.ema_decay

    def validate(self, name: str = "eval") -> None:
        for field in ("every", "batch_size"):
            if getattr(self, field) < 0:
                raise ValueError(f"{name}.{field} ({getattr(self, field)}) must be 0 or more.")
        if self.split not in ("", *SPLITS):
            known = SPLIT_NAMES.get(self.split)
            raise ValueError(
                f"{name}.split ({self.split!r}) must be one of {', '.join(SPLITS)}, or '' for no "
                f"evaluation while training.{f' Write {known!r}.' if known else ''}"
            )
        if self.sets_split not in (*SPLITS, ALL):
            raise ValueError(
                f"{name}.sets_split ({self.sets_split!r}) must be {', '.join(SPLITS)} or {ALL}."
            )


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run."""

    seed: int = 0  # of initialisation, order, augmentation and dropout
    batch_size: int = 1024  # pairs an update; global: all devices and hosts together
    contrastive_batch_size: int = 0  # pairs that are contrasted with each other; 0: batch_size
    micro_batch_size: int = 0  # pairs whose activations are in memory at a time; same gradients, a
    # third more compute; 0: batch_size
    duration: Duration = dataclasses.field(
        default_factory=lambda: Duration(amount=10, unit="epochs")
    )  # of the run; in samples for a budget that does not depend on the dataset
    # What to start from, "" = at random: a run's newest parameters, a checkpoint in the format of
    # big_vision, Hugging Face or OpenCLIP, or a name on the Hugging Face hub.
    init: str = ""  # the whole model
    init_image: str = ""  # the image tower, instead of init's
    init_text: str = ""  # the text tower, instead of init's
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    sharding: ShardingConfig = dataclasses.field(default_factory=ShardingConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    @property
    def contrasted(self) -> int:
        """Pairs that are contrasted with each other."""
        return self.contrastive_batch_size or self.batch_size

    def validate(self) -> None:
        """Raises ValueError: field, value, rule, remedy. Touches no device and no file."""
        check_types(self)
        if self.seed < 0:
            raise ValueError(f"seed ({self.seed}) must be 0 or more.")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least 2: the other pairs of the batch "
                "are the negatives."
            )
        for field in ("contrastive_batch_size", "micro_batch_size"):
            size = getattr(self, field)
            if size < 0 or (size and self.batch_size % size):
                raise ValueError(
                    f"{field} ({size}) must divide batch_size ({self.batch_size}), or be 0."
                )
        if self.contrastive_batch_size == 1:
            raise ValueError("contrastive_batch_size (1) must be at least 2: one has no negatives.")
        self.duration.validate("duration")
        if not self.duration.amount or self.duration.unit == "percent":
            raise ValueError(
                f"duration ({self.duration.amount} {self.duration.unit}) must be more than 0 "
                "steps, samples or epochs."
            )
        self.data.validate()
        self.model.validate(self.data.image.size)
        image, P = self.model.image, self.data.image.naflex_patch_size
        is_naflex = isinstance(image, ViTConfig) and image.naflex
        if P != (image.patch_size if isinstance(image, ViTConfig) and image.naflex else 0):
            raise ValueError(
                f"data.image.naflex_patch_size ({P}) must be model.image.patch_size with "
                f"model.image.naflex, which is {is_naflex}, and 0 without."
            )
        is_frozen = isinstance(image, ResNetConfig) and image.norm == "frozen_batch"
        if is_frozen and not (self.init or self.init_image):
            raise ValueError(
                "model.image.norm ('frozen_batch') needs the statistics of a checkpoint. Set "
                "init_image, or model.image.norm='group' to train from scratch."
            )
        for part in (self.loss, self.optimizer, self.checkpoint, self.eval, self.log):
            part.validate()
        if self.loss.objective().uses_bias and not self.model.init_logit_bias:
            raise ValueError(
                f"loss.name ({self.loss.name!r}) learns a bias, and model.init_logit_bias "
                f"({self.model.init_logit_bias}) says that the model has none. Set it to -10.0 and "
                "model.init_temperature to 0.1, as SigLIP."
            )
        if self.loss.needs_labels() and not self.data.label:
            raise ValueError(
                f"loss.name ({self.loss.name!r}) with loss.positives ({self.loss.positives!r}) and "
                f"loss.ignore {self.loss.ignore} needs data.label, the column of the labels."
            )
        if self.eval.ema and not self.optimizer.ema_decay:
            raise ValueError("eval.ema needs an average: set optimizer.ema_decay, e.g. 0.999.")


def check_types(config: Any, name: str = "") -> None:
    """Raises ValueError if a field of a dataclass, at any depth, is not of its declared type."""
    for field, expected in typing.get_type_hints(type(config)).items():
        value, path = getattr(config, field), f"{name}{field}"
        if classes := _dataclasses_in(expected):
            if type(value) not in classes:
                names = " or ".join(cls.__name__ for cls in classes)
                raise ValueError(f"{path} ({value!r}) must be a {names}.")
            check_types(value, f"{path}.")
        elif not _is_a(value, expected):
            raise ValueError(f"{path} ({value!r}) must be of type {type_name(expected)}.")
        elif value != value or isinstance(value, tuple) and any(v != v for v in value):
            raise ValueError(f"{path} ({value!r}) must be a number: it is NaN.")


def _dataclasses_in(expected: Any) -> tuple[type, ...]:
    """Those that a field may hold: of `ViTConfig | ResNetConfig` both, of `int` none."""
    candidates = typing.get_args(expected) if _is_union(expected) else (expected,)
    return tuple(c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c))


def _is_union(expected: Any) -> bool:
    return typing.get_origin(expected) is types.UnionType


def _is_a(value: Any, expected: Any) -> bool:
    if typing.get_origin(expected) is not tuple:
        is_bool_for_int = isinstance(value, bool) and expected in (int, float)
        return not is_bool_for_int and isinstance(
            value, (int, float) if expected is float else expected
        )
    if not isinstance(value, tuple):
        return False
    items = typing.get_args(expected)
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    return len(items) == len(value) and all(map(_is_a, value, items))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], cls: type = TrainConfig) -> Any:
    """The config that to_dict or a config.json describes.

    Raises:
      ValueError: a field that this jaxclip does not know.
    """
    hints = typing.get_type_hints(cls)
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(f"{cls.__name__} has no field {unknown}. It has: {', '.join(hints)}.")

    def convert(expected, value):
        if classes := _dataclasses_in(expected):  # of several, the one with these fields
            return from_dict(value, max(classes, key=lambda c: len(_field_names(c) & value.keys())))
        if typing.get_origin(expected) is tuple:
            inner = typing.get_args(expected)[0]
            return tuple(tuple(v) if typing.get_origin(inner) is tuple else v for v in value)
        return value

    return cls(**{name: convert(hints[name], value) for name, value in values.items()})


def _field_names(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`field: old -> new` for each field that differs and may not when a run is resumed.

    A field that one of them does not know is at its default there: it came later.
    """
    with contextlib.suppress(ValueError):  # of a field that has gone since: then it differs
        old = to_dict(from_dict(old))  # the defaults of its own kind of towers
    old, new = (defaults() | flatten(json.loads(json.dumps(values))) for values in (old, new))
    return [
        f"{field}: {old.get(field)!r} -> {new.get(field)!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and not field.startswith(RESUMABLE)
    ]


@functools.cache
def defaults() -> dict[str, Any]:
    """Of all fields, flat and as JSON has them; not to be changed."""
    return flatten(json.loads(json.dumps(to_dict(TrainConfig()))))


def load_config(workdir: epath.PathLike) -> TrainConfig:
    """The config of a run. Raises FileNotFoundError if there is no run in `workdir`."""
    file = epath.Path(workdir) / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{workdir} holds no run of jaxclip.train (no config.json).")
    return from_dict(json.loads(file.read_text()))


def field_type(path: str) -> str | None:
    """The declared type of a field, as `optimizer.peak_lr` -> `float`; None if there is none."""
    found: Any = TrainConfig
    for name in path.split("."):
        hints: dict[str, Any] = {}
        for cls in _dataclasses_in(found):
            hints = typing.get_type_hints(cls) | hints
        if name not in hints:
            return None
        found = hints[name]
    return type_name(found)


def all_fields() -> list[str]:
    """Paths of the fields that are no groups, as `optimizer.peak_lr`."""
    return list(flatten(to_dict(TrainConfig())))


def near_fields(path: str) -> list[str]:
    """Up to 3 fields that resemble one that does not exist: `learning_rate` -> optimizer.peak_lr.

    By the whole path, or by the last name alone, as whoever knows the name may not know its place.
    """

    def spelled_out(name: str) -> str:
        return re.sub(r"(\b|_)lr(\b|_)", r"\1learning_rate\2", name)

    def likeness(field: str) -> float:
        pairs = [(path, field)] + [(path.split(".")[-1], name) for name in field.split(".")]
        pairs = [(spelled_out(wrong), spelled_out(right)) for wrong, right in pairs]
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    found = {field: likeness(field) for field in all_fields()}
    return sorted((f for f in found if found[f] > 0.5), key=lambda f: -found[f])[:3]


def type_name(expected: Any) -> str:
    return str(expected) if typing.get_origin(expected) else expected.__name__
