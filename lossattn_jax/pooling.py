"""Attention scores over patches, and the pooling of patch features with them.

This module is the one home of attention scores. Everything is a pure function on arrays laid out
`[batch, patch, ...]` and takes an optional mask, so that any Flax model can use it:

    patch_logits = classifier(features)                                    # [B, P, K]
    attention = pooling.loss_attention(patch_logits, grid=1024)            # [B, P]
    logits = classifier(pooling.weighted_sum(features, attention))         # [B, K]

Scores are computed in float32 whatever the dtype of the features, because a sum over patches of
bfloat16 weights would not come out as 1. A masked patch has weight exactly 0, and a padded row gives
exactly what the unpadded one gives. A row with no patch at all has all weights 0, and so do its
gradients; every other row sums to 1.
"""

import jax
import jax.numpy as jnp

# Threshold of the TIP 2021 paper's classification tables; 1.0 localises better.
DEFAULT_THRESHOLD = 0.1


def uniform_attention(patch_logits: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Equal weights: mean pooling seen as attention.

    Args:
      patch_logits: `[B, P, K]`, any float dtype; only its shape matters.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.

    Returns:
      `[B, P]` float32, `1 / P` for each real patch of a row.
    """
    return _normalise(jnp.ones(patch_logits.shape[:-1], jnp.float32), mask)


def loss_attention(
    patch_logits: jax.Array,
    grid: int,
    threshold: float = DEFAULT_THRESHOLD,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Loss-based attention of the TIP 2021 paper: a patch weighs what its logits' norm weighs.

    With patch logits z_p: `a_p = ||z_p||_2 / sum_q ||z_q||_2`, then `relu(a_p - threshold / grid)`,
    renormalised. Where every weight of a row would fall to the threshold (possible only for
    `threshold * P >= grid`), the row keeps its weights from before the cut, so that it still sums to 1.
    A row whose logits are all zero gets equal weights.

    Args:
      patch_logits: `[B, P, K]` patch predictions z_p, any float dtype.
      grid: g, positive: positions of the backbone's map (1024 for a 32x32 map) with the convolutional
        head, number of patches with the capsule head.
      threshold: t >= 0; 0.1 in the paper's tables.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.

    Returns:
      `[B, P]` float32 weights, differentiable in `patch_logits` also where a norm is 0.
    """
    before = _normalise(_norm(patch_logits.astype(jnp.float32), mask), mask)
    cut = jax.nn.relu(before - threshold / grid)
    # A sum no larger than rounding means that every weight sat at the threshold.
    survives = jnp.sum(cut, axis=-1, keepdims=True) > jnp.finfo(jnp.float32).eps
    return jnp.where(survives, _normalise(jnp.where(survives, cut, 1.0), mask), before)


def max_attention(features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """For each patch the share of channels in which it holds the row's maximum; ties share equally.

    Max pooling has no weights of its own; this is what it looks at, on the same scale as attention.

    Args:
      features: `[B, P, D]` patch features h_p, any float dtype.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.

    Returns:
      `[B, P]` float32. It carries no gradient.
    """
    features = jax.lax.stop_gradient(features.astype(jnp.float32))
    wins = (features == max_pool(features, mask)[:, None, :]).astype(jnp.float32)
    if mask is not None:
        wins = wins * mask[:, :, None].astype(jnp.float32)
    winners = jnp.maximum(jnp.sum(wins, axis=1, keepdims=True), 1.0)
    return _normalise(jnp.mean(wins / winners, axis=-1), mask)


def weighted_sum(features: jax.Array, attention: jax.Array) -> jax.Array:
    """Pooled features `sum_p a_p h_p`.

    Args:
      features: `[B, P, D]`, any float dtype.
      attention: `[B, P]` weights.

    Returns:
      `[B, D]` float32.
    """
    # A masked patch may hold anything, and 0 * inf is not 0.
    features = jnp.where(attention[:, :, None] != 0, features.astype(jnp.float32), 0.0)
    return jnp.einsum("bpd,bp->bd", features, attention, precision=jax.lax.Precision.HIGHEST)


def max_pool(features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Channel-wise maximum over the patches.

    Args:
      features: `[B, P, D]`, any float dtype.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.

    Returns:
      `[B, D]` float32; zeros for a row with no patch.
    """
    features = features.astype(jnp.float32)
    if mask is None:
        return jnp.max(features, axis=1)
    real = mask[:, :, None].astype(bool)
    lowest = jnp.finfo(jnp.float32).min
    pooled = jnp.max(jnp.where(real, features, lowest), axis=1)
    return jnp.where(jnp.any(real, axis=1), pooled, 0.0)


def _norm(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """L2 norm over the last axis up to a common factor per row, with gradient 0 where it is 0.

    Attention does not change when all logits of a row are multiplied by one number. Dividing by the
    row's largest magnitude, held constant, therefore changes neither value nor gradient of what
    follows, and keeps the squares inside float32's range for logits up to 1e37 in size.
    """
    magnitude = jnp.abs(jax.lax.stop_gradient(logits))
    if mask is not None:
        logits = jnp.where(mask[:, :, None].astype(bool), logits, 0.0)
        magnitude = jnp.where(mask[:, :, None].astype(bool), magnitude, 0.0)
    largest = jnp.max(magnitude, axis=(-2, -1), keepdims=True)
    scaled = logits / jnp.where(largest > 0, largest, 1.0)
    squares = jnp.sum(jnp.square(scaled), axis=-1)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def _normalise(weights: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Non-negative weights to sum 1 over the real patches; equal weights where all are 0."""
    real = jnp.ones_like(weights) if mask is None else mask.astype(weights.dtype)
    weights = weights * real
    total = jnp.sum(weights, axis=-1, keepdims=True)
    count = jnp.sum(real, axis=-1, keepdims=True)
    positive = total > 0
    return jnp.where(
        positive, weights / jnp.where(positive, total, 1.0), real / jnp.maximum(count, 1.0)
    )
