"""The order in which XLA makes the values of a program."""

from typing import Any

import jax
import jax.numpy as jnp


def after(earlier: Any, values: Any) -> Any:
    """Orders a program: `values` are made after all of `earlier`.

    Neither may be empty.

    XLA makes some values as soon as it can, others much later, and holds on to all that they are made from.
    On CPUs it drops `jax.lax.optimization_barrier` before it comes to that. That a sum of squares is not
    negative it does not know. (Where the sum is not a number, values stay as they are.)

    Args:
      earlier: tree of float arrays.
      values: tree of arrays.
    """
    never = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(earlier)) < 0
    return jax.tree.map(lambda array: jnp.where(never, jnp.zeros_like(array), array), values)
