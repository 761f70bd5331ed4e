"""A network's program from pixels to probabilities, for several platforms.

It holds none of the kernels for CPUs: where a batch has any size, convolutions are JAX's own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from lossattn_jax import data
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import runs
from lossattn_jax.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = ("probabilities", "logits", "attention", "patch_logits")


def make(run: runs.Run) -> export.Exported:
    """Makes the program of a run's network.

    It takes images uint8 `[B, H, W, C]` of the network's size, B being any, and gives float32
    "probabilities" `[B, K]`, "logits" `[B, K]`, "attention" `[B, P]` and "patch_logits" `[B, P, K]`. The
    variables are in it.

    Args:
      run: a checkpoint.

    Raises:
      UserError: a part of the network does not allow batches of any size.
    """
    spec, kind = run.spec, run.loss

    def predict(images: jax.Array) -> dict[str, jax.Array]:
        normal = data.normalise(images, spec.mean, spec.std, run.model.dtype)
        outputs: Any = run.model.apply(run.variables, normal, train=False)
        probabilities = losses.probabilities(kind, outputs.logits)
        arrays = (probabilities, outputs.logits, outputs.attention, outputs.patch_logits)
        return {
            name: array.astype(jnp.float32) for name, array in zip(OUTPUTS, arrays, strict=True)
        }

    (batch,) = export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, *spec.image_shape), jnp.uint8)
    try:
        return export.export(jax.jit(predict), platforms=PLATFORMS)(images)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.InconclusiveDimensionOperation,
        TypeError,  # of a batch's len(), which has to be a number
    ) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            "the network cannot be exported, since a part of it does not allow batches of any size "
            f"(x.shape[0] does, len(x) does not): {reason}"
        ) from None
