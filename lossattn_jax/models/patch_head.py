"""Heads that make patch features of a backbone's map."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.models.geometry import PatchGrid, sliding_grid
from lossattn_jax.models.layers import Conv, ExampleDropout, dense, flatten_as_torch
from lossattn_jax.models.parts import TorchModules, whole_modules


class ConvPatchHead(nn.Module):
    """A convolution that makes patches, then a 1x1 convolution.

    It is of `kernel` x `kernel`.

    The TIP 2021 paper's convolutional head (section III-B). Each convolution is followed by batch
    normalisation and ReLU. On a 32x32 map the paper's 9x9 stride-4 convolution without padding gives
    6x6 patches.

    Attributes:
      channels: D, of the patch features.
      kernel: side of the first convolution, in map positions.
      stride: its stride, in map positions.
      norm: makes a batch normalisation layer.
      use_bias: whether the convolutions have one, which the paper's parameter counts say of the VGGs.
      dtype: compute dtype.
    """

    channels: int
    kernel: int
    stride: int
    norm: Callable[..., nn.Module]
    use_bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to patch features `[B, P, channels]`.

        Patches are in row-major order.
        """

        def conv(kernel: int, stride: int, name: str) -> Conv:
            return Conv(
                self.channels, kernel, stride, 0, self.dtype, use_bias=self.use_bias, name=name
            )

        x = conv(self.kernel, self.stride, "conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x, train))
        x = conv(1, 1, "conv2")(x)
        x = nn.relu(self.norm(name="bn2")(x, train))
        return x.reshape(x.shape[0], -1, x.shape[-1])

    @nn.nowrap
    def grid(self, map_size: tuple[int, int]) -> PatchGrid:
        """Places of the patches on a map of `map_size` (height, width)."""
        return sliding_grid(map_size, self.kernel, self.stride)

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Its layers in PyTorch, under the names of the papers' code."""
        return whole_modules({"conv1": "conv5", "bn1": "bn5", "conv2": "conv6", "bn2": "bn6"})


class MapHead(nn.Module):
    """A head without layers: every map position is a patch.

    As in plain ResNets and in AAAI 2020.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H * W, C]`, patches in row-major order."""
        del train
        return x.reshape(x.shape[0], -1, x.shape[-1])

    @nn.nowrap
    def grid(self, map_size: tuple[int, int]) -> PatchGrid:
        """Places of the patches on a map of `map_size` (height, width)."""
        return sliding_grid(map_size, 1, 1)

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """No layer."""
        return {}


class DenseHead(nn.Module):
    """VGG's two hidden layers; the whole image is one patch.

    With ReLU and dropout.

    Dropout draws from the stream "dropout" in training.

    Attributes:
      hidden: units of each layer; 4096 in Simonyan & Zisserman 2015.
      dropout: share of units that are dropped in training.
      axis_name: pmap axis that training batches are split over, or None; see `ExampleDropout`.
      dtype: compute dtype.
    """

    hidden: int
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, 1, hidden]`."""
        x = flatten_as_torch(x)
        for number in (1, 2):
            x = nn.relu(dense(self.hidden, x.shape[-1], f"dense{number}", self.dtype)(x))
            x = ExampleDropout(self.dropout, self.axis_name, name=f"dropout{number}")(x, train)
        return x[:, None]

    @nn.nowrap
    def grid(self, map_size: tuple[int, int]) -> PatchGrid:
        """The one patch, whatever the map's size."""
        del map_size
        return sliding_grid((1, 1), 1, 1)

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Its layers in PyTorch, under torchvision's names."""
        return whole_modules({"dense1": "classifier.0", "dense2": "classifier.3"})

    @property
    def torch_classifier(self) -> str:
        """What PyTorch calls the layer behind it."""
        return "classifier.6"
