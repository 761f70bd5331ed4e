"""ResNet backbones without pooling or stride (TIP 2021, section IV-A; He et al. 2016 for the blocks)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.models.layers import Conv

STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_BLOCKS = {"resnet18": (2, 2, 2, 2)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut.

    Attributes:
      channels: output channels.
      stride: of the first convolution and of the shortcut.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
    """

    channels: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, channels]`."""

        def conv(channels: int, kernel: int, stride: int, name: str) -> Any:
            return Conv(channels, kernel, stride, kernel // 2, self.dtype, name=name)

        y = conv(self.channels, 3, self.stride, "conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = conv(self.channels, 3, 1, "conv2")(y)
        y = self.norm(name="bn2")(y, train)
        if x.shape != y.shape:
            x = conv(self.channels, 1, self.stride, "shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stride-free ResNet: the map keeps the image's size.

    The papers' code applies neither normalisation nor ReLU after the stem convolution; so do we.

    Attributes:
      stage_blocks: number of blocks of each of the four stages.
      stage_channels: channels of each stage.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
    """

    stage_blocks: tuple[int, ...]
    stage_channels: tuple[int, ...]
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to features `[B, H, W, stage_channels[-1]]`."""
        x = Conv(self.stage_channels[0], 3, 1, 1, self.dtype, name="conv1")(x)
        for stage, (blocks, channels) in enumerate(
            zip(self.stage_blocks, self.stage_channels, strict=True), start=1
        ):
            for block in range(blocks):
                name = f"layer{stage}_{block}"
                x = BasicBlock(channels, 1, self.norm, self.dtype, name=name)(x, train)
        return x
