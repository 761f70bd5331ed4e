"""Padded 3x3 convolutions by Winograd's F(4x4, 3x3), for CPUs.

Lavin & Gray 2016.

16 results take 36 multiplications where the definition has 144. With B, G and A of the algorithm, a tile x of
6x6 positions, which overlaps its neighbours by 2, and a kernel k give

    A^T [(G k G^T) * (B^T x B)] A

where * is, at each of the 36 places, a matrix product over the channels for all tiles at once. As a product
on both sides of a square is one product of a Kronecker square with the flattened square, all of this is four
matrix products, and so are the gradients. Written as sums it takes XLA four times as long to compile.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.kernels import batch_parts, ordering, own_gradients

TILE = 4  # results on a side of a tile

_PLACES = TILE + 2
# Places stand for values of polynomials: at these points, and at infinity. At the usual 0, 1, -1, 2, -2
# rounding is 2 to 3 times as large.
_POINTS = np.array([0, 5 / 8, -5 / 8, 3 / 2, -3 / 2])
# A tile is cut from four blocks of 4x4 positions: rows and columns of each.
_CUTS = tuple((rows, columns) for rows in (TILE, 2) for columns in (TILE, 2))
# A map has 2.25 times as many places as positions: so many bytes of them are made at a time, or an image's.
_BYTES = 20 * 2**20


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution with one zero of padding on each side; a cross-correlation.

    Rounding is about twice that of F(2x2, 3x3), and four times that of a sum of products.

    Args:
      x: `[B, H, W, C]` float32, H and W multiples of `TILE`, none of them 0.
      kernel: `[3, 3, C, F]` float32.

    Returns:
      `[B, H, W, F]` float32.
    """
    return _convolve(x, kernel)


def _in_place(x: jax.Array, kernel: jax.Array) -> jax.Array:
    images = _images_at_a_time(x, kernel)
    if images == len(x):
        results = _results(x, kernel)
    else:
        results = jax.lax.map(lambda part: _results(part, kernel), batch_parts.split(x, images))
    # Put in their places behind the loop: in it XLA would do that one number after the other.
    batch, height, width, _ = x.shape
    shape = (-1, TILE, TILE, images, height // TILE, width // TILE, kernel.shape[3])
    return (
        results.reshape(shape)
        .transpose(0, 3, 4, 1, 5, 2, 6)
        .reshape(batch, height, width, kernel.shape[3])
    )


def _gradients(
    gradient: jax.Array, x: jax.Array, kernel: jax.Array, used: tuple[bool, bool]
) -> tuple[jax.Array, jax.Array]:
    """The gradients to a map and a kernel.

    Left to itself XLA keeps the places of all maps and kernels from the forward pass, and makes the gradients
    to the kernels when all those to maps are there, holding the places of these too.
    """
    x, kernel = ordering.after(gradient, (x, kernel))
    batch, height, width, features = gradient.shape
    images = _images_at_a_time(x, kernel)
    shape = (-1, images, height // TILE, TILE, width // TILE, TILE, features)
    results = gradient.reshape(shape).transpose(0, 3, 5, 1, 2, 4, 6)
    results = results.reshape(len(results), TILE**2, -1)

    def of_part(x: jax.Array, results: jax.Array) -> Any:
        return jax.vjp(_results, x, kernel)[1](results)

    def one(total: jax.Array, part: Any) -> Any:
        to_x, to_kernel = of_part(*part)
        return total + to_kernel, to_x

    if images == batch:
        to_x, to_kernel = of_part(x, results[0])
    else:
        parts = (batch_parts.split(x, images), results)
        to_kernel, to_x = jax.lax.scan(one, jnp.zeros_like(kernel), parts)
        to_x = to_x.reshape(x.shape)
    if all(used):
        to_x = ordering.after(to_kernel, to_x)
    return to_x, to_kernel


_convolve = own_gradients.give_gradients("winograd", _in_place, _gradients)


def _results(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution as `[TILE**2, tiles * F]`."""
    b, g, a = (jnp.asarray(matrix, x.dtype) for matrix in _matrices())
    # XLA would make four products of a product of a constant and a concatenation, and add them up.
    maps = jnp.dot(jax.lax.optimization_barrier(b), _tiles(x)).reshape(len(b), -1, x.shape[3])
    kernels = jnp.dot(g, kernel.reshape(9, -1)).reshape(len(g), *kernel.shape[2:])
    products = jax.lax.dot_general(maps, kernels, (((2,), (1,)), ((0,), (0,))))
    return jnp.dot(a, products.reshape(len(b), -1))


def _tiles(x: jax.Array) -> jax.Array:
    """All tiles, `[36, tiles * C]`, positions in the order of `_CUTS`."""
    batch, height, width, channels = x.shape
    high, wide = height // TILE, width // TILE
    x = jnp.pad(x, ((0, 0), (1, TILE - 1), (1, TILE - 1), (0, 0)))
    blocks = x.reshape(batch, high + 1, TILE, wide + 1, TILE, channels)
    blocks = blocks.transpose(2, 4, 0, 1, 3, 5)
    cuts = []
    for rows, columns in _CUTS:
        down, across = int(rows < TILE), int(columns < TILE)
        block = blocks[:rows, :columns, :, down : down + high, across : across + wide]
        cuts.append(block.reshape(rows * columns, -1))
    return jnp.concatenate(cuts)


def _images_at_a_time(x: jax.Array, kernel: jax.Array) -> int:
    """A divisor of the batch."""
    batch, height, width, _ = x.shape
    numbers = _PLACES**2 * (height // TILE) * (width // TILE) * max(kernel.shape[2:])
    return batch_parts.images_at_a_time(batch, numbers * x.dtype.itemsize, _BYTES)


@functools.cache  # every layer's trace asks for them, and its gradient's
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the Kronecker squares of B^T, G and A^T.

    In float64; columns of B^T are in the order of `_CUTS`.
    """
    count = len(_POINTS)
    values = np.vander(_POINTS, TILE, increasing=True)
    gaps = _POINTS[:, None] - _POINTS
    scale = np.prod(gaps, axis=1, where=~np.eye(count, dtype=bool))
    last = np.eye(1, TILE, TILE - 1)
    a_transposed = np.concatenate([values, last]).T
    g = np.concatenate([values[:, :3] / scale[:, None], last[:, -3:]])
    others = [np.poly(np.delete(_POINTS, n))[::-1] for n in range(count)]
    b_transposed = np.zeros((_PLACES, _PLACES))
    b_transposed[:count, :count] = others
    b_transposed[count] = np.poly(_POINTS)[::-1]
    positions = np.arange(_PLACES**2).reshape(_PLACES, _PLACES)
    order = []
    for rows, columns in _CUTS:
        down, across = (TILE if n < TILE else 0 for n in (rows, columns))
        order.append(positions[down : down + rows, across : across + columns].ravel())
    b, g, a = (np.kron(matrix, matrix) for matrix in (b_transposed, g, a_transposed))
    return b[:, np.concatenate(order)], g, a
