"""Capsule networks: the TIP paper's capsule head with loss attention, dynamic routing, and CapsNet."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention import pooling as pooling_lib
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.routing import dynamic_routing, squash
from lossattn_jax.models.geometry import PatchGrid, sliding_grid
from lossattn_jax.models.layers import Conv, dense
from lossattn_jax.models.network import ImageNetwork

UNITS = 16  # of the capsule head
UNIT_CHANNELS = 32  # of each unit
CAPSULES = 64  # at each patch, behind the units
CAPSULE_DIMENSION = 128
CLASS_DIMENSION = 16  # of the class capsules that are routed to

# CapsNet for CIFAR-10 (Sabour et al. 2017, sections 4 and 7): channels of its first convolution, and
# (dimensions, types) of the primary capsules behind it.
CAPSNET_CHANNELS = 256
CAPSNET_PRIMARY = (8, 64)
CAPSNET_KERNEL, CAPSNET_STRIDE = 9, 2


class PrimaryUnits(nn.Module):
    """Convolutions side by side over the same map, one per dimension of the primary capsules.

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
        """Maps `[B, H, W, C]` to `[B, P, units, channels]` float32, patches in row-major order."""
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


class CapsuleNetwork(ImageNetwork):
    """Capsules with loss attention: every capsule is classified and weighed (TIP 2021, section III-C).

    A patch's prediction is the sum of its capsules' predictions, and its attention what is left of the
    sum of their weights above the threshold; `make_head` makes a `CapsuleHead`.

    Attributes:
      threshold: t of the loss attention.
    """

    threshold: float = pooling_lib.DEFAULT_THRESHOLD

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        """Predicts for a batch; see `PatchNetwork.__call__`."""
        backbone_map = self.make_map(images, train)
        capsules = self.make_head(name="head")(backbone_map, train)
        batch, patches, _, dimension = capsules.shape
        classifier = dense(self.num_classes, dimension, "classifier")
        logits = classifier(capsules)
        weights, attention = pooling_lib.capsule_loss_attention(logits, patches, self.threshold)
        pooled = pooling_lib.weighted_sum(
            capsules.reshape(batch, -1, dimension), weights.reshape(batch, -1)
        )
        return Outputs(classifier(pooled), jnp.sum(logits, axis=2), attention)


class RoutingNetwork(ImageNetwork):
    """Primary capsules routed to one capsule per class (Sabour et al. 2017).

    `Outputs.logits` are the class capsules' lengths, in [0, 1): train with `losses.margin_loss`. The
    attention is the share of the coupling coefficients to the predicted class that a patch has. A
    patch's prediction is what it adds to the class capsules before they are squashed, along the
    direction of each; over the patches it sums to that capsule's length before squashing.
    `make_head` makes `PrimaryUnits`.

    Attributes:
      class_dimension: of the class capsules.
    """

    class_dimension: int = CLASS_DIMENSION

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        """Predicts for a batch; see `PatchNetwork.__call__`."""
        backbone_map = self.make_map(images, train)
        units = self.make_head(name="head")(backbone_map, train)
        batch, patches, dimension, channels = units.shape
        primary = squash(units.transpose(0, 1, 3, 2)).reshape(batch, -1, dimension)
        transform = self.param(
            "transform",
            nn.initializers.normal(0.1),
            (patches * channels, self.num_classes, dimension, self.class_dimension),
            jnp.float32,
        )
        votes = jnp.einsum("bnd,nkde->bnke", primary, transform)
        routed = dynamic_routing(votes)
        lengths = optax.safe_norm(routed.capsules, 0.0, axis=-1)
        attention = pooling_lib.coupling_attention(
            routed.couplings.reshape(batch, patches, channels, -1), jnp.argmax(lengths, axis=-1)
        )
        directions = routed.capsules / jnp.where(lengths > 0, lengths, 1.0)[:, :, None]
        added = jnp.einsum("bnk,bnke,bke->bnk", routed.couplings, votes, directions)
        patch_logits = jnp.sum(added.reshape(batch, patches, channels, -1), axis=2)
        return Outputs(lengths, patch_logits, attention)


class CapsNetBackbone(nn.Module):
    """CapsNet's first layer: one 9x9 convolution without padding, with bias and ReLU.

    Attributes:
      channels: of the convolution.
      dtype: compute dtype.
    """

    channels: int = CAPSNET_CHANNELS
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to `[B, H - 8, W - 8, channels]`."""
        del train
        conv = Conv(self.channels, CAPSNET_KERNEL, 1, 0, self.dtype, use_bias=True, name="conv1")
        return nn.relu(conv(x))
