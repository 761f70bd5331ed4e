"""A run on disk, opened again: its config, network, data and one checkpoint's variables."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lossattn_jax import checkpoint as checkpoint_lib
from lossattn_jax import config as config_lib
from lossattn_jax import data, devices, models
from lossattn_jax.errors import UserError
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import learning_rate_schedule
from lossattn_jax.train.state import TrainState, create_state


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run.

    Attributes:
      config: the resolved config that the run was started with.
      spec: of its data set.
      model: its network, batch statistics local (they take no part in evaluation).
      variables: "params" and "batch_stats", host arrays.
      step: updates done.
    """

    config: ConfigDict
    spec: data.DatasetSpec
    model: models.PatchNetwork
    variables: dict[str, Any]
    step: int


def build_model(config: ConfigDict, spec: data.DatasetSpec) -> models.PatchNetwork:
    """The network that a config describes."""
    shared = config.model.batch_norm == "cross_replica"
    return models.build(
        backbone=config.model.backbone,
        head=config.model.head,
        pooling=config.model.pooling,
        num_classes=spec.num_classes,
        width=config.model.width,
        threshold=config.model.threshold,
        dtype=jnp.dtype(config.model.dtype),
        bn_axis_name=devices.AXIS if shared else None,
    )


def spec_of(config: ConfigDict) -> data.DatasetSpec:
    """The data set that a config names."""
    return data.get_spec(config.data.name, extra=config.data.extra)


def load(workdir: str | pathlib.Path, checkpoint: str = "latest") -> Run:
    """Opens a run.

    Args:
      workdir: its folder.
      checkpoint: "latest", "best" (by test accuracy) or a step.

    Raises:
      UserError: there is no such run or checkpoint, or it does not fit its config.
    """
    config = config_lib.read(pathlib.Path(workdir) / checkpoint_lib.CONFIG_NAME)
    spec = spec_of(config)
    model = build_model(config, spec)
    # Learning rates do not shape the optimiser's state, so any number of steps per epoch serves.
    optimizer = make_optimizer(config, learning_rate_schedule(config, steps_per_epoch=1))
    like: TrainState = jax.eval_shape(
        lambda: create_state(model, optimizer, spec.image_shape, config.seed)
    )
    with checkpoint_lib.Checkpoints(workdir, read_only=True) as checkpoints:
        step = _step(checkpoints, checkpoint)
        state = checkpoints.restore(step, like)
    return Run(config, spec, model, state.variables, step)


def open_dataset(run: Run, split: str, data_dir: str | None = None) -> data.Dataset:
    """The split "train" or "test" of the run's data set, from `data_dir` or the config's folder."""
    folder = data_dir or run.config.data.dir or None
    return data.open_dataset(run.spec, split, folder, run.config.data.mode)


def _step(checkpoints: checkpoint_lib.Checkpoints, wanted: str) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"there is no checkpoint in {checkpoints.workdir} yet")
    if wanted == "latest":
        return steps[-1]
    if wanted == "best":
        best = checkpoints.best_step()
        return steps[-1] if best is None else best
    if wanted.isdecimal() and int(wanted) in steps:
        return int(wanted)
    there = ", ".join(str(step) for step in steps)
    raise UserError(f"checkpoint is {wanted!r}, but must be latest, best or one of: {there}")
