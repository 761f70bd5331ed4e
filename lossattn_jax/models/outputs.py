"""What every network of this package returns."""

import flax.struct
import jax


@flax.struct.dataclass
class Outputs:
    """Predictions of a network for a batch, whatever its backbone, head or pooling. All float32.

    Attributes:
      logits: `[B, K]` image predictions.
      patch_logits: `[B, P, K]` patch predictions z_p, patches in row-major order of their grid.
      attention: `[B, P]` patch weights a_p, each row summing to 1.
    """

    logits: jax.Array
    patch_logits: jax.Array
    attention: jax.Array
