"""Layers over the instances of long bags, some hundreds at a time and without those that are only padding.

XLA's CPU compiler makes the gradient of a tall product at half the speed of the product: of 5,632 instances
of 1,024 features and 256 units it took 40 ms on one core, and the product 21. In pieces, which stay in a
core's cache, it takes 26. Pieces behind the longest bag are left out, so that bags of many lengths share a
compiled program. Of what the layers compute only the first product is kept for the gradient, which computes
the rest again.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

PIECE = 512  # instances


@flax.struct.dataclass
class BagRows:
    """Instances as they are stored, and what makes a network's input of them.

    Attributes:
      x: `[b, length, D]` of any float type.
      mean, inverse_scale: `[D]` or `[1]` float32.
      real: `[b, length]` bool; where it is False the input is 0.
      longest: int32 scalar, instances of the longest bag; behind them nothing is computed.
    """

    x: jax.Array
    mean: jax.Array
    inverse_scale: jax.Array
    real: jax.Array
    longest: jax.Array


# Of parameters, products `[b, n, F]` of the input and the first weights, and random bytes `[b, n, units]`.
Layers = Callable[[Any, jax.Array, jax.Array], list[jax.Array]]


def pad_length(length: int) -> int:
    """A length for bags of up to so many instances that has whole pieces."""
    return length if length <= PIECE else -(-length // PIECE) * PIECE


def apply_layers(
    layers: Layers, weights: jax.Array, params: Any, rows: BagRows, noise: jax.Array
) -> list[jax.Array]:
    """Applies layers to standardised instances; there are gradients of the weights and parameters alone.

    Args:
      layers: what follows the first product, of each instance by itself.
      weights: `[D, F]` float32, of the first product.
      params: of the layers.
      rows: of b bags.
      noise: `[b, length, units]` uint8.

    Returns:
      What the layers make, each `[b, length, width]`, 0 in pieces behind the longest bag.
    """
    return _apply_layers(layers, weights, params, rows, noise)


def _forward(
    layers: Layers, weights: jax.Array, params: Any, rows: BagRows, noise: jax.Array
) -> tuple[list[jax.Array], Any]:
    def compute(number: jax.Array) -> Any:
        product = _input(rows, number) @ weights
        return product, layers(params, product, _piece(noise, number))

    def put(number: jax.Array, values: Any) -> Any:
        return jax.tree.map(lambda all, own: _put(all, own, number), values, compute(number))

    shapes = jax.eval_shape(compute, jnp.int32(0))
    start = jax.tree.map(
        lambda leaf: jnp.zeros((*rows.x.shape[:2], *leaf.shape[2:]), leaf.dtype), shapes
    )
    products, outputs = jax.lax.fori_loop(0, _count(rows), put, start)
    return outputs, (params, rows, noise, products)


def _backward(layers: Layers, residuals: Any, gradients: list[jax.Array]) -> Any:
    params, rows, noise, products = residuals

    def add(number: jax.Array, totals: Any) -> Any:
        def own(params: Any, product: jax.Array) -> list[jax.Array]:
            return layers(params, product, _piece(noise, number))

        _, pull = jax.vjp(own, params, _piece(products, number))
        of_params, of_product = pull([_piece(gradient, number) for gradient in gradients])
        return jax.tree.map(jnp.add, totals, (_outer(of_product, _input(rows, number)), of_params))

    # Of the weights as it comes out of the products, `[F, D]`, and turned once.
    start = (
        jnp.zeros((products.shape[-1], rows.x.shape[-1])),
        jax.tree.map(jnp.zeros_like, params),
    )
    of_weights, of_params = jax.lax.fori_loop(0, _count(rows), add, start)
    return of_weights.T, of_params, None, None


_apply_layers = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0], nondiff_argnums=(0,))
_apply_layers.defvjp(_forward, _backward)


def _size(x: jax.Array) -> int:
    """Instances of a piece; all of them where the length has no whole pieces."""
    return x.shape[1] if x.shape[1] % PIECE else PIECE


def _count(rows: BagRows) -> jax.Array:
    return (rows.longest + _size(rows.x) - 1) // _size(rows.x)


def _piece(x: jax.Array, number: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, number * _size(x), _size(x), axis=1)


def _put(values: jax.Array, piece: jax.Array, number: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(values, piece, number * _size(values), axis=1)


def _input(rows: BagRows, number: jax.Array) -> jax.Array:
    """Standardises a piece."""
    mean, inverse_scale = (array[None, None] for array in (rows.mean, rows.inverse_scale))
    own = (_piece(rows.x, number).astype(jnp.float32) - mean) * inverse_scale
    return jnp.where(_piece(rows.real, number)[..., None], own, 0)


def _outer(left: jax.Array, right: jax.Array) -> jax.Array:
    """Sums `[b, n, F]` times `[b, n, D]` over all instances, to `[F, D]`."""
    rows, columns = (x.reshape(-1, x.shape[-1]) for x in (left, right))
    return jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))
