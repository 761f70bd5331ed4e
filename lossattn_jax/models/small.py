"""A small strided backbone for CPUs and demonstrations; ours, not from the papers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.models.layers import Conv

# Channels at width 1, and (kernel, stride, channels) of the patch convolution behind it.
CHANNELS = (32, 64, 64, 128)
HEAD = (3, 1, 128)


class SmallBackbone(nn.Module):
    """Placeholder shape until the exploration ends.

    Attributes:
      channels: of the convolutions.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
    """

    channels: tuple[int, ...]
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to features `[B, H / 4, W / 4, channels[-1]]`."""
        for index, (channels, stride) in enumerate(zip(self.channels, (1, 2, 1, 2), strict=True)):
            x = Conv(channels, 3, stride, 1, self.dtype, name=f"conv{index + 1}")(x)
            x = nn.relu(self.norm(name=f"bn{index + 1}")(x, train))
        return x
