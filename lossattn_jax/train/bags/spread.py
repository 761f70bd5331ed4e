"""What devices share of networks for bags: the models, the bags, or the instances of each bag.

Where there are as many models as devices, or more, each device has models of its own and all bags: nothing is
exchanged (`MODELS`). Fewer models are on all devices, which share the bags of a step and sum their
gradients (`BAGS`). A bag that is too large for a device lies on all of them, each with a part of its
instances (`INSTANCES`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import devices
from lossattn_jax.attention import collectives
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags.states import gather_models, pad_groups

# Of a device's memory what the instances of a step may take, with layers and gradients.
_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Spread:
    """What is split over devices; models are where neither bags nor instances are.

    Attributes:
      bag_axis: pmap axis that the bags of a step are split over; None: each device has all of them.
      instance_axis: pmap axis that the instances of each bag are split over, likewise.
    """

    bag_axis: str | None = None
    instance_axis: str | None = None

    @property
    def axis(self) -> str | None:
        """The axis that gradients are summed over; None: devices have models of their own."""
        return self.bag_axis or self.instance_axis

    def group(self, at_once: int, models: int) -> int:
        """How many models a device computes together.

        Args:
          at_once: of `Settings.models_at_once`.
          models: M of the training.
        """
        group = at_once or (1 if jax.default_backend() == "cpu" else models)
        parts = jax.local_device_count() if self.axis is None else 1
        return min(group, -(-models // parts))

    def place_models(self, tree: Any, group: int) -> Any:
        """Puts arrays `[M, ...]` on the devices, repeated until there are whole groups.

        Of what `devices.gather` makes of results the first M are then the models'.
        """
        if self.axis is None:
            return devices.shard(pad_groups(tree, group))
        return devices.replicate(pad_groups(tree, group, parts=1))

    def place_rows(self, of_bags: np.ndarray, group: int) -> Any:
        """Puts `[M, bags]` bool on the devices; those that share bags have True for bags of their own."""
        if self.bag_axis is None:
            return self.place_models(of_bags, group)
        padded = pad_groups(of_bags, group, parts=1)
        count = jax.local_device_count()
        own = np.arange(padded.shape[1]) % count == np.arange(count)[:, None, None]
        return devices.shard((padded & own).reshape(-1, padded.shape[1]))

    def gather_rows(self, outputs: Any, count: int) -> Any:
        """Fetches `[M, ...]` of the bags of `place_rows`; zeros stand for those that a device has not."""
        if self.bag_axis is None:
            return gather_models(outputs, count)
        return jax.tree.map(lambda leaf: np.asarray(leaf).sum(axis=0)[:count], outputs)

    @property
    def num_parts(self) -> int:
        """Pieces of bags that devices compute at once."""
        return 1 if self.bag_axis is None else jax.local_device_count()

    def place_parts(
        self, masks: list[np.ndarray], inputs: list[Any], group: int
    ) -> tuple[Any, Any]:
        """Puts pieces of bags on the devices, one on each where these share bags.

        Args:
          masks: of each piece `[M]` bool, which models predict for it.
          inputs: of each piece a tree of arrays; all are alike but for their values.
          group: models that a device computes together.

        Returns:
          Both, for a program. Devices for which there is no piece get the last one and predict nothing.
        """
        if self.bag_axis is None:
            return self.place_models(masks[0], group), devices.replicate(inputs[0])
        missing = self.num_parts - len(masks)
        masks = [*masks, *[np.zeros_like(masks[0])] * missing]
        padded = [pad_groups(mask, group, parts=1) for mask in masks]
        inputs = [*inputs, *[inputs[-1]] * missing]
        return (
            devices.shard(np.concatenate(padded)),
            devices.shard(jax.tree.map(lambda *leaves: np.concatenate(leaves), *inputs)),
        )

    def gather_parts(self, outputs: Any, count: int, parts: int) -> list[Any]:
        """Fetches `[M, ...]` of each piece of `place_parts`.

        Args:
          outputs: of the program, a sequence.
          count: M.
          parts: how many pieces there were.
        """
        if self.bag_axis is None:
            return [list(gather_models(list(outputs), count))]
        host = [np.asarray(leaf) for leaf in outputs]
        return [[leaf[part, :count] for leaf in host] for part in range(parts)]

    def place_visible(self, visible: np.ndarray, group: int) -> Any:
        """Puts `[M, b]` bool, the bags of a step that each model sees, on the devices."""
        if self.bag_axis is None:
            return self.place_models(visible, group)
        return devices.shard_axis(pad_groups(visible, group, parts=1), 1)

    def place_bags(self, x: np.ndarray, mask: np.ndarray, labels: np.ndarray, rows: Any) -> Any:
        """Puts the bags of a step on the devices, as `bag_stream.StepBags` has them.

        b is a multiple of the devices where these share the bags.
        """
        if self.bag_axis is not None:
            return devices.shard_axis((x, mask, labels, rows), 0)
        if self.instance_axis is not None:
            return (*devices.shard_axis((x, mask), 1), *devices.replicate((labels, rows)))
        return devices.replicate((x, mask, labels, rows))

    def pad_size(self, batch_size: int) -> int:
        """Places of a step of so many bags: a multiple of the devices that share them."""
        return batch_size if self.bag_axis is None else devices.round_up(batch_size)

    def pad_order(self, order: np.ndarray) -> np.ndarray:
        """Adds places without a bag (-1) to steps `[..., b]`, see `pad_size`."""
        more = self.pad_size(order.shape[-1]) - order.shape[-1]
        return np.pad(order, [(0, 0)] * (order.ndim - 1) + [(0, more)], constant_values=-1)

    def own_bags(self, *of_bags: jax.Array) -> tuple[jax.Array, ...]:
        """Takes this device's part of arrays `[..., b]` that all devices have as a whole."""
        if self.bag_axis is None:
            return of_bags

        def part(array: jax.Array) -> jax.Array:
            size = array.shape[-1] // jax.lax.axis_size(self.bag_axis)
            start = jax.lax.axis_index(self.bag_axis) * size
            return jax.lax.dynamic_slice_in_dim(array, start, size, axis=array.ndim - 1)

        return tuple(map(part, of_bags))

    def owns_bag(self, row: jax.Array) -> jax.Array:
        """Whether this device predicts for the bag at a position, a bool scalar."""
        if self.bag_axis is None:
            return jnp.ones((), bool)
        return row % jax.lax.axis_size(self.bag_axis) == jax.lax.axis_index(self.bag_axis)

    def collect(self, of_bags: jax.Array) -> jax.Array:
        """Puts together what devices predict; zeros stand for the bags of others."""
        return collectives.total(of_bags, self.bag_axis)

    def any_visible(self, visible: jax.Array) -> jax.Array:
        """Whether some bag of a step is seen, on any device; the answer is the same on all."""
        return collectives.total(jnp.sum(visible), self.bag_axis) > 0

    def count_visible(self, visible: jax.Array) -> jax.Array:
        """How many bags of a step are seen on all devices, int32."""
        return collectives.total(jnp.sum(visible), self.bag_axis)

    def sum_shares(self, tree: Any) -> Any:
        """Sums loss and gradients of devices' shares of the loss."""
        return jax.tree.map(lambda leaf: collectives.total(leaf, self.axis), tree)

    def share(self) -> float:
        """The factor that makes of what a device computes its share of the loss.

        Where devices have parts of the same bags, all compute the same loss.
        """
        return 1.0 if self.instance_axis is None else 1 / jax.lax.axis_size(self.instance_axis)

    def network(self, network: BagNetwork) -> BagNetwork:
        """The network as a device is to compute it."""
        return network.clone(instance_axis=self.instance_axis)

    def own_instances(self, values: jax.Array) -> jax.Array:
        """Takes this device's instances of `values` `[b, length, ...]` of all."""
        if self.instance_axis is None:
            return values
        size = values.shape[1] // jax.lax.axis_size(self.instance_axis)
        start = jax.lax.axis_index(self.instance_axis) * size
        return jax.lax.dynamic_slice_in_dim(values, start, size, axis=1)

    def whole_length(self, length: int) -> int:
        """Instances of a padded bag, of which a device has `length`."""
        return length if self.instance_axis is None else length * jax.local_device_count()


MODELS = Spread()
BAGS = Spread(bag_axis=devices.AXIS)
INSTANCES = Spread(instance_axis=devices.AXIS)


def of_training(models: int, batch_size: int, *, splits_bags: bool = True) -> Spread:
    """What devices share of a training whose bags each fit on one.

    Args:
      models: that are trained.
      batch_size: bags of a step.
      splits_bags: whether devices may share the bags of a step.
    """
    fewer = models < jax.local_device_count()
    return BAGS if fewer and batch_size > 1 and splits_bags else MODELS


def of_prediction(models: int) -> Spread:
    """What devices share of predictions for bags."""
    return BAGS if models < jax.local_device_count() else MODELS


def is_split(network: BagNetwork, longest: int, instance_bytes: int, most: int | None) -> bool:
    """Whether bags lie on all devices, each with a part of the instances.

    Args:
      network: of the models.
      longest: instances of the longest bag.
      instance_bytes: that a device's memory needs for an instance.
      most: instances of a bag that a device holds; None: as many as fit into a quarter of its memory, or
        all where that is not known, as on CPUs, whose devices have one memory.

    Raises:
      UserError: they would have to, but the network's pooling is not for that.
    """
    if jax.local_device_count() == 1:
        return False
    if most is None:
        memory = devices.memory_bytes()
        splits = network.find_pooling().splits_patches
        return splits and memory is not None and longest * instance_bytes > _SHARE * memory
    if longest <= most:
        return False
    INSTANCES.network(network).find_pooling()  # which refuses what cannot be split
    return True
