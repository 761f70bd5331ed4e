"""Metrics as (sum, count) pairs, divided once at the end.

They are summed on the devices, over batches and over processes.

A masked example adds nothing to any sum, so that a padded batch gives exactly what the unpadded one
gives, on any number of devices. An example with a non-finite output makes every mean that holds it NaN: no
mean is taken over the rest.

Shapes and dtypes that do not fit raise a `ValueError` with a sentence, also while a program is traced.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.arguments import FLAGS, NUMBERS, WHOLE, check_arrays
from lossattn_jax.attention import losses
from lossattn_jax.models import Outputs

CALIBRATION_BINS = 15
NONFINITE = "nonfinite"  # beside metrics: how many examples have non-finite outputs
# A loss beyond it counts as non-finite: a batch of them could have no sum in float32.
_HIGHEST = 1e32


@flax.struct.dataclass
class Mean:
    """A running mean: `total / count`.

    Elementwise for arrays; adding two of them merges them.
    """

    total: jax.Array
    count: jax.Array

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)


def mean_of(values: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Makes the `Mean` of `values` `[B]` where `mask` is 1.

    None: of all examples.
    """
    if mask is None:
        check_arrays(values=(values, "...", FLAGS))
        return Mean(jnp.sum(values), jnp.asarray(values.size, jnp.float32))
    check_arrays(values=(values, "...", FLAGS), mask=(mask, "...", FLAGS))
    return Mean(jnp.sum(jnp.where(mask > 0, values, 0.0)), jnp.sum(mask))


def merge(first: Mapping[str, Mean], second: Mapping[str, Mean]) -> dict[str, Mean]:
    """Merges two sets of the same metrics, name by name."""
    return {name: first[name] + second[name] for name in first}


def compute(means: Mapping[str, Mean]) -> dict[str, float]:
    """Returns scalar metrics as Python floats; 0 without a count."""
    return {
        name: float(mean.total) / float(mean.count) if float(mean.count) else 0.0
        for name, mean in means.items()
    }


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replaces non-finite numbers by None, for JSON."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def rows_finite(*arrays: jax.Array) -> jax.Array:
    """Finds rows whose `arrays` `[B, ...]` are all finite, `[B]` bool."""
    rows = [jnp.all(jnp.isfinite(array), axis=tuple(range(1, array.ndim))) for array in arrays]
    return functools.reduce(jnp.logical_and, rows)


def outputs_finite(outputs: Any) -> jax.Array:
    """Finds examples with finite logits, patch logits and attention, `[B]` bool.

    Pooling may give even weights where patch logits are NaN: all three count.

    Args:
      outputs: `models.Outputs`, or anything with arrays `[B, ...]` of these names.
    """
    return rows_finite(outputs.logits, outputs.patch_logits, outputs.attention)


def attention_entropy(attention: jax.Array) -> jax.Array:
    """Computes the entropy of each row of `[B, P]`, in nats.

    `-sum_p a_p log a_p`: 0 for one patch, log P for all.
    """
    check_arrays(attention=(attention, "B P", NUMBERS))
    logs = jnp.log(jnp.where(attention > 0, attention, 1.0))
    return -jnp.sum(attention * logs, axis=-1)


def several(boxes: jax.Array) -> jax.Array:
    """Reshapes boxes `[B, 4]` or `[B, M, 4]` to `[B, M, 4]`."""
    check_arrays(boxes=(boxes, "B M 4" if np.ndim(boxes) == 3 else "B 4", NUMBERS))
    return boxes if boxes.ndim == 3 else boxes[:, None]


def has_box(boxes: jax.Array) -> jax.Array:
    """Whether each image has a box.

    Args:
      boxes: `[B, 4]` or `[B, M, 4]`; `data.NO_BOX` stands for one that is not there.

    Returns:
      `[B]` bool: the mask of means over images with objects.
    """
    boxes = several(boxes)
    return jnp.any(jnp.all(boxes[..., 2:] >= boxes[..., :2], axis=-1), axis=1)


def centres_in_boxes(centres: jax.Array, boxes: jax.Array) -> jax.Array:
    """Finds patches whose centre is in a box of the image.

    Args:
      centres: `[P, 2]` (y, x), fractions of the image.
      boxes: `[B, 4]` (ymin, xmin, ymax, xmax), fractions of the image, or `[B, M, 4]`.

    Returns:
      `[B, P]` bool; all False for an image without a box.
    """
    check_arrays(centres=(centres, "P 2", NUMBERS))
    boxes = several(boxes)[:, :, None]
    places = centres[None, None]
    within = jnp.all((places >= boxes[..., :2]) & (places <= boxes[..., 2:]), axis=-1)
    return jnp.any(within, axis=1)


def hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the highest of `logits` `[..., K]` is at a label.

    1 or 0.

    Args:
      logits: `[..., K]`.
      labels: `[...]` int, or multi-hot `[..., K]`.

    Returns:
      `[...]` float32.
    """
    single = np.ndim(labels) < np.ndim(logits)
    check_arrays(
        logits=(logits, "... K", NUMBERS),
        labels=(labels, "...", WHOLE) if single else (labels, "... K", FLAGS),
    )
    top = jnp.argmax(logits, axis=-1)
    if not single:
        return jnp.take_along_axis(labels, top[..., None], axis=-1)[..., 0].astype(jnp.float32)
    return (top == labels).astype(jnp.float32)


def evaluation_sums(
    outputs: Outputs,
    labels: jax.Array,
    mask: jax.Array,
    centres: jax.Array,
    boxes: jax.Array | None = None,
    kind: str = losses.CROSS_ENTROPY,
) -> dict[str, Mean]:
    """Computes a batch's sums for `evaluation_metrics`.

    Args:
      outputs: of the network for B images.
      labels: `[B]` int, or multi-hot `[B, K]`.
      mask: `[B]` float32, 1 for a real example and 0 for padding.
      centres: `[P, 2]` patch centres, fractions of the image; used with `boxes`.
      boxes: `[B, 4]` (ymin, xmin, ymax, xmax) of the labelled object, `[B, M, 4]` of several, or None.
      kind: of image loss; see `losses`.

    Returns:
      Sums by name. Those that hold an example whose outputs or losses are non-finite (or losses beyond
      1e32) are NaN, and the total of "nonfinite" counts these examples.
    """
    check_arrays(
        logits=(outputs.logits, "B K", NUMBERS),
        patch_logits=(outputs.patch_logits, "B P K", NUMBERS),
        attention=(outputs.attention, "B P", NUMBERS),
        mask=(mask, "B", FLAGS),
    )
    multi_label = labels.ndim == outputs.logits.ndim
    correct = hits(outputs.logits, labels)
    patch_labels = jnp.broadcast_to(labels[:, None], (*outputs.attention.shape, *labels.shape[1:]))
    patch_correct = hits(outputs.patch_logits, patch_labels)
    values = {
        "precision_at_1" if multi_label else "accuracy": correct,
        "loss": losses.image_loss(kind, outputs.logits, labels),
        "patch_accuracy": jnp.mean(patch_correct, axis=-1),
        "attended_patch_accuracy": jnp.sum(outputs.attention * patch_correct, axis=-1),
        "attention_entropy": attention_entropy(outputs.attention),
    }
    if losses.LOSSES.find(kind).patch is not None:
        patch = losses.patch_loss(kind, outputs.patch_logits, labels, outputs.attention)
        values["patch_loss"] = patch
    box_values = {}
    if boxes is not None:
        check_arrays(
            attention=(outputs.attention, "B P", NUMBERS), centres=(centres, "P 2", NUMBERS)
        )
        inside = centres_in_boxes(centres, boxes).astype(jnp.float32)
        top = jnp.argmax(outputs.attention, axis=-1)
        box_values = {
            "attention_in_box": jnp.sum(outputs.attention * inside, axis=-1),
            "pointing_accuracy": jnp.take_along_axis(inside, top[:, None], axis=1)[:, 0],
            # What weights without any preference would reach: the yardstick of attention_in_box.
            "patches_in_box": jnp.mean(inside, axis=-1),
        }
    finite_values = (jnp.where(jnp.abs(row) < _HIGHEST, row, jnp.nan) for row in values.values())
    finite_rows = outputs_finite(outputs) & rows_finite(*finite_values)

    def mean(of_examples: jax.Array, which: jax.Array) -> Mean:
        return mean_of(jnp.where(finite_rows, of_examples, jnp.nan), which)

    sums = {name: mean(of_examples, mask) for name, of_examples in values.items()}
    sums[NONFINITE] = mean_of(1.0 - finite_rows, mask)
    if not multi_label:
        confidence = jnp.max(losses.probabilities(kind, outputs.logits), axis=-1)
        gaps = jnp.where(finite_rows, confidence - correct, jnp.nan)
        sums["calibration"] = _calibration(confidence, gaps, mask)
    if boxes is not None:
        # An image without an object says nothing about where the network should look.
        with_box = mask * has_box(boxes)
        sums |= {name: mean(of_examples, with_box) for name, of_examples in box_values.items()}
    return sums


def evaluation_metrics(sums: Mapping[str, Mean]) -> dict[str, float]:
    """Computes metrics from the sum of all batches' `evaluation_sums`.

    Returns:
      accuracy, loss (nats, or the margin loss), patch_loss (attention-weighted, nats; not with dynamic
      routing), patch_accuracy (share of patches that predict the image's label),
      attended_patch_accuracy (the same weighted by attention), attention_entropy (nats),
      calibration_error, num_examples. With several labels per image precision_at_1 (share of images
      whose most probable class is one of theirs) instead of accuracy and calibration_error, and
      patch_accuracy counts patches that predict any of them. With boxes also attention_in_box (share
      of attention on patches whose centre lies in the box), pointing_accuracy (share of images whose
      most attended patch has its centre in the box) and patches_in_box (share of patches with their
      centre in the box). These three are means over the images with a box, and of an image with
      several boxes any counts; 0 where no image has one.

      Where examples have non-finite outputs or losses, `nonfinite` is how many, and the metrics that hold
      one of them are NaN; else there is no `nonfinite`.
    """
    scalars = {name: mean for name, mean in sums.items() if name not in ("calibration", NONFINITE)}
    metrics = compute(scalars)
    if "calibration" in sums:
        metrics["calibration_error"] = _expected_calibration_error(sums["calibration"])
    metrics["num_examples"] = int(sums["loss"].count)
    if nonfinite := int(sums[NONFINITE].total):
        metrics[NONFINITE] = nonfinite
    return metrics


def _calibration(confidence: jax.Array, gaps: jax.Array, mask: jax.Array) -> Mean:
    """Sums confidence minus correctness per confidence bin.

    And the number of examples: `[bins]` both.

    NaN in a real example's gap makes every bin NaN; in a masked one it changes nothing.
    """
    bins = jnp.clip((confidence * CALIBRATION_BINS).astype(jnp.int32), 0, CALIBRATION_BINS - 1)
    member = jax.nn.one_hot(bins, CALIBRATION_BINS) * mask[:, None]
    # A masked row may hold anything, and 0 * NaN is not 0.
    gaps = jnp.where(mask > 0, gaps, 0.0)
    return Mean(jnp.sum(member * gaps[:, None], axis=0), jnp.sum(member, axis=0))


def _expected_calibration_error(calibration: Mean) -> float:
    """Computes ECE over equally wide bins.

    `sum_b |sum of gaps in b| / N` (Guo et al. 2017, equation 5).
    """
    gaps = np.abs(np.asarray(calibration.total, np.float64))
    return float(gaps.sum() / max(float(np.sum(calibration.count)), 1.0))
