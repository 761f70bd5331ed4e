"""What changes over a training run: the learning rate, and the weight of the patch loss."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step.

    Args:
      config: the run's config; `optimizer.schedule` is one of
        "step": times `decay_factor` at each of `milestones` (the TIP paper: 0.1 at 100 and 150),
        "cosine": half a cosine down to 0,
        "one_cycle": linear up to the top over `warmup_epochs`, then linear down to 0,
        "constant".
        The others too are multiplied by a linear warm-up over `warmup_epochs`, where that is not 0.
      steps_per_epoch: updates in an epoch.

    Returns:
      A function from the step (0 for the first update) to the rate.
    """
    options = config.optimizer
    top = options.learning_rate
    warmup = round(options.warmup_epochs * steps_per_epoch)
    after = max(config.train.epochs * steps_per_epoch - warmup, 1)
    if options.schedule == "cosine":
        main, start = optax.cosine_decay_schedule(top, after), warmup
    elif options.schedule == "one_cycle":
        main, start = optax.linear_schedule(top, 0.0, after), warmup
    elif options.schedule == "step":
        drops = {epoch * steps_per_epoch: options.decay_factor for epoch in options.milestones}
        main, start = optax.piecewise_constant_schedule(top, drops), 0
    else:
        main, start = optax.constant_schedule(top), 0

    def schedule(step: Any) -> jax.Array:
        # The first update has a rate above 0, and the last of the warm-up the full one.
        rise = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        return rise * main(jnp.maximum(step - start, 0))

    return schedule


def patch_weight_schedule(epoch: jax.Array | int, weight: float, ramp_epochs: float) -> jax.Array:
    """lambda(epoch), the weight of the patch loss (TIP 2021, section IV-A).

    `weight * exp(-5 (1 - epoch / ramp_epochs)^2)`, 0 in epoch 0, `weight` from `ramp_epochs` on.

    Args:
      epoch: whole epochs finished, 0 during the first.
      weight: lambda at the end of the ramp; 0.1 in the paper.
      ramp_epochs: length of the ramp; 80 in the paper.

    Returns:
      A float32 scalar.
    """
    progress = jnp.minimum(jnp.asarray(epoch, jnp.float32) / ramp_epochs, 1.0)
    ramp = weight * jnp.exp(-5.0 * jnp.square(1.0 - progress))
    return jnp.where(jnp.asarray(epoch) > 0, ramp, 0.0).astype(jnp.float32)
