"""Optimisers by config, all optax."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from lossattn_jax.config import images as config_lib
from lossattn_jax.registry import lookup
from lossattn_jax.train.schedules import beta_schedules

Mask = Callable[[Any], Any]  # of parameters a tree of bools: which of them decay


def make_optimizer(
    config: ConfigDict, learning_rate: optax.Schedule, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimiser of a run.

    "sgd" and "adam" add `weight_decay * parameter` to the gradient before anything else, as PyTorch's
    `weight_decay` does; "adamw" decays apart from the gradient. The papers' setting is "sgd" with
    momentum 0.9 and 5e-4 on every parameter.

    Args:
      config: the run's config, its section `optimizer`.
      learning_rate: from `learning_rate_schedule`.
      steps_per_epoch: updates in an epoch, for betas that change (`optimizer.momentum_end` and
        `optimizer.beta2_end`; see `beta_schedules`).

    Returns:
      An optax transformation whose state is a pytree of arrays.

    Raises:
      UnknownName: there is no such optimiser or mask of the weight decay.
    """
    options = config.optimizer
    # A mask either way, so that the shape of the state does not depend on which parameters decay.
    mask = lookup("config.optimizer.weight_decay_mask", options.weight_decay_mask, DECAY_MASKS)
    make = lookup("config.optimizer.name", options.name, OPTIMIZERS)
    return make(config, learning_rate, steps_per_epoch, mask)


def _sgd(
    config: ConfigDict, learning_rate: optax.Schedule, steps_per_epoch: int, mask: Mask
) -> optax.GradientTransformation:
    del steps_per_epoch
    options = config.optimizer
    update = optax.sgd(learning_rate, options.momentum, options.nesterov)
    return optax.chain(optax.add_decayed_weights(options.weight_decay, mask), update)


def _adam(
    config: ConfigDict, learning_rate: optax.Schedule, steps_per_epoch: int, mask: Mask
) -> optax.GradientTransformation:
    options = config.optimizer
    adam = functools.partial(optax.adam, nesterov=options.nesterov)
    if config_lib.changes_betas(config):
        beta1, beta2 = beta_schedules(config, steps_per_epoch)
        injected = optax.inject_hyperparams(adam, static_args=("nesterov",))
        update = injected(learning_rate=learning_rate, b1=beta1, b2=beta2)
    else:
        update = adam(learning_rate, b1=options.momentum, b2=options.beta2)
    return optax.chain(optax.add_decayed_weights(options.weight_decay, mask), update)


def _adamw(
    config: ConfigDict, learning_rate: optax.Schedule, steps_per_epoch: int, mask: Mask
) -> optax.GradientTransformation:
    del steps_per_epoch
    options = config.optimizer
    return optax.adamw(
        learning_rate,
        b1=options.momentum,
        b2=options.beta2,
        weight_decay=options.weight_decay,
        mask=mask,
        nesterov=options.nesterov,
    )


def everything(params: Any) -> Any:
    """A tree of bools, all True."""
    return jax.tree.map(lambda _: True, params)


def kernels_only(params: Any) -> Any:
    """A tree of bools: True for kernels, False for biases and normalisations."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}
DECAY_MASKS: dict[str, Mask] = {"all": everything, "kernels": kernels_only}


def at_step(opt_state: Any, step: Any) -> Any:
    """An optimiser's state whose schedules go on from `step`, int32 scalar, as if all updates were made.

    Adam's own count stays, of the updates that are in its moments: it corrects these for their start at 0.
    """

    def moved(path: Any, node: Any) -> Any:
        adam = isinstance(node, optax.ScaleByAdamState)
        return step if not adam and getattr(path[-1], "name", "") == "count" else node

    return jax.tree_util.tree_map_with_path(
        moved, opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState)
    )
