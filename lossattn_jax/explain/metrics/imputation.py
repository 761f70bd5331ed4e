"""Imputation of removed pixels: a blur, or their neighbours' means."""

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.arguments import FLAGS, NUMBERS, check_arrays, check_number

BLUR = 5 / 32  # deviation, as a share of the image's side


def blur(images: jax.Array, sigma: float = BLUR) -> jax.Array:
    """Blurs images with a Gaussian, reflected at the edges.

    The pixels at the edges are not repeated.

    Args:
      images: `[B, H, W, C]` float.
      sigma: deviation, as a share of each side; the kernel is cut at four of them. 0: no blur.

    Returns:
      `[B, H, W, C]` float32.

    Raises:
      ValueError: images of another number of axes, or a deviation that is no such number.
    """
    check_arrays(images=(images, "B H W C", NUMBERS))
    check_number("sigma", sigma, 0)
    rows, cols = (jnp.asarray(_blur_matrix(side, sigma * side)) for side in images.shape[1:3])
    columns = jnp.einsum("gh,bhwc->bgwc", rows, images.astype(jnp.float32), precision="highest")
    return jnp.einsum("vw,bgwc->bgvc", cols, columns, precision="highest")


def linear_imputation(
    images: jax.Array, missing: jax.Array, iterations: int | None = None
) -> jax.Array:
    """Imputes missing pixels as weighted means of their neighbours.

    All at once (Rong et al. 2022).

    A direct neighbour has weight 1/6, a diagonal one 1/12; at the edge, the weights of those that exist
    are scaled to sum to 1. The equations of the missing pixels are symmetric and positive definite, and
    are solved by conjugate gradients with the diagonal as preconditioner.

    Args:
      images: `[B, H, W, C]` float.
      missing: `[B, H, W]` bool.
      iterations: of conjugate gradients; None: three for each pixel of the longer side. Half of random
        pixels need 25 at any size (errors of 1e-6 of the image's deviation). The default suffices for
        99% of random pixels and for holes as large as the image (errors below 1e-4), and nearly for a
        single pair of known pixels (below 1e-3); more bring nothing in float32.

    Returns:
      `[B, H, W, C]` float32: known pixels as they are; all 0 where nothing is known.

    Raises:
      ValueError: arguments that do not fit together, or a number of iterations that is no such number.
    """
    check_arrays(images=(images, "B H W C", NUMBERS), missing=(missing, "B H W", FLAGS))
    if iterations is not None:
        check_number("iterations", iterations, 1, whole=True, static=True)
    images = images.astype(jnp.float32)
    if iterations is None:
        iterations = 3 * max(images.shape[1:3])
    gap = missing[..., None].astype(jnp.float32)
    # A 1x1 image has a pixel without neighbours.
    total = jnp.maximum(_neighbours(jnp.ones_like(images[:1, :, :, :1])), 1e-3)

    def inner(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(x * y, axis=(1, 2), keepdims=True)

    def step(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        solution, residual, direction, size = state
        image = gap * (total * direction - _neighbours(direction))
        # What is solved stays as it is: quotients of ever smaller residuals would end in noise, or
        # anywhere.
        running = size > tolerance
        length = jnp.where(running, size / jnp.where(running, inner(direction, image), 1.0), 0.0)
        solution, residual = solution + length * direction, residual - length * image
        direction_step = residual / total
        new_size = inner(residual, direction_step)
        turn = jnp.where(running, new_size / jnp.where(running, size, 1.0), 0.0)
        return solution, residual, direction_step + turn * direction, new_size

    # Around the mean of what is known: far from every known pixel that is about the solution.
    num_known = jnp.sum(1 - gap, axis=(1, 2), keepdims=True)
    mean = inner(1 - gap, jnp.where(gap > 0, 0.0, images)) / jnp.maximum(num_known, 1.0)
    residual = gap * _neighbours(jnp.where(gap > 0, 0.0, images - mean))
    size = inner(residual, residual / total)
    tolerance = 1e-16 * size + 1e-30  # residuals of 1e-8 of the first ones
    start = (jnp.zeros_like(images), residual, residual / total, size)
    solution = jax.lax.fori_loop(0, iterations, step, start)[0]
    return jnp.where(gap > 0, solution + mean, images)


def _blur_matrix(side: int, sigma: float) -> np.ndarray:
    """Makes the matrix that blurs a line, `[side, side]` float32."""
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * np.square(offsets / max(sigma, 1e-9)))
    weights /= weights.sum()
    # Reflection has the period of a line there and back; a line of one pixel stays there.
    period = max(2 * (side - 1), 1)
    sources = (np.arange(side)[:, None] + offsets[None]) % period
    sources = np.minimum(sources, period - sources)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], sources), weights[None])
    return matrix.astype(np.float32)


def _neighbours(images: jax.Array) -> jax.Array:
    """Sums the eight neighbours by weight in `[B, H, W, C]`.

    Nothing is beyond the edge.
    """
    with_border = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = with_border[:, :-2] + 2 * with_border[:, 1:-1] + with_border[:, 2:]
    # One twelfth of (1, 2, 1) in both directions is the weights, and one third of the pixel itself.
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 12 - images / 3
