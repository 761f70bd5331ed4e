"""Convolutional patch head: backbone map -> patch features (TIP 2021, section III-B)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.models.layers import Conv


class ConvPatchHead(nn.Module):
    """A `kernel` x `kernel` convolution that cuts the map into patches, then a 1x1 convolution.

    Each is followed by batch normalisation and ReLU. On a 32x32 map the paper's 9x9 stride-4
    convolution without padding gives 6x6 patches.

    Attributes:
      channels: D, of the patch features.
      kernel: side of the first convolution, in map positions.
      stride: its stride, in map positions.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
    """

    channels: int
    kernel: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to patch features `[B, P, channels]`, patches in row-major order."""
        x = Conv(self.channels, self.kernel, self.stride, 0, self.dtype, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x, train))
        x = Conv(self.channels, 1, 1, 0, self.dtype, name="conv2")(x)
        x = nn.relu(self.norm(name="bn2")(x, train))
        return x.reshape(x.shape[0], -1, x.shape[-1])
