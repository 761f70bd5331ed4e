"""VGG backbones with batch normalisation (Simonyan & Zisserman 2015).

With or without max pooling.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention.poolings.entry import ONE
from lossattn_jax.models.layers import Conv, max_pool
from lossattn_jax.models.parts import (
    Backbone,
    Build,
    MakeModule,
    PatchConvolution,
    TorchModules,
    whole_modules,
)

# Channels of the 3x3 convolutions of each of the five stages (Simonyan & Zisserman 2015, table 1).
STAGES: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11_bn": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg13_bn": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16_bn": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19_bn": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each with bias, batch normalisation and ReLU.

    Attributes:
      stages: channels of the convolutions of each stage.
      pool: 2x2 max pooling after each stage, as the plain networks; False keeps the image's size, as
        the TIP paper's backbones do.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
    """

    stages: tuple[tuple[int, ...], ...]
    pool: bool
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to `[B, H, W, C]`, or to `[B, H / 32, W / 32, C]` with pooling."""
        number = 0
        for stage in self.stages:
            for channels in stage:
                number += 1
                x = Conv(channels, 3, 1, 1, self.dtype, use_bias=True, name=f"conv{number}")(x)
                x = nn.relu(self.norm(name=f"bn{number}")(x, train))
            if self.pool:
                x = max_pool(x)
        return x

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Its layers in PyTorch, under torchvision's names."""
        names = {}
        number = position = 0
        for stage in self.stages:
            for _ in stage:
                number += 1
                names[f"conv{number}"] = f"features.{position}"
                names[f"bn{number}"] = f"features.{position + 1}"
                position += 3  # with the ReLU
            position += self.pool
        return whole_modules(names)


def _make(name: str, build: Build) -> MakeModule:
    stages = tuple(tuple(build.scale(c) for c in stage) for stage in STAGES[name])
    return functools.partial(
        VGG, stages=stages, pool=build.plain, norm=build.norm, dtype=build.dtype
    )


# Without a head the whole image is one patch. The paper's parameter counts say that a head has biases.
BACKBONES = {
    name: Backbone(
        functools.partial(_make, name), plain_form=ONE, patches=PatchConvolution(use_bias=True)
    )
    for name in STAGES
}
