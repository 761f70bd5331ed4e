"""Runs on disk: config, network, data and one checkpoint's variables."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from lossattn_jax import data, models
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import data_set_record, run_folder
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import DataOptions, ImageOptions, ModelOptions
from lossattn_jax.errors import DamagedCheckpoint, UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run.

    Attributes:
      options: that the run was started with.
      spec: of its data set.
      model: its network, without the axis that batch statistics are shared over in training.
      variables: "params" and "batch_stats", on the first local device.
      step: updates done.
    """

    options: ImageOptions
    spec: data.DatasetSpec
    model: models.ImageNetwork
    variables: dict[str, Any]
    step: int

    @property
    def loss(self) -> str:
        """Returns the kind of loss that the network was trained with.

        See `loss_kind`.
        """
        return loss_kind(self.model, self.spec, self.options.loss.name)


def build_model(
    options: ModelOptions, spec: data.DatasetSpec, bn_axis_name: str | None = None
) -> models.ImageNetwork:
    """Builds the network that options describe.

    Args:
      options: of the network.
      spec: for the number of classes.
      bn_axis_name: pmap axis to share batch statistics over in training; None: none.

    Raises:
      UserError: there is no such network.
    """
    try:
        return models.build(
            backbone=options.backbone,
            head=options.head,
            pooling=options.pooling,
            num_classes=spec.num_classes,
            width=options.width,
            threshold=options.threshold,
            bottleneck_relu_before_add=options.bottleneck_relu_before_add,
            bottleneck_first_kernel=options.bottleneck_first_kernel,
            dtype=jnp.dtype(options.dtype),
            bn_axis_name=bn_axis_name,
        )
    except UserError as error:
        raise UserError(f"config.model.{error}") from None


def spec_of(options: DataOptions) -> data.DatasetSpec:
    """Returns the data set that options describe; see `data.make_spec`."""
    return data.make_spec(options)


def loss_kind(model: models.ImageNetwork, spec: data.DatasetSpec, name: str = losses.AUTO) -> str:
    """Chooses the kind of loss for a network and a data set.

    Args:
      model: the network.
      spec: of the data set.
      name: of `losses.LOSSES` or by reference; `losses.AUTO` chooses.

    Returns:
      A name that `losses.LOSSES` finds.

    Raises:
      UserError: there is no such loss, or it is none of such predictions or labels.
    """
    find_pooling = getattr(model, "find_pooling", None)  # a caller's own module need not have it
    own = find_pooling().loss if find_pooling is not None else ""
    kind = own or (losses.SIGMOID if spec.multi_label else losses.CROSS_ENTROPY)
    if name in (losses.AUTO, kind):
        return kind
    loss = losses.LOSSES.find(name, "config.loss.name")
    if own or not loss.suits(several_labels=spec.multi_label):
        suitable = [kind] if own else _suitable_losses(spec)
        raise UserError(
            f"config.loss.name is {name!r}, but must be {losses.AUTO} or {' or '.join(suitable)} for the "
            f"labels of {spec.name} and the predictions of this network"
        )
    return name


def _suitable_losses(spec: data.DatasetSpec) -> list[str]:
    """Names of the losses that take logits and a data set's labels."""
    return [
        name for name, loss in losses.LOSSES.items() if loss.suits(several_labels=spec.multi_label)
    ]


def load(
    workdir: str | pathlib.Path,
    checkpoint: str | int = "latest",
    *,
    trust_code: bool | Collection[str] = False,
) -> Run:
    """Opens a run.

    Args:
      workdir: its folder.
      checkpoint: "latest", "best" (by test accuracy, or mean average precision) or a step.
      trust_code: whether code that the config names by reference is imported, or which references are.

    Raises:
      UntrustedCode: the config names code that is not trusted; nothing was imported.
      UserError: there is no such run or checkpoint, or it does not fit its config.
    """
    config = run_folder.stored_config(workdir, trust_code=trust_code)
    options = config_lib.resolve(config)
    spec = data_set_record.read(pathlib.Path(workdir)) or spec_of(options.data)
    model = build_model(options.model, spec)
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
    return Run(options, spec, model, variables, step)


def open_dataset(
    run: Run, split: str, data_dir: str | None = None, mode: str | None = None
) -> data.Dataset:
    """Opens a split of the run's data set; see `open_split`."""
    return open_split(run.options.data, run.spec, split, data_dir, mode)


def open_split(
    options: DataOptions,
    spec: data.DatasetSpec,
    split: str,
    data_dir: str | None = None,
    mode: str | None = None,
) -> data.Dataset:
    """Opens a split as a run sees it.

    Of "train" it is the part that is to be learned from, of "held_out" the part that is not.

    It lies in `data_dir`, or where that is None in the folder of the options; `mode` "memory", "stream" or
    "auto" likewise, which changes no batch.
    """
    return data.open_dataset(
        spec,
        split,
        data_dir or options.dir or None,
        mode or options.mode,
        num_labels=options.num_labels,
        held_out=options.held_out,
        label_seed=options.label_seed,
    )


def _step(checkpoints: checkpoint_lib.Checkpoints, checkpoint: str | int) -> int:
    checkpoint = str(checkpoint)  # a step is a number in Python
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
