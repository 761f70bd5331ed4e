"""Temporal ensembling of attention: its average over epochs.

AAAI 2020, image setting; after Laine & Aila 2017.

For every training image the state holds the attention of its last visit and an average over the epochs
before. `Z <- decay Z + (1 - decay) a` once an epoch; the target of the consistency loss is
`Z / (1 - decay^epochs)`, which corrects for the start at 0. An epoch that leaves an image out, since its last
partial batch is dropped, does not count for that image.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lossattn_jax import devices


@flax.struct.dataclass
class Ensemble:
    """Average attention of all N training images over P patches.

    It is part of the training state.

    Attributes:
      average: `[N, P]` float32, Z, the average over the epochs before this one.
      current: `[N, P]` float32, the attention at each image's last visit.
      visited: `[N]` bool, whether that was in this epoch.
      epochs: `[N]` int32, how many epochs are in the average.
    """

    average: jax.Array
    current: jax.Array
    visited: jax.Array
    epochs: jax.Array


def create(examples: int, patches: int) -> Ensemble:
    """Makes the ensemble of a run before its first step."""
    zeros = jnp.zeros((examples, patches), jnp.float32)
    return Ensemble(zeros, zeros, jnp.zeros(examples, bool), jnp.zeros(examples, jnp.int32))


def begin_step(
    ensemble: Ensemble,
    step: jax.Array,
    steps_per_epoch: int,
    decay: float,
    num_skipped: jax.Array | int = 0,
) -> Ensemble:
    """Takes the last epoch's attention into the average.

    It does so at an epoch's first step.

    Args:
      ensemble: before the step.
      step: updates done.
      steps_per_epoch: updates in an epoch.
      decay: weight of the average before; 0.6 in the paper.
      num_skipped: of them, the last ones that were skipped in a row and left the ensemble as it was: the
        first step that is not begins the epoch.
    """
    begins = step % steps_per_epoch <= num_skipped
    finished_epoch = begins & ensemble.visited
    new_average = decay * ensemble.average + (1 - decay) * ensemble.current
    return dataclasses.replace(
        ensemble,
        average=jnp.where(finished_epoch[:, None], new_average, ensemble.average),
        visited=~begins & ensemble.visited,
        epochs=ensemble.epochs + finished_epoch.astype(jnp.int32),
    )


def targets(ensemble: Ensemble, index: jax.Array, decay: float) -> tuple[jax.Array, jax.Array]:
    """Returns target attention of the images `index` `[B]`, and which have one.

    Returns:
      `[B, P]` float32, and `[B]` float32: 0 for an image that no finished epoch has visited, else 1.
    """
    epochs = ensemble.epochs[index].astype(jnp.float32)
    correction = jnp.where(epochs > 0, 1 - decay**epochs, 1.0)
    return ensemble.average[index] / correction[:, None], (epochs > 0).astype(jnp.float32)


def record(
    ensemble: Ensemble, index: jax.Array, attention: jax.Array, use_new: jax.Array | bool = True
) -> Ensemble:
    """Stores the attention of all devices' images.

    Inside `devices.pmap` only.

    Args:
      ensemble: the same on every device, and so is the result.
      index: `[b]` int, places of this device's images in the training set.
      attention: `[b, P]` of these images.
      use_new: bool scalar; False leaves the ensemble as it is.
    """
    everywhere: Any = jax.lax.all_gather((index, attention), devices.AXIS, tiled=True)
    index, attention = everywhere
    # Chosen among the rows and not the arrays, which would make a copy of all of them.
    return dataclasses.replace(
        ensemble,
        current=ensemble.current.at[index].set(
            jnp.where(use_new, attention, ensemble.current[index])
        ),
        visited=ensemble.visited.at[index].set(ensemble.visited[index] | use_new),
    )
