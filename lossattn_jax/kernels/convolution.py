"""Convolutions in forms that XLA does not find by itself.

A 1x1 convolution is a matrix product. Others stay JAX's, but for two on CPUs, where numbers change by no more
than rounding (`benchmarks.against_torch` has the times):

- The gradient of a strided one to its input is, as JAX has it, a convolution of a map with zeros between its
  positions, for which XLA has no library: the paper's 9x9 stride-4 one took 80 times as long as PyTorch's.
  Here it is one matrix product and a sum of overlapping windows.
- Padded 3x3 ones go by Winograd's algorithm (`winograd`), which takes a quarter of the multiplications.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.ad_checkpoint import checkpoint_name

from lossattn_jax.kernels import winograd

RESULT_NAME = (
    "convolution"  # name of all results but those of 1x1 ones, for policies of jax.checkpoint
)

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# With fewer channels, on either side, it gains nothing.
_WINOGRAD_CHANNELS = 128


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
    elif on_cpu and stride == 1 and _suits_winograd(x, kernel, padding):
        result = winograd.convolve(x, kernel)
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


def _suits_winograd(x: jax.Array, kernel: jax.Array, padding: int) -> bool:
    whole = x.shape[1] % winograd.TILE == 0 and x.shape[2] % winograd.TILE == 0
    # Sums of bfloat16 numbers would be rounded before they are multiplied.
    sound = x.dtype == jnp.float32 and whole and x.size > 0
    thick = min(kernel.shape[2:]) >= _WINOGRAD_CHANNELS
    return kernel.shape[0] == 3 and padding == 1 and sound and thick
