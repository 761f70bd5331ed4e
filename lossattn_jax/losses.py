"""Losses of images and of their patches, and the papers' sum of them.

All return one value per example, `[B]` float32, so that the caller masks and averages. What takes logits
goes through log_softmax or softplus, finite for logits up to 1e37 in size.

Three kinds of image loss exist, as the network and the labels ask for: `CROSS_ENTROPY` for one label per
image, `SIGMOID` for any number of labels (multi-hot `[B, K]`), `MARGIN` for capsule lengths.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

CROSS_ENTROPY, SIGMOID, MARGIN = "cross_entropy", "sigmoid", "margin"

# Of the margin loss (Sabour et al. 2017, eq. 4): m+, m- and lambda.
_MARGINS = (0.9, 0.1)
_ABSENT_WEIGHT = 0.5


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
    # Not optax's: it takes the label's logit from the normaliser, of which at 1e4 three decimals are left.
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    loss = -jnp.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]
    if not label_smoothing:
        return loss
    uniform = -jnp.mean(logs, axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def sigmoid_cross_entropy(logits: jax.Array, positives: jax.Array) -> jax.Array:
    """Binary cross-entropy of every class, summed over the classes: images with any number of labels.

    Args:
      logits: `[..., K]`, any float dtype.
      positives: `[..., K]`, 1 or True for each class that is there.

    Returns:
      `[...]` float32, in nats.
    """
    logits = logits.astype(jnp.float32)
    return jnp.sum(
        optax.sigmoid_binary_cross_entropy(logits, positives.astype(jnp.float32)), axis=-1
    )


def margin_loss(lengths: jax.Array, labels: jax.Array) -> jax.Array:
    """Margin loss of class capsules (Sabour et al. 2017, eq. 4), summed over the classes.

    `T_k max(0, 0.9 - |v_k|)^2 + 0.5 (1 - T_k) max(0, |v_k| - 0.1)^2`.

    Args:
      lengths: `[..., K]` capsule lengths |v_k|, any float dtype.
      labels: `[...]` int, in `[0, K)`, or multi-hot `[..., K]`.

    Returns:
      `[...]` float32.
    """
    lengths = lengths.astype(jnp.float32)
    if labels.ndim < lengths.ndim:
        labels = jax.nn.one_hot(labels, lengths.shape[-1])
    present = labels > 0
    missing = jnp.square(jax.nn.relu(_MARGINS[0] - lengths))
    excess = jnp.square(jax.nn.relu(lengths - _MARGINS[1]))
    return jnp.sum(jnp.where(present, missing, _ABSENT_WEIGHT * excess), axis=-1)


def image_loss(
    kind: str, logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """The loss of image predictions.

    Args:
      kind: `CROSS_ENTROPY`, `SIGMOID` or `MARGIN`.
      logits: `[B, K]`; capsule lengths with `MARGIN`.
      labels: `[B]` int, or multi-hot `[B, K]` with `SIGMOID`; either with `MARGIN`.
      label_smoothing: of `CROSS_ENTROPY`; the others have none.

    Returns:
      `[B]` float32.
    """
    if kind == SIGMOID:
        return sigmoid_cross_entropy(logits, labels)
    if kind == MARGIN:
        return margin_loss(logits, labels)
    return cross_entropy(logits, labels, label_smoothing)


def probabilities(kind: str, logits: ArrayLike) -> jax.Array:
    """What predictions say of each class, in [0, 1].

    Args:
      kind: `CROSS_ENTROPY` (softmax), `SIGMOID` (sigmoid) or `MARGIN` (capsule lengths, which stand for
        the probability that a class is there: Sabour et al. 2017, section 2).
      logits: `[..., K]`.

    Returns:
      `[..., K]` float32; sums to 1 with `CROSS_ENTROPY` only.
    """
    logits = jnp.asarray(logits, jnp.float32)
    if kind == MARGIN:
        return logits
    return jax.nn.sigmoid(logits) if kind == SIGMOID else jax.nn.softmax(logits)


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
    patch_labels = jnp.broadcast_to(labels[:, None], attention.shape)
    per_patch = cross_entropy(_seen(patch_logits, attention), patch_labels, label_smoothing)
    return jnp.sum(attention * per_patch, axis=-1)


def patch_sigmoid_loss(
    patch_logits: jax.Array, positives: jax.Array, attention: jax.Array
) -> jax.Array:
    """Patch loss of images with several labels (TIP 2021): a patch need show one of them.

    `sum_p a_p min_k -log sigmoid(z_pk)` over the classes k of the image: with one class the usual term,
    with several that of the one that is most probable for the patch. An image without a class has none.
    Weights of 0 and gradients are as in `patch_cross_entropy`.

    Args:
      patch_logits: `[B, P, K]`, any float dtype.
      positives: `[B, K]`, 1 or True for each class that is there.
      attention: `[B, P]` float weights.

    Returns:
      `[B]` float32, in nats.
    """
    present = positives.astype(bool)
    per_class = jax.nn.softplus(-_seen(patch_logits, attention).astype(jnp.float32))
    others = jnp.where(present[:, None], per_class, jnp.inf)
    some = jnp.any(present, axis=-1)[:, None]
    per_patch = jnp.where(some, jnp.min(jnp.where(some[..., None], others, 0.0), axis=-1), 0.0)
    return jnp.sum(attention * per_patch, axis=-1)


def patch_loss(
    kind: str,
    patch_logits: jax.Array,
    labels: jax.Array,
    attention: jax.Array,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """The loss of patch predictions for labels of a kind: see `image_loss` for the arguments.

    Returns:
      `[B]` float32: `patch_cross_entropy`, or `patch_sigmoid_loss` with `SIGMOID`. Zeros with `MARGIN`,
      whose patch predictions are parts of a length and not logits.
    """
    if kind == SIGMOID:
        return patch_sigmoid_loss(patch_logits, labels, attention)
    if kind == MARGIN:
        return jnp.zeros(attention.shape[:1], jnp.float32)
    return patch_cross_entropy(patch_logits, labels, attention, label_smoothing)


def loss_attention_loss(
    logits: jax.Array,
    patch_logits: jax.Array,
    attention: jax.Array,
    labels: jax.Array,
    patch_weight: jax.Array | float,
    label_smoothing: float = 0.0,
    kind: str = CROSS_ENTROPY,
) -> LossTerms:
    """The training loss of the papers: `CE(prediction, y) + lambda * sum_p a_p CE(z_p, y)`.

    Args:
      logits: `[B, K]` image predictions, any float dtype.
      patch_logits: `[B, P, K]` patch predictions.
      attention: `[B, P]` float weights.
      labels: `[B]` int, in `[0, K)`, or multi-hot `[B, K]`; see `image_loss`.
      patch_weight: lambda, a scalar >= 0; see `lossattn_jax.train.schedules.loss_weight_schedule`.
        Where a paper averages over patches instead of summing (AAAI 2020), it is divided by P.
      label_smoothing: as in `cross_entropy`, for both terms.
      kind: of image loss.

    Returns:
      The three terms per example.
    """
    image = image_loss(kind, logits, labels, label_smoothing)
    patch = patch_loss(kind, patch_logits, labels, attention, label_smoothing)
    return LossTerms(total=image + patch_weight * patch, image=image, patch=patch)


def deep_supervision_loss(side_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum of the cross-entropies of several classifiers (MI-Net with DS: Wang et al. 2018).

    Args:
      side_logits: `[B, S, K]`, any float dtype.
      labels: `[B]` int, in `[0, K)`.

    Returns:
      `[B]` float32, in nats.
    """
    side_labels = jnp.broadcast_to(labels[:, None], side_logits.shape[:2])
    return jnp.sum(cross_entropy(side_logits, side_labels), axis=-1)


def consistency_loss(attention: jax.Array, target: jax.Array) -> jax.Array:
    """How far attention moves from its average over epochs: `mean_p (a_p - target_p)^2` (AAAI 2020).

    Args:
      attention: `[B, P]` float weights.
      target: `[B, P]`, of the same images; no gradient flows into it.

    Returns:
      `[B]` float32.
    """
    difference = attention - jax.lax.stop_gradient(target)
    return jnp.mean(jnp.square(difference.astype(jnp.float32)), axis=-1)


def _seen(patch_logits: jax.Array, attention: jax.Array) -> jax.Array:
    """`patch_logits` with zeros for the patches of weight 0, whose logits may be anything."""
    return jnp.where((attention > 0)[:, :, None], patch_logits, 0.0)
