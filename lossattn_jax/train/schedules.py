"""What changes over a training run: learning rate, Adam's betas, and the weights of the loss terms."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lossattn_jax.arguments import check_number
from lossattn_jax.registry import lookup


def learning_rate_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step.

    Args:
      config: the run's config; `optimizer.schedule` is one of
        "step": times `decay_factor` at each of `milestones` (the TIP paper: 0.1 at 100 and 150),
        "cosine": half a cosine down to 0,
        "one_cycle": linear up to the top over `warmup_epochs`, then linear down to 0,
        "ramps": constant within an epoch, rising as exp(-5 (1 - epoch / ramp_up_epochs)^2) and falling
        as `fall_schedule` (AAAI 2020, supplement),
        "constant".
        The others too are multiplied by a linear warm-up over `warmup_epochs`, where that is not 0.
      steps_per_epoch: updates in an epoch.

    Returns:
      A function from the step (0 for the first update) to the rate.

    Raises:
      UnknownName: there is no such schedule.
    """
    options = config.optimizer
    warmup = round(options.warmup_epochs * steps_per_epoch)
    make = lookup("config.optimizer.schedule", options.schedule, SCHEDULES)
    main, start = make(config, steps_per_epoch, warmup)

    def schedule(step: Any) -> jax.Array:
        # The first update has a rate above 0, and the last of the warm-up the full one.
        rise = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        return rise * main(jnp.maximum(step - start, 0))

    return schedule


def _cosine(config: ConfigDict, steps_per_epoch: int, warmup: int) -> tuple[optax.Schedule, int]:
    after = _updates_after(config, steps_per_epoch, warmup)
    return optax.cosine_decay_schedule(config.optimizer.learning_rate, after), warmup


def _one_cycle(config: ConfigDict, steps_per_epoch: int, warmup: int) -> tuple[optax.Schedule, int]:
    after = _updates_after(config, steps_per_epoch, warmup)
    return optax.linear_schedule(config.optimizer.learning_rate, 0.0, after), warmup


def _step(config: ConfigDict, steps_per_epoch: int, warmup: int) -> tuple[optax.Schedule, int]:
    del warmup
    options = config.optimizer
    drops = {epoch * steps_per_epoch: options.decay_factor for epoch in options.milestones}
    return optax.piecewise_constant_schedule(options.learning_rate, drops), 0


def _constant(config: ConfigDict, steps_per_epoch: int, warmup: int) -> tuple[optax.Schedule, int]:
    del steps_per_epoch, warmup
    return optax.constant_schedule(config.optimizer.learning_rate), 0


def _updates_after(config: ConfigDict, steps_per_epoch: int, warmup: int) -> int:
    return max(config.train.epochs * steps_per_epoch - warmup, 1)


def _ramps(config: ConfigDict, steps_per_epoch: int, warmup: int) -> tuple[optax.Schedule, int]:
    del warmup
    options = config.optimizer

    def rate(step: Any) -> jax.Array:
        epoch = step // steps_per_epoch
        fall = fall_schedule(epoch, config.train.epochs, options.ramp_down_epochs)
        rise = _rise(epoch, options.ramp_up_epochs) if options.ramp_up_epochs else 1.0
        return options.learning_rate * rise * fall

    return rate, 0


# By name: makes the rate by step apart from the warm-up, and the step at which that begins.
SCHEDULES = {
    "step": _step,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "ramps": _ramps,
    "constant": _constant,
}


def loss_weight_schedule(epoch: jax.Array | int, weight: float, ramp_epochs: float) -> jax.Array:
    """lambda(epoch) of the patch loss and w(epoch) of the consistency (both papers).

    `weight * exp(-5 (1 - epoch / ramp_epochs)^2)`, 0 in epoch 0, `weight` from `ramp_epochs` on.

    Args:
      epoch: whole epochs finished, 0 during the first.
      weight: at the end of the ramp; TIP 2021 has 0.1 for the patch loss, AAAI 2020 400 for the
        consistency.
      ramp_epochs: length of the ramp; 80 in the papers. 0: `weight` from the start, as AAAI 2020 has
        it for the patch loss.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: a negative number, or a traced length.
    """
    check_number("weight", weight, 0)
    check_number("ramp_epochs", ramp_epochs, 0, static=True)
    if not ramp_epochs:
        return jnp.asarray(weight, jnp.float32)
    ramp = weight * _rise(epoch, ramp_epochs)
    return jnp.where(jnp.asarray(epoch) > 0, ramp, 0.0).astype(jnp.float32)


def fall_schedule(epoch: jax.Array | int, epochs: int, fall_epochs: float) -> jax.Array:
    """The ramp-down of the AAAI 2020 paper's supplement (after Laine & Aila 2017), from 1 towards 0.

    1 up to the last `fall_epochs`; `e` epochs into them `exp(-(e / 2)^2 / fall_epochs)`.

    Args:
      epoch: whole epochs finished.
      epochs: of the run.
      fall_epochs: length of the ramp-down; 0: none.

    Raises:
      ValueError: a negative or a traced length.
    """
    check_number("fall_epochs", fall_epochs, 0, static=True)
    if not fall_epochs:
        return jnp.ones((), jnp.float32)
    into = jnp.maximum(jnp.asarray(epoch, jnp.float32) - (epochs - fall_epochs), 0.0)
    return jnp.exp(-jnp.square(0.5 * into) / fall_epochs)


def beta_schedules(
    config: ConfigDict, steps_per_epoch: int
) -> tuple[optax.Schedule, optax.Schedule]:
    """Adam's beta 1 and beta 2 by step, as the AAAI 2020 paper's supplement changes them.

    Beta 1 goes from `momentum` to `momentum_end` along with the ramp-down, beta 2 from `beta2` to
    `beta2_end` in the epoch after `ramp_up_epochs`.

    Args:
      config: the run's config, with `optimizer.schedule` "ramps" and both ends set.
      steps_per_epoch: updates in an epoch.
    """
    options = config.optimizer

    def beta1(step: Any) -> jax.Array:
        kept = fall_schedule(step // steps_per_epoch, config.train.epochs, options.ramp_down_epochs)
        return kept * options.momentum + (1 - kept) * options.momentum_end

    def beta2(step: Any) -> jax.Array:
        early = step // steps_per_epoch <= options.ramp_up_epochs
        return jnp.where(early, options.beta2, options.beta2_end)

    return beta1, beta2


def _rise(epoch: jax.Array | int, rise_epochs: float) -> jax.Array:
    """`exp(-5 (1 - epoch / rise_epochs)^2)`, 1 from `rise_epochs` on (Laine & Aila 2017)."""
    progress = jnp.minimum(jnp.asarray(epoch, jnp.float32) / rise_epochs, 1.0)
    return jnp.exp(-5.0 * jnp.square(1.0 - progress))
