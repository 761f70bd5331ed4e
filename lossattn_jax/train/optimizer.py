"""Optimisers by config, all optax."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def make_optimizer(
    config: ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """The optimiser of a run.

    "sgd" and "adam" add `weight_decay * parameter` to the gradient before anything else, as PyTorch's
    `weight_decay` does; "adamw" decays apart from the gradient. The papers' setting is "sgd" with
    momentum 0.9 and 5e-4 on every parameter.

    Args:
      config: the run's config, its section `optimizer`.
      learning_rate: from `learning_rate_schedule`.

    Returns:
      An optax transformation whose state is a pytree of arrays.
    """
    options = config.optimizer
    # A mask either way, so that the shape of the state does not depend on which parameters decay.
    mask = kernels_only if options.weight_decay_mask == "kernels" else everything
    if options.name == "adamw":
        return optax.adamw(
            learning_rate,
            b1=options.momentum,
            b2=options.beta2,
            weight_decay=options.weight_decay,
            mask=mask,
            nesterov=options.nesterov,
        )
    if options.name == "adam":
        update = optax.adam(
            learning_rate, b1=options.momentum, b2=options.beta2, nesterov=options.nesterov
        )
    else:
        update = optax.sgd(learning_rate, options.momentum, options.nesterov)
    return optax.chain(optax.add_decayed_weights(options.weight_decay, mask), update)


def everything(params: Any) -> Any:
    """A tree of bools, all True."""
    return jax.tree.map(lambda _: True, params)


def kernels_only(params: Any) -> Any:
    """A tree of bools: True for kernels, False for biases and normalisations."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
