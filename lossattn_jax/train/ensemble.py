"""Temporal ensembling of attention (AAAI 2020, image setting; Laine & Aila 2017): its average over epochs.

For every training image the state holds the attention of its last visit and an average over the epochs
before. `Z <- decay Z + (1 - decay) a` once an epoch; the target of the consistency loss is
`Z / (1 - decay^epoch)`, which corrects for the start at 0.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lossattn_jax import devices


@flax.struct.dataclass
class Ensemble:
    """Attention of all N training images over P patches; part of the training state.

    Attributes:
      average: `[N, P]` float32, Z, the average over the epochs before this one.
      current: `[N, P]` float32, the attention at each image's last visit.
    """

    average: jax.Array
    current: jax.Array


def create(examples: int, patches: int) -> Ensemble:
    """The ensemble of a run that has seen nothing."""
    zeros = jnp.zeros((examples, patches), jnp.float32)
    return Ensemble(zeros, zeros)


def begin_step(ensemble: Ensemble, step: jax.Array, steps_per_epoch: int, decay: float) -> Ensemble:
    """Takes the attention of the epoch that has ended into the average, at an epoch's first step.

    Args:
      ensemble: before the step.
      step: updates done.
      steps_per_epoch: updates in an epoch.
      decay: weight of the average before; 0.6 in the paper.
    """
    begins = (step % steps_per_epoch == 0) & (step > 0)
    mixed = decay * ensemble.average + (1 - decay) * ensemble.current
    return dataclasses.replace(ensemble, average=jnp.where(begins, mixed, ensemble.average))


def targets(ensemble: Ensemble, index: jax.Array, epoch: jax.Array, decay: float) -> jax.Array:
    """`[B, P]` targets of the images `index` `[B]`; zeros during epoch 0, which has none."""
    correction = 1 - decay ** epoch.astype(jnp.float32)
    return ensemble.average[index] / jnp.where(epoch > 0, correction, 1.0)


def record(ensemble: Ensemble, index: jax.Array, attention: jax.Array) -> Ensemble:
    """Remembers the attention of all devices' images. Inside `devices.pmap` only.

    Args:
      ensemble: the same on every device, and so is the result.
      index: `[b]` int, places of this device's images in the training set.
      attention: `[b, P]` of these images.
    """
    everywhere: Any = jax.lax.all_gather((index, attention), devices.AXIS, tiled=True)
    index, attention = everywhere
    return dataclasses.replace(ensemble, current=ensemble.current.at[index].set(attention))
