"""A training run's fixed parts: config, data, network, start."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lossattn_jax import data, devices, models
from lossattn_jax.attention import ensemble, losses
from lossattn_jax.checkpoint import (
    conversion_folder,
    data_set_record,
    pretrained,
    run_folder,
    runs,
    warm_start,
)
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config import config_json
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import ImageOptions, ModelOptions
from lossattn_jax.data.subset import HELD_OUT
from lossattn_jax.errors import UntrustedCode, UserError
from lossattn_jax.models.network import BACKBONE
from lossattn_jax.train.images import checkpoint_items, reporting, resume, same_run
from lossattn_jax.train.images.backbone import make_image_optimizer
from lossattn_jax.train.images.gradients import patch_weight_schedule
from lossattn_jax.train.images.step import Metrics, zero_metrics
from lossattn_jax.train.optimizer import describe_optimizer
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.state import TrainState, count_parameters, create_state

log = logging.getLogger(__name__)

_RATE_ROUNDING = 1e-5  # relative, of schedules in float32
_PIXELS = 2**21  # of training images that a backbone's statistics begin with


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run's fixed parts, as its config describes them."""

    options: ImageOptions
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
        return self.options.train.epochs * self.steps_per_epoch

    @property
    def has_partial_batch(self) -> bool:
        """Whether an epoch's last batch has fewer images than the others."""
        return self.steps_per_epoch * self.options.train.batch_size > len(self.train_set)

    def evaluates(self, step: int) -> bool:
        """Whether the network is tested after so many updates."""
        return self._ends(step, self.options.eval.every_epochs)

    def saves(self, step: int) -> bool:
        """Whether there is to be a checkpoint of so many updates."""
        return self._ends(step, self.options.checkpoint.every_epochs)

    def _ends(self, step: int, epochs: int) -> bool:
        """Whether the run, or a multiple of so many epochs, ends there."""
        return step == self.total_steps or step % (epochs * self.steps_per_epoch) == 0


def build_network(options: ModelOptions, spec: data.DatasetSpec) -> models.ImageNetwork:
    """Builds the network for training, with shared batch statistics.

    They are shared over the devices.

    Raises:
      UserError: there is no such network.
    """
    axis = devices.AXIS if options.shares_statistics else None
    return runs.build_model(options, spec, bn_axis_name=axis)


def open_job(config: ConfigDict, workdir: str | pathlib.Path) -> Job:
    """Checks a config, opens its parts, and makes the workdir.

    Raises:
      UserError: the config is impossible, the data set is absent or its images do not suit the network, or
        the workdir cannot be made.
    """
    options = config_lib.resolve(config)
    spec = runs.spec_of(options.data)
    model = build_network(options.model, spec)
    kind = runs.loss_kind(model, spec, options.loss.name)
    if options.loss.label_smoothing and not losses.LOSSES.find(kind).smoothing:
        raise UserError(
            f"config.loss.label_smoothing is {options.loss.label_smoothing}, but must be 0 with the loss "
            f"{kind}, which has none"
        )
    devices.per_device(options.train.batch_size, "config.train.batch_size")
    splits = ("train", HELD_OUT if options.data.held_out else "test")
    train_set, test_set = (runs.open_split(options.data, spec, split) for split in splits)
    steps_per_epoch = data.steps_per_epoch(
        len(train_set), options.train.batch_size, options.data.drop_last
    )
    _refuse_uneven_last_batch(options, len(train_set))
    length = Length(options.train.epochs, steps_per_epoch)
    learning_rate = learning_rate_schedule(options.optimizer, length)
    job = Job(
        options=options,
        workdir=pathlib.Path(workdir),
        spec=spec,
        model=model,
        train_set=train_set,
        test_set=test_set,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        patch_weight=patch_weight_schedule(options.loss, options.model.pooling, model, spec),
        optimizer=make_image_optimizer(options, learning_rate, length),
    )
    span = options.profile_span
    if span is not None and span[1] > job.total_steps:
        raise UserError(
            f"config.profile is {options.profile!r}, but must end by the last update, {job.total_steps}"
        )
    model.patch_grid(spec.image_shape)  # refuses images that the network cannot take
    # Last, so that a mistake leaves no workdir behind.
    run_folder.make_workdir(workdir)
    return job


def _refuse_uneven_last_batch(options: ImageOptions, examples: int) -> None:
    """Refuses a partial batch that devices and parts cannot share equally."""
    size, parts = examples % options.train.batch_size, options.train.accumulate
    if not options.data.drop_last and size % (jax.device_count() * parts):
        raise UserError(
            f"config.data.drop_last is False, but the last batch of an epoch has {size} images, which "
            f"{jax.device_count()} device(s) with config.train.accumulate {parts} cannot share equally: use "
            "True or another config.train.batch_size"
        )


def first_state(
    job: Job, checkpoints: checkpoint_lib.Checkpoints, trust_code: bool = False
) -> tuple[TrainState, Metrics]:
    """Returns a run's first state: checkpoint, other run's parameters, or new.

    Args:
      job: the run.
      checkpoints: in its workdir.
      trust_code: whether code that the run to start from names by reference is imported, where this one does
        not name it too.

    Returns:
      The state, and the metrics of the updates that no log line has told of yet; both on the host.

    Raises:
      UserError: the checkpoints are another run's, the workdir is that of an unfinished conversion, or the
        run or the file of weights to start from does not fit.
    """
    conversion_folder.refuse_unfinished(job.workdir)
    if devices.anywhere(bool(checkpoints.steps_with_folder())):
        checkpoints.latest_step()  # the same for all processes, or an error
        earlier = _stored_options(job)
        data_set_record.refuse_other_classes(job.workdir, job.spec)
        for difference in same_run.refuse_other_run(earlier, job.options, job.workdir):
            reporting.warn("changed since the run was last started: %s", difference)
        pretrained.refuse_other(job.options.model.pretrained, job.workdir)
        start = resume.newest_intact(checkpoints, lambda step: _state_of(job, checkpoints, step))
        if start is not None:
            warn_of_rise(job, earlier, int(start[0].step))
            return start
    if (job.workdir / checkpoint_lib.DAMAGED_NAME / "0").exists():
        raise UserError(
            f"the weights that the run in {job.workdir} was to start from are damaged, and there is no later "
            "checkpoint: convert them again, into another workdir"
        )
    state = _suit_images(job, _fresh_state(job))
    path, shape = job.options.model.pretrained, job.spec.image_shape
    variables = pretrained.start(path, job.model, shape, state.variables, job.workdir)
    state = dataclasses.replace(state, **variables)
    if job.options.init_from:
        trusted_references = trust_code or config_json.named_code(job.options)
        strict = job.options.init_strict
        names = job.spec.class_names
        state = _start_from(job.options.init_from, state, names, trusted_references, strict)
    return state, zero_metrics(job.options.loss)


def _stored_options(job: Job) -> ImageOptions:
    """Reads the options of the run to resume.

    Code that they name is trusted as that of the job's.

    Raises:
      UserError: they name other code, which is not imported, or they cannot be read.
    """
    references = config_json.named_code(job.options)
    try:
        return config_lib.resolve(run_folder.stored_config(job.workdir, trust_code=references))
    except UntrustedCode as error:
        raise config_json.other_code(error, job.options, job.workdir) from None


def warn_of_rise(job: Job, earlier: ImageOptions, step: int) -> None:
    """Warns where more epochs raise the learning rate of a run again.

    Args:
      job: the run.
      earlier: its options of before.
      step: updates done.
    """
    epochs, more = earlier.train.epochs, job.options.train.epochs
    if more <= epochs or not 0 < step < job.total_steps:
        return
    length = Length(epochs, job.steps_per_epoch)
    before = learning_rate_schedule(earlier.optimizer, length)
    last, next_planned, now = (
        float(rate) for rate in (before(step - 1), before(step), job.learning_rate(step))
    )
    if now > max(last, next_planned) * (1 + _RATE_ROUNDING):
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
            f"{job.options.train.epochs} makes only {job.total_steps}"
        )
    if not checkpoints.holds(newest, "training"):
        # Weights of another program (lossattn_jax.convert), from which no step was made yet.
        references = config_json.named_code(job.options)
        names = job.spec.class_names
        state = _start_from(str(job.workdir), _fresh_state(job), names, references, strict=True)
        return state, zero_metrics(job.options.loss)
    like = jax.eval_shape(lambda: _fresh_state(job))
    return checkpoint_items.restore(checkpoints, newest, like, zero_metrics(job.options.loss))


def fresh_state(
    options: ImageOptions,
    model: models.ImageNetwork,
    optimizer: optax.GradientTransformation,
    spec: data.DatasetSpec,
    examples: int,
) -> TrainState:
    """Makes a run's initial state for so many examples."""
    attention = None
    if options.loss.uses_consistency:
        patches = model.patch_grid(spec.image_shape).patches
        attention = ensemble.create(examples, patches)
    return create_state(model, optimizer, spec.image_shape, options.seed, attention)


def _fresh_state(job: Job) -> TrainState:
    return fresh_state(job.options, job.model, job.optimizer, job.spec, len(job.train_set))


def _suit_images(job: Job, state: TrainState) -> TrainState:
    """Sets the statistics of a backbone that begins with some of training images."""
    from_images = models.BACKBONES.find(job.options.model.backbone).from_images
    if from_images is None:
        return state
    height, width, _ = job.spec.image_shape
    count = min(len(job.train_set), max(_PIXELS // (height * width), 1))
    # From all over the set: files are in the order of their classes.
    images = job.train_set.read(np.arange(count) * len(job.train_set) // count)["image"]
    pixels = np.asarray(data.normalise(jnp.asarray(images), job.spec.mean, job.spec.std))
    batch_stats = dict(state.batch_stats)
    batch_stats[BACKBONE] = from_images(batch_stats[BACKBONE], pixels)
    return dataclasses.replace(state, batch_stats=batch_stats)


def _start_from(
    workdir: str,
    state: TrainState,
    class_names: Sequence[str],
    trust_code: bool | Collection[str],
    strict: bool,
) -> TrainState:
    """Replaces parameters by those of another run's newest checkpoint that fit.

    Running statistics, too. With `strict` all of them have to fit.
    """
    try:
        run = runs.load(workdir, trust_code=trust_code)
    except UserError as error:
        raise UserError(f"config.init_from is {workdir!r}, but {error}") from None
    try:
        same_classes = tuple(run.spec.class_names) == tuple(class_names)
        start = warm_start.take_over(state.variables, run.variables, same_classes)
        if strict:
            warm_start.refuse_misfits(start)
    except UserError as error:
        raise UserError(f"config.init_from is {workdir!r}, but {error}") from None
    log.info("parameters from step %d of %s", run.step, workdir)
    if start.afresh:
        reporting.warn("begins afresh: %s", ", ".join(start.afresh))
    if start.unused:
        reporting.warn("not taken over, as there is no place for it: %s", ", ".join(start.unused))
    return dataclasses.replace(state, **start.variables)


def describe(job: Job, state: TrainState) -> None:
    """Logs what is about to be trained, from `state` on."""
    options = job.options
    log.info("devices: %s", devices.describe())
    log.info(
        "data: %s, %d training and %d %s images of %s, %d classes",
        job.spec.name,
        len(job.train_set),
        len(job.test_set),
        "held-out training" if job.test_set.split == HELD_OUT else "test",
        "x".join(str(side) for side in job.spec.image_shape),
        job.spec.num_classes,
    )
    log.info(
        "model: %s, %s head, %s, %.2f M parameters, %s; patch loss %s",
        options.model.backbone,
        options.model.head,
        options.model.pooling,
        count_parameters(state.params) / 1e6,
        options.model.dtype,
        "on" if config_lib.uses_patch_loss(options.loss, options.model.pooling) else "off",
    )
    log.info("optimiser: %s%s", describe_optimizer(options.optimizer), _describe_backbone(options))
    log.info(
        "training: %d epochs, %d steps of %d images, from step %d",
        options.train.epochs,
        job.total_steps,
        options.train.batch_size,
        int(state.step),
    )
    log.info("workdir: %s", job.workdir)


def _describe_backbone(options: ImageOptions) -> str:
    """Describes what the training does with the backbone, after the optimiser."""
    if options.train.freeze:
        return "; the backbone is frozen: maps of the pictures' centres, without random crops and flips"
    rate = options.train.backbone_rate
    return "" if rate == 1 else f"; the backbone's learning rate {rate:g} times that"
