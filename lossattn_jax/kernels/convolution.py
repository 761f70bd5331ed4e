"""Convolutions in forms that XLA does not find by itself.

A 1x1 convolution is a matrix product. Others stay JAX's, but for three on CPUs, where numbers change by no
more than rounding (`benchmarks.against_torch` has the times):

- The gradient of a strided one to its input is, as JAX has it, a convolution of a map with zeros between its
  positions, for which XLA has no library: the paper's 9x9 stride-4 one took 80 times as long as PyTorch's.
  Here it is one matrix product and a sum of overlapping windows.
- Padded 3x3 ones of many channels go by Winograd's algorithm (`winograd`), which takes a quarter of the
  multiplications.
- The gradient of other padded 3x3 ones to their kernel is a sum of matrix products, each of a few images,
  which takes a quarter to a half of the time of XLA's convolution over the batch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.ad_checkpoint import checkpoint_name

from lossattn_jax.kernels import batch_parts, own_gradients, winograd

RESULT_NAME = (
    "convolution"  # name of all results but those of 1x1 ones, for policies of jax.checkpoint
)

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Of inputs and outputs the fewer and the more: with less on either side Winograd's algorithm gains nothing.
_WINOGRAD_CHANNELS = (48, 128)
# So many bytes of windows are made at a time for the gradient to a kernel, or an image's.
_WINDOW_BYTES = 4 * 2**20


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """Square convolution of NHWC maps; a cross-correlation, as neural networks have it.

    Args:
      x: `[B, H, W, C]`, any float dtype.
      kernel: `[k, k, C, F]` of the same dtype.
      stride: in map positions.
      padding: zeros added on each side, in map positions.

    Returns:
      `[B, H', W', F]` of that dtype, with H' = (H + 2 padding - k) // stride + 1.
    """
    if kernel.shape[0] == 1 and stride == 1 and padding == 0:
        return jax.lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    # Chosen when traced, and not in the program, where policies of jax.checkpoint would not see through it.
    # A batch of any size is that of a program for all platforms (`export_model`).
    on_cpu = jax.default_backend() == "cpu" and not export.is_symbolic_dim(x.shape[0])
    if on_cpu and stride > 1:
        result = _convolve_strided(x, kernel, stride, padding)
    elif on_cpu and kernel.shape[0] == 3 and padding == 1 and x.dtype == jnp.float32 and x.size > 0:
        # Sums of bfloat16 numbers would be rounded before they are added up.
        suits_winograd = _suits_winograd(kernel, *x.shape[1:3])
        result = (winograd.convolve if suits_winograd else _convolve_padded)(x, kernel)
    else:
        result = _of_jax(x, kernel, stride, padding)
    return checkpoint_name(result, RESULT_NAME)


def _of_jax(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    sides = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), sides, dimension_numbers=_LAYOUT
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve_strided(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _of_jax(x, kernel, stride, padding)


@_convolve_strided.defjvp
def _strided_jvp(stride: int, padding: int, primals: Any, tangents: Any) -> Any:
    (x, kernel), (moved_x, moved_kernel) = primals, tangents
    # A gradient is the transpose of what stands here for the tangent, which is then not computed itself.
    by_x = _of_windows(moved_x, kernel, stride, padding)
    by_kernel = _of_jax(x, moved_kernel, stride, padding)
    return _convolve_strided(x, kernel, stride, padding), by_x + by_kernel


def _padded_gradients(
    gradient: jax.Array, x: jax.Array, kernel: jax.Array, used: tuple[bool, bool]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Gradients of a padded 3x3 convolution; that to its map is JAX's."""
    to_x = to_kernel = None
    if used[0]:
        (to_x,) = jax.vjp(lambda x: _of_jax(x, kernel, 1, 1), x)[1](gradient)
    if used[1]:
        to_kernel = _sum_products(x, gradient, kernel)
    return to_x, to_kernel


_convolve_padded = own_gradients.give_gradients(
    "padded", lambda x, kernel: _of_jax(x, kernel, 1, 1), _padded_gradients
)


def _sum_products(x: jax.Array, gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """Sums the products of all 3x3 windows with the gradients there, as a kernel.

    The windows of a few images are made at a time, so that they stay in the processor's cache.
    """
    batch, height, width, channels = x.shape
    image_bytes = 9 * height * width * channels * x.dtype.itemsize
    images = batch_parts.images_at_a_time(batch, image_bytes, _WINDOW_BYTES)

    def add(total: jax.Array, part: Any) -> Any:
        x, gradient = part
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        places = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        windows = jnp.concatenate(places, axis=3).reshape(-1, 9 * channels)
        products = windows.T @ gradient.reshape(-1, kernel.shape[3])
        return total + products.reshape(kernel.shape), None

    parts = [batch_parts.split(array, images) for array in (x, gradient)]
    return jax.lax.scan(add, jnp.zeros_like(kernel), parts)[0]


def _of_windows(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolves by one product of all windows with the kernel.

    Its transpose is quick.
    """
    side, _, _, features = kernel.shape
    batch, *sizes, channels = x.shape
    high, wide = ((size + 2 * padding - side) // stride + 1 for size in sizes)
    # Windows begin at multiples of the stride. On a map cut into stride x stride blocks each is made of
    # blocks and parts of blocks, so that the transpose adds up a few large arrays.
    reach = -(-side // stride)
    blocks = (high + reach - 1, wide + reach - 1)
    # Negative where something is left that no window reaches.
    ends = [n * stride - size - padding for n, size in zip(blocks, sizes, strict=True)]
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, ((0, 0, 0), *((padding, end, 0) for end in ends), (0, 0, 0)))
    x = x.reshape(batch, blocks[0], stride, blocks[1], stride, channels).swapaxes(2, 3)

    def part(down: int, across: int) -> jax.Array:
        rows, columns = (min(stride, side - stride * n) for n in (down, across))
        return x[:, down : down + high, across : across + wide, :rows, :columns]

    strips = [
        jnp.concatenate([part(down, across) for across in range(reach)], axis=4)
        for down in range(reach)
    ]
    windows = jnp.concatenate(strips, axis=3).reshape(-1, side * side * channels)
    products = jax.lax.dot_general(windows, kernel.reshape(-1, features), (((1,), (0,)), ((), ())))
    return products.reshape(batch, high, wide, features)


def _suits_winograd(kernel: jax.Array, *sides: int) -> bool:
    fewer, more = sorted(kernel.shape[2:])
    thick = fewer >= _WINOGRAD_CHANNELS[0] and more >= _WINOGRAD_CHANNELS[1]
    return thick and all(side % winograd.TILE == 0 for side in sides)
