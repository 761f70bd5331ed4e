"""A training run as its config describes it: what it is made of, where it starts, and that in words."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from lossattn_jax import data, devices, models
from lossattn_jax.attention import ensemble, losses
from lossattn_jax.checkpoint import conversion_folder, run_folder, runs
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config import config_json
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import checkpoint_items, reporting, resume
from lossattn_jax.train.images.gradients import patch_weight_schedule
from lossattn_jax.train.images.step import Metrics, zero_metrics
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import learning_rate_schedule
from lossattn_jax.train.state import TrainState, count_parameters, create_state

log = logging.getLogger(__name__)

_RATE_ROUNDING = 1e-5  # relative, of schedules in float32


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run's fixed parts, as its config describes them."""

    config: ConfigDict
    workdir: pathlib.Path
    spec: data.DatasetSpec
    model: models.ImageNetwork
    train_set: data.Dataset
    test_set: data.Dataset
    steps_per_epoch: int
    learning_rate: optax.Schedule
    patch_weight: Callable[[int], jax.Array]
    optimizer: optax.GradientTransformation

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.config.train.epochs * self.steps_per_epoch

    def evaluates(self, step: int) -> bool:
        """Whether the network is tested after so many updates."""
        return self._ends(step, self.config.eval.every_epochs)

    def saves(self, step: int) -> bool:
        """Whether there is to be a checkpoint of so many updates."""
        return self._ends(step, self.config.checkpoint.every_epochs)

    def _ends(self, step: int, epochs: int) -> bool:
        """Whether the run, or a multiple of so many epochs, ends there."""
        return step == self.total_steps or step % (epochs * self.steps_per_epoch) == 0


def build_network(config: ConfigDict, spec: data.DatasetSpec) -> models.ImageNetwork:
    """The network as it is trained: with the batch statistics that the config shares over the devices.

    Raises:
      UserError: there is no such network.
    """
    shared = config_lib.shares_statistics(config)
    return runs.build_model(config, spec, bn_axis_name=devices.AXIS if shared else None)


def open_job(config: ConfigDict, workdir: str | pathlib.Path) -> Job:
    """Checks a config and opens what it names; makes the workdir.

    Raises:
      UserError: the config is impossible, the data set is absent, or the workdir cannot be made.
    """
    config_lib.check(config)
    spec = runs.spec_of(config)
    model = build_network(config, spec)
    smooths = losses.LOSSES.find(runs.loss_kind(model, spec)).smoothing
    if config.loss.label_smoothing and not smooths:
        raise UserError(
            f"config.loss.label_smoothing is {config.loss.label_smoothing}, but must be 0 with "
            "capsules that are routed to, and with images of several classes"
        )
    devices.per_device(config.train.batch_size, "config.train.batch_size")
    train_set, test_set = (runs.open_split(config, spec, split) for split in ("train", "test"))
    steps_per_epoch = data.steps_per_epoch(len(train_set), config.train.batch_size)
    learning_rate = learning_rate_schedule(config, steps_per_epoch)
    job = Job(
        config=config,
        workdir=pathlib.Path(workdir),
        spec=spec,
        model=model,
        train_set=train_set,
        test_set=test_set,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        patch_weight=patch_weight_schedule(config, model, spec),
        optimizer=make_optimizer(config, learning_rate, steps_per_epoch),
    )
    span = config_lib.profiled(config)
    if span is not None and span[1] > job.total_steps:
        raise UserError(
            f"config.profile is {config.profile!r}, but must end by the last update, {job.total_steps}"
        )
    # Last, so that a mistake leaves no workdir behind.
    run_folder.make_workdir(workdir)
    return job


def first_state(job: Job, checkpoints: checkpoint_lib.Checkpoints) -> tuple[TrainState, Metrics]:
    """Where a run begins: a checkpoint, another run's parameters, or nothing.

    Returns:
      The state, and the metrics of the updates that no log line has told of yet; both on the host.

    Raises:
      UserError: the checkpoints are another run's, the workdir is that of an unfinished conversion, or the
        run to start from does not fit.
    """
    conversion_folder.refuse_unfinished(job.workdir)
    if devices.anywhere(bool(checkpoints.named())):
        checkpoints.latest_step()  # the same for all processes, or an error
        stored = run_folder.stored_config(job.workdir)
        for difference in config_json.refuse_other_run(stored, job.config, job.workdir):
            reporting.warn("changed since the run was last started: %s", difference)
        start = resume.newest_intact(checkpoints, lambda step: _state_of(job, checkpoints, step))
        if start is not None:
            warn_of_rise(job, stored, int(start[0].step))
            return start
    if (job.workdir / checkpoint_lib.DAMAGED_NAME / "0").exists():
        raise UserError(
            f"the weights that the run in {job.workdir} was to start from are damaged, and there is no later "
            "checkpoint: convert them again, into another workdir"
        )
    state = _fresh_state(job)
    if job.config.init_from:
        state = _start_from(job.config.init_from, state)
    return state, zero_metrics(job.config)


def warn_of_rise(job: Job, stored: ConfigDict, step: int) -> None:
    """Warns where more epochs raise the learning rate of a run again.

    Args:
      job: the run.
      stored: its config of before.
      step: updates done.
    """
    epochs, more = stored.train.epochs, job.config.train.epochs
    if more <= epochs or not 0 < step < job.total_steps:
        return
    before = learning_rate_schedule(stored, job.steps_per_epoch)
    last, planned, now = (
        float(rate) for rate in (before(step - 1), before(step), job.learning_rate(step))
    )
    if now > max(last, planned) * (1 + _RATE_ROUNDING):
        reporting.warn(
            "warning: with config.train.epochs=%d instead of %d the learning rate goes up again, from %.4g "
            "in the last update to %.4g in the next: the network may get worse before it gets better; "
            "config.optimizer.schedule=constant with a low config.optimizer.learning_rate avoids it",
            more,
            epochs,
            last,
            now,
        )


def _state_of(
    job: Job, checkpoints: checkpoint_lib.Checkpoints, newest: int
) -> tuple[TrainState, Metrics]:
    if newest > job.total_steps:
        raise UserError(
            f"the run in {job.workdir} has done {newest} steps, but config.train.epochs="
            f"{job.config.train.epochs} makes only {job.total_steps}"
        )
    if not checkpoints.holds(newest, "training"):
        # Weights of another program (lossattn_jax.convert), from which no step was made yet.
        return _start_from(str(job.workdir), _fresh_state(job)), zero_metrics(job.config)
    like = jax.eval_shape(lambda: _fresh_state(job))
    return checkpoint_items.restore(checkpoints, newest, like, zero_metrics(job.config))


def fresh_state(
    config: ConfigDict,
    model: models.ImageNetwork,
    optimizer: optax.GradientTransformation,
    spec: data.DatasetSpec,
    examples: int,
) -> TrainState:
    """The state that a run with so many training examples starts from."""
    attention = None
    if config_lib.uses_consistency(config):
        patches = model.patch_grid(spec.image_shape).patches
        attention = ensemble.create(examples, patches)
    return create_state(model, optimizer, spec.image_shape, config.seed, attention)


def _fresh_state(job: Job) -> TrainState:
    return fresh_state(job.config, job.model, job.optimizer, job.spec, len(job.train_set))


def _start_from(workdir: str, state: TrainState) -> TrainState:
    """`state` with the parameters and running statistics of another run's newest checkpoint."""
    try:
        run = runs.load(workdir)
    except UserError as error:
        raise UserError(f"config.init_from is {workdir!r}, but {error}") from None
    before, after = (jax.tree.map(np.shape, v) for v in (run.variables, state.variables))
    if before != after:
        raise UserError(
            f"config.init_from is {workdir!r}, but the network of that run has other parameters "
            "than this one"
        )
    log.info("parameters from step %d of %s", run.step, workdir)
    return dataclasses.replace(state, **run.variables)


def describe(job: Job, state: TrainState) -> None:
    """Logs what is about to be trained, from `state` on."""
    config = job.config
    log.info("devices: %s", devices.describe())
    log.info(
        "data: %s, %d training and %d test images of %s, %d classes",
        job.spec.name,
        len(job.train_set),
        len(job.test_set),
        "x".join(str(side) for side in job.spec.image_shape),
        job.spec.num_classes,
    )
    log.info(
        "model: %s, %s head, %s, %.2f M parameters, %s; patch loss %s",
        config.model.backbone,
        config.model.head,
        config.model.pooling,
        count_parameters(state.params) / 1e6,
        config.model.dtype,
        "on" if config_lib.uses_patch_loss(config) else "off",
    )
    log.info(
        "training: %d epochs, %d steps of %d images, from step %d",
        config.train.epochs,
        job.total_steps,
        config.train.batch_size,
        int(state.step),
    )
    log.info("workdir: %s", job.workdir)
