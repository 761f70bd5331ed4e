"""The training loop of images, from a config."""

import dataclasses
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import run_folder, runs
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.commands.progress import Progress
from lossattn_jax.evaluate import metrics, nonfinite_values
from lossattn_jax.evaluate.evaluation import EvalStep, evaluate, make_eval_step
from lossattn_jax.evaluate.metric_registry import EVALUATION_METRICS
from lossattn_jax.explain import explanations, figures
from lossattn_jax.kernels import cpu
from lossattn_jax.train import preemption
from lossattn_jax.train.images import (
    feed,
    frozen,
    health,
    memory,
    nonfinite,
    reporting,
    tracing,
    training_data,
)
from lossattn_jax.train.images.job import Job, describe, first_state, open_job
from lossattn_jax.train.images.saver import Saver
from lossattn_jax.train.images.step import Metrics, make_train_step
from lossattn_jax.train.skips import Skips
from lossattn_jax.train.state import TrainState

log = logging.getLogger(__name__)


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    stop: preemption.Stop | None = None,
    *,
    trust_code: bool = False,
) -> dict[str, float]:
    """Trains a network, or resumes its run.

    Writes `config.json`, `data.json`, `checkpoints/`, `metrics.jsonl` and `tensorboard/` into `workdir`,
    and with `config.profile` also `profile/`. The result is a pure function of the config: an interrupted and
    resumed run ends with the parameters of an uninterrupted one (bit-equal on CPU).

    Args:
      config: see `lossattn_jax.config.default_config`.
      workdir: folder of the run; made where absent.
      stop: from `preemption.watch`; None: SIGTERM is not cared for.
      trust_code: whether code that the run of `config.init_from` names by reference is imported, where this
        config does not name it too.

    Returns:
      The test metrics after the last step (see `metric_registry.evaluation_metrics`), and `seconds`, what
      measuring them took. Empty where the run was asked to stop before.

    Raises:
      UserError: the config is impossible, the data set is absent or not the one that the run was started
        with, the workdir holds another run or cannot be written, another training is at it, or too many
        updates in a row were not finite (see `train.nonfinite`).
    """
    fresh = not os.path.lexists(workdir)
    job = open_job(config, workdir)
    stop = stop or preemption.Stop()
    with (
        run_folder.leave_no_lock(job.workdir, fresh),
        run_folder.lock_workdir(job.workdir),
        checkpoint_lib.Checkpoints(job.workdir, job.options.checkpoint.keep) as checkpoints,
    ):
        saver = Saver(job, checkpoints)
        stop.begin(saver.describe, saver.save_and_describe)
        state, sums = first_state(job, checkpoints, trust_code)
        images = training_data.describe(job.train_set, job.test_set)
        if state.step > 0:
            folder = data.resolve_data_dir(job.options.data.dir)
            training_data.refuse_other(job.workdir, images, folder)
        training_data.write(job.workdir, images, job.spec.name)
        run_folder.write_config(job.options, job.workdir, job.spec)  # all processes wait for it
        describe(job, state)
        pictures = job.test_set
        if job.options.train.freeze:
            job = frozen.use_maps(job, state)
        eval_step = make_eval_step(job.model, job.spec, job.options.loss.name)
        step = int(state.step)
        device_state, totals = devices.replicate((state, sums))
        del state  # else the first device would hold it twice
        if step == job.total_steps:
            log.info("the run is at its last step already")
            test_metrics = _test(job, eval_step, device_state)
            if jax.process_index() == 0:
                reporting.remove_broken_lines(job.workdir, step)
            if _lacks_test(job, step):
                with reporting.Reporter(job.workdir, step, jax.process_index() == 0) as reporter:
                    reporter.scalars(
                        "test", step, {"epoch": job.options.train.epochs, **test_metrics}
                    )
        else:
            try:
                start = device_state, totals
                test_metrics = _train_steps(job, eval_step, start, saver, stop, pictures=pictures)
            except preemption.Preemption:
                test_metrics = {}
        if test_metrics:
            checkpoints.wait()
            checkpoints.check_there(job.total_steps)
            if jax.process_index() == 0:  # which has written them
                run_folder.check_whole(job.workdir, reporting.METRICS_NAME)
    if test_metrics:
        log.info("finished: test %s; checkpoints in %s", _summary(test_metrics), job.workdir)
    return test_metrics


def _train_steps(
    job: Job,
    eval_step: EvalStep,
    start: tuple[TrainState, Metrics],
    saver: Saver,
    stop: preemption.Stop,
    *,
    pictures: data.Dataset,
) -> dict[str, float]:
    """Runs the remaining steps; returns the last test metrics.

    From a state and metrics on the devices. `pictures` is the test split as it looks.

    Raises:
      Preemption: the run was asked to stop.
    """
    options, (device_state, totals) = job.options, start
    del start  # which is donated
    train_steps = make_train_step(job.model, job.optimizer, job.spec, options, job.steps_per_epoch)
    step = int(devices.unreplicate(device_state.step))
    on_devices = feed.on_devices(job)
    examples = () if on_devices is None else (on_devices,)
    sizes = feed.dispatches(job, step)
    test_metrics: dict[str, float] = {}
    progress = Progress(step, job.total_steps, options.train.batch_size)
    waiting = reporting.InputWait()
    ahead = preemption.Ahead()
    first = jax.process_index() == 0
    with (
        reporting.Reporter(job.workdir, step, first) as reporter,
        feed.open_batches(job, step, sizes, on_devices is not None) as batches,
        tracing.Tracer(options.profile_span, job.workdir, step, first) as tracer,
    ):
        logger = TrainLogger(job, reporter, progress, waiting)
        tester = _Tester(job, reporter, eval_step, stop, pictures)

        def dispatches() -> Iterator[tuple[int, Any]]:
            """Yields sizes and batches; compiles before the first."""
            size_to_measure = max(sizes)
            for size in sizes:
                batch = waiting.next(batches, totals)
                if size == size_to_measure:
                    memory.describe(train_steps, device_state, totals, batch, *examples)
                    cpu.release_memory()  # what compiling took
                    size_to_measure = 0
                yield size, batch

        if _lacks_test(job, step):
            with progress.pause(), stop.interruptible():
                tester.test(step, device_state)
        for size, batch in stop.between(dispatches()):
            tracer.before(step, size, totals)
            device_state, totals, history = train_steps(device_state, totals, batch, *examples)
            ahead.limit(history)
            step += size
            saver.hold(step, device_state, totals)
            tracer.after(step, history)
            logger.log_dispatch(step, history, device_state)
            evaluates, saves = job.evaluates(step), job.saves(step)
            if not (evaluates or saves):
                continue
            jax.block_until_ready(device_state)  # so that the pause holds no training
            nonfinite.stop_if_stuck(job, device_state, logger.skips)
            with progress.pause():
                if evaluates:
                    with stop.interruptible():
                        test_metrics = tester.test(step, device_state)
                        saver.hold(step, device_state, totals, test_metrics)
                        tester.draw(step, device_state)
                if saves:
                    saver.save()
                cpu.release_memory()
    return test_metrics


class TrainLogger:
    """Logs the training after the configured steps and the last.

    Attributes:
      skips: the skipped updates of the run.
    """

    def __init__(
        self,
        job: Job,
        reporter: reporting.Reporter,
        progress: Progress,
        waiting: reporting.InputWait,
    ):
        self._job = job
        self._reporter = reporter
        self._progress = progress
        self._waiting = waiting
        self.skips: Skips[str] = Skips(1, job.options.train.max_skipped)
        patches = job.model.patch_grid(job.spec.image_shape).patches
        self._watch = health.AttentionWatch(job.options, patches, job.steps_per_epoch)
        # One program, where every operation of a schedule would be one by itself.
        self._scheduled_values = jax.jit(
            lambda step: {
                "learning_rate": job.learning_rate(step),
                "patch_weight": job.patch_weight(step // job.steps_per_epoch),
            }
        )

    def log_dispatch(self, step: int, history: Metrics, device_state: TrainState) -> None:
        """Logs what is due of a dispatch that ends at `step`.

        Raises:
          UserError: too many updates in a row were skipped, by the state after the dispatch.
        """
        job = self._job
        size = next(iter(history.values())).total.shape[1]
        due = [
            (place, at)
            for place, at in enumerate(range(step - size + 1, step + 1))
            if at % job.options.log.every_steps == 0 or at == job.total_steps
        ]
        if not due:
            return
        totals_by_step = devices.unreplicate(history)
        # Steps of one dispatch cannot be timed apart.
        rates = {"images_per_second": self._progress.measure(step)}
        rates["input_wait"] = self._waiting.share(self._progress.seconds)
        for place, at in due:
            totals = jax.tree.map(lambda array, place=place: array[place], totals_by_step)
            means = nonfinite.compute_means(totals, at, self.skips) | rates
            self._report(at, means, self._progress.time_left(step))
        nonfinite.stop_if_stuck(job, device_state, self.skips)

    def _report(self, step: int, means: dict[str, float], time_left: str) -> None:
        """Logs and records the means since the last report."""
        job = self._job
        values = {
            **means,
            "epoch": step / job.steps_per_epoch,
            **jax.tree.map(float, self._scheduled_values(step - 1)),
        }
        log.info(reporting.progress_line(step, job.total_steps, values, time_left))
        self._reporter.scalars("train", step, values)
        if warning := self._watch.look(means["attention_entropy"], step):
            reporting.warn("warning: %s", warning)


def _lacks_test(job: Job, step: int) -> bool:
    """Whether a resumed run was ended before its due test."""
    if not step or not job.evaluates(step):
        return False
    first = jax.process_index() == 0
    return devices.anywhere(first and not reporting.tells_of(job.workdir, "test", step))


class _Tester:
    """Tests a run's network while it is trained."""

    def __init__(
        self,
        job: Job,
        reporter: reporting.Reporter,
        eval_step: EvalStep,
        stop: preemption.Stop,
        pictures: data.Dataset,
    ):
        self._job, self._reporter, self._eval_step = job, reporter, eval_step
        self._stop = stop
        self._pictures = pictures

    def test(self, step: int, device_state: TrainState) -> dict[str, float]:
        """Measures, logs and records the test metrics after so many updates.

        Raises:
          Preemption: the run was asked to stop.
        """
        test_metrics = _test(self._job, self._eval_step, device_state, self._stop.check)
        log.info("test  " + _summary(test_metrics))
        if count := test_metrics.get(metrics.NONFINITE):
            sentence = nonfinite_values.of_outputs(
                int(count), int(test_metrics["num_examples"]), "images of test"
            )
            reporting.warn("warning: %s after step %d: its metrics are null", sentence, step)
        values = {"epoch": step // self._job.steps_per_epoch, **test_metrics}
        self._reporter.scalars("test", step, values)
        return test_metrics

    def draw(self, step: int, device_state: TrainState) -> None:
        """Draws attention of the first test images, for TensorBoard."""
        job, options = self._job, self._job.options
        if not options.log.pictures:
            return
        explained_images = explanations.explain_dataset(
            self._eval_step,
            device_state.variables,
            job.test_set,
            options.log.pictures,
            options.eval.batch_size,
            runs.loss_kind(job.model, job.spec, job.options.loss.name),
        )
        if job.spec.is_network_input:
            places = np.arange(len(explained_images.images))
            images = self._pictures.read(places)["image"]
            explained_images = dataclasses.replace(explained_images, images=images)
        grid = job.model.patch_grid(job.spec.image_shape)
        self._reporter.figure(
            "attention",
            step,
            lambda: figures.draw_explanations(explained_images, grid, job.spec.class_names),
        )


def _test(
    job: Job,
    eval_step: EvalStep,
    device_state: TrainState,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    start = time.monotonic()
    batch_size = job.options.eval.batch_size
    measurements = evaluate(eval_step, device_state.variables, job.test_set, batch_size, between)
    measurements["seconds"] = time.monotonic() - start
    return measurements


def _summary(test_metrics: dict[str, float]) -> str:
    names = [name for name, metric in EVALUATION_METRICS.items() if metric.in_log]
    numbers = "  ".join(
        f"{name} {test_metrics[name]:.4f}"
        if math.isfinite(test_metrics[name])
        else f"{name} not finite"
        for name in names
        if name in test_metrics
    )
    return f"{numbers}  ({test_metrics['seconds']:.1f} s)"
