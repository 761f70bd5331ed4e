"""Layers with PyTorch's arithmetic and initialisation, which the papers' code relies on."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import ConvGeneralDilatedT, DotGeneralT, Dtype, Initializer

from lossattn_jax.attention.initialisers import torch_bias_init
from lossattn_jax.kernels.convolution import convolve

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch.nn.Conv2d and torch.nn.Linear draw their weights from.
torch_kernel_init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


class Conv(nn.Module):
    """Square convolution over NHWC maps, padded like torch.nn.Conv2d(padding=p).

    Explicit padding matters for strided ones: "SAME" would pad an even map on one side only.

    Attributes:
      channels: output channels.
      kernel: side of the kernel, in map positions.
      stride: step in map positions.
      padding: zeros added on each side, in map positions.
      dtype: compute dtype; parameters are float32.
      kernel_init: initialiser of the kernel `[kernel, kernel, in, out]`.
      use_bias: whether a bias `[out]` is added.
      conv_general_dilated: another convolution than `convolution.convolve`.
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = torch_kernel_init
    use_bias: bool = False
    conv_general_dilated: ConvGeneralDilatedT | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', channels]` in `dtype`."""
        return nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            strides=(self.stride, self.stride),
            padding=[(self.padding, self.padding)] * 2,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=torch_bias_init(self.kernel**2 * x.shape[-1]),
            conv_general_dilated=self.conv_general_dilated or _convolve,
            name="conv",
        )(x)


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **_: Any
) -> jax.Array:
    """Calls `convolve` for a `Conv` as `flax.linen.Conv` does.

    What is left out has its usual value.
    """
    return convolve(x, kernel, strides[0], padding[0][0])


def dense(
    features: int,
    fan_in: int,
    name: str,
    dtype: Dtype = jnp.float32,
    dot_general: DotGeneralT | None = None,
) -> nn.Dense:
    """A `flax.linen.Dense` that is initialised as torch.nn.Linear.

    Args:
      features: outputs.
      fan_in: inputs.
      name: of the module.
      dtype: compute dtype; parameters are float32.
      dot_general: the matrix product; None: JAX's.
    """
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=torch_kernel_init,
        bias_init=torch_bias_init(fan_in),
        dot_general=dot_general,
        name=name,
    )


def flatten_as_torch(x: jax.Array) -> jax.Array:
    """Flattens maps channels first, as PyTorch does, so that stored weights need no reordering.

    Args:
      x: `[B, H, W, C]`.

    Returns:
      `[B, C * H * W]`.
    """
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


class BatchNorm(nn.Module):
    """Batch normalisation with torch.nn.BatchNorm2d's arithmetic.

    Training normalises by the batch's biased variance and moves the running variance towards the
    unbiased one (flax.linen.BatchNorm keeps the biased one). Statistics are float32 in every compute
    dtype. They are taken in one pass over the data around the running mean, which keeps the accuracy
    of the two-pass formula once that mean is near the true one.

    Attributes:
      axis_name: pmap axis over which training statistics are shared (cross-replica), or None for
        statistics of the local batch.
      momentum: weight of the batch in the running statistics, PyTorch's convention.
      epsilon: added to the variance.
      dtype: dtype of the output.
    """

    axis_name: str | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises `[..., C]` over all axes but the last."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        if train:
            mean, var = self._batch_statistics(x, running_mean.value)
            if not self.is_initializing():
                count = x.size // channels * self._replicas()
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value

        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        mean, gain, bias = (v.reshape(_per_channel(x)) for v in (mean, gain, bias))
        return ((x.astype(jnp.float32) - mean) * gain + bias).astype(self.dtype)

    def _shares_statistics(self) -> bool:
        return self.axis_name is not None and not self.is_initializing()

    def _replicas(self) -> int:
        return jax.lax.axis_size(self.axis_name) if self._shares_statistics() else 1

    def _batch_statistics(self, x: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
        axes: Sequence[int] = tuple(range(x.ndim - 1))
        centre = jax.lax.stop_gradient(centre)
        centred = x.astype(jnp.float32) - centre.reshape(_per_channel(x))
        first = jnp.mean(centred, axes)
        second = jnp.mean(jnp.square(centred), axes)
        if self._shares_statistics():
            first, second = jax.lax.pmean((first, second), self.axis_name)
        return first + centre, jnp.maximum(second - jnp.square(first), 0.0)


class LayerNorm(nn.Module):
    """Layer normalisation with torch.nn.LayerNorm's arithmetic; statistics are float32.

    In two passes: the mean square of channels with a large mean leaves few digits of the variance.

    Attributes:
      epsilon: added to the variance.
      dtype: dtype of the output.
    """

    epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[..., C]` over its last axis."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        scale, bias = (v.reshape(_per_channel(x)) for v in (scale, bias))
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


class ExampleDropout(nn.Module):
    """Dropout by an example's place in the global batch.

    So a batch drops the same units on any number of devices. Draws from the stream "dropout", which
    must then be the same on all of them.

    Attributes:
      rate: share of units that are dropped, below 1.
      axis_name: pmap axis that the batch is split over, or None where it is not.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Drops from `[B, ...]` in training, and scales what is left by `1 / (1 - rate)`."""
        if not train or self.rate == 0:
            return x
        places = jnp.arange(x.shape[0])
        if self.axis_name is not None and not self.is_initializing():
            places += jax.lax.axis_index(self.axis_name) * x.shape[0]
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.make_rng("dropout"), places)
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(mask, x / (1 - self.rate), 0.0).astype(x.dtype)


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
    """Pools 2x2 maxima with stride 2.

    An odd last row or column is left out.

    The gradient goes to the first of equal values, row by row, as PyTorch's does. A NaN is the highest; XLA's
    own pooling on CPUs leaves it out, and a network with NaN inside would have outputs like any other.

    Args:
      x: `[B, H, W, C]`.

    Returns:
      `[B, H // 2, W // 2, C]`.
    """
    return _highest_place(_blocks(x))[0]


@max_pool.defjvp
def _max_pool_jvp(primals: Any, tangents: Any) -> Any:
    # As a sum over the places of a block its transpose is one choice for each element of the map; that of the
    # two choices one behind the other takes twice as long on CPUs.
    highest, place = _highest_place(_blocks(primals[0]))
    places = jnp.arange(4, dtype=place.dtype).reshape(1, 1, 2, 1, 2, 1)
    moved = jnp.where(place[:, :, None, :, None] == places, _blocks(tangents[0]), 0)
    return highest, jnp.sum(moved, axis=(2, 4), dtype=highest.dtype)


def _blocks(x: jax.Array) -> jax.Array:
    """Reshapes a map to blocks of 2x2, `[B, H // 2, 2, W // 2, 2, C]`."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


def _highest_place(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The highest value of each 2x2 block and its place.

    Places are 0 to 3, row by row; of equal values it is that of the first.
    """
    rows = []
    for row in range(2):
        left, right = blocks[:, :, row, :, 0], blocks[:, :, row, :, 1]
        is_left = _is_highest(left, right)
        rows.append((jnp.where(is_left, left, right), jnp.where(is_left, 2 * row, 2 * row + 1)))
    (upper, upper_place), (lower, lower_place) = rows
    is_upper = _is_highest(upper, lower)
    return jnp.where(is_upper, upper, lower), jnp.where(is_upper, upper_place, lower_place)


def max_pool_overlapping(x: jax.Array) -> jax.Array:
    """Pools 3x3 maxima with stride 2, padded by 1.

    Values that are equal or NaN are treated as by `max_pool`.

    Args:
      x: `[B, H, W, C]`.

    Returns:
      `[B, (H + 1) // 2, (W + 1) // 2, C]`.
    """
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = jax.lax.pad(x, lowest, ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    height, width = ((side - 3) // 2 * 2 + 1 for side in x.shape[1:3])
    columns = [x[:, :, start : start + width : 2] for start in range(3)]
    x = functools.reduce(_first_highest, columns)
    return functools.reduce(_first_highest, [x[:, n : n + height : 2] for n in range(3)])


def _first_highest(first: jax.Array, second: jax.Array) -> jax.Array:
    # maximum's gradient is shared between equals, and all windows of a blank part of an image are equal.
    return jnp.where(_is_highest(first, second), first, second)


def _is_highest(first: jax.Array, second: jax.Array) -> jax.Array:
    return (first >= second) | jnp.isnan(first)


def _per_channel(x: jax.Array) -> tuple[int, ...]:
    """Shape of a per-channel vector that is to be combined with `x`."""
    return (1,) * (x.ndim - 1) + (-1,)
