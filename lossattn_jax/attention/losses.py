"""Losses of images and patches, and the papers' sum of both.

All return one value per example, `[B]` float32, so that the caller masks and averages. What takes logits
goes through log_softmax or softplus, finite for logits up to 1e37 in size.

`LOSSES` has the kinds of loss, as the network and the labels ask for: `CROSS_ENTROPY` for one label per
image or bag, `SIGMOID` for any number of labels (multi-hot `[B, K]`), `MARGIN` for capsule lengths,
`CENTRIPETAL` for capsules that hit or miss a centre, `DEEP_SUPERVISION` for classifiers that are trained each
by itself.

To add one, write its function and put a `Loss` into `LOSSES`: `config.loss.name` then chooses it for images
whose labels it takes. One of your own, from any file, is named as `package.module:attribute`. Networks for
bags have the loss that their pooling names or gives (`Patches.replace_loss`), or the cross-entropy; no key
chooses another one yet.

Shapes, dtypes, names and numbers that do not fit raise a `ValueError` with a sentence, also while a program
is traced. Traced values are not looked at: what comes of those that make no sense stands with each function.
The loss of a label outside `[0, K)` is NaN, which a training that checks its losses does not learn from.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from lossattn_jax.arguments import FLAGS, NUMBERS, WHOLE, check_arrays, check_number, is_zero
from lossattn_jax.registry import Registry, lookup

CROSS_ENTROPY, SIGMOID, MARGIN = "cross_entropy", "sigmoid", "margin"
CENTRIPETAL, DEEP_SUPERVISION = "centripetal", "deep_supervision"

# Of the margin loss (Sabour et al. 2017, eq. 4): m+, m- and lambda.
_MARGINS = (0.9, 0.1)
_ABSENT_WEIGHT = 0.5
# Of the centripetal loss (Deliege et al. 2018): distances up to which a capsule hits and from which it
# misses, lambda, and by how much the slope rises at each step of the distance; see `models.hitnet`.
_HIT, _MISS = 0.1, 0.9
_MISS_WEIGHT = 0.5
_STEP, _RISE = 0.1, 0.2


@dataclasses.dataclass(
    frozen=True, eq=False
)  # equal only to itself: entries are told apart by identity
class Loss:
    """A kind of loss: its functions, and which labels it takes.

    Attributes:
      image: makes of predictions and labels the loss of each example, `[B]` float32; with `smoothing` also of
        label_smoothing.
      patch: makes of patch predictions `[B, P, K]`, the examples' labels and attention `[B, P]` the weighted
        loss of the patches, `[B]` float32; with `smoothing` also of label_smoothing. None: patch predictions
        are no logits, and have no loss.
      activation: makes of predictions `[..., K]` what they say of each class, in [0, 1].
      one_label: whether it takes labels `[B]` of one class each.
      several_labels: whether it takes labels `[B, K]`, 1 for each class that is there.
      smoothing: whether it allows label smoothing.
      axes: of the predictions: "B K", or "B S K" of S classifiers that are trained each by itself.
      takes_logits: whether its predictions are logits, as most poolings give them; False: a pooling gives
        what it takes, and names it as its `Pooling.loss`.
    """

    image: Callable[..., jax.Array]
    patch: Callable[..., jax.Array] | None
    activation: Callable[[jax.Array], jax.Array]
    one_label: bool = True
    several_labels: bool = False
    smoothing: bool = False
    axes: str = "B K"
    takes_logits: bool = True

    def suits(self, *, several_labels: bool) -> bool:
        """Whether it takes the logits `[B, K]` of any network, and such labels."""
        labels = self.several_labels if several_labels else self.one_label
        return labels and self.takes_logits and self.axes == "B K"


class LossTerms(NamedTuple):
    """Loss terms of each example, `[B]` float32.

    `total = image + patch_weight * patch`.
    """

    total: jax.Array
    image: jax.Array
    patch: jax.Array


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Computes softmax cross-entropy with integer labels.

    Args:
      logits: `[..., K]`, any float dtype.
      labels: `[...]` int, in `[0, K)`.
      label_smoothing: epsilon in `[0, 1)`: the target is `1 - epsilon` on the label plus `epsilon / K`
        on every class (Szegedy et al. 2016, section 7).

    Returns:
      `[...]` float32, in nats; NaN where the label is outside `[0, K)`.
    """
    _refuse_rows(labels, max(np.ndim(logits) - 1, 0))
    sizes = check_arrays(logits=(logits, "... K", NUMBERS), labels=(labels, "...", WHOLE))
    check_number("label_smoothing", label_smoothing, 0, 1)
    # Not optax's: it takes the label's logit from the normaliser, of which at 1e4 three decimals are left.
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    loss = -_at_label(logs, labels, sizes["K"])
    if is_zero(label_smoothing):
        return loss
    uniform = -jnp.mean(logs, axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def loss_of_label(losses: jax.Array, labels: jax.Array) -> jax.Array:
    """Selects the loss that each example has for its label.

    Args:
      losses: `[B, K]` of each label that an example may have, any float dtype.
      labels: `[B]` int, in `[0, K)`.

    Returns:
      `[B]` float32; NaN where the label is outside `[0, K)`.
    """
    sizes = check_arrays(losses=(losses, "B K", NUMBERS), labels=(labels, "B", WHOLE))
    return _at_label(losses.astype(jnp.float32), labels, sizes["K"])


def smooth_svm_losses(scores: jax.Array, margin: float, temperature: float) -> jax.Array:
    """Computes the smooth top-1 SVM loss for each label (Berrada et al. 2018).

    `tau log sum_j exp((alpha [j != y] + s_j - s_y) / tau)`. For tau towards 0 it is the hinge loss
    `max_j (alpha [j != y] + s_j) - s_y`; with alpha = 0 and tau = 1 the cross-entropy.

    Args:
      scores: `[..., K]` s, any float dtype.
      margin: alpha >= 0.
      temperature: tau > 0.

    Returns:
      `[..., K]` float32: at place y the loss where y is the label.
    """
    check_arrays(scores=(scores, "... K", NUMBERS))
    check_number("margin", margin, 0)
    check_number("temperature", temperature, 0)
    if is_zero(temperature):
        raise ValueError(f"temperature is {temperature!r}, but must be above 0")
    scores = scores.astype(jnp.float32)
    margins = margin * (1 - jnp.eye(scores.shape[-1], dtype=jnp.float32))
    # [..., y, j]; the label's own score is taken away before the exponentials, which keeps its digits.
    gaps = scores[..., None, :] - scores[..., :, None]
    gaps += jnp.broadcast_to(margins, gaps.shape)
    return temperature * jax.nn.logsumexp(gaps / temperature, axis=-1)


def sigmoid_cross_entropy(logits: jax.Array, positives: jax.Array) -> jax.Array:
    """Computes binary cross-entropy, summed over classes.

    For images with any number of labels.

    Args:
      logits: `[..., K]`, any float dtype.
      positives: `[..., K]`, 1 or True for each class that is there.

    Returns:
      `[...]` float32, in nats.
    """
    check_arrays(logits=(logits, "... K", NUMBERS), positives=(positives, "... K", FLAGS))
    logits = logits.astype(jnp.float32)
    return jnp.sum(
        optax.sigmoid_binary_cross_entropy(logits, positives.astype(jnp.float32)), axis=-1
    )


def margin_loss(lengths: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the margin loss of class capsules, summed over classes.

    Sabour et al. 2017, equation 4.

    `T_k max(0, 0.9 - |v_k|)^2 + 0.5 (1 - T_k) max(0, |v_k| - 0.1)^2`.

    Args:
      lengths: `[..., K]` capsule lengths |v_k|, any float dtype.
      labels: `[...]` int, in `[0, K)`, or multi-hot `[..., K]`.

    Returns:
      `[...]` float32; NaN where a whole number as label is outside `[0, K)`.
    """
    present, exists = _present_classes("lengths", lengths, labels)
    lengths = lengths.astype(jnp.float32)
    missing = jnp.square(jax.nn.relu(_MARGINS[0] - lengths))
    excess = jnp.square(jax.nn.relu(lengths - _MARGINS[1]))
    loss = jnp.sum(jnp.where(present, missing, _ABSENT_WEIGHT * excess), axis=-1)
    return jnp.where(exists, loss, jnp.nan)


def centripetal_loss(closeness: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the loss of capsules that hit or miss a centre, over classes.

    Deliege et al. 2018 (HitNet), of distances d_k = 1 - closeness:
    `T_k S(d_k - 0.1) + 0.5 (1 - T_k) S(0.9 - d_k)`, where S is 0 up to 0 and from there on a line whose slope
    is 0.2 and rises by 0.2 after each 0.1. So a class's own capsule is pulled to within 0.1 of the centre,
    and the others are pushed out to 0.9, the harder the further they have to go.

    Args:
      closeness: `[..., K]` 1 minus the distance of each class's capsule from the centre, any float dtype.
      labels: `[...]` int, in `[0, K)`, or multi-hot `[..., K]`.

    Returns:
      `[...]` float32; NaN where a whole number as label is outside `[0, K)`.
    """
    present, exists = _present_classes("closeness", closeness, labels)
    distances = 1 - closeness.astype(jnp.float32)
    misses, hits = _steepening(distances - _HIT), _steepening(_MISS - distances)
    loss = jnp.sum(jnp.where(present, misses, _MISS_WEIGHT * hits), axis=-1)
    return jnp.where(exists, loss, jnp.nan)


def _steepening(x: jax.Array) -> jax.Array:
    """S of the centripetal loss."""
    x = jax.nn.relu(x)
    steps = jnp.floor(x / _STEP)
    before = 0.5 * steps * (steps + 1) * _STEP  # with the slopes 1, 2, ... over all whole steps
    return _RISE * (before + (steps + 1) * (x - steps * _STEP))


def _present_classes(
    name: str, values: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which classes are there, and which examples have a label that exists.

    Args:
      name: of the values.
      values: `[..., K]`.
      labels: `[...]` int, or multi-hot `[..., K]`.

    Returns:
      `[..., K]` and `[...]` bool.
    """
    single = np.ndim(labels) < np.ndim(values)
    of_labels = (labels, "...", WHOLE) if single else (labels, "... K", FLAGS)
    sizes = check_arrays(**{name: (values, "... K", NUMBERS), "labels": of_labels})
    present = jax.nn.one_hot(labels, sizes["K"]) > 0 if single else labels > 0
    exists = jnp.any(present, axis=-1) if single else jnp.ones(present.shape[:-1], bool)
    return present, exists


def image_loss(
    kind: str, logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Computes the loss of image predictions.

    Args:
      kind: one of `LOSSES`, or a reference.
      logits: `[B, K]`; capsule lengths with `MARGIN`, closeness with `CENTRIPETAL`; `[B, S, K]` with
        `DEEP_SUPERVISION`.
      labels: `[B]` int, or multi-hot `[B, K]` with `SIGMOID`; either with `MARGIN` and `CENTRIPETAL`.
      label_smoothing: of kinds that allow it, such as `CROSS_ENTROPY`; 0 with the others.

    Returns:
      `[B]` float32.

    Raises:
      UnknownName: there is no such kind.
      ValueError: arguments that do not fit together.
    """
    loss = LOSSES.find(kind, "kind")
    check_arrays(logits=(logits, loss.axes, NUMBERS))
    return loss.image(logits, labels, *_smoothing(kind, label_smoothing))


def probabilities(kind: str, logits: ArrayLike) -> jax.Array:
    """Computes each class' probability, in [0, 1].

    Args:
      kind: one of `LOSSES`, such as `CROSS_ENTROPY` (softmax), `SIGMOID` (sigmoid), `MARGIN` (capsule
        lengths, which stand for the probability that a class is there: Sabour et al. 2017, section 2) or
        `CENTRIPETAL` (closeness, 0 below 0: at least 0.9 where a capsule hits, at most 0.1 where it misses).
      logits: `[..., K]`.

    Returns:
      `[..., K]` float32; sums to 1 with `CROSS_ENTROPY` only.

    Raises:
      UnknownName: there is no such kind.
      ValueError: `logits` has no axis of classes, or does not hold real numbers.
    """
    activation = LOSSES.find(kind, "kind").activation
    logits = jnp.asarray(logits)
    check_arrays(logits=(logits, "... K", NUMBERS))
    return activation(logits.astype(jnp.float32))


def patch_cross_entropy(
    patch_logits: jax.Array,
    labels: jax.Array,
    attention: jax.Array,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Computes the patch loss of both papers.

    `sum_p a_p CE(z_p, y)`, the image's label standing for each patch.

    The gradient flows through the attention too, as in the papers' code. A patch of weight 0 (masked,
    or under the threshold) takes no part, whatever its logits hold.

    Args:
      patch_logits: `[B, P, K]`, any float dtype.
      labels: `[B]` int, in `[0, K)`.
      attention: `[B, P]` float weights.
      label_smoothing: as in `cross_entropy`.

    Returns:
      `[B]` float32, in nats; 0 where all weights of a row are 0. NaN where the label is outside `[0, K)`.
    """
    _refuse_rows(labels, 1)
    check_arrays(
        patch_logits=(patch_logits, "B P K", NUMBERS),
        attention=(attention, "B P", NUMBERS),
        labels=(labels, "B", WHOLE),
    )
    patch_labels = jnp.broadcast_to(labels[:, None], attention.shape)
    per_patch = cross_entropy(_with_weight(patch_logits, attention), patch_labels, label_smoothing)
    return jnp.sum(attention.astype(jnp.float32) * per_patch, axis=-1)


def patch_sigmoid_loss(
    patch_logits: jax.Array, positives: jax.Array, attention: jax.Array
) -> jax.Array:
    """Computes the patch loss of images with several labels (TIP 2021).

    A patch need show one of them.

    `sum_p a_p min_k -log sigmoid(z_pk)` over the classes k of the image: with one class the usual term,
    with several that of the one that is most probable for the patch. An image without a class has none.
    Weights of 0 and gradients are as in `patch_cross_entropy`.

    Args:
      patch_logits: `[B, P, K]`, any float dtype.
      positives: `[B, K]`, 1 or True for each class that is there.
      attention: `[B, P]` float weights.

    Returns:
      `[B]` float32, in nats; 0 where all weights of a row are 0.
    """
    check_arrays(
        patch_logits=(patch_logits, "B P K", NUMBERS),
        attention=(attention, "B P", NUMBERS),
        positives=(positives, "B K", FLAGS),
    )
    present = positives.astype(bool)
    per_class = jax.nn.softplus(-_with_weight(patch_logits, attention).astype(jnp.float32))
    others = jnp.where(present[:, None], per_class, jnp.inf)
    some = jnp.any(present, axis=-1)[:, None]
    per_patch = jnp.where(some, jnp.min(jnp.where(some[..., None], others, 0.0), axis=-1), 0.0)
    return jnp.sum(attention.astype(jnp.float32) * per_patch, axis=-1)


def patch_loss(
    kind: str,
    patch_logits: jax.Array,
    labels: jax.Array,
    attention: jax.Array,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Computes the loss of patch predictions; arguments as of `image_loss`.

    Returns:
      `[B]` float32: `patch_cross_entropy`, or `patch_sigmoid_loss` with `SIGMOID`. Zeros where the kind has
      none, as `MARGIN`, whose patch predictions are parts of a length and not logits.

    Raises:
      UnknownName: there is no such kind.
      ValueError: arguments that do not fit together.
    """
    compute = LOSSES.find(kind, "kind").patch or _no_patch_loss
    return compute(patch_logits, labels, attention, *_smoothing(kind, label_smoothing))


def loss_attention_loss(
    logits: jax.Array,
    patch_logits: jax.Array,
    attention: jax.Array,
    labels: jax.Array,
    patch_weight: jax.Array | float,
    label_smoothing: float = 0.0,
    *,
    kind: str = CROSS_ENTROPY,
) -> LossTerms:
    """Computes the papers' training loss.

    `CE(prediction, y) + lambda * sum_p a_p CE(z_p, y)`.

    Args:
      logits: `[B, K]` image predictions, any float dtype.
      patch_logits: `[B, P, K]` patch predictions.
      attention: `[B, P]` float weights.
      labels: `[B]` int, in `[0, K)`, or multi-hot `[B, K]`; see `image_loss`.
      patch_weight: lambda, a scalar >= 0, or `[B]`; see
        `lossattn_jax.train.schedules.loss_weight_schedule`. Where a paper averages over patches instead of
        summing (AAAI 2020), it is divided by P; see `reduced_weight`.
      label_smoothing: as in `cross_entropy`, for both terms.
      kind: of image loss.

    Returns:
      The three terms per example.

    Raises:
      UnknownName: there is no such kind.
      ValueError: arguments that do not fit together.
    """
    check_arrays(
        logits=(logits, "B K", NUMBERS),
        patch_logits=(patch_logits, "B P K", NUMBERS),
        attention=(attention, "B P", NUMBERS),
    )
    if np.ndim(patch_weight):
        check_arrays(logits=(logits, "B K", NUMBERS), patch_weight=(patch_weight, "B", NUMBERS))
    else:
        check_number("patch_weight", patch_weight, 0)
    image = image_loss(kind, logits, labels, label_smoothing)
    patch = patch_loss(kind, patch_logits, labels, attention, label_smoothing)
    return LossTerms(total=image + patch_weight * patch, image=image, patch=patch)


def reduced_weight(reduction: str, weight: Any, count: Callable[[], Any]) -> Any:
    """Turns lambda into a factor of the sum over patches.

    For either reduction of patch losses, sum or mean.

    Args:
      reduction: one of `REDUCTIONS`: "sum" (TIP 2021), or "mean" (the AAAI 2020 paper's public code).
      weight: lambda.
      count: gives P, the number of an image's patches: of all images, or of each. Called by "mean" alone.

    Raises:
      UnknownName: there is no such reduction.
    """
    return lookup("the patch reduction", reduction, _REDUCED_WEIGHTS)(weight, count)


def deep_supervision_loss(side_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sums the cross-entropies of several classifiers.

    MI-Net with deep supervision, Wang et al. 2018.

    Args:
      side_logits: `[B, S, K]`, any float dtype.
      labels: `[B]` int, in `[0, K)`.

    Returns:
      `[B]` float32, in nats; NaN where the label is outside `[0, K)`.
    """
    check_arrays(side_logits=(side_logits, "B S K", NUMBERS), labels=(labels, "B", WHOLE))
    side_labels = jnp.broadcast_to(labels[:, None], side_logits.shape[:2])
    return jnp.sum(cross_entropy(side_logits, side_labels), axis=-1)


def consistency_loss(attention: jax.Array, target: jax.Array) -> jax.Array:
    """Computes how far attention is from its average over epochs.

    `mean_p (a_p - target_p)^2` (AAAI 2020).

    Args:
      attention: `[B, P]` float weights.
      target: `[B, P]`, of the same images; no gradient flows into it.

    Returns:
      `[B]` float32.
    """
    check_arrays(attention=(attention, "B P", NUMBERS), target=(target, "B P", NUMBERS))
    if attention.dtype != target.dtype:
        attention, target = attention.astype(jnp.float32), target.astype(jnp.float32)
    difference = attention - jax.lax.stop_gradient(target)
    return jnp.mean(jnp.square(difference.astype(jnp.float32)), axis=-1)


def _at_label(values: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Values `[..., K]` at the labels; NaN where these are outside `[0, K)`."""
    index = jnp.asarray(labels, jnp.int32)
    # JAX counts negative indices from the end; behind the end it gives NaN.
    index = jnp.where(index < 0, classes, index)[..., None]
    return jnp.take_along_axis(values, index, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]


def _with_weight(patch_logits: jax.Array, attention: jax.Array) -> jax.Array:
    """Replaces logits of patches of weight 0 by zeros.

    Those may hold anything.
    """
    return jnp.where((attention > 0)[:, :, None], patch_logits, 0.0)


def _refuse_rows(labels: Any, axes: int) -> None:
    """Refuses labels per class where one whole number is needed."""
    if np.ndim(labels) > axes:
        raise ValueError(
            f"labels has the shape {np.shape(labels)}, but must hold one whole number in [0, K) for each "
            "example: of one-hot rows take their argmax over the last axis"
        )


def _smoothing(kind: str, label_smoothing: Any) -> tuple[Any, ...]:
    """Returns the smoothing argument of a loss that takes it."""
    if LOSSES.find(kind, "kind").smoothing:
        return (label_smoothing,)
    if not is_zero(label_smoothing):
        raise ValueError(f"label_smoothing is {label_smoothing!r}, but must be 0 with {kind!r}")
    return ()


def _no_patch_loss(
    patch_logits: jax.Array, labels: jax.Array, attention: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    del label_smoothing
    check_arrays(
        patch_logits=(patch_logits, "B P K", NUMBERS), attention=(attention, "B P", NUMBERS)
    )
    return jnp.zeros(attention.shape[:1], jnp.float32)


AUTO = "auto"  # not a name: stands for the loss that suits network and labels
LOSSES = Registry(
    "loss",
    Loss,
    {
        CROSS_ENTROPY: Loss(cross_entropy, patch_cross_entropy, jax.nn.softmax, smoothing=True),
        SIGMOID: Loss(
            sigmoid_cross_entropy,
            patch_sigmoid_loss,
            jax.nn.sigmoid,
            one_label=False,
            several_labels=True,
        ),
        MARGIN: Loss(
            margin_loss, None, lambda lengths: lengths, several_labels=True, takes_logits=False
        ),
        CENTRIPETAL: Loss(
            centripetal_loss,
            None,
            lambda closeness: jnp.clip(closeness, 0, 1),
            several_labels=True,
            takes_logits=False,
        ),
        DEEP_SUPERVISION: Loss(
            deep_supervision_loss, None, jax.nn.softmax, axes="B S K", takes_logits=False
        ),
    },
)
_REDUCED_WEIGHTS = {
    "sum": lambda weight, count: weight,
    "mean": lambda weight, count: weight / count(),
}
REDUCTIONS = tuple(_REDUCED_WEIGHTS)
