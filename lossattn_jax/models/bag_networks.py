"""Networks for bags: the AAAI 2020 paper's, and later ones to compare with.

All share the layers over instances and one classifier, and differ in how a bag is pooled; an instance is a
patch to `lossattn_jax.attention.poolings`.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention import poolings
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.pooling import DEFAULT_THRESHOLD
from lossattn_jax.attention.poolings.entry import INSTANCES, Patches
from lossattn_jax.errors import UnknownName, UserError
from lossattn_jax.models.backbones import BAG_BACKBONES
from lossattn_jax.models.bag_layers import dense
from lossattn_jax.models.layers import ExampleDropout
from lossattn_jax.models.lenet import HIDDEN
from lossattn_jax.models.network import Network
from lossattn_jax.models.parts import FirstProduct


class BagNetwork(Network):
    """Layers over instances, a pooling, and one linear classifier.

    What each method makes of the instances' features and of the classifier stands with its function in
    `attention.poolings`.

    Dropout, in training only, follows every layer with attention, and comes before each pooling with the
    others. On images only the dense layer of LeNet has it, the first of two. It draws from the stream
    "dropout", or takes random bytes that the caller has drawn for many steps at once, which on CPUs is far
    quicker.

    The log-probabilities of classifiers that are trained each by itself, or losses of the method's own, are
    put into the collection `poolings.SUPERVISION`, where a call makes that mutable.

    Attributes:
      num_classes: K.
      method: one of `poolings.BAG_POOLINGS`, or a pooling of one's own, as `package.module:attribute`.
      backbone: "dense" for vectors, "lenet" or "lenet_tanh" for images, or one of one's own.
      hidden: widths of the dense layers, also of LeNet's one or two; None: as published.
      dropout: share of features that is dropped in training.
      axis_name: pmap axis that training batches are split over, or None; see `ExampleDropout`.
      dtype: compute dtype of the features; classifiers and attention are float32.
      options: of the method's own, as pairs of name and number; the others are as published. See
        `poolings.Pooling.options`.
      instance_axis: pmap axis that the instances of each bag are split over; None: each device has whole
        bags. Parameters are the same, and `Outputs.logits` those of the whole bag.
    """

    num_classes: int = 2
    method: str = poolings.DEFAULT
    backbone: str = "dense"
    hidden: tuple[int, ...] | None = None
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Dtype = jnp.float32
    options: tuple[tuple[str, float], ...] = ()
    instance_axis: str | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Returns the widths of the layers over instances."""
        default_widths = BAG_BACKBONES.find(self.backbone).widths
        return self.hidden or default_widths or self.find_pooling().widths

    @nn.nowrap
    def find_pooling(self) -> poolings.Pooling:
        """Finds the pooling of the method.

        Raises:
          UnknownName: there is no such method, or it does not work on instances.
          UserError: instances are split over devices, and it is not for that.
        """
        pooling = poolings.BAG_POOLINGS.find(self.method)
        if INSTANCES not in pooling.takes:
            raise UnknownName(
                f"method is {self.method!r}, but must be a pooling that takes {INSTANCES}: this one takes "
                f"{', '.join(pooling.forms())}"
            )
        if self.instance_axis is not None and not pooling.splits_patches:
            raise UserError(
                f"method is {self.method!r}, which does not pool instances that are split over devices: let "
                "each device have whole bags, by a larger --instances_per_device"
            )
        return pooling

    @nn.compact
    def __call__(
        self,
        instances: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        noise: jax.Array | None = None,
    ) -> Outputs:
        """Predicts for a batch of bags.

        Args:
          instances: `[B, N, D]` float vectors, or `[B, N, H, W, C]` images.
          mask: `[B, N]`, True or 1 for a real instance; the others may hold anything. None: all are
            real.
          train: True applies dropout.
          noise: `[B, N, sum(widths)]` uint8 random bytes to drop by, which rounds the rate to 1/256. None:
            the stream.

        Returns:
          `Outputs` in float32, an instance being a patch. The `attention` of the networks without one is
          each instance's share of the maxima (`pooling.max_attention`), and with mi_net of the highest score.

        Raises:
          UnknownName: there is no such method or backbone.
        """
        self.find_pooling()
        return self._pool(self._layers(instances, mask, train, noise), mask)

    @nn.nowrap
    def _layers(
        self,
        instances: jax.Array,
        mask: jax.Array | None,
        train: bool,
        noise: jax.Array | None,
    ) -> list[jax.Array]:
        """The layers that are pooled, each `[B, N, width]` float32."""
        if mask is not None:
            real = mask.astype(bool).reshape(*mask.shape, *(1 for _ in instances.shape[2:]))
            instances = jnp.where(real, instances, 0)
        return BAG_BACKBONES.find(self.backbone).layers(self, instances, train, noise)

    @nn.nowrap
    def _pool(self, layers: list[jax.Array], mask: jax.Array | None) -> Outputs:
        """Predictions of the layers."""
        return self.predict(
            INSTANCES,
            Patches(
                layers=layers,
                mask=mask,
                num_classes=self.num_classes,
                grid=layers[-1].shape[1],
                threshold=DEFAULT_THRESHOLD,
                hidden=BAG_BACKBONES.find(self.backbone).attention_hidden,
                dense=dense,
                network=self,
                options=dict(self.options),
                axis_name=self.instance_axis,
            ),
        )

    def drop_units(
        self, x: jax.Array, name: str, train: bool, noise: jax.Array | None
    ) -> jax.Array:
        """Drops units of `x` `[B, N, D]` in training."""
        if noise is None:
            return ExampleDropout(self.dropout, self.axis_name, name=name)(x, train)
        if not train or self.dropout == 0:
            return x
        threshold = min(round(self.dropout * 256), 255)
        return jnp.where(noise >= threshold, x / (1 - threshold / 256), 0.0).astype(x.dtype)


class BagLeNet(BagNetwork):
    """LeNet with loss attention, for bags of digits (AAAI 2020).

    Of several classes.
    """

    num_classes: int = 4
    backbone: str = "lenet"
    hidden: tuple[int, ...] = (HIDDEN,)


class BagLayers(BagNetwork):
    """What a `BagNetwork` computes of each instance by itself, with the same parameters.

    With `BagPooling` it predicts for a bag of any length, piece by piece.
    """

    @nn.compact
    def __call__(self, instances: jax.Array) -> list[jax.Array]:  # type: ignore[override]
        """The layers that are pooled, each `[B, N, width]` float32, of `[B, N, features...]`."""
        return self._layers(instances, None, False, None)


class TrainedLayers(BagNetwork):
    """What a `BagNetwork` in training computes of each instance, behind the product of its first layer."""

    @nn.compact
    def __call__(self, product: FirstProduct, noise: jax.Array) -> list[jax.Array]:  # type: ignore[override]
        """The layers that are pooled, each `[B, N, width]` float32; see `BagNetwork` for the noise."""
        return BAG_BACKBONES.find(self.backbone).layers(self, product, True, noise)


class BagPooling(BagNetwork):
    """What a `BagNetwork` computes of the layers of all instances together, with the same parameters."""

    @nn.compact
    def __call__(self, layers: list[jax.Array], mask: jax.Array) -> Outputs:  # type: ignore[override]
        """Predicts.

        Args:
          layers: of `BagLayers`; behind the last instance they may hold anything finite.
          mask: `[B, N]` bool, True for a real instance.
        """
        return self._pool(layers, mask)


Part = TypeVar("Part", BagLayers, TrainedLayers, BagPooling)


def part_of(network: BagNetwork, part: type[Part]) -> Part:
    """A part of a network, which takes its parameters."""
    names = [field.name for field in dataclasses.fields(BagNetwork) if field.init]
    own = {name: getattr(network, name) for name in names if name not in ("parent", "name")}
    return part(**own)
