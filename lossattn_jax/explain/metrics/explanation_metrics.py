"""All metrics of an explainer, as one program over all devices.

Faithfulness and sanity are about the class that the network predicts: they ask whether the explanation tells
what the network used, right or wrong. Localisation is about the labelled object's box; where an image has
several objects, about those of the class that the network predicts, in images that have one.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.attention import losses
from lossattn_jax.evaluate import metrics
from lossattn_jax.explain.explainers import Explainer, Relevance, Subject
from lossattn_jax.explain.metrics import (
    faithfulness,
    localisation,
    map_agreement,
    metric_registry,
)
from lossattn_jax.explain.metrics.maps import Maps, Protocol, finite_rows
from lossattn_jax.explain.metrics.metric_registry import METRICS, Metric

# What there is at each of `localisation.THRESHOLDS`.
_CURVES = ("precision", "recall", "f")
Sums = dict[str, metrics.Mean]
ExplainStep = Callable[[Any, jax.Array, jax.Array, jax.Array], Relevance]


@flax.struct.dataclass
class Relevances:
    """An explainer's relevance of B images, also shifted and randomised.

    Attributes:
      relevance: of the images.
      after_shift: of the images moved by `Protocol.shift`.
      after_randomisation: of the images, by networks of `randomised_variables`.
    """

    relevance: Relevance
    after_shift: Relevance
    after_randomisation: dict[str, Relevance]


MetricStep = Callable[
    [Any, dict[str, jax.Array], jax.Array, Relevances], tuple[Sums, dict[str, jax.Array]]
]


def image_keys(seed: int, index: jax.Array) -> jax.Array:
    """Makes random keys of images by their places `[B]`.

    Whatever batch they are in.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)


def randomised_variables(variables: dict[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """Variables whose parameters are shuffled from the classifier down.

    Args:
      variables: of the network.
      seed: of the shuffles.

    Returns:
      "classifier" (with the pooling's own parameters), "head" (also the head's, where it has some), and
      "backbone" (also the backbone's).
    """
    params, key = variables["params"], jax.random.key(seed)
    return {
        stage: {**variables, "params": map_agreement.randomise(params, key, names)}
        for stage, names in map_agreement.stages(params).items()
    }


def make_explain_step(
    subject: Subject, explain: Explainer, spec: data.DatasetSpec, seed: int
) -> ExplainStep:
    """Makes the pmapped explainer.

    Takes replicated variables, and sharded images `[devices, b, H, W, C]` uint8, classes and places in
    the data set `[devices, b]`; returns the sharded `Relevance`.
    """

    def step(variables: Any, images: jax.Array, classes: jax.Array, index: jax.Array) -> Relevance:
        pixels = data.normalise(images, spec.mean, spec.std, subject.model.dtype)
        return explain(variables, pixels.astype(jnp.float32), classes, image_keys(seed, index))

    return devices.pmap(step)


def make_metric_step(
    subject: Subject,
    spec: data.DatasetSpec,
    kind: str,
    protocol: Protocol,
    chosen_metrics: Mapping[str, Metric] = METRICS,
) -> MetricStep:
    """Makes the pmapped metrics of an explainer's maps.

    The step takes replicated variables, a sharded evaluation batch with `image`, `label`, `mask`, `index`
    and, where the data set has boxes, `box` (of several objects also `box_label`), the sharded predicted
    classes and `Relevances`. It returns replicated sums over all devices, for `metrics.merge` and
    `metrics_of`, and what is needed of each image, sharded: with boxes `localised` and `has_box`, for
    `mean_localisation_ap`.

    Args:
      subject: the network.
      spec: of the data set.
      kind: of image loss; see `losses`.
      protocol: how it is measured.
      chosen_metrics: the metrics, as of `metric_registry.find`.
    """
    grid = subject.model.patch_grid(subject.image_shape)
    height, width, _ = subject.image_shape
    cells = faithfulness.cells(grid, (height, width))
    centres, patch_boxes = jnp.asarray(grid.centres()), jnp.asarray(grid.boxes())

    def step(
        variables: Any, batch: dict[str, jax.Array], classes: jax.Array, relevances: Relevances
    ) -> tuple[Sums, dict[str, jax.Array]]:
        images = data.normalise(batch["image"], spec.mean, spec.std, subject.model.dtype)
        images = images.astype(jnp.float32)
        keys = image_keys(protocol.seed, batch["index"])

        def predict(x: jax.Array) -> jax.Array:
            return losses.probabilities(kind, subject.outputs(variables, x).logits)

        own_relevance, mask = relevances.relevance, batch["mask"]
        maps = Maps(
            predict=predict,
            images=images,
            classes=classes,
            keys=keys,
            relevance=own_relevance,
            after_shift=relevances.after_shift,
            after_randomisation=relevances.after_randomisation,
            protocol=protocol,
            cells=cells,
            centres=centres,
            patch_boxes=patch_boxes,
        )
        values = metric_registry.measure(chosen_metrics, maps, boxes=False)
        # Ranks and highest values are numbers whatever the outputs and the map hold.
        outputs = subject.outputs(variables, images)
        right = metrics.outputs_finite(outputs) & finite_rows(own_relevance)
        values = {name: _where(right, value) for name, value in values.items()}
        sums = {name: metrics.mean_of(value, mask) for name, value in values.items()}
        finite = metrics.rows_finite(*values.values()) if values else right
        sums[metrics.NONFINITE] = metrics.mean_of((~finite).astype(jnp.float32), mask)
        per_image = {}
        if "box" in batch:
            boxes = batch["box"]
            if "box_label" in batch:  # what was explained is one class of several
                boxes = localisation.boxes_of_class(boxes, batch["box_label"], classes)
            maps.boxes = boxes
            box_values = metric_registry.measure(chosen_metrics, maps, boxes=True)
            if any(metric.needs_curves for metric in chosen_metrics.values()):
                box_values |= _curves(maps)
            box_values = {name: _where(right, value) for name, value in box_values.items()}
            has_box = metrics.has_box(boxes)
            with_box = jnp.where(has_box, mask, jnp.zeros_like(mask))
            sums |= {name: _mean_of(value, with_box) for name, value in box_values.items()}
            if any(metric.needs_ranking for metric in chosen_metrics.values()):
                is_localised = _where(right, metric_registry.measure_localised(maps))
                per_image = {"localised": is_localised, "has_box": has_box}
        return jax.lax.psum(sums, devices.AXIS), per_image

    return devices.pmap(step)


def metrics_of(sums: Mapping[str, metrics.Mean]) -> dict[str, Any]:
    """Computes an explainer's metrics from the sum of all batches.

    Returns:
      By name the means of what the functions in `metric_registry` give. With boxes also:
      curves: `threshold`, a list of shares of the image's highest value, and the lists `precision`,
        `recall` and `f` of the patches that reach them, means over images.
      patch_f_best, patch_f_best_threshold: the highest F of the curve, and the first threshold with it.

      Metrics that hold an image with non-finite outputs, or a non-finite map of it, are NaN (also in the
      curves); `nonfinite`, which is there only then, counts these images.
    """
    scalars = {name: mean for name, mean in sums.items() if not name.startswith("curve_")}
    nonfinite = scalars.pop(metrics.NONFINITE, None)
    measurements: dict[str, Any] = metrics.compute(scalars)
    if nonfinite is not None and int(nonfinite.total):
        measurements[metrics.NONFINITE] = int(nonfinite.total)
    if "curve_f" in sums:
        curves = {name: _divide(sums[f"curve_{name}"]) for name in _CURVES}
        best = int(np.argmax(curves["f"]))
        measurements["patch_f_best"] = curves["f"][best]
        is_known = math.isfinite(curves["f"][best])
        measurements["patch_f_best_threshold"] = (
            localisation.THRESHOLDS[best] if is_known else math.nan
        )
        measurements["curves"] = {"threshold": list(localisation.THRESHOLDS), **curves}
    return measurements


def mean_localisation_ap(
    is_localised: np.ndarray, probabilities: np.ndarray, labels: np.ndarray
) -> float:
    """Computes the AAAI 2020 paper's average precision of localisation.

    The mean over the classes.

    For each class all images are ranked by its probability. An image is right if it shows the class and
    is localised; one that shows it and is not localised was not found.

    Args:
      is_localised: `[N]` 0 or 1, of `localisation.is_localised`.
      probabilities: `[N, K]`.
      labels: `[N]` int in [0, K).

    Returns:
      Between 0 and 1, over the classes that an image shows; NaN without images, and where a probability or
      `is_localised` is not finite.
    """
    if not len(labels) or not (
        np.isfinite(probabilities).all() and np.isfinite(is_localised).all()
    ):
        return math.nan
    of_classes = []
    for label in np.unique(labels):
        own = labels == label
        right = np.where(own, is_localised, 0)
        of_classes.append(
            localisation.localisation_average_precision(
                right, probabilities[:, label], int(own.sum())
            )
        )
    return float(np.mean(of_classes))


def _curves(maps: Maps) -> dict[str, jax.Array]:
    """`[B, T]` scores of the patches that reach each of `localisation.THRESHOLDS`."""
    return {f"curve_{name}": getattr(maps.patch_scores, name)[:, :-1] for name in _CURVES}


def _where(right: jax.Array, values: jax.Array) -> jax.Array:
    """Sets rows `[B, ...]` to NaN that are not `right` `[B]`."""
    return jnp.where(right.reshape(-1, *(1 for _ in values.shape[1:])), values, jnp.nan)


def _mean_of(values: jax.Array, mask: jax.Array) -> metrics.Mean:
    """The mean over the examples of `[B]`, or elementwise of `[B, T]`."""
    if values.ndim == 1:
        return metrics.mean_of(values, mask)
    return jax.vmap(metrics.mean_of, (1, None))(values, mask)


def _divide(mean: metrics.Mean) -> list[float]:
    return (np.asarray(mean.total) / np.maximum(np.asarray(mean.count), 1)).tolist()
