"""Weights of patches that sum to 1."""

import jax
import jax.numpy as jnp

from lossattn_jax.attention import collectives


def normalise_weights(
    weights: jax.Array, mask: jax.Array | None, axis_name: str | None = None
) -> jax.Array:
    """Scales weights to sum 1; equal where all are 0.

    Args:
      weights: `[B, P]`, a float dtype, not negative.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.
      axis_name: pmap axis that patches are split over; None: all are here.

    Returns:
      `[B, P]` over the real patches; a row with NaN in one of them is NaN there, one with no patch is 0.
    """
    real = jnp.ones(weights.shape, bool) if mask is None else mask.astype(bool)
    weights = jnp.where(real, weights, 0.0)
    total = collectives.total(jnp.sum(weights, axis=-1, keepdims=True), axis_name)
    count = jnp.sum(real, axis=-1, keepdims=True, dtype=weights.dtype)
    count = collectives.total(count, axis_name)
    zero = total == 0
    return jnp.where(
        zero,
        real.astype(weights.dtype) / jnp.maximum(count, 1.0),
        jnp.where(real, weights / jnp.where(zero, 1.0, total), 0.0),
    )
