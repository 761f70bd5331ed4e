"""Metrics as (sum, count) pairs, divided once at the end.

They are summed on the devices, over batches and over processes.

Which metrics an evaluation has is in `metric_registry`; here is what they are made of.

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

NONFINITE = "nonfinite"  # beside metrics: how many examples have non-finite outputs


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


def divide(mean: Mean) -> float:
    """The value of a scalar metric; 0 where nothing was counted."""
    return float(mean.total) / float(mean.count) if float(mean.count) else 0.0


def merge(first: Mapping[str, Mean], second: Mapping[str, Mean]) -> dict[str, Mean]:
    """Merges two sets of the same metrics, name by name."""
    return {name: first[name] + second[name] for name in first}


def compute(means: Mapping[str, Mean]) -> dict[str, float]:
    """Returns scalar metrics as Python floats; see `divide`."""
    return {name: divide(mean) for name, mean in means.items()}


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


def hits_among_top(logits: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """Whether each label is among the highest of `logits`.

    Of equal logits those of the first classes are higher, so that one of `count` is `hits`.

    Args:
      logits: `[B, K]`.
      labels: `[B]` int in [0, K).
      count: how many are the highest, such as 5.

    Returns:
      `[B]` float32, 1 or 0.

    Raises:
      ValueError: there are fewer than `count` classes, or shapes and dtypes do not fit.
    """
    check_arrays(logits=(logits, "B K", NUMBERS), labels=(labels, "B", WHOLE))
    classes = logits.shape[-1]
    if not 1 <= count <= classes:
        raise ValueError(
            f"the top {count} of {classes} classes is not defined: count must be from 1 to {classes}"
        )
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    first = jnp.arange(classes)[None] < labels[:, None]
    before = jnp.sum((logits > own) | ((logits == own) & first), axis=-1)
    return (before < count).astype(jnp.float32)


def pooled_share_of(parts: jax.Array, mask: jax.Array) -> Mean:
    """Sums parts and wholes over the examples, as the `Mean` of both.

    Args:
      parts: `[B, 2]`, of each example a part and its whole; one NaN in an example that counts makes the
        sum NaN.
      mask: `[B]` float32, 1 where an example counts.
    """
    check_arrays(parts=(parts, "B two", NUMBERS), mask=(mask, "B", FLAGS))
    total, count = jnp.sum(jnp.where(mask[:, None] > 0, parts, 0.0), axis=0)
    return Mean(total, count)
