"""Losses: image cross-entropy, attention-weighted patch cross-entropy, and their sum.

All return one value per example, `[B]` float32, so that the caller masks and averages. Everything goes
through log_softmax, finite for logits up to 1e37 in size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class LossTerms(NamedTuple):
    """Per-example loss terms, each `[B]` float32: `total = image + patch_weight * patch`."""

    total: jax.Array
    image: jax.Array
    patch: jax.Array


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy with integer labels.

    Args:
      logits: `[..., K]`, any float dtype.
      labels: `[...]` int, in `[0, K)`.
      label_smoothing: epsilon in `[0, 1)`: the target is `1 - epsilon` on the label plus `epsilon / K`
        on every class (Szegedy et al. 2016, section 7).

    Returns:
      `[...]` float32, in nats.
    """
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not label_smoothing:
        return loss
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def patch_cross_entropy(
    patch_logits: jax.Array,
    labels: jax.Array,
    attention: jax.Array,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Patch loss of both papers: `sum_p a_p CE(z_p, y)`, the image's label standing for each patch.

    The gradient flows through the attention too, as in the papers' code. A patch of weight 0 (masked,
    or under the threshold) takes no part, whatever its logits hold.

    Args:
      patch_logits: `[B, P, K]`, any float dtype.
      labels: `[B]` int, in `[0, K)`.
      attention: `[B, P]` float weights.
      label_smoothing: as in `cross_entropy`.

    Returns:
      `[B]` float32, in nats.
    """
    seen = attention > 0
    finite_logits = jnp.where(seen[:, :, None], patch_logits, 0.0)
    patch_labels = jnp.broadcast_to(labels[:, None], attention.shape)
    per_patch = cross_entropy(finite_logits, patch_labels, label_smoothing)
    return jnp.sum(attention * per_patch, axis=-1)


def loss_attention_loss(
    logits: jax.Array,
    patch_logits: jax.Array,
    attention: jax.Array,
    labels: jax.Array,
    patch_weight: jax.Array | float,
    label_smoothing: float = 0.0,
) -> LossTerms:
    """The training loss of the papers: `CE(prediction, y) + lambda * sum_p a_p CE(z_p, y)`.

    Args:
      logits: `[B, K]` image predictions, any float dtype.
      patch_logits: `[B, P, K]` patch predictions.
      attention: `[B, P]` float weights.
      labels: `[B]` int, in `[0, K)`.
      patch_weight: lambda, a scalar >= 0; see `lossattn_jax.train.schedules.patch_weight_schedule`.
      label_smoothing: as in `cross_entropy`, for both terms.

    Returns:
      The three terms per example.
    """
    image = cross_entropy(logits, labels, label_smoothing)
    patch = patch_cross_entropy(patch_logits, labels, attention, label_smoothing)
    return LossTerms(total=image + patch_weight * patch, image=image, patch=patch)
