"""Metrics of attention on instances with labels, and of bags' predictions.

    runs = []
    for attention, logits in zip(predictions.attention, predictions.logits):
        found = attention_metrics(attention, data.lengths, data.instance_labels, data.labels)
        runs.append(found | bag_metrics(logits, data.labels))
    text = json.dumps(json_ready(mean_and_spread(runs)))

Figures 2 and 3 of the AAAI 2020 paper have precision, recall and F-score of the instances whose weight
reaches a threshold. Its public code does not compute them, so that whether weights are compared with the
threshold as they are, or relative to the bag's highest, is not known: `attention_metrics` has both.

Everything is computed in float64 and for one model at a time. An instance label is 0 for background and
k > 0 for a target of class k, a bag's label 0 where there is no target; NaN stands for what a model was
not asked about.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy.special
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score

Over = Literal["positive", "all"]

THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))

# The networks compute in float32, where one of ten equal weights may be a little below 0.1.
ROUNDING = 1e-6


def scale_to_highest(attention: ArrayLike, lengths: ArrayLike) -> np.ndarray:
    """Divides weights by the highest of their bag.

    So bags of all lengths are comparable.

    Args:
      attention: `[N]` of all bags, one bag after the other; none negative.
      lengths: `[bags]` int, at least 1 each.

    Returns:
      `[N]` float64 in [0, 1]; zeros for a bag without any weight, NaN for a bag of NaN.

    Raises:
      ValueError: a negative or infinite weight, a bag of which some weights are NaN and others are not,
        or shapes that do not fit.
    """
    weights, sizes = _bags(attention, lengths)
    if (weights < 0).any():
        raise ValueError(f"weights must not be negative, but one is {np.nanmin(weights)}")
    starts = np.cumsum(sizes) - sizes
    top = np.repeat(np.maximum.reduceat(weights, starts), sizes)
    return np.divide(weights, top, out=np.zeros_like(weights), where=top != 0)


def threshold_metrics(
    weights: ArrayLike, truth: ArrayLike, thresholds: ArrayLike = THRESHOLDS
) -> dict[str, np.ndarray]:
    """Computes precision, recall and F-score at each threshold.

    An instance is found where its weight is at least the threshold.

    Where nothing is found there is no precision (NaN, so that means over runs leave it out). Recall and
    F-score are 0 there: F = 2 hits / (found + true), which is 2 P R / (P + R) wherever that is defined.
    Without any true instance recall is NaN, and F is NaN if nothing is found either.

    Args:
      weights: `[N]`; instances with NaN are not counted.
      truth: `[N]` bool, what is to be found.
      thresholds: `[T]`; a weight may fall short of them by `ROUNDING`.

    Returns:
      `precision`, `recall` and `f_score`, float64 `[T]`, and `found`, int64 `[T]`: the number of
      instances that reach the threshold.

    Raises:
      ValueError: an infinite weight, a threshold that is not finite, or shapes that do not fit.
    """
    values = np.asarray(weights, np.float64)
    is_true = np.asarray(truth, bool)
    limits = np.asarray(thresholds, np.float64)
    if values.ndim != 1 or is_true.shape != values.shape or limits.ndim != 1:
        raise ValueError(
            f"weights and truth have to be [N] and thresholds [T], not {values.shape}, "
            f"{is_true.shape} and {limits.shape}"
        )
    if np.isinf(values).any() or not np.isfinite(limits).all():
        raise ValueError("weights must not be infinite, and thresholds have to be finite")
    has_weight = ~np.isnan(values)
    values, is_true = values[has_weight], is_true[has_weight]
    reaches = values[None, :] >= limits[:, None] - ROUNDING
    count = reaches.sum(axis=1)
    hits = (reaches & is_true[None, :]).sum(axis=1)
    true = np.full_like(count, is_true.sum())
    return {
        "precision": _ratio(hits, count),
        "recall": _ratio(hits, true),
        "f_score": _ratio(2 * hits, count + true),
        "found": count,
    }


def ranking(
    attention: ArrayLike,
    lengths: ArrayLike,
    instance_labels: ArrayLike,
    labels: ArrayLike,
    *,
    rows: ArrayLike | None = None,
    over: Over = "positive",
) -> dict[str, float]:
    """Computes how well scores rank instances, without a threshold.

    Args:
      attention, lengths, instance_labels, labels, rows, over: as for `attention_metrics`, but scores may
        be negative.

    Returns:
      `bag_auc`: the mean over bags of the probability that a true instance weighs more than another of
      its bag (equal ones count half), over the `bag_auc_bags` bags with instances of both kinds.
      `pointing`: the share of bags whose highest weight is on a true instance (of equally high ones, the
      share that are true), over the `pointing_bags` bags with a true instance.
      `average_precision`: of all counted instances, ranked together (scikit-learn's, not interpolated).
      NaN where nothing is counted.

    Raises:
      ValueError: as `attention_metrics`.
    """
    weights, truth, sizes = _select_bags(attention, lengths, instance_labels, labels, rows, over)
    ends = np.cumsum(sizes)
    areas, pointing = [], []
    for start, end in zip(ends - sizes, ends, strict=True):
        own, is_true = weights[start:end], truth[start:end]
        if not is_true.any():
            continue
        pointing.append(is_true[own == own.max()].mean())
        if not is_true.all():
            # The definition; scikit-learn's roc_auc_score takes a millisecond for each bag.
            high, low = own[is_true][:, None], own[~is_true][None, :]
            areas.append(np.mean((high > low) + 0.5 * (high == low)))
    return {
        "bag_auc": float(np.mean(areas)) if areas else math.nan,
        "bag_auc_bags": len(areas),
        "pointing": float(np.mean(pointing)) if pointing else math.nan,
        "pointing_bags": len(pointing),
        "average_precision": _average_precision(weights, truth),
    }


def attention_metrics(
    attention: ArrayLike,
    lengths: ArrayLike,
    instance_labels: ArrayLike,
    labels: ArrayLike,
    *,
    rows: ArrayLike | None = None,
    thresholds: ArrayLike = THRESHOLDS,
    over: Over = "positive",
) -> dict[str, Any]:
    """Computes all metrics of a model's attention.

    Instances of all counted bags are pooled: a long bag counts for more than a short one. By default the
    bags with label 0 are left out, for there is nothing to be found in them, and weights sum to 1 in every
    bag whatever is in it. With `over="all"` what is found there is a mistake: recall stays as it is,
    precision can only fall, and of scaled weights it falls by at least one instance for each such bag
    and threshold, because a bag's highest weight is scaled to 1.

    Args:
      attention: `[N]` of all bags, one bag after the other; NaN for a bag that was not asked about.
      lengths: `[bags]` int, at least 1 each.
      instance_labels: `[N]` int; what is greater than 0 is to be found.
      labels: `[bags]` int; the bags whose label is not 0 are positive.
      rows: `[bags]` bool, or positions, of the bags to count; None: those that were asked about.
      thresholds: `[T]`.
      over: "positive" or "all", of these bags.

    Returns:
      `raw` and `scaled`: `threshold_metrics` of the weights, and of `scale_to_highest`. What `ranking`
      returns, and `average_precision_scaled`, that of scaled weights. `bags`, `instances` and
      `true_instances`: how many were counted; weights without any preference would have the precision
      true_instances / instances.

    Raises:
      ValueError: shapes do not fit, a weight is negative or infinite, a bag to count was not asked
        about, or unknown `over`.
    """
    weights, truth, sizes = _select_bags(attention, lengths, instance_labels, labels, rows, over)
    relative = scale_to_highest(weights, sizes)
    return {
        "raw": threshold_metrics(weights, truth, thresholds),
        "scaled": threshold_metrics(relative, truth, thresholds),
        **ranking(attention, lengths, instance_labels, labels, rows=rows, over=over),
        "average_precision_scaled": _average_precision(relative, truth),
        "bags": len(sizes),
        "instances": len(weights),
        "true_instances": int(truth.sum()),
    }


def bag_metrics(
    logits: ArrayLike, labels: ArrayLike, *, rows: ArrayLike | None = None
) -> dict[str, Any]:
    """Computes accuracy, AUC and cross-entropy of predictions for bags.

    Args:
      logits: `[bags, K]`, K at least 2; NaN for a bag that was not asked about.
      labels: `[bags]` int in [0, K).
      rows: `[bags]` bool, or positions, of the bags to count; None: those that were asked about.

    Returns:
      `accuracy`; `auc`, area under the ROC curve: of class 1 if K is 2, else the mean over classes of
      each against all others; `cross_entropy`, mean in nats; `bags`, how many were counted. If a class
      has no bag, `auc` is NaN and `auc_undefined` says which.

    Raises:
      ValueError: shapes do not fit, a label is not in [0, K), or a bag to count has logits that are not
        finite.
    """
    scores = np.asarray(logits, np.float64)
    own = np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] < 2 or own.shape != scores.shape[:1]:
        raise ValueError(
            f"logits have to be [bags, K] and labels [bags], not {scores.shape} and {own.shape}"
        )
    classes = np.arange(scores.shape[1])
    if not np.isin(own, classes).all():
        raise ValueError(f"labels have to be of 0 to {len(classes) - 1}")
    in_count = _select_rows(rows, np.all(np.isnan(scores), axis=1))
    scores, own = scores[in_count], own[in_count]
    if not np.isfinite(scores).all():
        raise ValueError("logits of bags to count have to be finite")
    metrics: dict[str, Any] = {"accuracy": math.nan, "auc": math.nan, "cross_entropy": math.nan}
    metrics["bags"] = len(own)
    absent = np.setdiff1d(classes, own)
    if len(absent):
        metrics["auc_undefined"] = f"no bag has the label {', '.join(map(str, absent))}"
    elif len(classes) == 2:
        # Not of probabilities, which are equal where they come near 1.
        metrics["auc"] = float(roc_auc_score(own, scores[:, 1] - scores[:, 0]))
    else:
        probabilities = scipy.special.softmax(scores, axis=1)
        metrics["auc"] = float(roc_auc_score(own, probabilities, multi_class="ovr", labels=classes))
    if len(own):
        logs = scipy.special.log_softmax(scores, axis=1)
        metrics["accuracy"] = float(np.mean(np.argmax(scores, axis=1) == own))
        metrics["cross_entropy"] = float(-np.mean(logs[np.arange(len(own)), own]))
    return metrics


def mean_and_spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarises several runs, value by value.

    Args:
      runs: dicts of numbers, lists or arrays of numbers, and such dicts; None counts as NaN, so that
        what was read from JSON can be given too. Texts are left out.

    Returns:
      For every name that a run has, `mean`, `std` (standard deviation over runs, with n - 1) and `runs`
      (n), of the runs in which the value is there and is not NaN; arrays are summarised element by
      element. The mean of no run and the deviation of one are NaN.

    Raises:
      ValueError: no run, or an array has different shapes in two runs.
    """
    if not runs:
        raise ValueError("there is no run to summarise")
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run[name] for run in runs if run.get(name) is not None]
        if any(isinstance(value, str) for value in values):
            continue
        if any(isinstance(value, Mapping) for value in values):
            summary[name] = mean_and_spread(values)
            continue
        arrays = [np.asarray(value, np.float64) for value in values]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise ValueError(f"{name} has different shapes in different runs: {sorted(shapes)}")
        summary[name] = _spread(np.stack(arrays) if arrays else np.full(1, np.nan))
    return summary


def json_ready(values: Any) -> Any:
    """Turns values into JSON: lists for arrays, None for non-finite numbers."""
    if isinstance(values, Mapping):
        return {name: json_ready(value) for name, value in values.items()}
    if isinstance(values, np.ndarray | np.generic):
        return json_ready(values.tolist())
    if isinstance(values, list | tuple):
        return [json_ready(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _spread(values: np.ndarray) -> dict[str, Any]:
    """Computes mean, standard deviation and count along the first axis, without NaN."""
    is_number = ~np.isnan(values)
    runs = is_number.sum(axis=0)
    mean = _ratio(np.where(is_number, values, 0).sum(axis=0), runs)
    with np.errstate(invalid="ignore"):  # an infinite value has no deviation
        squares = np.where(is_number, values - mean, 0) ** 2
    std = np.sqrt(_ratio(squares.sum(axis=0), np.maximum(runs - 1, 0)))
    if values.ndim == 1:
        return {"mean": float(mean), "std": float(std), "runs": int(runs)}
    return {"mean": mean, "std": std, "runs": runs}


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Divides in float64; NaN where the denominator is 0."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def _average_precision(weights: np.ndarray, truth: np.ndarray) -> float:
    return float(average_precision_score(truth, weights)) if truth.any() else math.nan


def _bags(attention: ArrayLike, lengths: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Checks weights and lengths."""
    weights, sizes = np.asarray(attention, np.float64), np.asarray(lengths, np.int64)
    if sizes.ndim != 1 or (sizes < 1).any() or weights.shape != (sizes.sum(),):
        raise ValueError(
            f"weights have to be one for each of {sizes.sum()} instances of bags with at least one "
            f"each, not {weights.shape}"
        )
    if np.isinf(weights).any():
        raise ValueError("weights must not be infinite")
    missing = np.isnan(weights)
    starts = np.cumsum(sizes) - sizes
    partly = missing != np.repeat(missing[starts], sizes)
    if partly.any():
        row = np.searchsorted(starts, int(np.argmax(partly)), side="right") - 1
        raise ValueError(f"of bag {row} some weights are NaN and others are not")
    return weights, sizes


def _select_rows(rows: ArrayLike | None, missing: np.ndarray) -> np.ndarray:
    """Selects the bags to count, `[bags]` bool.

    `missing` are those without outputs.
    """
    if rows is None:
        return ~missing
    places = np.asarray(rows)
    if places.dtype == bool and places.shape != missing.shape:
        raise ValueError(f"rows have to be one bool for each of {len(missing)} bags")
    in_count = np.zeros(len(missing), bool)
    in_count[places if places.size else places.astype(np.int64)] = True
    if (in_count & missing).any():
        row = int(np.argmax(in_count & missing))
        raise ValueError(f"bag {row} is to be counted, but was not asked about")
    return in_count


def _select_bags(
    attention: ArrayLike,
    lengths: ArrayLike,
    instance_labels: ArrayLike,
    labels: ArrayLike,
    rows: ArrayLike | None,
    over: Over,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Selects weights, truth and lengths of the bags that count."""
    weights, sizes = _bags(attention, lengths)
    truth, own = np.asarray(instance_labels) > 0, np.asarray(labels)
    if truth.shape != weights.shape or own.shape != sizes.shape:
        raise ValueError(
            f"instance labels and labels have to be {weights.shape} and {sizes.shape}, "
            f"not {truth.shape} and {own.shape}"
        )
    if over not in ("positive", "all"):
        raise ValueError(f"over is {over!r}, but must be 'positive' or 'all'")
    starts = np.cumsum(sizes) - sizes
    in_count = _select_rows(rows, np.isnan(weights[starts]))
    if over == "positive":
        in_count = in_count & (own != 0)
    within = np.repeat(in_count, sizes)
    return weights[within], truth[within], sizes[in_count]
