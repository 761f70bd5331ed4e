"""The training loss of networks for bags, by method."""

import jax
import jax.numpy as jnp

from lossattn_jax.attention import collectives, losses
from lossattn_jax.attention.outputs import Outputs


def bag_loss(
    outputs: Outputs,
    labels: jax.Array,
    mask: jax.Array,
    patch_weight: jax.Array | float | None,
    patch_reduction: str,
    side_logits: jax.Array | None = None,
    *,
    axis_name: str | None = None,
) -> jax.Array:
    """Computes the loss of each bag.

    `CE(prediction, y) + lambda * sum_n a_n CE(z_n, y)` (AAAI 2020), or the sum of side losses.

    Args:
      outputs: of the network in training.
      labels: `[B]` int, in `[0, K)`.
      mask: `[B, N]` bool, True for a real instance.
      patch_weight: lambda; None for the methods without a loss of instances.
      patch_reduction: "sum" over a bag's instances, as in the formula, or their "mean", as the paper's
        public code has it.
      side_logits: `[B, S, K]` log-probabilities of classifiers that are trained each by itself, whose losses
        then are all; None where there are none.
      axis_name: pmap axis that instances are split over; None: all are here.

    Returns:
      `[B]` float32.
    """
    if side_logits is not None:
        return losses.image_loss(losses.DEEP_SUPERVISION, side_logits, labels)
    if patch_weight is None:
        return losses.cross_entropy(outputs.logits, labels)
    patch_weight = losses.reduced_weight(
        patch_reduction,
        patch_weight,
        lambda: jnp.maximum(collectives.total(jnp.sum(mask, axis=-1), axis_name), 1).astype(
            jnp.float32
        ),
    )
    terms = losses.loss_attention_loss(
        outputs.logits, outputs.patch_logits, outputs.attention, labels, patch_weight
    )
    if axis_name is None:
        return terms.total
    return terms.image + patch_weight * collectives.total(terms.patch, axis_name)
