"""Training from a config: the loop that `train.py` calls and that tests run."""

import logging
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from lossattn_jax import checkpoint as checkpoint_lib
from lossattn_jax import cpu, devices, explanations, figures, metrics, runs
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import EvalStep, evaluate, make_eval_step
from lossattn_jax.train import feed, health, memory, reporting, tracing
from lossattn_jax.train.job import Job, describe, first_state, open_job
from lossattn_jax.train.state import TrainState
from lossattn_jax.train.step import Metrics, make_train_step, zero_metrics

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, float]:
    """Trains a network, or goes on where an earlier call for the same workdir stopped.

    Writes `config.json`, `checkpoints/`, `metrics.jsonl` and `tensorboard/` into `workdir`, and with
    `config.profile` also `profile/`. The result is a pure function of the config: an interrupted and
    resumed run ends with the parameters of an uninterrupted one (bit-equal on CPU).

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
    job = open_job(config, workdir)
    with checkpoint_lib.Checkpoints(job.workdir, config.checkpoint.keep) as checkpoints:
        state = first_state(job, checkpoints)
        checkpoint_lib.write_config(config, job.workdir)
        describe(job, state)
        eval_step = make_eval_step(job.model, job.spec)
        step, replicated = int(state.step), devices.replicate(state)
        del state  # or the first device would hold it twice, all the time
        if step == job.total_steps:
            log.info("the run is at its last step already")
            test_metrics = _test(job, eval_step, replicated)
        else:
            test_metrics = _train_steps(job, eval_step, step, replicated, checkpoints)
    log.info("finished: test %s; checkpoints in %s", _summary(test_metrics), job.workdir)
    return test_metrics


def _train_steps(
    job: Job,
    eval_step: EvalStep,
    step: int,
    replicated: TrainState,
    checkpoints: checkpoint_lib.Checkpoints,
) -> dict[str, float]:
    """Runs the steps that are left after `step`; returns the test metrics after the last one."""
    config = job.config
    train_steps = make_train_step(job.model, job.optimizer, job.spec, config, job.steps_per_epoch)
    totals = devices.replicate(zero_metrics(config))
    examples = feed.on_devices(job)
    kept = () if examples is None else (examples,)
    sizes = feed.dispatches(job, step)
    test_metrics: dict[str, float] = {}
    progress = reporting.Progress(step, job.total_steps, config.train.batch_size)
    waiting = reporting.InputWait()
    first = jax.process_index() == 0
    with (
        reporting.Reporter(job.workdir, step, first) as reporter,
        feed.open_batches(job, step, sizes, examples is not None) as batches,
        tracing.Tracer(config, job.workdir, step, first) as tracer,
    ):
        tell = _Teller(job, reporter, progress, waiting)
        unmeasured = max(sizes)
        for size in sizes:
            batch = waiting.next(batches, totals)
            if size == unmeasured:
                memory.describe(train_steps, replicated, totals, batch, *kept)
                cpu.release_memory()  # what compiling took
                unmeasured = 0
            tracer.before(step, size, totals)
            replicated, totals, history = train_steps(replicated, totals, batch, *kept)
            step += size
            tracer.after(step, history)
            tell.after(step, history)
            epoch, into_epoch = divmod(step, job.steps_per_epoch)
            last = step == job.total_steps
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
                cpu.release_memory()
    return test_metrics


class _Teller:
    """Tells how the training goes, after every step at which the config wants it and after the last."""

    def __init__(
        self,
        job: Job,
        reporter: reporting.Reporter,
        progress: reporting.Progress,
        waiting: reporting.InputWait,
    ):
        self._job = job
        self._reporter = reporter
        self._progress = progress
        self._waiting = waiting
        patches = job.model.patch_grid(job.spec.image_shape).patches
        self._watch = health.AttentionWatch(job.config, patches, job.steps_per_epoch)

    def after(self, step: int, history: Metrics) -> None:
        """Tells what there is to tell of one dispatch, the last of whose updates was the `step`-th."""
        job = self._job
        size = next(iter(history.values())).total.shape[1]
        told = [
            (place, at)
            for place, at in enumerate(range(step - size + 1, step + 1))
            if at % job.config.log.every_steps == 0 or at == job.total_steps
        ]
        if not told:
            return
        fetched = devices.unreplicate(history)
        # Steps of one dispatch cannot be timed apart.
        shared = {"images_per_second": self._progress.measure(step)}
        shared["input_wait"] = self._waiting.share(self._progress.seconds)
        for place, at in told:
            totals = jax.tree.map(lambda array, place=place: array[place], fetched)
            self._report(at, metrics.compute(totals) | shared, self._progress.time_left(step))

    def _report(self, step: int, means: dict[str, float], left: str) -> None:
        """Tells the means since the last report; stops a run whose loss is no longer finite."""
        job = self._job
        values = {
            **means,
            "epoch": step / job.steps_per_epoch,
            "learning_rate": float(job.learning_rate(step - 1)),
            "patch_weight": float(job.patch_weight((step - 1) // job.steps_per_epoch)),
        }
        log.info(reporting.progress_line(step, job.total_steps, values, left))
        self._reporter.scalars("train", step, values)
        if not np.isfinite(values["loss"]):
            options = job.config.optimizer
            raise UserError(
                f"the training loss is {values['loss']} by step {step}: a lower "
                f"config.optimizer.learning_rate than {options.learning_rate} or a longer "
                f"config.optimizer.warmup_epochs than {options.warmup_epochs} may help; the last "
                "checkpoint is from before"
            )
        if warning := self._watch.look(means["attention_entropy"], step):
            reporting.warn("warning: %s", warning)


def _test(job: Job, eval_step: EvalStep, replicated: TrainState) -> dict[str, float]:
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
    job: Job,
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
