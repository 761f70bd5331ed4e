"""The update of a network for images, on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossattn_jax import data, devices
from lossattn_jax.attention import ensemble as ensemble_lib
from lossattn_jax.config.options import ImageOptions, LossOptions
from lossattn_jax.evaluate import metrics
from lossattn_jax.models import ImageNetwork
from lossattn_jax.train import update as update_lib
from lossattn_jax.train.images.gradients import Batch, BatchGradients, make_gradients
from lossattn_jax.train.state import TrainState
from lossattn_jax.train.update import ModelState

Metrics = dict[str, metrics.Mean]


def zero_metrics(options: LossOptions) -> Metrics:
    """Metrics of no step, to merge into.

    "skipped" has the updates that were skipped as its total, and all updates as its count. The mean of
    "first_skipped" is the place of the first of them, from 0. The others are of updates that were applied.
    """
    names = ["loss", "image_loss", "patch_loss", "accuracy", "attention_entropy", "grad_norm"]
    names += ["skipped", "first_skipped"]
    if options.uses_consistency:
        names.append("consistency_loss")
    zero: Any = np.zeros((), np.float32)  # made by JAX it would be a program
    return {name: metrics.Mean(zero, zero) for name in names}


def make_train_step(
    model: ImageNetwork,
    optimizer: optax.GradientTransformation,
    spec: data.DatasetSpec,
    options: ImageOptions,
    steps_per_epoch: int,
) -> Callable[..., tuple[TrainState, Metrics, Metrics]]:
    """The pmapped function that makes k updates, one after the other.

    It takes a replicated state, replicated metrics and the k batches from `devices.shard_steps` (`image`
    uint8 `[devices, k, b, H, W, C]`, `label` int32 `[devices, k, b]` or multi-hot uint8
    `[devices, k, b, K]`, and `index` int32 `[devices, k, b]`), k being 1 or more. It returns the state after
    the last update, the metrics to go on with, and the metrics' history, `[devices, k]`: item i holds the
    metrics given with those of the updates up to the i-th merged in. After an update at which
    `config.log.every_steps` divides the number of updates done, the metrics start from nothing again.
    State and metrics are donated.

    Where the training set is on the devices, the batches hold `index` alone, and a fourth argument has the
    replicated `image` `[devices, N, H, W, C]` and `label` `[devices, N]` or `[devices, N, K]` of all of it.

    All randomness comes from `fold_in(key(seed), step)` and an example's place in the global batch, so that
    an update is the same on any number of devices.

    An update whose mean loss, norm of the gradient or running statistics are not finite is skipped: all
    stays as it was but `step` and the optimiser's counts that schedules go by, and it is counted in
    `skipped` and in the metrics; see `train.update`. After `max_skipped` in a row every further
    one is skipped.

    With `config.train.accumulate` the batch goes through the network in so many parts, one after the other,
    whose gradients are averaged; batch normalisation then sees a part at a time. With `config.train.remat`
    only what convolutions and matrix products give is kept for the backward pass; normalisations and the
    like are computed again.

    Args:
      model: the network, its batch normalisation sharing statistics over `devices.AXIS` or not.
      optimizer: from `make_optimizer`.
      spec: of the data set.
      options: of the run.
      steps_per_epoch: updates in an epoch.
    """
    compute_gradients = make_gradients(model, spec, options, steps_per_epoch)
    log_every = options.log.every_steps
    max_skipped = options.train.max_skipped

    def update(state: TrainState, totals: Metrics, batch: Batch) -> tuple[TrainState, Metrics]:
        of_batch = compute_gradients(state, batch)
        norm = update_lib.gradient_norm(of_batch.gradients)
        values = (of_batch.loss, norm, of_batch.batch_stats)
        applies = update_lib.is_applied(values, state.skipped, max_skipped)
        before = ModelState(state.params, state.opt_state)
        after = update_lib.apply_update(optimizer, of_batch.gradients, before, state.step, applies)
        ensemble: Any = state.ensemble
        if ensemble is not None:
            ensemble = update_lib.choose(applies, of_batch.ensemble, ensemble)
            ensemble = ensemble_lib.record(ensemble, batch["index"], of_batch.attention, applies)
        new_state = TrainState(
            step=state.step + 1,
            params=after.params,
            batch_stats=update_lib.choose(applies, of_batch.batch_stats, state.batch_stats),
            opt_state=after.opt_state,
            ensemble=ensemble,
            skipped=update_lib.count_skipped(applies, state.skipped),
        )
        return new_state, metrics.merge(totals, _measure(of_batch, norm, applies, totals))

    def train_steps(
        state: TrainState, totals: Metrics, batches: Batch, examples: Batch | None = None
    ) -> tuple[TrainState, Metrics, Metrics]:
        def one(carry: tuple[TrainState, Metrics], batch: Batch) -> Any:
            if examples is not None:
                batch = batch | {name: array[batch["index"]] for name, array in examples.items()}
            state, totals = update(*carry, batch)
            ends = state.step % log_every == 0
            return (state, jax.tree.map(lambda total: jnp.where(ends, 0.0, total), totals)), totals

        steps = len(batches["index"])
        if steps == 1:
            only = jax.tree.map(lambda array: array[0], batches)
            carry, history = one((state, totals), only)
            return *carry, jax.tree.map(lambda total: total[None], history)
        unroll = devices.unroll_length(steps)
        carry, history = jax.lax.scan(one, (state, totals), batches, unroll=unroll)
        return *carry, history

    return devices.pmap(train_steps, donate=(0, 1))


def _measure(
    of_batch: BatchGradients, norm: jax.Array, applies: jax.Array, before: Metrics
) -> Metrics:
    """What an update adds to the metrics of those `before`."""
    per_example = {**of_batch.per_example, "grad_norm": norm[None]}
    means = {
        name: metrics.mean_of(values, jnp.broadcast_to(applies, values.shape).astype(jnp.float32))
        for name, values in per_example.items()
    }
    totals = jax.lax.psum(means, devices.AXIS)
    is_skipped = 1.0 - applies.astype(jnp.float32)
    first = is_skipped * (before["skipped"].total == 0).astype(jnp.float32)
    totals["skipped"] = metrics.Mean(is_skipped, jnp.ones((), jnp.float32))
    totals["first_skipped"] = metrics.Mean(first * before["skipped"].count, first)
    return totals
