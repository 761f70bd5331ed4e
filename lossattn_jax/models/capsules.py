"""Layers of capsule networks: primary capsules, capsule head, CapsNet's backbone.

The head is the TIP paper's.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention.poolings import entry
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

UNITS = Units().dimension  # of the capsule head
UNIT_CHANNELS = Units().channels  # of each unit
CAPSULES = 64  # at each patch, behind the units
CAPSULE_DIMENSION = 128

# CapsNet for CIFAR-10 (Sabour et al. 2017, sections 4 and 7): its first convolution.
CAPSNET_CHANNELS = 256
CAPSNET_KERNEL = 9


class PrimaryUnits(nn.Module):
    """Parallel convolutions, one per dimension of the primary capsules.

    All units are one convolution here, with the units' channels next to each other.

    Attributes:
      units: their number.
      channels: of each.
      kernel: side of the convolution, in map positions.
      stride: its stride, in map positions.
      norm: makes a batch normalisation layer, behind which comes a ReLU; None: neither of them.
      dtype: compute dtype.
    """

    units: int
    channels: int
    kernel: int
    stride: int
    norm: Callable[..., nn.Module] | None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, P, units, channels]` float32.

        Patches are in row-major order.
        """
        x = Conv(
            self.units * self.channels,
            self.kernel,
            self.stride,
            0,
            self.dtype,
            use_bias=True,
            name="conv",
        )(x)
        if self.norm is not None:
            x = nn.relu(self.norm(name="bn")(x, train))
        return x.astype(jnp.float32).reshape(x.shape[0], -1, self.units, self.channels)

    @nn.nowrap
    def grid(self, map_size: tuple[int, int]) -> PatchGrid:
        """Places of the patches on a map of `map_size` (height, width)."""
        return sliding_grid(map_size, self.kernel, self.stride)

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Names its layers in PyTorch, a module per unit."""
        every = {n: slice(n * self.channels, (n + 1) * self.channels) for n in range(self.units)}
        return {
            "conv": {f"units.{number}.conv0": channels for number, channels in every.items()},
            "bn": {f"units.{number}.bn": channels for number, channels in every.items()},
        }


class CapsuleHead(nn.Module):
    """The TIP 2021 paper's two capsule layers (section III-C).

    The first layer is the length of the units' outputs over the units, minus a learned bias per
    channel, through a ReLU. The second makes of each patch's channels `capsules` capsules of `dimension`
    dimensions, by a 1x1 convolution per dimension (one convolution for all here) with batch normalisation
    and ReLU.

    Attributes:
      make_units: makes the `PrimaryUnits`.
      capsules: at each patch.
      dimension: of each.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
    """

    make_units: Callable[..., PrimaryUnits]
    capsules: int
    dimension: int
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to capsules `[B, P, capsules, dimension]` float32."""
        units = self.make_units(name="units")(x, train)
        lengths = optax.safe_norm(units, 0.0, axis=2)
        bias = self.param("b4", nn.initializers.normal(1.0), lengths.shape[-1:], jnp.float32)
        x = nn.relu(lengths - bias[None, None]).astype(self.dtype)[:, :, None]
        outputs = self.capsules * self.dimension
        x = Conv(outputs, 1, 1, 0, self.dtype, use_bias=True, name="conv")(x)
        x = nn.relu(self.norm(name="bn")(x, train))
        return x.astype(jnp.float32).reshape(*x.shape[:2], self.capsules, self.dimension)

    @nn.nowrap
    def grid(self, map_size: tuple[int, int]) -> PatchGrid:
        """Places of the patches on a map of `map_size` (height, width)."""
        return self.make_units().grid(map_size)

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Names its layers in PyTorch, a module per dimension."""
        units = self.make_units().torch_modules()
        # Dimensions change fastest in our channels.
        every = {d: slice(d, None, self.dimension) for d in range(self.dimension)}
        return {
            **{f"units/{name}": modules for name, modules in units.items()},
            "conv": {f"layer5.{d}.conv0": channels for d, channels in every.items()},
            "bn": {f"layer5.{d}.bn0": channels for d, channels in every.items()},
        }


class CapsNetBackbone(nn.Module):
    """9x9 convolutions with bias and ReLU: CapsNet's first layer.

    Without padding.

    Attributes:
      channels: of each convolution.
      dtype: compute dtype.
      strides: of the convolutions.
    """

    channels: int = CAPSNET_CHANNELS
    dtype: Dtype = jnp.float32
    strides: tuple[int, ...] = (1,)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to `[B, H', W', channels]`; one of stride 1 to H - 8 and W - 8."""
        del train
        for name, stride in zip(self._names(), self.strides, strict=True):
            conv = Conv(
                self.channels, CAPSNET_KERNEL, stride, 0, self.dtype, use_bias=True, name=name
            )
            x = nn.relu(conv(x))
        return x

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Names its layers in PyTorch, as here."""
        return whole_modules({name: name for name in self._names()})

    @nn.nowrap
    def _names(self) -> list[str]:
        return [f"conv{number}" for number, _ in enumerate(self.strides, start=1)]


def _make_capsnet(build: Build) -> MakeModule:
    return functools.partial(
        CapsNetBackbone, channels=build.scale(CAPSNET_CHANNELS), dtype=build.dtype
    )


# Of Sabour et al. 2017, sections 4 and 7: primary capsules of 8 dimensions and 64 types.
CAPSNET = Backbone(
    _make_capsnet,
    plain_form=entry.UNITS,
    takes_heads=False,
    units=Units(dimension=8, channels=64, kernel=CAPSNET_KERNEL, stride=2, norm=False),
)
