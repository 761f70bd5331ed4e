"""Training from a config: the loop that `train.py` calls and that tests run."""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from lossattn_jax import checkpoint as checkpoint_lib
from lossattn_jax import config as config_lib
from lossattn_jax import (
    config_json,
    data,
    devices,
    explanations,
    figures,
    losses,
    metrics,
    models,
    runs,
)
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import EvalStep, evaluate, make_eval_step
from lossattn_jax.train import ensemble, health, reporting
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import learning_rate_schedule
from lossattn_jax.train.state import TrainState, count_parameters, create_state
from lossattn_jax.train.step import make_train_step, patch_weight_schedule, zero_metrics

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Job:
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
        return self.config.train.epochs * self.steps_per_epoch


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, float]:
    """Trains a network, or goes on where an earlier call for the same workdir stopped.

    Writes `config.json`, `checkpoints/`, `metrics.jsonl` and `tensorboard/` into `workdir`. The result
    is a pure function of the config: an interrupted and resumed run ends with the parameters of an
    uninterrupted one (bit-equal on CPU).

    Args:
      config: see `lossattn_jax.config.default_config`.
      workdir: folder of the run; made where absent.

    Returns:
      The test metrics after the last step (see `metrics.evaluation_metrics`), and `seconds`, what
      measuring them took.

    Raises:
      UserError: the config is impossible, the data set is absent, the workdir holds another run or
        cannot be written, or the loss is no longer finite.
    """
    job = _open_job(config, workdir)
    with checkpoint_lib.Checkpoints(job.workdir, config.checkpoint.keep) as checkpoints:
        state = _first_state(job, checkpoints)
        checkpoint_lib.write_config(config, job.workdir)
        _describe(job, state)
        eval_step = make_eval_step(job.model, job.spec)
        if int(state.step) == job.total_steps:
            log.info("the run is at its last step already")
            test_metrics = _test(job, eval_step, devices.replicate(state))
        else:
            test_metrics = _train_steps(job, eval_step, state, checkpoints)
    log.info("finished: test %s; checkpoints in %s", _summary(test_metrics), job.workdir)
    return test_metrics


def _open_job(config: ConfigDict, workdir: str | pathlib.Path) -> _Job:
    config_lib.check(config)
    folder = checkpoint_lib.make_workdir(workdir)
    spec = runs.spec_of(config)
    shared = config.model.batch_norm == "cross_replica"
    model = runs.build_model(config, spec, bn_axis_name=devices.AXIS if shared else None)
    if config.loss.label_smoothing and runs.loss_kind(model, spec) != losses.CROSS_ENTROPY:
        raise UserError(
            f"config.loss.label_smoothing is {config.loss.label_smoothing}, but must be 0 with "
            "capsules that are routed to, and with images of several classes"
        )
    devices.per_device(config.train.batch_size, "config.train.batch_size")
    train_set, test_set = (runs.open_split(config, spec, split) for split in ("train", "test"))
    steps_per_epoch = data.steps_per_epoch(len(train_set), config.train.batch_size)
    learning_rate = learning_rate_schedule(config, steps_per_epoch)
    return _Job(
        config=config,
        workdir=folder,
        spec=spec,
        model=model,
        train_set=train_set,
        test_set=test_set,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        patch_weight=patch_weight_schedule(config, model, spec),
        optimizer=make_optimizer(config, learning_rate, steps_per_epoch),
    )


def _first_state(job: _Job, checkpoints: checkpoint_lib.Checkpoints) -> TrainState:
    """The newest checkpoint's state, or that of another run's parameters, or a fresh one."""
    newest = checkpoints.latest_step()
    if newest is None:
        state = _fresh_state(job)
        return _start_from(job.config.init_from, state) if job.config.init_from else state
    stored = checkpoint_lib.stored_config(job.workdir)
    for difference in config_json.refuse_other_run(stored, job.config, job.workdir):
        _warn("changed since the run was last started: %s", difference)
    if newest > job.total_steps:
        raise UserError(
            f"the run in {job.workdir} has done {newest} steps, but config.train.epochs="
            f"{job.config.train.epochs} makes only {job.total_steps}"
        )
    if not checkpoints.holds(newest, "training"):
        # Weights of another program (lossattn_jax.convert), from which no step was made yet.
        return _start_from(str(job.workdir), _fresh_state(job))
    like = jax.eval_shape(lambda: _fresh_state(job).items())
    return TrainState.from_items(checkpoints.restore(newest, like))


def _fresh_state(job: _Job) -> TrainState:
    config = job.config
    attention = None
    if config_lib.uses_consistency(config):
        patches = job.model.patch_grid(job.spec.image_shape).patches
        attention = ensemble.create(len(job.train_set), patches)
    return create_state(job.model, job.optimizer, job.spec.image_shape, config.seed, attention)


def _train_steps(
    job: _Job,
    eval_step: EvalStep,
    state: TrainState,
    checkpoints: checkpoint_lib.Checkpoints,
) -> dict[str, float]:
    """Runs the steps that are left; returns the test metrics after the last one."""
    config = job.config
    start_step = int(state.step)
    train_step = make_train_step(job.model, job.optimizer, job.spec, config, job.steps_per_epoch)
    batches = job.train_set.train_batches(
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    replicated = devices.replicate(state)
    totals = devices.replicate(zero_metrics(config))
    test_metrics: dict[str, float] = {}
    progress = reporting.Progress(start_step, job.total_steps, config.train.batch_size)
    patches = job.model.patch_grid(job.spec.image_shape).patches
    watch = health.AttentionWatch(config, patches, job.steps_per_epoch)
    with (
        reporting.Reporter(job.workdir, start_step, jax.process_index() == 0) as reporter,
        data.prefetch(batches, _to_devices) as sharded,
    ):
        for step in range(start_step + 1, job.total_steps + 1):
            replicated, totals = train_step(replicated, totals, next(sharded))
            epoch, into_epoch = divmod(step, job.steps_per_epoch)
            last = step == job.total_steps
            if last or step % config.log.every_steps == 0:
                means = metrics.compute(devices.unreplicate(totals))
                totals = devices.replicate(zero_metrics(config))
                _report(job, reporter, progress, step, means)
                if warning := watch.look(means["attention_entropy"], step):
                    _warn("warning: %s", warning)
            evaluates = last or (into_epoch == 0 and epoch % config.eval.every_epochs == 0)
            saves = last or (into_epoch == 0 and epoch % config.checkpoint.every_epochs == 0)
            if not (evaluates or saves):
                continue
            jax.block_until_ready(replicated)  # so that the pause holds no training
            with progress.paused():
                if evaluates:
                    test_metrics = _test(job, eval_step, replicated)
                    log.info("test  " + _summary(test_metrics))
                    reporter.scalars("test", step, {"epoch": epoch, **test_metrics})
                    _draw(job, reporter, step, eval_step, replicated)
                if saves:
                    items = devices.unreplicate(replicated).items()
                    checkpoints.save(step, items, test_metrics if evaluates else None)
    return test_metrics


def _report(
    job: _Job,
    reporter: reporting.Reporter,
    progress: reporting.Progress,
    step: int,
    means: dict[str, float],
) -> None:
    """Tells the means since the last report; stops a run whose loss is no longer finite."""
    values = {
        **means,
        "epoch": step / job.steps_per_epoch,
        "learning_rate": float(job.learning_rate(step - 1)),
        "patch_weight": float(job.patch_weight((step - 1) // job.steps_per_epoch)),
        "images_per_second": progress.measure(step),
    }
    left = progress.time_left(step)
    log.info(reporting.progress_line(step, job.total_steps, values, left))
    reporter.scalars("train", step, values)
    if not np.isfinite(values["loss"]):
        options = job.config.optimizer
        raise UserError(
            f"the training loss is {values['loss']} by step {step}: a lower "
            f"config.optimizer.learning_rate than {options.learning_rate} or a longer "
            f"config.optimizer.warmup_epochs than {options.warmup_epochs} may help; the last "
            "checkpoint is from before"
        )


def _warn(sentence: str, *values: object) -> None:
    """Warns of what all processes see alike, once."""
    if jax.process_index() == 0:
        log.warning(sentence, *values)


def _to_devices(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return devices.shard({name: batch[name] for name in ("image", "label", "index")})


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


def _describe(job: _Job, state: TrainState) -> None:
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


def _test(job: _Job, eval_step: EvalStep, replicated: TrainState) -> dict[str, float]:
    start = time.monotonic()
    batch_size = job.config.eval.batch_size
    measured = evaluate(eval_step, replicated.variables, job.test_set, batch_size)
    measured["seconds"] = time.monotonic() - start
    return measured


def _summary(test_metrics: dict[str, float]) -> str:
    shown = ("accuracy", "map_all_point", "loss", "patch_accuracy", "pointing_accuracy")
    numbers = "  ".join(
        f"{name} {test_metrics[name]:.4f}" for name in shown if name in test_metrics
    )
    return f"{numbers}  ({test_metrics['seconds']:.1f} s)"


def _draw(
    job: _Job,
    reporter: reporting.Reporter,
    step: int,
    eval_step: EvalStep,
    replicated: TrainState,
) -> None:
    """Attention pictures of the first test images, for TensorBoard."""
    config = job.config
    if not config.log.pictures:
        return
    explained = explanations.explain_dataset(
        eval_step,
        replicated.variables,
        job.test_set,
        config.log.pictures,
        config.eval.batch_size,
        runs.loss_kind(job.model, job.spec),
    )
    grid = job.model.patch_grid(job.spec.image_shape)
    reporter.figure(
        "attention",
        step,
        lambda: figures.draw_explanations(explained, grid, job.spec.class_names),
    )
