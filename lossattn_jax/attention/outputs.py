"""What every network of this package returns."""

from typing import NamedTuple

import jax
from jax import export


class Outputs(NamedTuple):
    """Predictions of a network for a batch, whatever its backbone, head or pooling. All float32.

    A tuple, `logits, patch_logits, attention = outputs`, which `jax.export` can write into a file.

    Attributes:
      logits: `[B, K]` image predictions.
      patch_logits: `[B, P, K]` patch predictions z_p, patches in row-major order of their grid.
      attention: `[B, P]` patch weights a_p, each row summing to 1.
    """

    logits: jax.Array
    patch_logits: jax.Array
    attention: jax.Array

    def replace(self, **changes: jax.Array) -> "Outputs":
        """The same with some other arrays, as of Flax's own dataclasses."""
        return self._replace(**changes)


# Under this name files of exported networks hold it, so it has to stay.
export.register_namedtuple_serialization(Outputs, serialized_name="lossattn_jax.models.Outputs")
