"""Localisation: metrics of maps against the object's box or mask.

An explanation of B images is `patches` `[B, P]` and `pixels` `[B, H, W]`, floats up to 1e37 in size and of
any sign, higher where the image matters more. Boxes are `[B, 4]` (ymin, xmin, ymax, xmax), fractions of the
image, or `[B, M, 4]` where an image may have several; what lies in any of them is in "the box". A pixel or
a patch lies in one if its centre does, edges included (`metrics.centres_in_boxes`). Where an image has no box
(`data.NO_BOX`), nothing lies in it and every value is 0; `metrics.has_box` says which these are. For the
explanation of one class, `boxes_of_class` leaves that class's boxes.

All functions but the last are pure, can be traced and vmapped, and return a value per image and nothing
that depends on the other images, so that padding is masked when values are averaged:
`metrics.mean_of(values, mask)`, or for `[B, T]` `jax.vmap(metrics.mean_of, (1, None))(values, mask)`.

Equal values share: a map that prefers nothing gets what chance would get, not what stands first.

Shapes, dtypes and thresholds that do not fit raise a `ValueError` with a sentence, also while traced.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.arguments import FLAGS, NUMBERS, WHOLE, Kind, check_arrays, check_number
from lossattn_jax.commands import imports
from lossattn_jax.data.boxes import NO_BOX
from lossattn_jax.evaluate import metrics

__getattr__ = imports.former_names(__name__, {"localised": "is_localised"})

THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))

# Relative slack of comparisons: where exactly half of a patch lies in the box, or a value is exactly
# three tenths of the highest, rounding is not to decide.
_SLACK = 1e-5


class PatchScores(NamedTuple):
    """Precision, recall and F of patches above thresholds, `[B, T]` float32.

    Attributes:
      precision: share of the passing patches that are true; 0 where none passes.
      recall: share of the true patches that pass; 0 where none is true.
      f: harmonic mean of the two, `2 hits / (passing + true)`; 0 where none passes and none is true.
      hits: number of true patches that pass.
      passing: number of patches that pass.
      true: number of true patches, the same at each threshold.
    """

    precision: jax.Array
    recall: jax.Array
    f: jax.Array
    hits: jax.Array
    passing: jax.Array
    true: jax.Array


def boxes_of_class(boxes: jax.Array, box_labels: jax.Array, classes: jax.Array) -> jax.Array:
    """Keeps each image's boxes of one class.

    Args:
      boxes: `[B, M, 4]`.
      box_labels: `[B, M]` int, the class of each; -1 of one that is not there.
      classes: `[B]` int, a class for each image.

    Returns:
      `[B, M, 4]` with `NO_BOX` in place of the others.
    """
    check_arrays(
        boxes=(boxes, "B M 4", NUMBERS),
        box_labels=(box_labels, "B M", WHOLE),
        classes=(classes, "B", WHOLE),
    )
    of_class = (box_labels == classes[:, None])[..., None]
    return jnp.where(of_class, boxes, jnp.asarray(NO_BOX, boxes.dtype)[None, None])


def pointing(pixels: jax.Array, boxes: jax.Array) -> jax.Array:
    """Plays the pointing game (Zhang et al. 2018).

    "Top-Down Neural Attention by Excitation Backprop".

    Without that paper's margin of 15 pixels around the object.

    Args:
      pixels: `[B, H, W]` float.
      boxes: `[B, 4]` or `[B, M, 4]`.

    Returns:
      `[B]` float32: 1 where the pixel of the highest value lies in the box, else 0. Of several pixels
      with the highest value the share that lies in it; so a flat map gets the box's share of the image.
    """
    flat, inside = _flatten(pixels, boxes)
    return _share_inside(_highest(flat), inside)


def patch_pointing(patches: jax.Array, centres: jax.Array, boxes: jax.Array) -> jax.Array:
    """Plays `pointing` with the highest patch.

    Args:
      patches: `[B, P]` float.
      centres: `[P, 2]` (y, x) of the patches, fractions of the image; see `PatchGrid.centres`.
      boxes: `[B, 4]` or `[B, M, 4]`.

    Returns:
      `[B]` float32 in [0, 1].
    """
    check_arrays(
        patches=(patches, "B P", NUMBERS), centres=(centres, "P 2", NUMBERS), boxes=_boxes(boxes)
    )
    inside = metrics.centres_in_boxes(centres, boxes)
    return _share_inside(_highest(patches.astype(jnp.float32)), inside)


def mass_in_box(pixels: jax.Array, boxes: jax.Array) -> jax.Array:
    """Computes the share of a map's positive part in the box.

    Wang et al. 2020, "Score-CAM".

    Args:
      pixels: `[B, H, W]` float; negative values count as 0.
      boxes: `[B, 4]` or `[B, M, 4]`.

    Returns:
      `[B]` float32 in [0, 1]; 0 where no value is positive.
    """
    flat, inside = _flatten(pixels, boxes)
    # In units of the highest value no sum over- or underflows.
    highest = jnp.max(flat, axis=1, keepdims=True)
    mass = jnp.maximum(flat, 0.0) / jnp.where(highest > 0, highest, 1.0)
    return _share_inside(mass, inside)


def patch_scores(
    patches: jax.Array, inside: jax.Array, thresholds: Sequence[float] | jax.Array = THRESHOLDS
) -> PatchScores:
    """Computes precision, recall and F of patches above thresholds.

    The thresholds are shares of the image's highest value.

    Args:
      patches: `[B, P]` float. Where none is positive, none passes.
      inside: `[B, P]` bool or 0/1: the true patches, such as `metrics.centres_in_boxes`.
      thresholds: T shares of the highest value, above 0 and at most 1.

    Returns:
      `PatchScores`. Summed over images, its counts give the pooled scores through `scores_of_counts`;
      averaged with a mask over images with `true > 0`, its scores leave out images without an object.
    """
    check_arrays(patches=(patches, "B P", NUMBERS), inside=(inside, "B P", FLAGS))
    if isinstance(thresholds, jax.Array):
        check_arrays(thresholds=(thresholds, "T", NUMBERS))
    else:
        for threshold in thresholds:
            check_number("a threshold", threshold, 0, 1, low_too=False, high_too=True)
    patches = patches.astype(jnp.float32)
    levels = jnp.asarray(thresholds, jnp.float32)
    highest = jnp.max(patches, axis=1, keepdims=True)
    lowest = jnp.where(highest > 0, (1 - _SLACK) * highest * levels[None], jnp.inf)
    passes = patches[:, None, :] >= lowest[:, :, None]
    truth = jnp.broadcast_to(inside.astype(bool)[:, None, :], passes.shape)
    hits, passing, true = (
        jnp.sum(which, axis=-1, dtype=jnp.float32) for which in (passes & truth, passes, truth)
    )
    return PatchScores(*scores_of_counts(hits, passing, true), hits, passing, true)


def scores_of_counts(
    hits: jax.Array, passing: jax.Array, true: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes precision, recall and F elementwise; 0 for 0 / 0.

    Args:
      hits: number of true patches that pass, of any shape.
      passing: number of patches that pass, of the same shape.
      true: number of true patches, of the same shape.
    """
    check_arrays(
        hits=(hits, "...", NUMBERS), passing=(passing, "...", NUMBERS), true=(true, "...", NUMBERS)
    )
    pairs = ((hits, passing), (hits, true), (2 * hits, passing + true))
    precision, recall, f = (part / jnp.maximum(whole, 1) for part, whole in pairs)
    return precision, recall, f


def is_localised(patches: jax.Array, boxes: jax.Array, patch_boxes: jax.Array) -> jax.Array:
    """Whether half of the top patch lies in the box.

    The AAAI 2020 paper's criterion: at least half of its area.

    Args:
      patches: `[B, P]` float.
      boxes: `[B, 4]` of the objects, or `[B, M, 4]`.
      patch_boxes: `[P, 4]` of the patches, fractions of the image; see `PatchGrid.boxes`.

    Returns:
      `[B]` float32, 0 or 1. Of several patches with the highest value the areas are added up: at least
      half of their sum has to lie in the box. Of several boxes one alone has to hold that half.
    """
    check_arrays(
        patches=(patches, "B P", NUMBERS),
        boxes=_boxes(boxes),
        patch_boxes=(patch_boxes, "P 4", NUMBERS),
    )
    boxes, windows = metrics.several(boxes)[:, :, None], patch_boxes[None, None]
    low = jnp.maximum(boxes[..., :2], windows[..., :2])
    high = jnp.minimum(boxes[..., 2:], windows[..., 2:])
    common = jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)
    areas = jnp.prod(patch_boxes[:, 2:] - patch_boxes[:, :2], axis=-1)
    top = _highest(patches.astype(jnp.float32))
    half = 0.5 * (1 - _SLACK) * jnp.sum(top * areas[None], axis=1)
    common_area = jnp.sum(top[:, None] * common, axis=2)
    return jnp.any(common_area >= half[:, None], axis=1).astype(jnp.float32)


def localisation_average_precision(
    is_localised: np.ndarray, scores: np.ndarray, objects: int | None = None
) -> float:
    """Computes the average precision of localisation over a set.

    Confident images are to be localised.

    The images are ranked by their scores; those of equal score are taken together. The precision at
    each localised image is averaged (no interpolation), as scikit-learn's `average_precision_score` does.

    Args:
      is_localised: `[N]` 0 or 1, of every image; 0 also for an image without the object.
      scores: `[N]` finite float, the network's probability of the object's class.
      objects: how many images show the object. An object that is not localised is then one that was
        not found, as in Oquab et al. 2015 ("Is Object Localization for Free?"), and the result is at
        most the share that was. None: those localised, so that only their order counts.

    Returns:
      Between 0 and 1; 0 where nothing is localised.

    Raises:
      ValueError: shapes that differ, no image, scores that are not finite, values other than 0 and 1, or
        fewer objects than localised ones.
    """
    right, scores = np.asarray(is_localised, np.float64), np.asarray(scores, np.float64)
    if right.ndim != 1 or right.shape != scores.shape or not right.size:
        raise ValueError(
            f"localised and scores have to be of one shape [N], not {right.shape} and {scores.shape}"
        )
    if not np.isfinite(scores).all() or not np.isin(right, (0, 1)).all():
        raise ValueError("scores have to be finite, and localised 0 or 1")
    count = int(right.sum())
    if objects is not None and objects < count:
        raise ValueError(f"{objects} objects are fewer than the {count} localised ones")
    if not count:
        return 0.0
    order = np.argsort(-scores)
    sorted_scores = scores[order]
    last = np.append(
        np.flatnonzero(sorted_scores[1:] != sorted_scores[:-1]), len(sorted_scores) - 1
    )
    hits = np.cumsum(right[order])[last]
    precision = hits / (last + 1)
    return float(np.sum(np.diff(hits, prepend=0) * precision) / (objects or count))


def _boxes(boxes: jax.Array) -> tuple[jax.Array, str, Kind]:
    """Returns boxes as `check_arrays` takes them.

    `[B, 4]`, or `[B, M, 4]` where there are three axes.
    """
    return boxes, "B M 4" if np.ndim(boxes) == 3 else "B 4", NUMBERS


def _flatten(pixels: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Flattens maps to `[B, H * W]`, and finds pixels in boxes.

    float32 and bool.
    """
    check_arrays(pixels=(pixels, "B H W", NUMBERS), boxes=_boxes(boxes))
    batch, height, width = pixels.shape
    ys, xs = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    centres = np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)
    inside = metrics.centres_in_boxes(jnp.asarray(centres, jnp.float32), boxes)
    return pixels.astype(jnp.float32).reshape(batch, -1), inside


def _highest(values: jax.Array) -> jax.Array:
    """Marks each row's highest values `[B, N]` by 1."""
    first = jnp.argmax(values, axis=1)[:, None]
    # The place of the highest value too: XLA may compute the values a second time for the comparison,
    # rounded otherwise, and then none would be equal.
    place = jnp.arange(values.shape[1])[None] == first
    equal = values == jnp.take_along_axis(values, first, axis=1)
    return (place | equal).astype(jnp.float32)


def _share_inside(weights: jax.Array, inside: jax.Array) -> jax.Array:
    """Computes the share of weights `[B, N]` inside.

    None is negative; 0 where all are 0.
    """
    total = jnp.sum(weights, axis=1)
    mass = jnp.sum(weights * inside.astype(weights.dtype), axis=1)
    share = mass / jnp.where(total > 0, total, 1.0)
    return jnp.clip(share, 0.0, 1.0)
