"""What a study is: a question, and the complete runs that answer it.

A study's file has get_sweep() -> Sweep and is plain Python, mostly itertools.product over axes:

    runs = [
        make_run(config, SubsetOptions(dataset=f"{data}/{source}", size=size, seed=seed),
                 source=source, samples_seen=112_000_000, model="B/16", seed=seed)
        for source, size, seed in itertools.product(SOURCES, SIZES, SEEDS)
    ]

A run's id is made of its complete config, its subset and its axes: whatever changes what is
computed changes the id, and what only says where and how fast it runs does not. Fields at their
default are not in it, so that a field that comes later leaves the ids of finished runs as they are.
"""

import copy
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.subset import SubsetOptions
from jaxclip.config import RESUMABLE, TrainConfig, defaults, flatten, to_dict
from jaxclip.optimizer import Duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    config: TrainConfig  # complete, but for data.path: the subset's, see at()
    data: SubsetOptions  # the subset it is trained on; `out` is left to the study
    axes: Mapping[str, Any]  # design, source, unique_pairs, ..., as make_run has them

    @functools.cached_property
    def config_hash(self) -> str:
        """Hex sha256 of all that decides the result, but for the content of the dataset."""
        config = flatten(json.loads(json.dumps(to_dict(self.config))))
        usual = defaults()
        computed = {
            field: value
            for field, value in config.items()
            if not field.startswith(RESUMABLE) and (field not in usual or value != usual[field])
        }
        axes = {name: value for name, value in self.axes.items() if name != "base"}
        identity = {"config": computed, "data": subset_identity(self.data), "axes": axes}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """`clean-2k-of-16k-tiny-s0-1f2e3d4c`"""
        a = self.axes
        parts = [a["source"], f"{short(a['unique_pairs'])}-of-{short(a['samples_seen'])}"]
        parts += [a["model"], a["variant"], f"s{a['seed']}", self.config_hash[:8]]
        return "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts if part)

    def subset_path(self, workdir: Path) -> Path:
        identity = json.dumps(subset_identity(self.data), sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        name = f"{Path(self.data.dataset).name}-{short(self.data.size)}-s{self.data.seed}-{digest}"
        return workdir / "subsets" / name

    def at(self, workdir: Path) -> TrainConfig:
        """The complete config of the run in this study's folder."""
        config = copy.deepcopy(self.config)
        config.data.path = (str(self.subset_path(workdir)),)
        return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    name: str
    question: str  # one sentence
    runs: Sequence[Run]
    # each run is scored by these: {name: flags of jaxclip.evaluate, but for --model and --out}
    evaluations: Mapping[str, Sequence[str]]
    # {a file that is there when a dataset is: the command that makes it}
    make_data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference: str = ""  # the source that exchange rates are told against
    metric: str = ""  # TASK/EVALUATOR/METRIC that is fitted
    # {source: (low, high)}: how many of its pairs one of the reference is worth, where that is
    # known by construction; None: no bound
    planted: Mapping[str, tuple[float | None, float | None]] = dataclasses.field(
        default_factory=dict
    )

    def validate(self) -> None:
        """Raises ValueError: two runs of one id or datasets of one name, an unknown reference or
        base, a config's mistake."""
        if not self.runs:
            raise ValueError(f"runs of {self.name} is empty. List at least one.")
        ids = [run.run_id for run in self.runs]
        if twice := sorted({run_id for run_id in ids if ids.count(run_id) > 1}):
            raise ValueError(
                f"runs of {self.name} has {twice[0]} twice: the same config, subset and axes. "
                "Take one away."
            )
        self._check_names()
        for run in self.runs:
            run.at(Path("W")).validate()

    def _check_names(self) -> None:
        places: dict[str, str] = {}
        for path in (os.path.normpath(run.data.dataset) for run in self.runs):
            if (other := places.setdefault(Path(path).name, path)) != path:
                raise ValueError(
                    f"dataset: {other} and {path} of {self.name} have one name, by which runs and "
                    "subsets are told apart. Rename or link one."
                )
        sources = {run.axes["source"] for run in self.runs}
        if unknown := sorted({self.reference, *self.planted} - sources - {""}):
            known = ", ".join(sorted(sources))
            raise ValueError(f"reference, planted: {unknown[0]!r} must be a source: {known}.")
        variants = {run.axes["variant"] for run in self.runs}
        for run in self.runs:
            if run.axes["base"] not in variants or (run.axes["base"] == run.axes["variant"] != ""):
                raise ValueError(
                    f"base ({run.axes['base']!r}) of {run.axes['variant']!r} must be another "
                    f"variant of {self.name}."
                )


def make_run(
    config: TrainConfig,
    data: SubsetOptions,
    *,
    source: str,
    samples_seen: int,
    model: str,
    design: str = "fixed_samples",
    variant: str = "",
    base: str = "",
    **axes: str | int | float,
) -> Run:
    """A run of `config`, which is copied, on a subset, for so many samples.

    Args:
      design: what is kept equal between sizes: fixed_samples, fixed_epochs, fixed_compute.
      variant: the name of an ablation; "" for a run without one.
      base: the variant that this one is told against; "": the run without one.
      axes: whatever else the study varies; a column each in runs.parquet.
    """
    config = copy.deepcopy(config)
    config.duration = Duration(amount=samples_seen, unit="samples")
    found = {"design": design, "source": source, "unique_pairs": data.size}
    found |= {"samples_seen": samples_seen, "model": model, "loss": config.loss.name}
    return Run(
        config=config,
        data=dataclasses.replace(data),
        axes=found | {"seed": config.seed, "variant": variant, "base": base} | axes,
    )


def load_sweep(file: str) -> Sweep:
    """The study of `FILE` or `FILE:ARGUMENT`.

    Raises:
      FileNotFoundError, ValueError: no such file, no get_sweep() in it, a mistake in its runs.
    """
    path, _, argument = file.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"file ({path!r}) is not there. Name a study: experiments/NAME/sweep.py."
        )
    spec = importlib.util.spec_from_file_location("study_file", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_sweep"):
        raise ValueError(f"file ({path}) must have get_sweep() -> Sweep.")
    if argument and not inspect.signature(module.get_sweep).parameters:
        raise ValueError(f"file ({file}): get_sweep() of {path} takes no argument. Leave it out.")
    sweep = module.get_sweep(argument) if argument else module.get_sweep()
    sweep.validate()
    return sweep


def subset_identity(data: SubsetOptions) -> dict[str, Any]:
    """What decides the choice; of paths the names alone, so that a study may be moved.

    Lists count by their content, too; one that is not there has none yet.
    """
    values = json.loads(json.dumps(dataclasses.asdict(data)))
    del values["out"]
    values["dataset"] = Path(values["dataset"]).name
    for field in ("exclude", "uids"):
        files = [epath.Path(file) for file in values[field]]
        contents = [file.read_bytes() if file.exists() else b"" for file in files]
        values[field] = [
            [file.name, hashlib.sha256(content).hexdigest()]
            for file, content in zip(files, contents, strict=True)
        ]
    return values


def short(number: int) -> str:
    """1_500_000 -> "1.5M", 2000 -> "2k", 0 -> "all"."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.4g}{letter}"
    return str(number) if number else "all"
