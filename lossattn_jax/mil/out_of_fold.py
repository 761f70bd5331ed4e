"""Out-of-fold predictions of cross-validation, and their metrics with intervals.

Each repeat tests every bag once, by models that were not trained on it: a metric is computed of all
predictions of a repeat together, and averaged over the repeats. (The accuracy of `summary.json` is a mean
over folds.) For the interval the same groups of bags are drawn for all repeats, the metric is computed of
each repeat's drawn bags, and averaged likewise.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.label_sets import has_several
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.mil import bag_metrics, bootstrap, instance_metrics
from lossattn_jax.mil.bag_metrics import BAG_METRICS, BagMetric, Resamples

Folds = Sequence[Mapping[str, Any]]

GROUPS, BAGS = "groups", "bags"  # what is drawn


@dataclasses.dataclass(frozen=True, eq=False)
class RepeatPredictions:
    """What the models of a repeat's folds say of the bags that they were not trained on.

    Attributes:
      repeat: from 0.
      folds: `[n]` int64, in which each bag was tested.
      rows: `[n]` int64, places of the bags in the data set.
      labels: `[n]` int64 in [0, K), or of several labels `[n, K]` 0 and 1.
      probabilities: `[n, K]` float64, NaN where one is not finite.
      scores: of each bag the scores of its instances, `[n_i]` float64, NaN likewise.
    """

    repeat: int
    folds: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    scores: list[np.ndarray]


def gather(splits: Sequence[Split], folds: Folds) -> tuple[RepeatPredictions, ...]:
    """Puts the folds of each repeat together.

    Args:
      splits: of the experiment.
      folds: contents of their records, in the same order.
    """
    predictions = []
    for repeat in sorted({split.repeat for split in splits}):
        pairs = [
            (split, fold)
            for split, fold in zip(splits, folds, strict=True)
            if split.repeat == repeat
        ]
        bags = [bag for _, fold in pairs for bag in fold["bags"]]
        counts = [len(fold["bags"]) for _, fold in pairs]
        predictions.append(
            RepeatPredictions(
                repeat=repeat,
                folds=np.repeat([split.fold for split, _ in pairs], counts),
                rows=np.concatenate([np.flatnonzero(split.test) for split, _ in pairs]),
                labels=np.array([bag["label"] for bag in bags], np.int64),
                # None is NaN
                probabilities=np.array([bag["probabilities"] for bag in bags], np.float64),
                scores=[np.array(bag["weights"], np.float64) for bag in bags],
            )
        )
    return tuple(predictions)


def measure(experiment: Experiment, folds: Folds, resamples: int, seed: int) -> dict[str, Any]:
    """Computes all metrics of a method's folds, as JSON but for numbers that are NaN.

    Args:
      experiment: bags and folds.
      folds: contents of their records under one rule, in the order of its splits.
      resamples: of the bootstrap; 0: no intervals.
      seed: of the bootstrap.

    Returns:
      What `metrics.json` has; see docs/bags.md.
    """
    predictions, first = gather(experiment.splits, folds), folds[0]
    classes, positive = tuple(first["classes"]), place_of_positive(first)
    units, drawn = _number_units(experiment, predictions)
    nonfinite = sum(int((~np.isfinite(one.probabilities).all(axis=1)).sum()) for one in predictions)
    values = {
        name: np.stack([_compute(metric, one, positive, nonfinite) for one in predictions])
        for name, metric in BAG_METRICS.items()
    }
    samples = _resample(predictions, units, resamples, seed, positive, nonfinite)
    groups = len(np.unique(np.concatenate(units)))
    return {
        **{key: first[key] for key in ("dataset", "method", "rule", "optimistic", "positive")},
        "classes": list(classes),
        "repeats": len(predictions),
        "bags": len(np.unique(np.concatenate([one.rows for one in predictions]))),
        "nonfinite": nonfinite,
        "bootstrap": {
            "resamples": resamples,
            "of": drawn,
            drawn: groups,
            "stratified": False,
            "percentiles": list(bootstrap.PERCENTILES),
            "seed": seed,
        },
        "metrics": {
            name: _describe(
                metric,
                values[name],
                [
                    bootstrap.percentile_interval(column, groups)
                    for column in samples[name].T  # of no resample as well
                ],
                _reasons(metric, predictions, classes, positive, nonfinite),
                classes,
                positive,
            )
            for name, metric in BAG_METRICS.items()
        },
        "confusion": _confuse(predictions, len(classes), nonfinite),
        "instances": _measure_instances(experiment, predictions),
    }


def place_of_positive(fold: Mapping[str, Any]) -> int | None:
    """The positive class of two; it is the second."""
    return None if fold["positive"] is None else fold["classes"].index(fold["positive"])


def _number_units(
    experiment: Experiment, predictions: Sequence[RepeatPredictions]
) -> tuple[list[np.ndarray], str]:
    """Numbers what is drawn, from 0: for each repeat `[n]` int64; and says what that is."""
    groups = experiment.dataset.groups
    rows = np.concatenate([one.rows for one in predictions])
    names = rows if groups is None else np.array(groups)[rows]
    numbers = np.unique(names, return_inverse=True)[1]
    ends = np.cumsum([len(one.rows) for one in predictions])
    return np.split(numbers, ends[:-1]), BAGS if groups is None else GROUPS


def _compute(
    metric: BagMetric, one: RepeatPredictions, positive: int | None, nonfinite: int
) -> np.ndarray:
    """As `BagMetric.compute`; NaN where an output of any repeat is not finite."""
    if nonfinite:
        return np.full(_columns(metric, one), np.nan)
    if has_several(one.labels):
        return _average([metric.compute(*pair, positive=1) for pair in _pairs(one)])
    return metric.compute(one.labels, one.probabilities, positive)


def _columns(metric: BagMetric, one: RepeatPredictions) -> int:
    """How many numbers a metric has: one for all classes, and one for each where it has these.

    Of several labels every metric has them: each label is two classes by itself.
    """
    by_class = metric.per_class or has_several(one.labels)
    return 1 + by_class * one.probabilities.shape[1]


def _pairs(one: RepeatPredictions) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and probabilities of each of several labels, as metrics take them."""
    places = range(one.probabilities.shape[1])
    return [bag_metrics.of_label(one.labels, one.probabilities, place) for place in places]


def _average(of_labels: Sequence[np.ndarray]) -> np.ndarray:
    """Puts the mean over labels before the number of each: `[..., 1 + K]` of K `[..., 1 or more]`."""
    each = np.stack([values[..., 0] for values in of_labels], axis=-1)
    return np.concatenate([each.mean(axis=-1, keepdims=True), each], axis=-1)


def _compute_resamples(
    metric: BagMetric, one: RepeatPredictions, counts: np.ndarray, positive: int | None
) -> np.ndarray:
    """As `BagMetric.compute_resamples`, of resamples `[R, B]`."""
    if not has_several(one.labels):
        return metric.compute_resamples(Resamples(one.labels, one.probabilities, counts), positive)
    return _average([metric.compute_resamples(Resamples(*pair, counts), 1) for pair in _pairs(one)])


def _resample(
    predictions: Sequence[RepeatPredictions],
    units: Sequence[np.ndarray],
    resamples: int,
    seed: int,
    positive: int | None,
    nonfinite: int,
) -> dict[str, np.ndarray]:
    """Computes each metric's mean over repeats in each resample, `[R, 1]` or `[R, 1 + K]`."""
    count = predictions[0].probabilities.shape[1]
    empty = {
        name: np.full((resamples, _columns(metric, predictions[0])), np.nan)
        for name, metric in BAG_METRICS.items()
    }
    # Of one class there is no metric to put an interval around.
    if not resamples or nonfinite or count < 2:
        return empty
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in BAG_METRICS}
    ends = np.cumsum([len(own) for own in units])[:-1]
    for counts in bootstrap.draw_counts(np.concatenate(units), resamples, seed):
        parts = list(zip(predictions, np.split(counts, ends, axis=1), strict=True))
        for name, metric in BAG_METRICS.items():
            own = [_compute_resamples(metric, *part, positive) for part in parts]
            blocks[name].append(np.mean(own, axis=0))  # NaN where a repeat's is
    return {name: np.concatenate(own) for name, own in blocks.items()}


def _reasons(
    metric: BagMetric,
    predictions: Sequence[RepeatPredictions],
    classes: tuple[str, ...],
    positive: int | None,
    nonfinite: int,
) -> list[str | None]:
    """Why the headline and each class's number are not defined; of the first repeat that lacks it."""
    if nonfinite:
        reason = f"{nonfinite} predictions have probabilities that are not finite"
        return [reason] * _columns(metric, predictions[0])
    if has_several(predictions[0].labels):
        of_labels = [
            _reason_of_label(metric, predictions, k, classes[k]) for k in range(len(classes))
        ]
        return [next((reason for reason in of_labels if reason is not None), None), *of_labels]
    of_repeats = [
        metric.explain_undefined(one.labels, one.probabilities, classes) for one in predictions
    ]
    reasons = [
        next((reason for reason in column if reason is not None), None)
        for column in zip(*of_repeats, strict=True)
    ]
    if metric.per_class and positive is not None:
        reasons[0] = reasons[1 + positive]
    return reasons


def _reason_of_label(
    metric: BagMetric, predictions: Sequence[RepeatPredictions], place: int, name: str
) -> str | None:
    """Why a metric is not defined of one of several labels; of the first repeat that lacks it."""
    for one in predictions:
        pair = bag_metrics.of_label(one.labels, one.probabilities, place)
        reasons = metric.explain_undefined(*pair, (f"not {name}", name))
        if reasons[-1] is not None:
            return reasons[-1]
    return None


def _describe(
    metric: BagMetric,
    values: np.ndarray,
    intervals: Sequence[bootstrap.Interval],
    reasons: Sequence[str | None],
    classes: tuple[str, ...],
    positive: int | None,
) -> dict[str, Any]:
    """Describes a metric as JSON.

    Args:
      metric: which.
      values: `[repeats, 1]`, or `[repeats, 1 + K]` of one that is `per_class`.
      intervals, reasons: for each column.
      classes: K names.
      positive: place of the positive class; None: none is.
    """
    parts = [
        {
            "value": float(column.mean()),
            "undefined": reason,
            "interval": None if reason or interval.reason else [interval.low, interval.high],
            "left_out": None if reason else interval.left_out,
            "no_interval": None if reason else interval.reason,
            "per_repeat": column.tolist(),
        }
        for column, interval, reason in zip(values.T, intervals, reasons, strict=True)
    ]
    of, by_class = None, len(parts) > 1
    if by_class:
        of = "the mean over classes" if positive is None else classes[positive]
    described = {"title": metric.title, "higher_is_better": metric.higher, "of": of, **parts[0]}
    if by_class:
        described["per_class"] = dict(zip(classes, parts[1:], strict=True))
    return described


def _confuse(
    predictions: Sequence[RepeatPredictions], count: int, nonfinite: int
) -> dict[str, Any] | None:
    """Counts bags by label (rows) and prediction (columns), of each repeat and of all.

    Of several labels, for each one bags without it and with it.
    """
    if nonfinite:
        return None
    if has_several(predictions[0].labels):  # of each label by itself
        of_labels = np.array(
            [
                multilabel_confusion_matrix(one.labels, one.probabilities > 0.5)
                for one in predictions
            ]
        )
        return {"per_repeat": of_labels.tolist(), "all_repeats": of_labels.sum(axis=0).tolist()}
    of_repeats = np.array(
        [
            confusion_matrix(
                one.labels, np.argmax(one.probabilities, axis=1), labels=np.arange(count)
            )
            for one in predictions
        ]
    )
    return {"per_repeat": of_repeats.tolist(), "all_repeats": of_repeats.sum(axis=0).tolist()}


def _measure_instances(
    experiment: Experiment, predictions: Sequence[RepeatPredictions]
) -> dict[str, Any] | None:
    """Computes `instance_metrics.ranking` of the instances' scores, where instances have labels.

    Returns:
      None where they have none, or a score is not finite.
    """
    dataset = experiment.dataset
    if not isinstance(dataset, BagDataset) or dataset.instance_labels is None:
        return None
    of_repeats = []
    for one in predictions:
        scores = np.concatenate(one.scores)
        if not np.isfinite(scores).all():
            return None
        truth = np.split(dataset.instance_labels, dataset.offsets[1:-1])
        of_repeats.append(
            instance_metrics.ranking(
                scores,
                [len(own) for own in one.scores],
                np.concatenate([truth[row] for row in one.rows]),
                one.labels,
            )
        )
    return {
        "per_repeat": of_repeats,
        "over_repeats": instance_metrics.mean_and_spread(of_repeats),
    }
