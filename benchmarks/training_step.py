"""The training step of `train.py` on random images, for benchmarks."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lossattn_jax import data, devices, models
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import runs
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import ImageOptions
from lossattn_jax.evaluate.evaluation import EvalStep, make_eval_step, to_devices
from lossattn_jax.train.images import memory
from lossattn_jax.train.images.gradients import make_forward
from lossattn_jax.train.images.job import build_network
from lossattn_jax.train.images.step import make_train_step, zero_metrics
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.state import create_state

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

    options: ImageOptions
    spec: data.DatasetSpec
    model: models.ImageNetwork
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]


def job(config: ConfigDict) -> Job:
    """The job of a config.

    Raises:
      UserError: the config is impossible.
    """
    options = config_lib.resolve(config)
    spec = runs.spec_of(options.data)
    model = build_network(options.model, spec)
    length = Length(options.train.epochs, _STEPS_PER_EPOCH)
    schedule = learning_rate_schedule(options.optimizer, length)
    optimizer = make_optimizer(options.optimizer, schedule, length)
    step = make_train_step(model, optimizer, spec, options, _STEPS_PER_EPOCH)
    return Job(options, spec, model, optimizer, step)


def batch(job: Job, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of random images on the host.

    `image` is uint8 `[B, H, W, C]`; `label` and `index` are beside it.
    """
    size, spec = job.options.train.batch_size, job.spec
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
    """A fresh state, empty metrics and a random batch, on the devices."""
    state = create_state(job.model, job.optimizer, job.spec.image_shape, seed)
    devices.per_device(job.options.train.batch_size, "config.train.batch_size")
    return (
        devices.replicate(state),
        devices.replicate(zero_metrics(job.options.loss)),
        devices.shard_steps([batch(job, seed)]),
    )


def state_shapes(job: Job) -> Any:
    """A fresh state as `jax.ShapeDtypeStruct`s, without the devices' axis."""
    return jax.eval_shape(
        lambda: create_state(job.model, job.optimizer, job.spec.image_shape, job.options.seed)
    )


def shapes(job: Job) -> Arguments:
    """`arguments` as `jax.ShapeDtypeStruct`s, for which nothing is made."""
    size = devices.per_device(job.options.train.batch_size, "config.train.batch_size")
    images = {
        name: jax.ShapeDtypeStruct((1, size, *array.shape[1:]), array.dtype)
        for name, array in batch(job).items()
    }

    def on_devices(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((jax.local_device_count(), *leaf.shape), leaf.dtype)

    return jax.tree.map(on_devices, (state_shapes(job), zero_metrics(job.options.loss), images))


def step_memory(job: Job, arguments: Arguments) -> dict[str, int] | None:
    """Compiles a job's step and asks XLA for its bytes.

    Args:
      job: from `job`.
      arguments: of its step, or their `shapes`; not used up. After the former calls need not compile.

    Returns:
      `state`: parameters, statistics, optimiser and the batch; `temporary`: what the step needs besides. None
      where XLA does not tell.
    """
    usage = memory.analyse(job.step, *arguments)
    return None if usage is None else {"state": usage.arguments, "temporary": usage.program}


def evaluation(job: Job, seed: int = 0) -> tuple[EvalStep, dict[str, jax.Array]]:
    """The step that evaluates a network, and a random batch for it."""
    mask = np.ones(job.options.train.batch_size, np.float32)
    return make_eval_step(job.model, job.spec), to_devices({**batch(job, seed), "mask": mask})


def make_loss(
    options: ImageOptions, spec: data.DatasetSpec, model: models.ImageNetwork
) -> Callable[..., tuple[jax.Array, Any]]:
    """The loss that options train, at the end of lambda's ramp.

    It runs outside of `devices.pmap`.

    Args:
      options: of a run, without consistency.
      spec: of its data set.
      model: the network, its batch normalisation sharing no statistics.

    Returns:
      A function of the variables, normalised images and labels that returns the mean loss, and the batch
      statistics after it.
    """
    kind = runs.loss_kind(model, spec)
    weight = (
        options.loss.patch_weight
        if config_lib.uses_patch_loss(options.loss, options.model.pooling)
        else 0.0
    )

    forward = make_forward(model, remat=False)

    def loss(variables: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        batch_stats = variables.get("batch_stats", {})
        outputs, new_variables = forward(
            variables["params"], batch_stats, images, jax.random.key(0)
        )
        terms = losses.loss_attention_loss(
            outputs.logits,
            outputs.patch_logits,
            outputs.attention,
            labels,
            weight,
            options.loss.label_smoothing,
            kind=kind,
        )
        return jnp.mean(terms.total), new_variables.get("batch_stats", {})

    return loss


def time_steps(job: Job, arguments: Arguments, steps: int) -> tuple[Arguments, list[float]]:
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
