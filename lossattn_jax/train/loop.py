"""Training from a config: the loop that `train.py` calls and that tests run."""

import dataclasses
import logging
import pathlib
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lossattn_jax import checkpoint as checkpoint_lib
from lossattn_jax import config as config_lib
from lossattn_jax import data, devices, explain, figures, metrics, models, runs
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import EvalStep, evaluate, make_eval_step
from lossattn_jax.train import reporting
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import learning_rate_schedule, patch_weight_schedule
from lossattn_jax.train.state import TrainState, count_parameters, create_state
from lossattn_jax.train.step import make_train_step, zero_metrics

log = logging.getLogger(__name__)


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
    config_lib.check(config)
    workdir = checkpoint_lib.make_workdir(workdir)
    spec = runs.spec_of(config)
    shared = config.model.batch_norm == "cross_replica"
    model = runs.build_model(config, spec, bn_axis_name=devices.AXIS if shared else None)
    devices.per_device(config.train.batch_size, "config.train.batch_size")
    train_set, test_set = (
        data.open_dataset(spec, split, config.data.dir or None, config.data.mode)
        for split in ("train", "test")
    )
    steps_per_epoch = data.steps_per_epoch(len(train_set), config.train.batch_size)
    total_steps = config.train.epochs * steps_per_epoch
    learning_rate = learning_rate_schedule(config, steps_per_epoch)
    optimizer = make_optimizer(config, learning_rate)

    with checkpoint_lib.Checkpoints(workdir, config.checkpoint.keep) as checkpoints:
        state = create_state(model, optimizer, spec.image_shape, config.seed)
        resumed = checkpoints.latest_step()
        if resumed is not None:
            _compare_with_stored_config(config, workdir)
            state = TrainState.from_items(checkpoints.restore(resumed, state.items()))
        elif config.init_from:
            state = _start_from(config.init_from, state)
        start_step = int(state.step)
        if start_step > total_steps:
            raise UserError(
                f"the run in {workdir} has done {start_step} steps, but config.train.epochs="
                f"{config.train.epochs} makes only {total_steps}"
            )
        checkpoint_lib.write_config(config, workdir)
        _describe(config, spec, train_set, test_set, state, total_steps, workdir)

        eval_step = make_eval_step(model, spec)
        replicated = devices.replicate(state)
        del state
        if start_step == total_steps:
            log.info("the run is at its last step already")
            test_metrics = _test(eval_step, replicated, test_set, config)
        else:
            train_step = make_train_step(model, optimizer, spec, config, steps_per_epoch)
            progress = reporting.Progress(start_step, total_steps, config.train.batch_size)
            batches = train_set.train_batches(
                batch_size=config.train.batch_size,
                seed=config.seed,
                start_step=start_step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            totals = devices.replicate(zero_metrics())
            with (
                reporting.Reporter(workdir, start_step, jax.process_index() == 0) as reporter,
                data.prefetch(batches, _to_devices) as sharded,
            ):
                for step in range(start_step + 1, total_steps + 1):
                    replicated, totals = train_step(replicated, totals, next(sharded))
                    epoch, into_epoch = divmod(step, steps_per_epoch)
                    last = step == total_steps
                    if step % config.log.every_steps == 0 or last:
                        values = metrics.compute(devices.unreplicate(totals))
                        totals = devices.replicate(zero_metrics())
                        values["learning_rate"] = float(learning_rate(step - 1))
                        values["patch_weight"] = _patch_weight(
                            config, (step - 1) // steps_per_epoch
                        )
                        values["images_per_second"] = progress.measure(step)
                        left = progress.time_left(step)
                        part = step / steps_per_epoch
                        log.info(reporting.progress_line(step, total_steps, part, values, left))
                        reporter.scalars("train", step, {"epoch": part, **values})
                        _refuse_divergence(values["loss"], step, config)
                    evaluates = last or (into_epoch == 0 and epoch % config.eval.every_epochs == 0)
                    saves = last or (
                        into_epoch == 0 and epoch % config.checkpoint.every_epochs == 0
                    )
                    if not (evaluates or saves):
                        continue
                    jax.block_until_ready(replicated)  # so that the pause holds no training
                    with progress.paused():
                        if evaluates:
                            test_metrics = _test(eval_step, replicated, test_set, config)
                            log.info("test  " + _summary(test_metrics))
                            reporter.scalars("test", step, {"epoch": epoch, **test_metrics})
                            _draw(reporter, step, eval_step, replicated, test_set, model, config)
                        if saves:
                            items = devices.unreplicate(replicated).items()
                            checkpoints.save(step, items, test_metrics if evaluates else None)
    log.info("finished: test accuracy %.4f; checkpoints in %s", test_metrics["accuracy"], workdir)
    return test_metrics


def _to_devices(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return devices.shard({"image": batch["image"], "label": batch["label"]})


def _compare_with_stored_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    stored = checkpoint_lib.stored_config(workdir)
    for difference in config_lib.refuse_other_run(stored, config, workdir):
        log.warning("changed since the run was last started: %s", difference)


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


def _refuse_divergence(loss: float, step: int, config: ConfigDict) -> None:
    if not np.isfinite(loss):
        raise UserError(
            f"the training loss is {loss} by step {step}: a lower config.optimizer.learning_rate "
            f"than {config.optimizer.learning_rate} or a longer config.optimizer.warmup_epochs may "
            "help; the last checkpoint is from before"
        )


def _describe(
    config: ConfigDict,
    spec: data.DatasetSpec,
    train_set: data.Dataset,
    test_set: data.Dataset,
    state: TrainState,
    total_steps: int,
    workdir: pathlib.Path,
) -> None:
    step = int(state.step)
    log.info("devices: %s", devices.describe())
    log.info(
        "data: %s, %d training and %d test images of %s, %d classes",
        spec.name,
        len(train_set),
        len(test_set),
        "x".join(str(side) for side in spec.image_shape),
        spec.num_classes,
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
        total_steps,
        config.train.batch_size,
        step,
    )
    log.info("workdir: %s", workdir)


def _patch_weight(config: ConfigDict, epoch: int) -> float:
    weight = config.loss.patch_weight if config_lib.uses_patch_loss(config) else 0.0
    return float(patch_weight_schedule(epoch, weight, config.loss.patch_ramp_epochs))


def _test(
    eval_step: EvalStep, replicated: TrainState, test_set: data.Dataset, config: ConfigDict
) -> dict[str, float]:
    start = time.monotonic()
    measured = evaluate(eval_step, replicated.variables, test_set, config.eval.batch_size)
    measured["seconds"] = time.monotonic() - start
    return measured


def _summary(test_metrics: dict[str, float]) -> str:
    shown = ("accuracy", "loss", "patch_accuracy", "pointing_accuracy")
    numbers = "  ".join(
        f"{name} {test_metrics[name]:.4f}" for name in shown if name in test_metrics
    )
    return f"{numbers}  ({test_metrics['seconds']:.1f} s)"


def _draw(
    reporter: reporting.Reporter,
    step: int,
    eval_step: EvalStep,
    replicated: Any,
    test_set: data.Dataset,
    model: models.PatchNetwork,
    config: ConfigDict,
) -> None:
    """Attention pictures of the first test images, for TensorBoard."""
    if not config.log.pictures:
        return
    explanations = explain.explain_dataset(
        eval_step, replicated.variables, test_set, config.log.pictures, config.eval.batch_size
    )
    grid = model.patch_grid(test_set.spec.image_shape)
    reporter.figure(
        "attention",
        step,
        lambda: figures.draw_explanations(explanations, grid, test_set.spec.class_names),
    )
