"""DeepCaps: cells of convolutional capsules, the last of which routes (Rajasegaran et al. 2019).

CVPR 2019, arXiv 1904.09546; sizes and initial values are those of the published code,
github.com/brjathu/deepcaps. Its three first cells are the backbone here, the fourth is the head, and the
routing of both cells' capsules to the classes is the pooling "biased_routing".

Three things differ from that code. Its layer of 3D routing reshapes maps of capsules to volumes without
moving the axes first, which mixes places and kinds, and squashes a kind's whole map as one vector; here the
layer keeps them apart and squashes each capsule, as an independent port does too
(github.com/HopefulRational/DeepCaps-PyTorch). Strided convolutions are padded on both sides, as everywhere in
this package, where TensorFlow pads a map of even size at its end alone. And there is no decoder, which the
authors train besides to reconstruct the images.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention.poolings import entry
from lossattn_jax.attention.routing import map_routing, squash
from lossattn_jax.errors import UserError
from lossattn_jax.models.geometry import PatchGrid, sliding_grid
from lossattn_jax.models.layers import Conv
from lossattn_jax.models.parts import (
    Backbone,
    Build,
    MakeModule,
    TorchModules,
    Units,
    whole_modules,
)

STEM_CHANNELS = 128
KINDS = 32  # of capsules, in every cell
DIMENSIONS = (4, 8, 8)  # of the capsules of the backbone's cells
LAST_DIMENSION = 8  # of the head's cell
_KERNEL = 3
_FIRST_BIAS = 0.1  # of the 3D routing
_BLOCK = 2  # positions of the backbone's map, either way, to one of the last cell's

_vote_init = nn.initializers.he_normal()


def _capsule_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draws a kernel as Keras does one of six axes.

    The published code has such kernels: side, side, kinds and dimensions before and behind. Glorot's rule
    takes them to be dense, of as many inputs as outputs.
    """
    limit = math.sqrt(3 / math.sqrt(math.prod(shape)))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


class CapsuleConvolution(nn.Module):
    """A 3x3 convolution whose outputs are squashed, capsule by capsule.

    Attributes:
      kinds: of capsules.
      dimension: of each.
      stride: of the convolution.
      dtype: compute dtype; squashing is float32.
    """

    kinds: int
    dimension: int
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', kinds * dimension]`, a capsule's numbers side by side."""
        channels = self.kinds * self.dimension
        x = Conv(channels, _KERNEL, self.stride, 1, self.dtype, _capsule_init, name="conv")(x)
        capsules = x.astype(jnp.float32).reshape(*x.shape[:3], self.kinds, self.dimension)
        return squash(capsules).reshape(x.shape).astype(self.dtype)


class RoutedConvolution(nn.Module):
    """3D convolution with dynamic routing: each kind of capsules votes for all.

    One 3x3 convolution makes of the map of each kind its votes for every kind at every place, which is a 3D
    convolution with a step of a whole capsule. See `routing.map_routing`.

    Attributes:
      kinds: of capsules, before and behind.
      dimension: of each, likewise.
      dtype: compute dtype of the votes; routing is float32.
    """

    kinds: int
    dimension: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, kinds * dimension]` to the same shape."""
        batch, height, width, channels = x.shape
        capsules = x.reshape(batch, height, width, self.kinds, self.dimension)
        maps = capsules.transpose(0, 3, 1, 2, 4).reshape(-1, height, width, self.dimension)
        votes = Conv(channels, _KERNEL, 1, 1, self.dtype, _vote_init, name="conv")(maps)
        bias = self.param(
            "bias",
            nn.initializers.constant(_FIRST_BIAS),
            (self.kinds, self.dimension),
            jnp.float32,
        )
        votes = votes.reshape(batch, self.kinds, height, width, self.kinds, self.dimension)
        return map_routing(votes, bias).capsules.reshape(x.shape).astype(self.dtype)


class CapsuleCell(nn.Module):
    """A strided layer of capsules, two more, and a way around these two.

    Attributes:
      kinds: of capsules.
      dimension: of each.
      routes: whether the way around routes (`RoutedConvolution`) or is a convolution like the others.
      dtype: compute dtype.
    """

    kinds: int
    dimension: int
    routes: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, kinds * dimension]`, halves rounded up."""

        def layer(x: jax.Array, name: str, stride: int = 1) -> jax.Array:
            return CapsuleConvolution(self.kinds, self.dimension, stride, self.dtype, name=name)(x)

        x = layer(x, "first", stride=2)
        if self.routes:
            around = RoutedConvolution(self.kinds, self.dimension, self.dtype, name="around")(x)
        else:
            around = layer(x, "around")
        return layer(layer(x, "second"), "third") + around

    @staticmethod
    def torch_modules(prefix: str) -> TorchModules:
        """Names the layers of one in PyTorch, as here."""
        layers = ("first", "around", "second", "third")
        return whole_modules({f"{prefix}/{layer}/conv": f"{prefix}.{layer}" for layer in layers})


class DeepCapsBackbone(nn.Module):
    """DeepCaps' convolution and its three cells without routing.

    Attributes:
      channels: of the convolution.
      kinds: of capsules.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
    """

    channels: int
    kinds: int
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to capsules `[B, H / 8, W / 8, kinds * 8]`."""
        x = Conv(self.channels, _KERNEL, 1, 1, self.dtype, use_bias=True, name="conv1")(x)
        x = self.norm(name="bn1")(nn.relu(x), train)
        for number, dimension in enumerate(DIMENSIONS, start=1):
            x = CapsuleCell(self.kinds, dimension, dtype=self.dtype, name=f"cell{number}")(x)
        return x

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Names its layers in PyTorch, as here."""
        cells = [f"cell{number}" for number, _ in enumerate(DIMENSIONS, start=1)]
        named = whole_modules({"conv1": "conv1", "bn1": "bn1"})
        return named | {
            path: names for cell in cells for path, names in CapsuleCell.torch_modules(cell).items()
        }


class DeepCapsHead(nn.Module):
    """DeepCaps' fourth cell, which routes, and the capsules of the last two cells.

    A patch is a place of the fourth cell's map: it has that cell's capsules, and those of the 2x2 places of
    the third one's map that lie under it.

    Attributes:
      kinds: of capsules.
      dimension: of each.
      dtype: compute dtype.
    """

    kinds: int
    dimension: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2 * W / 2, dimension, 5 * kinds]` float32.

        Patches are in row-major order.

        Raises:
          UserError: an odd number of positions either way.
        """
        del train
        grid = self.grid((x.shape[1], x.shape[2]))
        cell = CapsuleCell(self.kinds, self.dimension, True, self.dtype, name="cell4")
        far = cell(x).reshape(-1, grid.patches, self.kinds, self.dimension)
        near = x.reshape(-1, grid.rows, _BLOCK, grid.cols, _BLOCK, self.kinds, self.dimension)
        near = near.transpose(0, 1, 3, 2, 4, 5, 6)
        near = near.reshape(-1, grid.patches, _BLOCK**2 * self.kinds, self.dimension)
        capsules = jnp.concatenate([far, near], axis=2)
        return capsules.astype(jnp.float32).transpose(0, 1, 3, 2)

    @nn.nowrap
    def grid(self, map_size: tuple[int, int]) -> PatchGrid:
        """Places of the patches on a map of `map_size` (height, width).

        Raises:
          UserError: one of these is odd.
        """
        if any(side % _BLOCK for side in map_size):
            raise UserError(
                f"the backbone's map has {map_size[0]}x{map_size[1]} positions, but DeepCaps needs even "
                "numbers: images whose sides are multiples of 16"
            )
        return sliding_grid(map_size, _BLOCK, _BLOCK)

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Names its layers in PyTorch, as here."""
        bias = whole_modules({"cell4/around/bias": "cell4.around.bias"})
        return CapsuleCell.torch_modules("cell4") | bias


def _make(build: Build) -> MakeModule:
    return functools.partial(
        DeepCapsBackbone,
        channels=build.scale(STEM_CHANNELS),
        kinds=build.scale(KINDS),
        norm=build.norm,
        dtype=build.dtype,
    )


# The width changes how many kinds of capsules there are, not how many numbers make one.
DEEPCAPS = Backbone(
    _make,
    plain_form=entry.SQUASHED,
    takes_heads=False,
    units=Units(dimension=LAST_DIMENSION, channels=KINDS),
)
