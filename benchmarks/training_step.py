"""The training step of a config, as `train.py` runs it, on random images: for benchmarks."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from lossattn_jax import config as config_lib
from lossattn_jax import data, devices, models, runs
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import learning_rate_schedule
from lossattn_jax.train.state import create_state
from lossattn_jax.train.step import make_train_step, zero_metrics

# State, metrics and batch, as the step takes them.
Arguments = tuple[Any, Any, Any]

_STEPS_PER_EPOCH = 390  # of schedules: CIFAR's 50,000 images in batches of 128


@dataclasses.dataclass(frozen=True)
class Job:
    """What `train.loop` makes of a config, but for its data.

    Attributes:
      config: of a run.
      spec: of its data set, which need not be there.
      model: the network.
      optimizer: of the run.
      step: the pmapped update; see `train.step.make_train_step`.
    """

    config: ConfigDict
    spec: data.DatasetSpec
    model: models.ImageNetwork
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]


def job(config: ConfigDict) -> Job:
    """The job of a config.

    Raises:
      UserError: the config is impossible.
    """
    config_lib.check(config)
    spec = runs.spec_of(config)
    shared = config.model.batch_norm == "cross_replica"
    model = runs.build_model(config, spec, bn_axis_name=devices.AXIS if shared else None)
    schedule = learning_rate_schedule(config, _STEPS_PER_EPOCH)
    optimizer = make_optimizer(config, schedule, _STEPS_PER_EPOCH)
    step = make_train_step(model, optimizer, spec, config, _STEPS_PER_EPOCH)
    return Job(config, spec, model, optimizer, step)


def batch(job: Job, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of random images on the host: `image` uint8 `[B, H, W, C]`, `label` and `index`."""
    size, spec = job.config.train.batch_size, job.spec
    random = np.random.default_rng(seed)
    labels = random.integers(0, spec.num_classes, size, np.int32)
    if spec.multi_label:
        labels = np.eye(spec.num_classes, dtype=spec.label_dtype)[labels]
    return {
        "image": random.integers(0, 256, (size, *spec.image_shape), np.uint8),
        "label": labels,
        "index": np.arange(size, dtype=np.int32),
    }


def arguments(job: Job, seed: int = 0) -> Arguments:
    """A fresh state, metrics of no step and a random batch, on the devices."""
    state = create_state(job.model, job.optimizer, job.spec.image_shape, seed)
    devices.per_device(job.config.train.batch_size, "config.train.batch_size")
    return (
        devices.replicate(state),
        devices.replicate(zero_metrics(job.config)),
        devices.shard_steps([batch(job, seed)]),
    )


def timed(job: Job, arguments: Arguments, steps: int) -> tuple[Arguments, list[float]]:
    """Trains on the same batch, and waits for each step.

    Args:
      job: whose step to time.
      arguments: of `arguments` or of an earlier call; state and metrics are used up.
      steps: how many; the first one ever compiles.

    Returns:
      The arguments to go on with, and the wall time of each step in seconds.
    """
    state, totals, images = arguments
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        state, totals, _ = job.step(state, totals, images)
        jax.block_until_ready((state, totals))
        seconds.append(time.perf_counter() - began)
    return (state, totals, images), seconds
