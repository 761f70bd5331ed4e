"""Loss and gradient of one network for one step's bags."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lossattn_jax.attention import losses, poolings
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags.device_bags import standardised
from lossattn_jax.train.bags.objective import bag_loss
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.bags.states import Models, where
from lossattn_jax.train.schedules import loss_weight_schedule


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Loss and gradient of a training, as a traced function.

    Attributes:
      network: of all models.
      settings: of all models, but for what `Models` holds.
      consistency: whether attention is kept near its average over the epochs.
    """

    network: BagNetwork
    settings: Settings
    consistency: bool

    def __call__(self, labels, epoch, x, mask, looks, model, params, seen, noise, target) -> Any:
        """Of one model: ((loss, (attention `[b, length]`, loss of each bag `[b]`)), gradient).

        Args:
          labels: `[b]` int32.
          epoch: int32 scalar.
          x: `[b, length, features...]` as they are in the data set.
          mask: `[b, length]` bool.
          looks: whether a bag that the model may not see must not make it infinite either.
          model: `Models`, without the leading axis.
          params: its parameters.
          seen: `[b]` bool, the bags that it may see.
          noise: `[b, length, units]` uint8 of the dropout.
          target: `[b, length]` float32, a part of `State.ensemble`; without consistency nothing.
        """
        settings = self.settings
        patch_weight = loss_weight_schedule(epoch, model.patch_weight, settings.patch_ramp_epochs)

        instances = standardised(x, model.mean, model.inverse_scale)
        if looks:
            instances = where(seen, instances, jnp.zeros_like(instances))

        def loss(params):
            out, sown = self.network.apply(
                {"params": params},
                instances,
                mask,
                train=True,
                noise=noise,
                mutable=[poolings.SUPERVISION],
            )
            per_bag = bag_loss(
                out,
                labels,
                mask,
                patch_weight if self.network.find_pooling().patch_loss else None,
                settings.patch_reduction,
                sown.get(poolings.SUPERVISION, {}).get("logits"),
            )
            if model.class_weights is not None:
                per_bag *= model.class_weights[labels]
            if self.consistency:
                weight = loss_weight_schedule(
                    epoch, model.consistency_weight, settings.consistency_ramp_epochs
                )
                size = jnp.maximum(jnp.sum(mask, axis=-1), 1)
                corrected = self._corrected(target, epoch)
                distance = losses.consistency_loss(out.attention, jnp.where(mask, corrected, 0.0))
                per_bag += jnp.where(epoch > 0, weight, 0) * distance * mask.shape[1] / size
            count = jnp.maximum(jnp.sum(seen), 1)
            return jnp.sum(jnp.where(seen, per_bag, 0.0)) / count, (out.attention, per_bag)

        return jax.value_and_grad(loss, has_aux=True)(params)

    def _corrected(self, average: jax.Array, epoch: jax.Array) -> jax.Array:
        """The average of attention over the epochs before, corrected for its start at 0."""
        return average / jnp.maximum(1 - self.settings.consistency_decay**epoch, 1e-6)

    def known(self, average: jax.Array, epoch: jax.Array, mask: jax.Array) -> jax.Array:
        """What is known of bags' attention before their visit: its average, or even attention at first.

        Args:
          average: `[G, b, length]` of `State.ensemble`.
          epoch: int32 scalar.
          mask: `[b, length]` bool.
        """
        even = mask / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
        return jnp.where(epoch > 0, self._corrected(average, epoch), even[None])


def decayed(model: Models, params: Any, gradient: Any) -> Any:
    """The gradient that Adam takes the squares of, with its L2 term."""
    decay = model.weight_decay
    return jax.tree.map(lambda g, p: g + decay * p, gradient, params)
