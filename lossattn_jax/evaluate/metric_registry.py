"""The registry of evaluation metrics: how each is measured and shown.

To add one, write a function of `Predictions` here and its `EvaluationMetric`, and put it into
`EVALUATION_METRICS`. All that suit a network and its labels are measured; no key names them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.arguments import FLAGS, NUMBERS, check_arrays
from lossattn_jax.attention import losses
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.average_precision import (
    mean_average_precision,
    published_mean_average_precision,
)
from lossattn_jax.evaluate.metrics import NONFINITE, Mean
from lossattn_jax.models import Outputs
from lossattn_jax.registry import Registry

CALIBRATION_BINS = 15
TOP = 5  # classes of the top-5 accuracy
# A value beyond it counts as non-finite: a batch of such losses could have no sum in float32.
_HIGHEST = 1e32


@dataclasses.dataclass(eq=False)
class Predictions:
    """Predictions for B images under a trace, with their labels and boxes; what is shared is made once.

    Attributes:
      outputs: of the network.
      labels: `[B]` int, or multi-hot `[B, K]`.
      kind: of image loss; see `losses`.
      centres: `[P, 2]` patch centres, fractions of the image.
      boxes: `[B, 4]` (ymin, xmin, ymax, xmax) of the labelled object, or `[B, M, 4]` of several; only metrics
        that need boxes may look at them.
    """

    outputs: Outputs
    labels: jax.Array
    kind: str
    centres: jax.Array
    boxes: jax.Array | None = None

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.labels.ndim == self.outputs.logits.ndim

    @functools.cached_property
    def correct(self) -> jax.Array:
        """`[B]` float32: 1 where the most probable class is the label, or one of the labels."""
        return metrics.hits(self.outputs.logits, self.labels)

    @functools.cached_property
    def patch_correct(self) -> jax.Array:
        """`[B, P]` float32: the same of patches, with the image's labels."""
        shape = (*self.outputs.attention.shape, *self.labels.shape[1:])
        patch_labels = jnp.broadcast_to(self.labels[:, None], shape)
        return metrics.hits(self.outputs.patch_logits, patch_labels)

    @functools.cached_property
    def is_localised(self) -> jax.Array:
        """Says which patches are localised.

        `[B, P]` float32, 1 where a patch has a weight, and its own probability of a label is above 1/2.

        The rule of the TIP 2021 paper's `patch_eval` for images of several classes (`coco_main_resnet18.py`).
        """
        own = losses.probabilities(self.kind, self.outputs.patch_logits) > 0.5
        of_image = jnp.any(own & (self.labels[:, None] > 0), axis=-1)
        return (of_image & (self.outputs.attention > 0)).astype(jnp.float32)

    @functools.cached_property
    def inside(self) -> jax.Array:
        """`[B, P]` float32: 1 where a patch has its centre in a box."""
        check_arrays(
            attention=(self.outputs.attention, "B P", NUMBERS),
            centres=(self.centres, "P 2", NUMBERS),
        )
        assert self.boxes is not None
        return metrics.centres_in_boxes(self.centres, self.boxes).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationMetric:
    """A metric of a network over a split.

    Attributes:
      higher: whether more is better; None: neither.
      measure: makes of `Predictions` of B images a value for each, `[B]` float32, or what `add` takes; it is
        traced. It gives None where the network or the labels have no such metric. None: `rank` makes it.
      rank: of images with any number of labels: makes of the scores `[N, K]` and of which classes are there,
        bool `[N, K]`, of the whole split the metric; NumPy. None: `measure` makes it.
      needs_boxes: whether it is measured only where a data set has boxes, of images that have one.
      add: makes of the values and of which of them count, `[B]` float32, their sum; it is traced. A value
        that counts and is NaN makes the sum NaN.
      divide: makes of the sum over the split the metric; with `add` as it is, the mean.
      in_log: whether a training says it after each evaluation.
      compares_thresholds: whether it is in a report's table of thresholds of the attention.
      compares_systems: whether it is a row of the table of several systems.
      chooses_checkpoint: whether the checkpoint with the highest is the best; of several, the first does.
    """

    higher: bool | None
    measure: Callable[[Predictions], jax.Array | None] | None = None
    rank: Callable[[np.ndarray, np.ndarray], float] | None = None
    needs_boxes: bool = False
    add: Callable[[jax.Array, jax.Array], Mean] = metrics.mean_of
    divide: Callable[[Mean], float] = metrics.divide
    in_log: bool = False
    compares_thresholds: bool = False
    compares_systems: bool = False
    chooses_checkpoint: bool = False


def _accuracy(predictions: Predictions) -> jax.Array | None:
    """The share of images whose most probable class is theirs."""
    return None if predictions.multi_label else predictions.correct


def _top_5_accuracy(predictions: Predictions) -> jax.Array | None:
    """Whether the label is among the five most probable classes; None of fewer."""
    if predictions.multi_label or predictions.outputs.logits.shape[-1] < TOP:
        return None
    return metrics.hits_among_top(predictions.outputs.logits, predictions.labels, TOP)


def _precision_at_1(predictions: Predictions) -> jax.Array | None:
    """The share of images whose most probable class is one of theirs."""
    return predictions.correct if predictions.multi_label else None


def _loss(predictions: Predictions) -> jax.Array:
    """In nats, or the margin loss."""
    return losses.image_loss(predictions.kind, predictions.outputs.logits, predictions.labels)


def _patch_loss(predictions: Predictions) -> jax.Array | None:
    """Attention-weighted, in nats; not where the loss has none of patches, as with dynamic routing."""
    outputs, kind = predictions.outputs, predictions.kind
    if losses.LOSSES.find(kind).patch is None:
        return None
    return losses.patch_loss(kind, outputs.patch_logits, predictions.labels, outputs.attention)


def _attention_entropy(predictions: Predictions) -> jax.Array:
    """In nats."""
    return metrics.attention_entropy(predictions.outputs.attention)


def _patch_accuracy(predictions: Predictions) -> jax.Array:
    """The share of patches that predict the image's label, or any of its labels."""
    return jnp.mean(predictions.patch_correct, axis=-1)


def _attended_patch_accuracy(predictions: Predictions) -> jax.Array:
    """The same weighted by attention."""
    return jnp.sum(predictions.outputs.attention * predictions.patch_correct, axis=-1)


def _pointing_accuracy(predictions: Predictions) -> jax.Array:
    """The share of images whose most attended patch has its centre in a box."""
    top = jnp.argmax(predictions.outputs.attention, axis=-1)
    return jnp.take_along_axis(predictions.inside, top[:, None], axis=1)[:, 0]


def _attention_in_box(predictions: Predictions) -> jax.Array:
    """The share of attention on patches whose centre lies in a box."""
    return jnp.sum(predictions.outputs.attention * predictions.inside, axis=-1)


def _patches_in_box(predictions: Predictions) -> jax.Array:
    """What weights without any preference would reach: the yardstick of `_attention_in_box`."""
    return jnp.mean(predictions.inside, axis=-1)


def _localised_patch_precision(predictions: Predictions) -> jax.Array | None:
    """`[B, 2]`: localised patches with their centre in a box, and all localised ones."""
    if not predictions.multi_label:
        return None
    hits = predictions.is_localised * predictions.inside
    return jnp.stack([hits.sum(axis=-1), predictions.is_localised.sum(axis=-1)], axis=-1)


def _localised_patch_recall(predictions: Predictions) -> jax.Array | None:
    """`[B, 2]`: localised patches with their centre in a box, and all patches with it there."""
    if not predictions.multi_label:
        return None
    hits = predictions.is_localised * predictions.inside
    return jnp.stack([hits.sum(axis=-1), predictions.inside.sum(axis=-1)], axis=-1)


def _confidence(predictions: Predictions) -> jax.Array | None:
    """`[B, 2]`: the probability of the most probable class, and the same less 1 where it is right."""
    if predictions.multi_label:
        return None
    probabilities = losses.probabilities(predictions.kind, predictions.outputs.logits)
    confidence = jnp.max(probabilities, axis=-1)
    return jnp.stack([confidence, confidence - predictions.correct], axis=-1)


def _add_gaps(confidence: jax.Array, mask: jax.Array) -> Mean:
    """Per confidence bin the sum of (confidence - correct), and the number of examples: `[bins]`.

    NaN in a real example's gap makes every bin NaN; in a masked one it changes nothing.
    """
    bins = (confidence[:, 0] * CALIBRATION_BINS).astype(jnp.int32)
    bins = jnp.clip(bins, 0, CALIBRATION_BINS - 1)
    member = jax.nn.one_hot(bins, CALIBRATION_BINS) * mask[:, None]
    # A masked row may hold anything, and 0 * NaN is not 0.
    gaps = jnp.where(mask > 0, confidence[:, 1], 0.0)
    return Mean(jnp.sum(member * gaps[:, None], axis=0), jnp.sum(member, axis=0))


def _expected_calibration_error(calibration: Mean) -> float:
    """ECE (Guo et al. 2017, eq. 5) over equally wide bins: `sum_b |sum of gaps in b| / N`."""
    gaps = np.abs(np.asarray(calibration.total, np.float64))
    return float(gaps.sum() / max(float(np.sum(calibration.count)), 1.0))


def _placed(measure: Callable[[Predictions], jax.Array], higher: bool | None) -> EvaluationMetric:
    """A metric of where the attention is, beside the labelled object's box."""
    return EvaluationMetric(higher, measure, needs_boxes=True, compares_thresholds=True)


EVALUATION_METRICS = Registry(
    "metric of evaluations",
    EvaluationMetric,
    {
        "accuracy": EvaluationMetric(
            True,
            _accuracy,
            in_log=True,
            compares_thresholds=True,
            compares_systems=True,
            chooses_checkpoint=True,
        ),
        "top_5_accuracy": EvaluationMetric(True, _top_5_accuracy),
        "precision_at_1": EvaluationMetric(True, _precision_at_1),
        "map_all_point": EvaluationMetric(
            True,
            rank=functools.partial(mean_average_precision, points="all"),
            in_log=True,
            chooses_checkpoint=True,
        ),
        "map_11_point": EvaluationMetric(
            True, rank=functools.partial(mean_average_precision, points="11")
        ),
        "map_exact": EvaluationMetric(
            True, rank=functools.partial(mean_average_precision, points="exact")
        ),
        "map_as_published": EvaluationMetric(True, rank=published_mean_average_precision),
        "loss": EvaluationMetric(False, _loss, in_log=True, compares_thresholds=True),
        "patch_loss": EvaluationMetric(False, _patch_loss),
        "attention_entropy": EvaluationMetric(None, _attention_entropy, compares_thresholds=True),
        "patch_accuracy": EvaluationMetric(True, _patch_accuracy, in_log=True),
        "attended_patch_accuracy": EvaluationMetric(
            True, _attended_patch_accuracy, compares_thresholds=True
        ),
        "pointing_accuracy": dataclasses.replace(_placed(_pointing_accuracy, True), in_log=True),
        "attention_in_box": _placed(_attention_in_box, True),
        "patches_in_box": _placed(_patches_in_box, None),
        # Pooled over images, as the TIP paper's code does.
        "localised_patch_precision": EvaluationMetric(
            True, _localised_patch_precision, needs_boxes=True, add=metrics.pooled_share_of
        ),
        "localised_patch_recall": EvaluationMetric(
            True, _localised_patch_recall, needs_boxes=True, add=metrics.pooled_share_of
        ),
        "calibration_error": EvaluationMetric(
            False, _confidence, add=_add_gaps, divide=_expected_calibration_error
        ),
    },
)


def evaluation_sums(
    outputs: Outputs,
    labels: jax.Array,
    mask: jax.Array,
    centres: jax.Array,
    boxes: jax.Array | None = None,
    kind: str = losses.CROSS_ENTROPY,
) -> dict[str, Mean]:
    """What a batch adds to an evaluation; `evaluation_metrics` divides it.

    Args:
      outputs: of the network for B images.
      labels: `[B]` int, or multi-hot `[B, K]`.
      mask: `[B]` float32, 1 for a real example and 0 for padding.
      centres: `[P, 2]` patch centres, fractions of the image; used with `boxes`.
      boxes: `[B, 4]` (ymin, xmin, ymax, xmax) of the labelled object, `[B, M, 4]` of several, or None.
      kind: of image loss; see `losses`.

    Returns:
      Sums by the names of `EVALUATION_METRICS` with a `measure`. Those that hold an example whose outputs or
      values are non-finite (or beyond 1e32) are NaN, and the total of "nonfinite" counts these examples.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    check_arrays(
        logits=(outputs.logits, "B K", NUMBERS),
        patch_logits=(outputs.patch_logits, "B P K", NUMBERS),
        attention=(outputs.attention, "B P", NUMBERS),
        mask=(mask, "B", FLAGS),
    )
    values = _measure(Predictions(outputs, labels, kind, centres, boxes))
    bounded = (jnp.where(jnp.abs(value) < _HIGHEST, value, jnp.nan) for value in values.values())
    finite = metrics.outputs_finite(outputs) & metrics.rows_finite(*bounded)
    # An image without an object says nothing about where the network should look.
    with_box = mask
    if boxes is not None:
        with_box = jnp.where(metrics.has_box(boxes), mask, jnp.zeros_like(mask))
    sums = {NONFINITE: metrics.mean_of((~finite).astype(jnp.float32), mask)}
    for name, value in values.items():
        known = jnp.where(finite.reshape(-1, *(1 for _ in value.shape[1:])), value, jnp.nan)
        metric = EVALUATION_METRICS[name]
        sums[name] = metric.add(known, with_box if metric.needs_boxes else mask)
    return sums


def evaluation_metrics(sums: Mapping[str, Mean]) -> dict[str, float]:
    """The metrics of an evaluation from the sum of all batches' `evaluation_sums`.

    Returns:
      By name what each entry of `EVALUATION_METRICS` with a `measure` makes of its sum; `num_examples`; and
      where examples have non-finite outputs or values, `nonfinite`, their number: the metrics that hold one
      of them are NaN. Metrics with boxes are means over the images that have one, 0 where none has.
    """
    measured = {
        name: metric.divide(sums[name])
        for name, metric in EVALUATION_METRICS.items()
        if name in sums
    }
    measured["num_examples"] = int(sums[NONFINITE].count)
    if nonfinite := int(sums[NONFINITE].total):
        measured[NONFINITE] = nonfinite
    return measured


def ranking_metrics(scores: np.ndarray, positives: np.ndarray) -> dict[str, float]:
    """The metrics of an evaluation that take the scores of the whole split.

    Args:
      scores: `[N, K]`.
      positives: bool `[N, K]`, which classes each image shows.

    Returns:
      By name what each entry of `EVALUATION_METRICS` with a `rank` makes of them; all NaN where a score is
      not finite, for such a network ranks nothing.
    """
    ranked = {name: metric.rank for name, metric in EVALUATION_METRICS.items() if metric.rank}
    if not np.isfinite(scores).all():
        return dict.fromkeys(ranked, float("nan"))
    return {name: rank(scores, positives) for name, rank in ranked.items()}


def _measure(predictions: Predictions) -> dict[str, jax.Array]:
    """The values of images by name, of the metrics that there are for them."""
    values = {}
    for name, metric in EVALUATION_METRICS.items():
        if metric.measure is None or (metric.needs_boxes and predictions.boxes is None):
            continue
        value = metric.measure(predictions)
        if value is not None:
            values[name] = value
    return values
