"""A run on disk, opened again: its config, network, data and one checkpoint's variables."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from lossattn_jax import data, models
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.errors import DamagedCheckpoint, UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run.

    Attributes:
      config: the resolved config that the run was started with.
      spec: of its data set.
      model: its network, without the axis that batch statistics are shared over in training.
      variables: "params" and "batch_stats", on the first local device.
      step: updates done.
    """

    config: ConfigDict
    spec: data.DatasetSpec
    model: models.ImageNetwork
    variables: dict[str, Any]
    step: int


def build_model(
    config: ConfigDict, spec: data.DatasetSpec, bn_axis_name: str | None = None
) -> models.ImageNetwork:
    """The network that a config describes.

    Args:
      config: its section `model`.
      spec: for the number of classes.
      bn_axis_name: pmap axis to share batch statistics over in training; None: none.

    Raises:
      UserError: there is no such network.
    """
    try:
        return models.build(
            backbone=config.model.backbone,
            head=config.model.head,
            pooling=config.model.pooling,
            num_classes=spec.num_classes,
            width=config.model.width,
            threshold=config.model.threshold,
            bottleneck_relu_before_add=config.model.bottleneck_relu_before_add,
            bottleneck_first_kernel=config.model.bottleneck_first_kernel,
            dtype=jnp.dtype(config.model.dtype),
            bn_axis_name=bn_axis_name,
        )
    except UserError as error:
        raise UserError(f"config.model.{error}") from None


def spec_of(config: ConfigDict) -> data.DatasetSpec:
    """The data set that a config names."""
    return data.get_spec(config.data.name, extra=config.data.extra)


def loss_kind(model: models.ImageNetwork, spec: data.DatasetSpec) -> str:
    """The kind of loss, of `losses.LOSSES`, that a network's predictions and a data set's labels ask for."""
    find_pooling = getattr(model, "find_pooling", None)  # which a caller's own module need not have
    own = find_pooling().loss if find_pooling is not None else ""
    return own or (losses.SIGMOID if spec.multi_label else losses.CROSS_ENTROPY)


def load(workdir: str | pathlib.Path, checkpoint: str = "latest") -> Run:
    """Opens a run.

    Args:
      workdir: its folder.
      checkpoint: "latest", "best" (by test accuracy, or mean average precision) or a step.

    Raises:
      UserError: there is no such run or checkpoint, or it does not fit its config.
    """
    config = run_folder.stored_config(workdir)
    spec = spec_of(config)
    model = build_model(config, spec)
    shapes = models.variable_shapes(model, spec.image_shape)
    # CapsNet normalises nothing; its checkpoints hold an empty tree.
    like = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    with checkpoint_lib.Checkpoints(workdir, read_only=True) as checkpoints:
        step = _step(checkpoints, checkpoint)
        try:
            variables = checkpoints.restore(step, {"variables": like})["variables"]
        except DamagedCheckpoint as error:
            others = ", ".join(str(other) for other in checkpoints.steps() if other != step)
            raise DamagedCheckpoint(
                f"{error}; name another one with --checkpoint, of {others or 'which there is none'}"
            ) from error
    return Run(config, spec, model, variables, step)


def open_dataset(
    run: Run, split: str, data_dir: str | None = None, mode: str | None = None
) -> data.Dataset:
    """The split "train" or "test" of the run's data set; see `open_split`."""
    return open_split(run.config, run.spec, split, data_dir, mode)


def open_split(
    config: ConfigDict,
    spec: data.DatasetSpec,
    split: str,
    data_dir: str | None = None,
    mode: str | None = None,
) -> data.Dataset:
    """The split "train" or "test" as a run sees it: of "train" the part that is to be learned from.

    It lies in `data_dir`, or where that is None in the config's folder; `mode` "memory" or "stream"
    likewise, which changes no batch.
    """
    return data.open_dataset(
        spec,
        split,
        data_dir or config.data.dir or None,
        mode or config.data.mode,
        num_labels=config.data.num_labels,
        label_seed=config.data.label_seed,
    )


def _step(checkpoints: checkpoint_lib.Checkpoints, checkpoint: str) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"there is no checkpoint in {checkpoints.workdir} yet")
    if checkpoint == "latest":
        return steps[-1]
    if checkpoint == "best":
        best = checkpoints.best_step()
        if best is None:
            raise UserError(
                f"no checkpoint in {checkpoints.workdir} was tested with finite results; use latest"
            )
        return best
    if checkpoint.isdecimal() and int(checkpoint) in steps:
        return int(checkpoint)
    there = ", ".join(str(step) for step in steps)
    raise UserError(f"checkpoint is {checkpoint!r}, but must be latest, best or one of: {there}")
