"""Schedules of learning rate, betas and loss weights.

To add a learning rate, write a function of the options and the training's `Length`, as `_cosine`, and put a
`Schedule` into `SCHEDULES`; a new hyper-parameter is a key of `config.options.OptimizerOptions`, which the
entry names among its `parameters`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lossattn_jax.arguments import check_number
from lossattn_jax.config.options import OptimizerOptions
from lossattn_jax.errors import UserError
from lossattn_jax.registry import Registry, wrong_part
from lossattn_jax.train.promotion import with_usual_promotion

Betas = tuple[optax.Schedule, optax.Schedule]  # Adam's beta 1 and beta 2 by step


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a training is.

    Attributes:
      epochs: passes over the training set.
      steps_per_epoch: updates in one.
    """

    epochs: int
    steps_per_epoch: int

    def warmup_steps(self, options: OptimizerOptions) -> int:
        """Updates of the warm-up."""
        return round(options.warmup_epochs * self.steps_per_epoch)

    def steps_after_warmup(self, options: OptimizerOptions) -> int:
        """Updates after the warm-up, 1 or more."""
        return max(self.epochs * self.steps_per_epoch - self.warmup_steps(options), 1)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate by step.

    Attributes:
      make: the rate by step, without the warm-up, of options and the length of the training.
      parameters: the keys of `config.optimizer` that it takes, besides `learning_rate` and `warmup_epochs`.
      after_warmup: whether its first step is the one after the warm-up.
      changes_betas: whether Adam's betas may change with it.
    """

    make: Callable[[OptimizerOptions, Length], optax.Schedule]
    parameters: tuple[str, ...] = ()
    after_warmup: bool = False
    changes_betas: bool = False


def learning_rate_schedule(options: OptimizerOptions, length: Length) -> optax.Schedule:
    """Learning rate by step.

    Args:
      options: `schedule` is one of `SCHEDULES`, or package.module:attribute, a function of these options and
        of a `Length`. All are multiplied by a linear warm-up over `warmup_epochs`, where that is not 0.
      length: of the training.

    Returns:
      A function from the step (0 for the first update) to the rate.

    Raises:
      UserError: there is no such schedule, or a function of the user's makes none.
    """
    entry = SCHEDULES.find(options.schedule, "config.optimizer.schedule")
    warmup = length.warmup_steps(options)
    start = warmup if entry.after_warmup else 0
    main = entry.make(options, length)
    if not callable(main):
        raise UserError(
            f"config.optimizer.schedule is {options.schedule!r}, which makes a {type(main).__name__}, but "
            "must make a function of the step"
        )

    def schedule(step: Any) -> jax.Array:
        # The first update has a rate above 0, and the last of the warm-up the full one.
        rise = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        return rise * main(jnp.maximum(step - start, 0))

    return schedule


def _cosine(options: OptimizerOptions, length: Length) -> optax.Schedule:
    """Falls along half a cosine to 0."""
    steps = length.steps_after_warmup(options)
    return with_usual_promotion(optax.cosine_decay_schedule(options.learning_rate, steps))


def _one_cycle(options: OptimizerOptions, length: Length) -> optax.Schedule:
    """Falls linearly to 0, behind the linear rise of `warmup_epochs`."""
    after = length.steps_after_warmup(options)
    return with_usual_promotion(optax.linear_schedule(options.learning_rate, 0.0, after))


def _step(options: OptimizerOptions, length: Length) -> optax.Schedule:
    """Multiplies by `decay_factor` at each of `milestones`.

    The TIP paper: by 0.1 at epochs 100 and 150.
    """
    drops = {epoch * length.steps_per_epoch: options.decay_factor for epoch in options.milestones}
    return with_usual_promotion(optax.piecewise_constant_schedule(options.learning_rate, drops))


def _constant(options: OptimizerOptions, length: Length) -> optax.Schedule:
    """Stays as it is."""
    del length
    return optax.constant_schedule(options.learning_rate)


def _ramps(options: OptimizerOptions, length: Length) -> optax.Schedule:
    """Rises and falls by epochs (AAAI 2020, supplement).

    Constant within an epoch, it rises as exp(-5 (1 - epoch / ramp_up_epochs)^2) and falls as
    `fall_schedule`.
    """

    def rate(step: Any) -> jax.Array:
        epoch = step // length.steps_per_epoch
        fall = fall_schedule(epoch, length.epochs, options.ramp_down_epochs)
        rise = _rise(epoch, options.ramp_up_epochs) if options.ramp_up_epochs else 1.0
        return options.learning_rate * rise * fall

    return rate


def _adopt(name: str, part: Any) -> Schedule:
    """Makes the entry of a user's function.

    It takes options and the length of the training.
    """
    if not callable(part):
        requirement = (
            "a function of OptimizerOptions and a Length that makes a learning rate by step"
        )
        raise wrong_part("config.optimizer.schedule", name, part, requirement)
    return Schedule(part)


SCHEDULES = Registry(
    "schedule",
    Schedule,
    {
        "step": Schedule(_step, ("milestones", "decay_factor")),
        "cosine": Schedule(_cosine, after_warmup=True),
        "one_cycle": Schedule(_one_cycle, after_warmup=True),
        "ramps": Schedule(_ramps, ("ramp_up_epochs", "ramp_down_epochs"), changes_betas=True),
        "constant": Schedule(_constant),
    },
    _adopt,
)


def loss_weight_schedule(epoch: jax.Array | int, weight: float, ramp_epochs: float) -> jax.Array:
    """Computes a loss' weight by epoch, in both papers' way.

    lambda of the patch loss, w of the consistency.

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
    """Computes the ramp-down of the AAAI 2020 paper, from 1 towards 0.

    Its supplement, after Laine & Aila 2017.

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


def beta_schedules(options: OptimizerOptions, length: Length) -> Betas | None:
    """Computes Adam's betas by step, as the AAAI 2020 paper does.

    Its supplement changes both.

    Beta 1 goes from `momentum` to `momentum_end` along with the ramp-down, beta 2 from `beta2` to
    `beta2_end` in the epoch after `ramp_up_epochs`.

    Args:
      options: of the optimiser.
      length: of the training.

    Returns:
      None where an end is not set.
    """
    end1, end2 = options.momentum_end, options.beta2_end
    if end1 is None or end2 is None:
        return None

    def beta1(step: Any) -> jax.Array:
        start = fall_schedule(
            step // length.steps_per_epoch, length.epochs, options.ramp_down_epochs
        )
        return start * options.momentum + (1 - start) * end1

    def beta2(step: Any) -> jax.Array:
        epoch = jnp.asarray(step // length.steps_per_epoch, jnp.float32)
        early = epoch <= options.ramp_up_epochs
        return jnp.where(early, options.beta2, end2)

    return beta1, beta2


def _rise(epoch: jax.Array | int, rise_epochs: float) -> jax.Array:
    """Computes the ramp-up of Laine & Aila 2017.

    `exp(-5 (1 - epoch / rise_epochs)^2)`, 1 from `rise_epochs` on.
    """
    progress = jnp.minimum(jnp.asarray(epoch, jnp.float32) / rise_epochs, 1.0)
    return jnp.exp(-5.0 * jnp.square(1.0 - progress))
