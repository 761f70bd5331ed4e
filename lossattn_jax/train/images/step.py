"""Updates: gradients, the optimiser, what is skipped because it is not finite, and metrics.

Why not `optax.apply_if_finite`: it holds back parameters and the optimiser's state only, while running
statistics and the average of attention would take in what is not finite; it holds back the count that the
learning rate goes by; it does not see the loss; and after its limit it applies what is not finite.
"""

import functools
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
from lossattn_jax.train.images.gradients import Batch, Found, make_gradients
from lossattn_jax.train.optimizer import at_step
from lossattn_jax.train.state import TrainState

Metrics = dict[str, metrics.Mean]


def zero_metrics(options: LossOptions) -> Metrics:
    """Metrics of no step, to merge into.

    "skipped" has the updates that were skipped as its total, and all updates as its count. The mean of
    "first_skipped" is the place of the first of them, from 0. The others are of updates that were made.
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
    `skipped` and in the metrics. A finite gradient whose norm overflows float32 is one of them: Adam would
    keep its square, which is infinite, for ever, and not move these parameters any more. After
    `config.train.max_skipped` in a row every further one is skipped, whatever it is, so that the state is
    that of before the first of them whenever the host looks.

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
    find = make_gradients(model, spec, options, steps_per_epoch)
    log_every = options.log.every_steps
    most = options.train.max_skipped

    def update(state: TrainState, totals: Metrics, batch: Batch) -> tuple[TrainState, Metrics]:
        found = find(state, batch)
        norm = _norm(found.gradients)
        made = _finite((found.loss, norm, found.batch_stats)) & (state.skipped < most)
        updates, opt_state = optimizer.update(found.gradients, state.opt_state, state.params)
        # Element by element and by what is there already, so that XLA still updates in place.
        choose = functools.partial(jax.tree.map, functools.partial(jnp.where, made))
        ensemble = state.ensemble
        if ensemble is not None:
            ensemble = choose(found.ensemble, ensemble)
            ensemble = ensemble_lib.record(ensemble, batch["index"], found.attention, made)
        new_state = TrainState(
            step=state.step + 1,
            params=choose(optax.apply_updates(state.params, updates), state.params),
            batch_stats=choose(found.batch_stats, state.batch_stats),
            opt_state=at_step(choose(opt_state, state.opt_state), state.step + 1),
            ensemble=ensemble,
            skipped=jnp.where(made, 0, state.skipped + 1),
        )
        return new_state, metrics.merge(totals, _told(found, norm, made, totals))

    def train_steps(
        state: TrainState, totals: Metrics, batches: Batch, examples: Batch | None = None
    ) -> tuple[TrainState, Metrics, Metrics]:
        def one(carry: tuple[TrainState, Metrics], batch: Batch) -> Any:
            if examples is not None:
                batch = batch | {name: array[batch["index"]] for name, array in examples.items()}
            state, told = update(*carry, batch)
            ends = state.step % log_every == 0
            return (state, jax.tree.map(lambda total: jnp.where(ends, 0.0, total), told)), told

        steps = len(batches["index"])
        if steps == 1:
            alone = jax.tree.map(lambda array: array[0], batches)
            carry, told = one((state, totals), alone)
            return *carry, jax.tree.map(lambda total: total[None], told)
        unroll = devices.unrolled(steps)
        carry, history = jax.lax.scan(one, (state, totals), batches, unroll=unroll)
        return *carry, history

    return devices.pmap(train_steps, donate=(0, 1))


def _norm(gradients: Any) -> jax.Array:
    """The L2 norm of all gradients together.

    The last layers' come first, as in the backward pass. Every update waits for the norm, and on CPUs XLA
    orders a program by such sums: from the first layer on, it kept up to half as much memory again.
    """
    leaves = reversed(jax.tree.leaves(gradients))
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in leaves])))


def _finite(tree: Any) -> jax.Array:
    """Whether all values are finite."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def _told(found: Found, norm: jax.Array, made: jax.Array, before: Metrics) -> Metrics:
    """What an update adds to the metrics of those `before`."""
    seen = {**found.seen, "grad_norm": norm[None]}
    means = {
        name: metrics.mean_of(values, jnp.broadcast_to(made, values.shape).astype(jnp.float32))
        for name, values in seen.items()
    }
    told = jax.lax.psum(means, devices.AXIS)
    skipped = 1.0 - made.astype(jnp.float32)
    first = skipped * (before["skipped"].total == 0)
    told["skipped"] = metrics.Mean(skipped, jnp.ones((), jnp.float32))
    told["first_skipped"] = metrics.Mean(first * before["skipped"].count, first)
    return told
