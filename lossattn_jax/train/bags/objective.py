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
    label_losses: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Computes the loss of each bag.

    `CE(prediction, y) + lambda * sum_n a_n CE(z_n, y)` (AAAI 2020), or the sum of side losses, or what the
    method computes itself.

    Args:
      outputs: of the network in training.
      labels: `[B]` int, in `[0, K)`; or `[B, K]`, 1 for each label that a bag has: CE is the sum over labels
        of the binary cross-entropy then, and that of an instance is of the bag's label that is most probable
        for it, as of images with several labels (TIP 2021; `losses.patch_sigmoid_loss`).
      mask: `[B, N]` bool, True for a real instance.
      patch_weight: lambda; None for the methods without a loss of instances.
      patch_reduction: "sum" over a bag's instances, as in the formula, or their "mean", as the paper's
        public code has it.
      side_logits: `[B, S, K]` log-probabilities of classifiers that are trained each by itself, whose losses
        then are all; None where there are none.
      label_losses: `[B, K]`, the method's own loss for each label; None where it has none.
      axis_name: pmap axis that instances are split over; None: all are here.

    Returns:
      `[B]` float32.
    """
    if label_losses is not None:
        return losses.loss_of_label(label_losses, labels)
    if side_logits is not None:
        return losses.image_loss(losses.DEEP_SUPERVISION, side_logits, labels)
    kind = losses.SIGMOID if labels.ndim == 2 else losses.CROSS_ENTROPY
    if patch_weight is None:
        return losses.image_loss(kind, outputs.logits, labels)
    patch_weight = losses.reduced_weight(
        patch_reduction,
        patch_weight,
        lambda: jnp.maximum(collectives.total(jnp.sum(mask, axis=-1), axis_name), 1).astype(
            jnp.float32
        ),
    )
    terms = losses.loss_attention_loss(
        outputs.logits, outputs.patch_logits, outputs.attention, labels, patch_weight, kind=kind
    )
    if axis_name is None:
        return terms.total
    return terms.image + patch_weight * collectives.total(terms.patch, axis_name)
