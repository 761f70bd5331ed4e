"""Attention weights of patches, and pooling with them.

This module is the one home of attention scores. Everything is a pure function on arrays laid out
`[batch, patch, ...]`, and what makes weights takes an optional mask, so that any Flax model can use it:

    patch_logits = classifier(features)                                    # [B, P, K]
    attention = pooling.loss_attention(patch_logits, grid=1024)            # [B, P]
    logits = classifier(pooling.weighted_sum(features, attention))         # [B, K]

Scores are computed in float32 whatever the dtype of the features, because a sum over patches of
bfloat16 weights would not come out as 1. A masked patch has weight exactly 0, and a padded row gives
exactly what the unpadded one gives. A row with no patch at all has all weights 0, and so do its
gradients; every other row sums to 1, but one with NaN in a real patch has NaN weights. A mask holds True or 1
for a real patch, and whatever is not 0 counts as 1.

What takes an `axis_name` goes also for patches that are split over devices: inside `pmap` with an axis of
that name each device gives its own patches, and gets their weights among all of them, or what is pooled of
all. A device may have no real patch at all.

Shapes, dtypes and numbers that do not fit raise a `ValueError` with a sentence, also while a program is
traced. Traced values are not looked at: what comes of those that make no sense stands with each function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossattn_jax.arguments import MASK, NUMBERS, WHOLE, check_arrays, check_number
from lossattn_jax.attention import collectives
from lossattn_jax.attention.normalisation import normalise_weights

# Threshold of the TIP 2021 paper's classification tables; 1.0 localises better.
DEFAULT_THRESHOLD = 0.1

Layer = Callable[[jax.Array], jax.Array]


def uniform_attention(
    patch_logits: jax.Array, mask: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
    """Computes equal weights: mean pooling as attention.

    Args:
      patch_logits: `[B, P, K]`, any float dtype; only its shape matters.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.
      axis_name: pmap axis that patches are split over; None: all are here.

    Returns:
      `[B, P]` float32, `1 / P` for each real patch of a row; 0 in a row with no patch.
    """
    check_arrays(patch_logits=(patch_logits, "B P K", NUMBERS), mask=(mask, "B P", MASK))
    return normalise_weights(jnp.ones(patch_logits.shape[:-1], jnp.float32), mask, axis_name)


def loss_attention(
    patch_logits: jax.Array,
    grid: int,
    threshold: float = DEFAULT_THRESHOLD,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Computes loss-based attention of the TIP 2021 paper.

    A patch weighs what its logits' norm weighs.

    With patch logits z_p: `a_p = ||z_p||_2 / sum_q ||z_q||_2`, then `relu(a_p - threshold / grid)`,
    renormalised. Where every weight of a row would fall to the threshold (possible only for
    `threshold * P >= grid`), the row keeps its weights from before the cut, so that it still sums to 1.
    A row whose logits are all zero gets equal weights.

    Args:
      patch_logits: `[B, P, K]` patch predictions z_p, any float dtype; of a map `[B, H, W, K]` its
        reshape to `[B, H * W, K]`.
      grid: g, a whole number, at least 1: positions of the backbone's map (1024 for a 32x32 map) with the
        convolutional head, number of patches with the capsule head.
      threshold: t >= 0; 0.1 in the paper's tables. 0: nothing is cut.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.

    Returns:
      `[B, P]` float32 weights, differentiable in `patch_logits` also where a norm is 0; all 0 in a row with
      no patch.
    """
    check_arrays(patch_logits=(patch_logits, "B P K", NUMBERS), mask=(mask, "B P", MASK))
    _check_cut(grid, threshold)
    before = normalise_weights(_norm(patch_logits.astype(jnp.float32), mask), mask)
    return _cut_weights(before, threshold / grid)


def capsule_loss_attention(
    capsule_logits: jax.Array,
    grid: int,
    threshold: float = DEFAULT_THRESHOLD,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes loss-based attention of the TIP 2021 paper over capsules.

    There are several capsules at each patch.

    With capsule logits z_pc: `a_pc = ||z_pc||_2 / sum_qd ||z_qd||_2`. A patch's attention is
    `relu(sum_c a_pc - threshold / grid)`, renormalised over the patches. The capsules of patches with
    attention 0 get weight 0, those of the others keep theirs, renormalised. Where every patch would fall
    to the threshold, all keep what they had, as in `loss_attention`.

    Args:
      capsule_logits: `[B, P, C, K]` predictions z_pc of C capsules at each of P patches, any float dtype.
      grid: g, a whole number, at least 1; the number of patches (36) in the paper.
      threshold: t >= 0; 0.1 in the paper's tables. 0: nothing is cut.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.

    Returns:
      `[B, P, C]` float32 weights of the capsules and `[B, P]` float32 attention of the patches. Each
      sums to 1 over all but the batch axis, and is differentiable also where a norm is 0; all 0 in a row
      with no patch.
    """
    check_arrays(capsule_logits=(capsule_logits, "B P C K", NUMBERS), mask=(mask, "B P", MASK))
    _check_cut(grid, threshold)
    batch, patches, capsules, _ = capsule_logits.shape
    flat = capsule_logits.astype(jnp.float32).reshape(batch, patches * capsules, -1)
    flat_mask = None if mask is None else jnp.repeat(mask, capsules, axis=1)
    before = normalise_weights(_norm(flat, flat_mask), flat_mask).reshape(batch, patches, capsules)
    attention = _cut_weights(jnp.sum(before, axis=-1), threshold / grid)
    weights = jnp.where(attention[:, :, None] > 0, before, 0.0).reshape(batch, -1)
    return normalise_weights(weights, flat_mask).reshape(batch, patches, capsules), attention


def bag_loss_attention(
    patch_logits: jax.Array, mask: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
    """Computes loss-based attention of the AAAI 2020 paper.

    `a_p = softmax_p(logsumexp_k z_pk)`.

    Args:
      patch_logits: `[B, P, K]` patch or instance predictions z_p, any float dtype.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.
      axis_name: pmap axis that patches are split over; None: all are here.

    Returns:
      `[B, P]` float32 weights; all 0 in a row with no patch.
    """
    check_arrays(patch_logits=(patch_logits, "B P K", NUMBERS), mask=(mask, "B P", MASK))
    logits = patch_logits.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, :, None].astype(bool), logits, 0.0)
    return softmax_attention(jax.nn.logsumexp(logits, axis=-1), mask, axis_name)


def softmax_attention(
    scores: jax.Array, mask: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
    """Computes the softmax of scores over patches.

    The scores may be of any origin (Ilse et al. 2018, equation 8).

    Args:
      scores: `[B, P]`, any float dtype.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.
      axis_name: pmap axis that patches are split over; None: all are here.

    Returns:
      `[B, P]` float32 weights; all 0 in a row with no patch.
    """
    check_arrays(scores=(scores, "B P", NUMBERS), mask=(mask, "B P", MASK))
    scores = scores.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask.astype(bool), scores, jnp.finfo(jnp.float32).min)
    highest = collectives.highest(jnp.max(scores, axis=-1, keepdims=True), axis_name)
    return normalise_weights(jnp.exp(scores - highest), mask, axis_name)


def learned_scores(
    features: jax.Array, tanh: Layer, score: Layer, gate: Layer | None = None
) -> jax.Array:
    """Computes scores of patches from learned layers, for `softmax_attention`.

    `w^T tanh(V h_p)` (Ilse et al. 2018, eq. 8), or with a gate `w^T (tanh(V h_p) * sigmoid(U h_p))`
    (eq. 9). Any functions will do for the layers, such as `flax.linen.Dense(128)`.

    Args:
      features: `[B, P, D]` patch features h_p, any float dtype.
      tanh: V, from `[B, P, D]` to `[B, P, H]`.
      score: w, from `[B, P, H]` to `[B, P, 1]`.
      gate: U, as V; None: no gate.

    Returns:
      `[B, P]` float32.
    """
    check_arrays(features=(features, "B P D", NUMBERS))
    features = features.astype(jnp.float32)
    hidden = tanh(features)
    check_arrays(
        features=(features, "B P D", NUMBERS),
        **{"what tanh gives": (hidden, "B P H", NUMBERS)},
    )
    hidden = jnp.tanh(hidden)
    if gate is not None:
        gates = gate(features)
        check_arrays(
            **{"what tanh gives": (hidden, "B P H", NUMBERS)},
            **{"what gate gives": (gates, "B P H", NUMBERS)},
        )
        hidden = hidden * jax.nn.sigmoid(gates)
    scores = score(hidden)
    check_arrays(
        features=(features, "B P D", NUMBERS),
        **{"what score gives": (scores, "B P 1", NUMBERS)},
    )
    return jnp.squeeze(scores, axis=-1)


def coupling_attention(
    couplings: jax.Array, classes: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Turns dynamic routing's coupling coefficients into attention.

    A patch weighs its share of those to one class.

    Args:
      couplings: `[B, P, C, K]` coefficients c of C capsules at each of P patches, not negative.
      classes: `[B]` int, the class to look at in each row, in `[0, K)`.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.

    Returns:
      `[B, P]` float32 weights: `sum_c c_pck`, normalised over the patches; all 0 in a row with no patch.
      NaN in a row whose class is outside `[0, K)`.
    """
    sizes = check_arrays(
        couplings=(couplings, "B P C K", NUMBERS),
        classes=(classes, "B", WHOLE),
        mask=(mask, "B P", MASK),
    )
    exists = (classes >= 0) & (classes < sizes["K"])
    index = jnp.where(exists, classes, 0)[:, None, None, None]
    of_class = jnp.take_along_axis(couplings, index, axis=-1)[..., 0]
    totals = jnp.sum(of_class.astype(jnp.float32), axis=-1)
    if mask is not None:
        totals = jnp.where(mask.astype(bool), totals, 0.0)
    return jnp.where(exists[:, None], normalise_weights(totals, mask), jnp.nan)


def max_attention(
    features: jax.Array, mask: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
    """Computes each patch's share of channels whose maximum it holds.

    Ties share equally.

    Max pooling has no weights of its own; this is what it looks at, on the same scale as attention.

    Args:
      features: `[B, P, D]` patch features h_p, any float dtype.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.
      axis_name: pmap axis that patches are split over; None: all are here.

    Returns:
      `[B, P]` float32; all 0 in a row with no patch. It carries no gradient.
    """
    check_arrays(features=(features, "B P D", NUMBERS), mask=(mask, "B P", MASK))
    features = jax.lax.stop_gradient(features.astype(jnp.float32))
    wins = (features == max_pool(features, mask, axis_name)[:, None, :]).astype(jnp.float32)
    if mask is not None:
        wins = jnp.where(mask[:, :, None].astype(bool), wins, 0.0)
    winners = collectives.total(jnp.sum(wins, axis=1, keepdims=True), axis_name)
    return normalise_weights(jnp.mean(wins / jnp.maximum(winners, 1.0), axis=-1), mask, axis_name)


def weighted_sum(
    features: jax.Array, attention: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """Computes pooled features `sum_p a_p h_p`.

    Args:
      features: `[B, P, D]`, any float dtype.
      attention: `[B, P]` weights. A patch of weight 0 takes no part, whatever its features hold.
      axis_name: pmap axis that patches are split over; None: all are here.

    Returns:
      `[B, D]` float32; zeros where all weights of a row are 0.
    """
    check_arrays(features=(features, "B P D", NUMBERS), attention=(attention, "B P", NUMBERS))
    # A masked patch may hold anything, and 0 * inf is not 0.
    features = jnp.where(attention[:, :, None] != 0, features.astype(jnp.float32), 0.0)
    attention = attention.astype(jnp.float32)
    here = jnp.einsum("bpd,bp->bd", features, attention, precision=jax.lax.Precision.HIGHEST)
    return collectives.total(here, axis_name)


def max_pool(
    features: jax.Array, mask: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
    """Computes the maximum of each channel over the patches.

    Args:
      features: `[B, P, D]`, any float dtype.
      mask: `[B, P]`, True or 1 for a real patch. None: all are real.
      axis_name: pmap axis that patches are split over; None: all are here.

    Returns:
      `[B, D]` float32; zeros for a row with no patch. Of equal maxima the first gets the gradient.
    """
    check_arrays(features=(features, "B P D", NUMBERS), mask=(mask, "B P", MASK))
    features = features.astype(jnp.float32)
    if mask is not None:
        real = mask[:, :, None].astype(bool)
        features = jnp.where(real, features, jnp.finfo(jnp.float32).min)
    # Not jnp.max: its gradient compares the features with their maximum, and where XLA computes them a
    # second time, rounded otherwise, none is equal and the gradient is 0 / 0.
    highest = jnp.argmax(features, axis=1, keepdims=True)
    here = jnp.take_along_axis(features, highest, axis=1)[:, 0]
    highest_features = collectives.of_first_highest(here, axis_name)
    if mask is None:
        return highest_features
    some = collectives.highest(jnp.any(real, axis=1).astype(jnp.float32), axis_name) > 0
    return jnp.where(some, highest_features, 0.0)


def _check_cut(grid: Any, threshold: Any) -> None:
    """Refuses a grid or a threshold out of range."""
    check_number("grid", grid, 1, whole=True)
    check_number("threshold", threshold, 0)


def _cut_weights(before: jax.Array, level: float) -> jax.Array:
    """Cuts weights at a level: `relu(before - level)`, renormalised.

    A row of which nothing would be left stays as it is.

    A patch that is not there has weight 0, which no cut changes.
    """
    rest = jax.nn.relu(before - level)
    # A sum no larger than rounding means that every weight sat at the threshold.
    survives = jnp.sum(rest, axis=-1, keepdims=True) > jnp.finfo(jnp.float32).eps
    return jnp.where(survives, normalise_weights(jnp.where(survives, rest, 1.0), None), before)


def _norm(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Computes the L2 norm over the last axis, up to a factor.

    The factor is common to a row; the gradient is 0 where the norm is.

    Attention does not change when all logits of a row are multiplied by one number. Dividing by the
    row's largest magnitude, held constant, therefore changes neither value nor gradient of what
    follows, and keeps the squares inside float32's range for logits up to 1e37 in size.
    """
    magnitude = jnp.abs(jax.lax.stop_gradient(logits))
    if mask is not None:
        logits = jnp.where(mask[:, :, None].astype(bool), logits, 0.0)
        magnitude = jnp.where(mask[:, :, None].astype(bool), magnitude, 0.0)
    largest = jnp.max(magnitude, axis=(-2, -1), keepdims=True)
    relative = logits / jnp.where(largest > 0, largest, 1.0)
    squares = jnp.sum(jnp.square(relative), axis=-1)
    zero = squares == 0  # NaN has to stay visible in the weights
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
