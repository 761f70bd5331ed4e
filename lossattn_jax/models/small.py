"""A small backbone for CPUs, not from the papers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.models.layers import Conv
from lossattn_jax.models.parts import (
    Backbone,
    Build,
    MakeModule,
    PatchConvolution,
    TorchModules,
    whole_modules,
)

CHANNELS = (48, 96)  # of the two strided convolutions at width 1

# He et al. 2015: keeps the activations' variance through ReLUs, which a short training needs.
he_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class SmallBackbone(nn.Module):
    """Two strided convolutions, then two residual blocks.

    The convolutions are 4x4 with stride 2, the blocks on the map of a quarter of the size.

    Strided 4x4 convolutions, and 3x3 ones on 8x8 maps, are what XLA runs fastest on CPUs among the
    shapes that were tried; a 3x3 convolution at full size alone would take as long as all of this.
    Each convolution is followed by batch normalisation and ReLU.

    Attributes:
      channels: of the first convolution, and of everything after it.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
      blocks: number of residual blocks.
    """

    channels: tuple[int, ...]
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32
    blocks: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to features `[B, H / 4, W / 4, channels[1]]`."""

        def layer(x: jax.Array, name: str, channels: int, kernel: int, stride: int) -> jax.Array:
            x = Conv(channels, kernel, stride, 1, self.dtype, he_init, name=f"conv{name}")(x)
            return nn.relu(self.norm(name=f"bn{name}")(x, train))

        first, second = self.channels
        x = layer(x, "1", first, 4, 2)
        x = layer(x, "2", second, 4, 2)
        for block in range(1, self.blocks + 1):
            y = layer(x, f"{block + 2}a", second, 3, 1)
            x = x + layer(y, f"{block + 2}b", second, 3, 1)
        return x

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Its layers in PyTorch, under our own names."""
        numbers = ["1", "2", *(f"{b + 3}{part}" for b in range(self.blocks) for part in "ab")]
        names = [f"{layer}{number}" for number in numbers for layer in ("conv", "bn")]
        return whole_modules({name: name for name in names})


def _make(build: Build) -> MakeModule:
    channels = tuple(build.scale(c) for c in CHANNELS)
    return functools.partial(SmallBackbone, channels=channels, norm=build.norm, dtype=build.dtype)


# On the 8x8 map of a 32x32 image the patch convolution gives 6x6 patches, as the paper's head.
BACKBONE = Backbone(_make, patches=PatchConvolution(kernel=3, stride=1, channels=128))
