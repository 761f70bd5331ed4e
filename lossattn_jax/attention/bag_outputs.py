"""What every network for bags returns."""

from typing import Any, NamedTuple

import jax
from jax import export


class BagOutputs(NamedTuple):
    """Predictions for a batch of bags, whatever the method. All float32, an instance being a patch.

    A tuple, `logits, patch_logits, attention, side_logits = outputs`, which `jax.export` can write into a
    file.

    Attributes:
      logits: `[B, K]` bag predictions.
      patch_logits: `[B, N, K]` instance predictions, meaningless where there is no instance.
      attention: `[B, N]` instance weights, each row summing to 1; 0 where there is no instance.
      side_logits: `[B, S, K]` log-probabilities of the classifiers that are trained each by itself, or
        None where there are none.
    """

    logits: jax.Array
    patch_logits: jax.Array
    attention: jax.Array
    side_logits: jax.Array | None = None

    def replace(self, **changes: Any) -> "BagOutputs":
        """The same with some other arrays, as of Flax's own dataclasses."""
        return self._replace(**changes)


# Under this name files of exported networks hold it, so it has to stay.
export.register_namedtuple_serialization(BagOutputs, serialized_name="lossattn_jax.mil.BagOutputs")
