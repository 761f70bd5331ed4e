"""Constants and state of models trained together; see `lossattn_jax.train.bags.steps`."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import devices


@flax.struct.dataclass
class Models:
    """Constants of models; every leaf has a leading axis of models.

    Attributes:
      seed: `[]` uint32.
      learning_rate, weight_decay, patch_weight, consistency_weight: `[]` float32.
      mean, inverse_scale: `[features...]` float32, or ones in their place, for standardisation.
      train, held_out, selection: `[bags]` bool; see `training.Plan`.
      keep_epoch: `[]` int32, from 0; -1: none.
      class_weights: `[K]` float32 of the bags' losses, by label; None: all are 1.
    """

    seed: Any
    learning_rate: Any
    weight_decay: Any
    patch_weight: Any
    consistency_weight: Any
    mean: Any
    inverse_scale: Any
    train: Any
    held_out: Any
    selection: Any
    keep_epoch: Any
    class_weights: Any = None


@flax.struct.dataclass
class State:
    """State of models; every leaf has a leading axis of models.

    None: not in use.

    Attributes:
      params: of the network.
      opt_state: the optimiser's state.
      average: mean of the parameters over the last epochs.
      ensemble: `[N + longest]` float32, the attention's average over the epochs before this one.
      attention: `[N + longest]` float32, at each bag's last visit.
      best: parameters of the best epoch so far.
      best_accuracy, best_loss: `[]` float32 of the scored bags there.
      best_epoch: `[]` int32.
      at_keep_epoch: parameters of the epoch that was to be kept.
    """

    params: Any
    opt_state: Any
    average: Any = None
    ensemble: Any = None
    attention: Any = None
    best: Any = None
    best_accuracy: Any = None
    best_loss: Any = None
    best_epoch: Any = None
    at_keep_epoch: Any = None


def where(condition: jax.Array, new: Any, old: Any) -> Any:
    """Selects for each model `[G]` one of two trees."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *(1 for _ in new.shape[1:])), new, old)

    return jax.tree.map(choose, new, old)


def pad_groups(tree: Any, group: int, parts: int | None = None) -> Any:
    """Repeats the first model until devices have equal whole groups.

    Args:
      tree: on the host; every leaf with a leading axis of models.
      group: models that a device computes together.
      parts: devices that share the models; None: all.
    """
    unit = group * (parts or jax.local_device_count())

    def pad(leaf: Any) -> Any:
        more = np.zeros(-len(leaf) % unit, np.int64)
        return np.concatenate([leaf, leaf[more]]) if len(more) else leaf

    return jax.tree.map(pad, tree)


def gather_models(tree: Any, count: int) -> Any:
    """Fetches the first models from the devices, without those that `pad_groups` has added.

    Args:
      tree: `[devices, models of a device, ...]`.
      count: how many models there are.
    """
    return jax.tree.map(lambda leaf: leaf[:count], devices.gather(tree))
