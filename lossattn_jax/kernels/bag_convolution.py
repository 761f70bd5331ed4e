"""Convolution and pooling of small images inside a compiled loop.

On a CPU, XLA's own convolution has a gradient that is slow for the ten small images of a bag, and its max
pooling one that goes through the image window by window: LeNet's features and their gradients took
thirteen times as long (`benchmarks.small_convolutions`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.kernels.linear import dot_general
from lossattn_jax.models.layers import max_pool

__all__ = ["conv_general_dilated", "max_pool"]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    dimension_numbers: Any = None,
    **kwargs: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for `flax.linen.Conv`: stride 1, no padding, NHWC.

    On CPUs it is one matrix product of all windows with the kernel, elsewhere JAX's own, and so are
    others than these everywhere.

    Args:
      lhs: `[B, H, W, C]`.
      rhs: `[kH, kW, C, F]`, of the same dtype.
      window_strides, padding, dimension_numbers: as of JAX's.
      **kwargs: likewise; only dilations and groups of 1 and what is None leave it ours.
    """

    def of_jax(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, window_strides, padding, dimension_numbers=dimension_numbers, **kwargs
        )

    no_padding = padding == "VALID" or (not isinstance(padding, str) and not np.any(padding))
    neutral = all(value is None or np.all(np.array(value) == 1) for value in kwargs.values())
    layout = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if no_padding and neutral and set(window_strides) == {1} and layout == _nhwc(lhs, rhs):
        return jax.lax.platform_dependent(lhs, rhs, cpu=_as_product, default=of_jax)
    return of_jax(lhs, rhs)


def _nhwc(x: jax.Array, kernel: jax.Array) -> Any:
    if x.ndim != 4:
        return None
    return jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))


def _as_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    down, across, _, features = kernel.shape
    height, width = x.shape[1] - down + 1, x.shape[2] - across + 1
    windows = jnp.concatenate(
        [x[:, i : i + height, j : j + width] for i in range(down) for j in range(across)], axis=-1
    )
    numbers = (((windows.ndim - 1,), (0,)), ((), ()))
    return dot_general(windows, kernel.reshape(-1, features), numbers)
