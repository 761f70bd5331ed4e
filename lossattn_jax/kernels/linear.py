"""Matrix products with gradients in the weights' layout.

For networks that are small.

JAX's own gradient of a product is a product followed by a transposition. For the few rows of a bag XLA's CPU
compiler makes copies for it, and the optimiser then reads the gradient against the grain: a step of a
network for bags took 1.6 times as long.
"""

from typing import Any

import jax


def dot_general(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, *args: Any, **kwargs: Any
) -> jax.Array:
    """`jax.lax.dot_general` for `flax.linen.Dense`: `[..., D]` times `[D, F]`.

    Args:
      lhs: `[..., D]`.
      rhs: `[D, F]`, of the same dtype.
      dimension_numbers: those of this product; others go to `jax.lax.dot_general`.
      *args: as of `jax.lax.dot_general`; with one that is not None it is used.
      **kwargs: the same.
    """
    ours = (((lhs.ndim - 1,), (0,)), ((), ()))
    other = any(value is not None for value in (*args, *kwargs.values()))
    if other or rhs.ndim != 2 or dimension_numbers != ours:
        return jax.lax.dot_general(lhs, rhs, dimension_numbers, *args, **kwargs)
    return _product(lhs, rhs)


@jax.custom_vjp
def _product(x: jax.Array, weights: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, weights, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, weights), (x, weights)


def _backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weights = residuals
    rows, columns = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    of_x = jax.lax.dot_general(gradient, weights, (((gradient.ndim - 1,), (1,)), ((), ())))
    of_weights = jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))
    return of_x, of_weights


_product.defvjp(_forward, _backward)
