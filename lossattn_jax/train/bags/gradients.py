"""Loss and gradient of one network for one step's bags."""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from lossattn_jax.attention import losses, poolings
from lossattn_jax.kernels import bag_pieces
from lossattn_jax.kernels.bag_pieces import BagRows
from lossattn_jax.models.backbones import BAG_BACKBONES
from lossattn_jax.models.bag_networks import BagNetwork, BagPooling, TrainedLayers, part_of
from lossattn_jax.models.parts import FirstProduct
from lossattn_jax.train.bags.device_bags import standardise
from lossattn_jax.train.bags.objective import bag_loss
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.bags.spread import MODELS, Spread
from lossattn_jax.train.bags.states import Models, where
from lossattn_jax.train.schedules import loss_weight_schedule


@flax.struct.dataclass
class StepBags:
    """The b bags of a step, for one model.

    Attributes:
      x: `[b, length, features...]` float32 as they are in the data set.
      mask: `[b, length]` bool, True for a real instance.
      labels: `[b]` int32, or `[b, K]`; see `objective.bag_loss`.
      visible: `[b]` bool, the bags that the model is trained on.
      noise: `[b, length, units]` uint8 of the dropout.
      target: `[b, length]` float32, a part of `State.ensemble`; without consistency `[0]`.
    """

    x: Any
    mask: Any
    labels: Any
    visible: Any
    noise: Any
    target: Any


class BagGradients(NamedTuple):
    """Loss, gradient and attention of a model on a step's bags.

    Attributes:
      loss: float32 scalar, mean over the visible bags, of all devices that share them.
      gradients: of it, as the parameters.
      attention: `[b, length]` float32.
      losses: `[b]` float32, of each bag.
    """

    loss: jax.Array
    gradients: Any
    attention: jax.Array
    losses: jax.Array


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Computes loss and gradient of a training, as a traced function.

    Attributes:
      network: of all models.
      settings: of all models, but for what `Models` holds.
      consistency: whether attention is kept near its average over the epochs.
      spread: what devices share; loss and gradients are of all bags, the rest is of the bags or instances
        that a device has.
    """

    network: BagNetwork
    settings: Settings
    consistency: bool
    spread: Spread = MODELS

    def __call__(
        self,
        model: Models,
        params: Any,
        bags: StepBags,
        epoch: jax.Array,
        *,
        guard_loss: bool,
        in_pieces: bool = False,
    ) -> BagGradients:
        """Computes loss and gradient of one model.

        Args:
          model: without the leading axis.
          params: its parameters.
          bags: of the step.
          epoch: int32 scalar, from 0.
          guard_loss: whether a bag that is not visible must not make the gradient infinite either.
          in_pieces: whether long bags go through the layers piece by piece, see `kernels.bag_pieces`; then
            `bags.x` may be of any float type.
        """
        settings, spread = self.settings, self.spread
        patch_weight = loss_weight_schedule(epoch, model.patch_weight, settings.patch_ramp_epochs)

        apply = self._apply_in_pieces if in_pieces else self._apply
        visible = bags.visible if guard_loss else None

        def loss(params: Any) -> Any:
            out, sown = apply(model, params, bags, visible)
            supervision = sown.get(poolings.SUPERVISION, {})
            per_bag = bag_loss(
                out,
                bags.labels,
                bags.mask,
                patch_weight if self.network.find_pooling().patch_loss else None,
                settings.patch_reduction,
                supervision.get("logits"),
                label_losses=supervision.get("losses"),
                axis_name=spread.instance_axis,
            )
            if model.class_weights is not None:
                per_bag *= model.class_weights[bags.labels]
            if self.consistency:
                per_bag += self._pull(model, bags, out.attention, epoch)
            count = jnp.maximum(spread.count_visible(bags.visible), 1).astype(jnp.float32)
            mean = jnp.sum(jnp.where(bags.visible, per_bag, 0.0)) / count
            return mean * spread.share() if spread.axis else mean, (out.attention, per_bag)

        (value, (attention, per_bag)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        value, gradients = spread.sum_shares((value, gradients))
        return BagGradients(value, gradients, attention, per_bag)

    @property
    def _network(self) -> BagNetwork:
        """As a device computes it."""
        return self.spread.network(self.network)

    def _apply(self, model: Models, params: Any, bags: StepBags, visible: jax.Array | None) -> Any:
        """The network's outputs, of bags that are not `visible` those of zeros, and what it sows."""
        instances = standardise(bags.x, model.mean, model.inverse_scale)
        if visible is not None:
            instances = where(visible, instances, jnp.zeros_like(instances))
        return self._network.apply(
            {"params": params},
            instances,
            bags.mask,
            train=True,
            noise=bags.noise,
            mutable=[poolings.SUPERVISION],
        )

    def _apply_in_pieces(
        self, model: Models, params: Any, bags: StepBags, visible: jax.Array | None
    ) -> Any:
        """The same as `_apply`."""
        layer = BAG_BACKBONES.find(self.network.backbone).first_layer
        assert layer is not None
        first = dict(params[layer])
        weights = first.pop("kernel")
        shape = weights.shape
        trained = part_of(self._network, TrainedLayers)

        def layers(others: Any, values: jax.Array, noise: jax.Array) -> list[jax.Array]:
            in_place = jnp.zeros(shape)  # of the weights, which are multiplied already
            own = {**others, layer: {**others[layer], "kernel": in_place}}
            product = FirstProduct(values, shape[0])
            of_instances: Any = trained.apply({"params": own}, product, noise)
            return of_instances

        longest = jnp.max(jnp.sum(bags.mask, axis=1, dtype=jnp.int32))
        real = bags.mask if visible is None else bags.mask & visible[:, None]
        rows = BagRows(bags.x, model.mean, model.inverse_scale, real, longest)
        others = {**params, layer: first}
        outputs = bag_pieces.apply_layers(layers, weights, others, rows, bags.noise)
        pooling = part_of(self._network, BagPooling)
        return pooling.apply({"params": params}, outputs, bags.mask, mutable=[poolings.SUPERVISION])

    def _pull(
        self, model: Models, bags: StepBags, attention: jax.Array, epoch: jax.Array
    ) -> jax.Array:
        """Computes the consistency loss `[b]` of attention.

        It is the distance from the average over the epochs before.
        """
        mask = bags.mask
        weight = loss_weight_schedule(
            epoch, model.consistency_weight, self.settings.consistency_ramp_epochs
        )
        size = jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(jnp.float32)
        average = self._correct_average(bags.target, epoch)
        distance = losses.consistency_loss(attention, jnp.where(mask, average, 0.0))
        return jnp.where(epoch > 0, weight, 0) * distance * mask.shape[1] / size

    def _correct_average(self, average: jax.Array, epoch: jax.Array) -> jax.Array:
        """Corrects the average of attention for its start at 0."""
        decay = self.settings.consistency_decay
        return average / jnp.maximum(1 - decay ** epoch.astype(jnp.float32), 1e-6)

    def attention_before(self, average: jax.Array, epoch: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns bags' average attention of the epochs before, at first even.

        Args:
          average: `[G, b, length]` of `State.ensemble`.
          epoch: int32 scalar.
          mask: `[b, length]` bool.
        """
        size = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(jnp.float32)
        even = mask.astype(jnp.float32) / size
        return jnp.where(epoch > 0, self._correct_average(average, epoch), even[None])


def with_decay(model: Models, params: Any, gradients: Any) -> Any:
    """Adds the L2 term to gradients, in float32."""
    decay = model.weight_decay
    return jax.tree.map(lambda g, p: g + decay * p, gradients, params)
