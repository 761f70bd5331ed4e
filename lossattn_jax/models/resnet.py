"""ResNet backbones (He et al. 2016), for small images and for ImageNet's.

For small images with strides or, as the TIP paper's, without.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention.poolings.entry import PATCHES
from lossattn_jax.models.layers import Conv, max_pool_overlapping
from lossattn_jax.models.parts import (
    Backbone,
    Build,
    MakeModule,
    PatchConvolution,
    PublishedWeights,
    TorchModules,
    whole_modules,
)

STAGE_CHANNELS = (64, 128, 256, 512)
# Blocks of each stage, and whether they are bottlenecks (He et al. 2016, table 1).
STAGE_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BOTTLENECKS = ("resnet50", "resnet101", "resnet152")
# Of the networks for ImageNet's images.
IMAGENET_NAMES = {name: f"{name}_imagenet" for name in STAGE_BLOCKS}
EXPANSION = 4  # of a bottleneck's channels
_LAYERS_OF_BLOCK = tuple(part for number in "123" for part in (f"conv{number}", f"bn{number}"))

# Strides of the four stages.
PLAIN_STRIDES = (1, 2, 2, 2)  # of the plain networks: a 4x4 map from a 32x32 image
NO_STRIDES = (1, 1, 1, 1)  # TIP 2021, section IV-A
STRIDE2_STRIDES = (1, 2, 1, 1)  # "resnet18_stride2": a 32x32 map from a 64x64 image


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
        y = _conv(self, self.channels, 3, self.stride, "conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = _conv(self, self.channels, 3, 1, "conv2")(y)
        y = self.norm(name="bn2")(y, train)
        return nn.relu(_shortcut(self, x, self.channels, self.stride, train) + y)


def first_kernel(side: int | None, plain: bool) -> int:
    """Side of a bottleneck's first convolution, chosen or by default.

    Args:
      side: 1, 3 or None.
      plain: whether the network has no head that makes patches, or is one for ImageNet's images.
    """
    return side or (1 if plain else 3)


class Bottleneck(nn.Module):
    """Three convolutions with batch normalisation, to four times the channels.

    Attributes:
      channels: of the first two convolutions; the output has `EXPANSION` times as many.
      stride: of the first 3x3 convolution and of the shortcut.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
      first_kernel: side of the first convolution: 1 as He et al. have it, or 3 as the papers' code.
      relu_before_add: apply a ReLU to the third convolution's output before the shortcut is added, as
        the papers' code does. None: not applied, and `convert` refuses weights that would fit
        either.
    """

    channels: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32
    first_kernel: int = 1
    relu_before_add: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, 4 * channels]`."""
        # The first 3x3 convolution has the stride: a strided 1x1 one would not look at most of x.
        first, second = (1, self.stride) if self.first_kernel == 1 else (self.stride, 1)
        y = _conv(self, self.channels, self.first_kernel, first, "conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = _conv(self, self.channels, 3, second, "conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = _conv(self, EXPANSION * self.channels, 1, 1, "conv3")(y)
        y = self.norm(name="bn3")(y, train)
        if self.relu_before_add:
            y = nn.relu(y)
        return nn.relu(_shortcut(self, x, EXPANSION * self.channels, self.stride, train) + y)


def _conv(block: Any, channels: int, kernel: int, stride: int, name: str) -> Conv:
    return Conv(channels, kernel, stride, kernel // 2, block.dtype, name=name)


def _shortcut(block: Any, x: jax.Array, channels: int, stride: int, train: bool) -> jax.Array:
    """Returns `x`, or its 1x1 convolution where the shape changes.

    Called inside a compact block.
    """
    if stride == 1 and x.shape[-1] == channels:
        return x
    return block.norm(name="shortcut_bn")(
        _conv(block, channels, 1, stride, "shortcut_conv")(x), train
    )


class ResNet(nn.Module):
    """A stem and four stages of blocks.

    Attributes:
      stage_blocks: number of blocks of each of the four stages.
      stage_channels: channels of each stage, before a bottleneck's expansion.
      strides: of each stage's first block.
      make_block: makes a block from (channels, stride); see `BasicBlock` and `Bottleneck`.
      norm: makes a batch normalisation layer.
      norm_stem: normalise and rectify after the stem, as usual. The TIP paper's code makes this layer
        for its stride-free networks and does not apply it.
      imagenet_stem: a 7x7 convolution with stride 2 and 3x3 max pooling with stride 2, instead of a 3x3
        convolution; layers then have torchvision's names in PyTorch, otherwise those of the papers' code.
      reduce_to: channels of a 1x1 convolution with batch normalisation and ReLU behind the last stage;
        None: no such convolution. The TIP paper's ResNet50 has one, so that its head is as large as
        ResNet18's.
      dtype: compute dtype.
    """

    stage_blocks: tuple[int, ...]
    stage_channels: tuple[int, ...]
    strides: tuple[int, ...]
    make_block: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    norm_stem: bool = False
    imagenet_stem: bool = False
    reduce_to: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to features `[B, H / s, W / s, C]`.

        s is the product of `strides`, four times that with `imagenet_stem`; H / s is rounded up.
        """
        kernel, stride = (7, 2) if self.imagenet_stem else (3, 1)
        x = Conv(self.stage_channels[0], kernel, stride, kernel // 2, self.dtype, name="conv1")(x)
        if self.norm_stem:
            x = nn.relu(self.norm(name="bn1")(x, train))
        if self.imagenet_stem:
            x = max_pool_overlapping(x)
        stages = zip(self.stage_blocks, self.stage_channels, self.strides, strict=True)
        for stage, (blocks, channels, stride) in enumerate(stages, start=1):
            for block in range(blocks):
                x = self.make_block(
                    channels, stride if block == 0 else 1, name=f"layer{stage}_{block}"
                )(x, train)
        if self.reduce_to is not None:
            x = Conv(self.reduce_to, 1, 1, 0, self.dtype, name="reduce_conv")(x)
            x = nn.relu(self.norm(name="reduce_bn")(x, train))
        return x

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Its layers in PyTorch, under the names of the papers' code or torchvision's."""
        names = {"conv1": "conv1", "bn1": "bn1", "reduce_conv": "conv4", "reduce_bn": "bn4"}
        shortcut = "downsample" if self.imagenet_stem else "shortcut"
        of_block = {layer: layer for layer in _LAYERS_OF_BLOCK}
        of_block |= {"shortcut_conv": f"{shortcut}.0", "shortcut_bn": f"{shortcut}.1"}
        for stage, blocks in enumerate(self.stage_blocks, start=1):
            for block in range(blocks):
                for ours, theirs in of_block.items():
                    names[f"layer{stage}_{block}/{ours}"] = f"layer{stage}.{block}.{theirs}"
        return whole_modules(names)

    @nn.nowrap
    def published_weights(self) -> PublishedWeights:
        """What torchvision's files have besides."""
        return PublishedWeights(left_out=("fc.",))

    @nn.nowrap
    def torch_unused(self) -> dict[str, np.ndarray]:
        """Returns arrays that the papers' code stores without use.

        As PyTorch makes them.
        """
        if self.norm_stem:
            return {}
        ones, zeros = (make(self.stage_channels[0], np.float32) for make in (np.ones, np.zeros))
        return {
            "bn1.weight": ones,
            "bn1.bias": zeros,
            "bn1.running_mean": zeros,
            "bn1.running_var": ones,
            "bn1.num_batches_tracked": np.zeros((), np.int64),
        }

    @property
    def image_side(self) -> int:
        """Pixels of the square images that it is made for."""
        if self.imagenet_stem:
            return 224
        return 64 if self.strides == STRIDE2_STRIDES else 32


def _make(
    name: str, build: Build, strides: tuple[int, ...] | None = None, imagenet: bool = False
) -> MakeModule:
    bottlenecks = name in BOTTLENECKS
    plain = build.plain or imagenet
    make_block: Callable[..., nn.Module] = BasicBlock
    if bottlenecks:
        make_block = functools.partial(
            Bottleneck,
            first_kernel=first_kernel(build.first_kernel, plain),
            relu_before_add=build.relu_before_add,
        )
    stage_channels = tuple(build.scale(c) for c in STAGE_CHANNELS)
    make = functools.partial(
        ResNet,
        stage_blocks=STAGE_BLOCKS[name],
        stage_channels=stage_channels,
        strides=strides or (PLAIN_STRIDES if plain else NO_STRIDES),
        make_block=functools.partial(make_block, norm=build.norm, dtype=build.dtype),
        norm=build.norm,
        norm_stem=plain,
        reduce_to=stage_channels[-1] if bottlenecks and not plain else None,
        dtype=build.dtype,
    )
    # Given only where it is True: what a network is built of is digested, also of earlier releases.
    return functools.partial(make, imagenet_stem=True) if imagenet else make


# 5x5 patches on the 7x7 map of a 224x224 image.
_IMAGENET_PATCHES = PatchConvolution(kernel=3, stride=1)

BACKBONES = {
    **{name: Backbone(functools.partial(_make, name)) for name in STAGE_BLOCKS},
    "resnet18_stride2": Backbone(functools.partial(_make, "resnet18", strides=STRIDE2_STRIDES)),
    **{
        of_imagenet: Backbone(
            functools.partial(_make, name, imagenet=True),
            plain_form=PATCHES,
            patches=_IMAGENET_PATCHES,
        )
        for name, of_imagenet in IMAGENET_NAMES.items()
    },
}
