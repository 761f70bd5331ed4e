"""Sums and maxima over patches that may be split over devices.

Where the patches of a bag lie on several devices, each has a part of them, and what is computed of all takes
what the others have. `axis_name` is the axis of `pmap` that they are split over; None: all patches are here,
and nothing is exchanged.
"""

import jax
import jax.numpy as jnp


def total(parts: jax.Array, axis_name: str | None) -> jax.Array:
    """Sums what each device has.

    The gradient that each device's part gets is the sum of those that the devices give the total: so a loss
    that all devices compute alike is to be divided by their number before its gradients are summed.

    Args:
      parts: any shape, the same on all devices.
      axis_name: see above.
    """
    return parts if axis_name is None else jax.lax.psum(parts, axis_name)


def highest(parts: jax.Array, axis_name: str | None) -> jax.Array:
    """The largest of what the devices have, element by element; it carries no gradient."""
    parts = jax.lax.stop_gradient(parts)
    return parts if axis_name is None else jax.lax.pmax(parts, axis_name)


def of_first_highest(parts: jax.Array, axis_name: str | None) -> jax.Array:
    """The largest of what the devices have; the first that has it gets the gradient.

    Args:
      parts: any shape, float; a NaN is larger than all.
      axis_name: see above.
    """
    if axis_name is None:
        return parts
    order = jax.lax.stop_gradient(jnp.where(jnp.isnan(parts), jnp.inf, parts))
    own = jax.lax.axis_index(axis_name)
    nobody = jax.lax.axis_size(axis_name)
    wins = order == jax.lax.pmax(order, axis_name)
    first = jax.lax.pmin(jnp.where(wins, own, nobody), axis_name)
    return jax.lax.psum(jnp.where(first == own, parts, 0.0), axis_name)
