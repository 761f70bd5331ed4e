"""The registry of metrics of explanations.

A metric is one entry of `METRICS`, in the order of the tables' rows, with its function of `Maps` here. Of the
user's own, `package.module:attribute` is a `Metric`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from lossattn_jax.errors import UserError
from lossattn_jax.explain.metrics import faithfulness, localisation, map_agreement
from lossattn_jax.explain.metrics.maps import Maps, finite_rows
from lossattn_jax.registry import Registry

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of an explainer's maps.

    Attributes:
      higher: whether more is better; None: neither.
      measure: makes of `Maps` of B images a value for each, `[B]` float32, whose mean is the metric; it is
        traced. None: it is made of others after the last batch, in `explanation_metrics` or `comparison`.
      needs_boxes: whether it is measured only where a data set has boxes, of images that have one.
      needs_curves: without `measure`: whether precision, recall and F at all thresholds have to be summed
        for it.
      needs_ranking: without `measure`: whether all images are ranked by their probabilities for it, with
        whether each is localised.
      of_machine: whether it is a time or made of times, which differ from machine to machine.
      compares_systems: whether it is a row of the table of several systems.
      in_words: whether that table says it in words where nothing else is asked for.
    """

    higher: bool | None
    measure: Callable[[Maps], jax.Array] | None = None
    needs_boxes: bool = False
    needs_curves: bool = False
    needs_ranking: bool = False
    of_machine: bool = False
    compares_systems: bool = True
    in_words: bool = False

    @property
    def arrow(self) -> str:
        """Arrow to where the metric is better."""
        return arrow(self.higher)


def arrow(higher: bool | None) -> str:
    """Where a metric is better, to stand behind its name."""
    return {True: " ↑", False: " ↓", None: ""}[higher]


def _deletion(maps: Maps) -> jax.Array:
    """Computes the area under the deletion curve."""
    curve = faithfulness.deletion(*maps.class_inputs, maps.ranks, maps.protocol.steps)
    return faithfulness.area(curve)


def _insertion(maps: Maps) -> jax.Array:
    """Computes the area under the insertion curve."""
    curve = faithfulness.insertion(*maps.class_inputs, maps.ranks, maps.protocol.steps)
    return faithfulness.area(curve)


def _road(maps: Maps, *, least: bool) -> jax.Array:
    """Computes the class's probability with imputed pixels, mean over the shares.

    Of the most or the least relevant ones.
    """
    order = faithfulness.least_first(maps.ranks) if least else maps.ranks
    road = faithfulness.road(*maps.class_inputs, order, maps.protocol.road_shares, maps.keys)
    return jnp.mean(road.probability, axis=1)


def _comprehensiveness(maps: Maps) -> jax.Array:
    """Computes comprehensiveness, mean over the shares of the patches."""
    parts = (maps.relevance.patches, maps.cells, maps.protocol.patch_shares)
    return jnp.mean(faithfulness.comprehensiveness(*maps.class_inputs, *parts), axis=1)


def _sufficiency(maps: Maps) -> jax.Array:
    """Computes sufficiency, mean over the shares of the patches."""
    parts = (maps.relevance.patches, maps.cells, maps.protocol.patch_shares)
    return jnp.mean(faithfulness.sufficiency(*maps.class_inputs, *parts), axis=1)


def _similarity(maps: Maps, *, stage: str) -> jax.Array:
    """Correlates pixels with those of a randomised network.

    Spearman's correlation: near 0 is right. For the stages see `map_agreement.stages`.
    """
    other = maps.after_randomisation[stage]
    alike = map_agreement.spearman(maps.relevance.pixels, other.pixels)
    return jnp.where(finite_rows(other), alike, jnp.nan)


def _stability(maps: Maps) -> jax.Array:
    """Correlates pixels with those of the shifted image, moved back.

    Spearman's correlation.
    """
    back, valid = map_agreement.shift_back(maps.after_shift.pixels, *maps.protocol.shift)
    alike = map_agreement.spearman(maps.relevance.pixels, back, valid)
    return jnp.where(finite_rows(maps.after_shift), alike, jnp.nan)


def _pointing(maps: Maps) -> jax.Array:
    """Computes `localisation.patch_pointing`."""
    return localisation.patch_pointing(maps.relevance.patches, maps.centres, maps.boxes)


def _mass_in_box(maps: Maps) -> jax.Array:
    """Computes `localisation.mass_in_box`."""
    return localisation.mass_in_box(maps.relevance.pixels, maps.boxes)


def measure_localised(maps: Maps) -> jax.Array:
    """Whether the maps localise the object, `[B]`.

    See `localisation.is_localised`.
    """
    return localisation.is_localised(maps.relevance.patches, maps.boxes, maps.patch_boxes)


def _at_threshold(maps: Maps, *, score: str) -> jax.Array:
    """Scores the patches that reach `Protocol.patch_threshold`."""
    scores: jax.Array = getattr(maps.patch_scores, score)
    return scores[:, -1]


def _above_mean(maps: Maps, *, score: str) -> jax.Array:
    """Scores the patches above the mean of the map's positive part.

    For weights that sum to 1 that is 1 / P. A flat map finds no patch so.
    """
    scores: jax.Array = getattr(maps.above_mean, score)
    return scores


def _with_boxes(
    measure: Callable[..., jax.Array], *, in_words: bool = False, **options: str
) -> Metric:
    """Makes a metric of maps beside the object's box.

    Higher is better.
    """
    return Metric(True, functools.partial(measure, **options), needs_boxes=True, in_words=in_words)


def _time() -> Metric:
    return Metric(False, of_machine=True, compares_systems=False)


METRICS = Registry(
    "metric of explanations",
    Metric,
    {
        "pointing": _with_boxes(_pointing),
        "mass_in_box": _with_boxes(_mass_in_box),
        "patch_precision": _with_boxes(_at_threshold, score="precision"),
        "patch_recall": _with_boxes(_at_threshold, score="recall", in_words=True),
        "patch_f": _with_boxes(_at_threshold, score="f"),
        "patch_f_best": Metric(True, needs_boxes=True, needs_curves=True),
        "patch_f_best_threshold": Metric(
            None, needs_boxes=True, needs_curves=True, compares_systems=False
        ),
        "precision_above_mean": _with_boxes(_above_mean, score="precision"),
        "recall_above_mean": _with_boxes(_above_mean, score="recall", in_words=True),
        "f_above_mean": _with_boxes(_above_mean, score="f"),
        # In the table of systems it is in its average precision.
        "localised": Metric(True, measure_localised, needs_boxes=True, compares_systems=False),
        "localisation_ap": Metric(True, needs_boxes=True, needs_ranking=True),
        "deletion": Metric(False, _deletion),
        "insertion": Metric(True, _insertion),
        "road_most": Metric(False, functools.partial(_road, least=False)),
        "road_least": Metric(True, functools.partial(_road, least=True)),
        "comprehensiveness": Metric(True, _comprehensiveness),
        "sufficiency": Metric(False, _sufficiency),
        "similarity_classifier": Metric(False, functools.partial(_similarity, stage="classifier")),
        "similarity_head": Metric(False, functools.partial(_similarity, stage="head")),
        "similarity_backbone": Metric(False, functools.partial(_similarity, stage="backbone")),
        "stability": Metric(True, _stability),
        "ms_per_image": _time(),
        "forward_passes": _time(),
        "times_attention": _time(),
    },
)
NAMES = tuple(METRICS)


def find(names: Sequence[str]) -> dict[str, Metric]:
    """Finds the metrics that a user names, in the registry's order.

    Args:
      names: of `METRICS`, "all" of them, or `package.module:attribute` of a `Metric` of the user's own.

    Returns:
      The metrics by their names. Those of the machine, which are always measured, are among them.

    Raises:
      UserError: there is none of that name, or one of the user's own has no `measure`.
    """
    if not names:
        raise UserError(f"metrics are none, but may be: {ALL}, {', '.join(NAMES)}")
    named_metrics = {name: METRICS.find(name) for name in names if name != ALL}
    for name, metric in named_metrics.items():
        if name not in METRICS and metric.measure is None:
            raise UserError(f"the metric {name!r} has no measure, but must have one")
    package = {
        name: metric
        for name, metric in METRICS.items()
        if ALL in names or name in named_metrics or metric.of_machine
    }
    return package | {name: metric for name, metric in named_metrics.items() if name not in METRICS}


def measure(metrics: Mapping[str, Metric], maps: Maps, *, boxes: bool) -> dict[str, jax.Array]:
    """Measures images by the metrics with boxes, or by the others.

    Args:
      metrics: as of `find`.
      maps: of B images.
      boxes: whether of those that need boxes.

    Returns:
      `[B]` by name.

    Raises:
      UserError: one of the user's own gives another shape.
    """
    count = (len(maps.classes),)
    values = {}
    for name, metric in metrics.items():
        if metric.measure is None or metric.needs_boxes != boxes:
            continue
        values[name] = metric.measure(maps)
        shape = getattr(values[name], "shape", None)
        if shape != count:
            raise UserError(
                f"the metric {name!r} gives the shape {shape}, but must give a value for each of the images, "
                f"{count}"
            )
    return values
