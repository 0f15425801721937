"""Checkpoints: train state and data position in one step folder, saved while training goes on.

WORKDIR/checkpoints/STEP/{state, data}        Orbax; a folder without its commit mark is ignored
"""

import dataclasses
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

policies = ocp.training.preservation_policies


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: int = 1000  # steps; the last step and a SIGTERM always save
    keep_last: int = 2  # of the newest
    keep_every: int = 0  # steps: those are kept for good; 0: none

    def validate(self, name: str = "checkpoint") -> None:
        if self.every < 1:
            raise ValueError(f"{name}.every ({self.every}) must be at least 1.")
        if self.keep_last < 1:
            raise ValueError(f"{name}.keep_last ({self.keep_last}) must be at least 1.")
        if self.keep_every < 0 or self.keep_every % self.every:
            raise ValueError(
                f"{name}.keep_every ({self.keep_every}) must be 0 or a multiple of {name}.every "
                f"({self.every})."
            )


def directory(workdir: epath.PathLike) -> epath.Path:
    return epath.Path(workdir).absolute() / "checkpoints"


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for a save under way."""

    def __init__(self, workdir: epath.PathLike, config: CheckpointConfig):
        keep: list[Any] = [policies.LatestN(config.keep_last)]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        self._checkpointer = ocp.training.Checkpointer(
            directory(workdir),
            preservation_policy=policies.AnyPreservationPolicy(keep),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._checkpointer.close()

    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def steps(self) -> list[int]:
        """Steps that are saved, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, state: Any, next_sample: int) -> None:
        """Copies the state to the host and returns; writing goes on in the background.

        Args:
          next_sample: the input's position: index of the first sample that was not yet trained on.
        """
        data = {"next_sample": next_sample}
        self._checkpointer.save_checkpointables_async(
            step, {"state": state, "data": data}, force=True
        )

    def restore(self, step: int, like: Any) -> tuple[Any, int]:
        """(state, next_sample) of a step.

        Args:
          like: shapes of the state with the shardings to restore it to, on any mesh.
        """
        loaded = self._checkpointer.load_checkpointables(step, {"state": like, "data": None})
        return loaded["state"], loaded["data"]["next_sample"]


def load_params(workdir: epath.PathLike, like: Any, *, ema: bool = False) -> tuple[int, Any]:
    """(step, parameters) of the newest checkpoint of a run.

    Args:
      like: shapes of the parameters, with the shardings to load them to.
      ema: the averaged parameters instead.
    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    name = "ema_params" if ema else "params"
    context = ocp.Context()
    context.pytree.loading.partial_load = True  # leaves the optimizer's state on disk
    with context, ocp.training.Checkpointer(directory(workdir)) as checkpointer:
        if checkpointer.latest is None:
            raise FileNotFoundError(f"{directory(workdir)} holds no finished checkpoint.")
        step = checkpointer.latest.step
        loaded = checkpointer.load_checkpointables(step, {"state": {name: like}})
    return step, loaded["state"][name]
