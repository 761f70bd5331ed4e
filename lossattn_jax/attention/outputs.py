"""The outputs of every network of this package."""

from typing import Any, NamedTuple

import jax
from jax import export


class Outputs(NamedTuple):
    """Predictions of a network for a batch, all float32.

    The same for images and bags, whatever the network's parts.

    Of a bag an instance is a patch, and P is N, the padded length. A tuple, `logits, patch_logits,
    attention = outputs`, which `jax.export` can write into a file.

    Attributes:
      logits: `[B, K]` predictions of the images or bags.
      patch_logits: `[B, P, K]` patch predictions z_p, patches in row-major order of their grid; of a patch
        that a mask takes out they mean nothing.
      attention: `[B, P]` patch weights a_p, each row summing to 1; 0 of a patch that a mask takes out.
    """

    logits: jax.Array
    patch_logits: jax.Array
    attention: jax.Array

    def replace(self, **changes: jax.Array) -> "Outputs":
        """Replaces some arrays, as Flax's own dataclasses do."""
        return self._replace(**changes)


class BagOutputs(NamedTuple):
    """Outputs of networks for bags that were exported earlier.

    They were written before networks for bags returned `Outputs`.

    Attributes:
      logits, patch_logits, attention: as of `Outputs`.
      side_logits: `[B, S, K]` log-probabilities of the classifiers that are trained each by itself, or
        None where there are none.
    """

    logits: jax.Array
    patch_logits: jax.Array
    attention: jax.Array
    side_logits: jax.Array | None = None

    def replace(self, **changes: Any) -> "BagOutputs":
        """Replaces some arrays, as Flax's own dataclasses do."""
        return self._replace(**changes)


# Under these names files of exported networks hold them, so they have to stay.
export.register_namedtuple_serialization(Outputs, serialized_name="lossattn_jax.models.Outputs")
export.register_namedtuple_serialization(BagOutputs, serialized_name="lossattn_jax.mil.BagOutputs")
