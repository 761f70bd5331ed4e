"""The registry of metrics of predicted bags: how each is computed and shown.

To add one, write a function of labels and probabilities here and its `BagMetric`, and put it into
`BAG_METRICS`. All that are defined of some predictions are computed; no key names them.

What a metric is of a class is of that class against the rest. `F1`, areas and calibration of a class are
put together by `BagMetric.headline`: of two classes the value is that of the positive one, of more, and where
neither is known to be positive, it is the mean over classes.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn.metrics

from lossattn_jax.data.bags.label_sets import has_several
from lossattn_jax.registry import Registry

# Equally wide, as of `evaluate.metric_registry`; of Guo et al. (2017).
CALIBRATION_BINS = 15
# Sums of probabilities may differ from 1 by it, as those of float32 do.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Resamples:
    """R resamples of B predicted bags; what several metrics need is made once.

    Attributes:
      labels: `[B]` int in [0, K).
      probabilities: `[B, K]` float64.
      counts: `[R, B]` float64, how often each bag is in each resample.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    counts: np.ndarray

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """`[B, K]` float64: 1 at a bag's label."""
        return _one_hot(self.labels, self.probabilities.shape[1])

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """`[B, K]` float64: 1 at a bag's most probable class."""
        return _one_hot(np.argmax(self.probabilities, axis=1), self.probabilities.shape[1])

    @functools.cached_property
    def labelled(self) -> np.ndarray:
        """`[R, K]` float64: bags of each label."""
        return self.counts @ self.truth

    @functools.cached_property
    def hits(self) -> np.ndarray:
        """`[R, K]` float64: rightly predicted bags of each label."""
        return self.counts @ (self.truth * self.predicted)

    @functools.cached_property
    def ranks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each class the bags at each different score, the highest first.

        Two arrays `[R, scores]` float64: bags of the class, and others.
        """
        scores = ranking_scores(self.probabilities)
        return [self._rank(scores[:, k], self.truth[:, k]) for k in range(scores.shape[1])]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Means over the bags of each resample: `[R, ...]` of `[B, ...]`."""
        total = self.counts.sum(axis=1)
        return _divide(self.counts @ values, total.reshape(-1, *(1 for _ in values.shape[1:])))

    def _rank(self, scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(-scores, kind="stable")
        counts = self.counts[:, order]
        starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
        of_class = np.add.reduceat(counts * truth[order], starts, axis=1)
        return of_class, np.add.reduceat(counts, starts, axis=1) - of_class


@dataclasses.dataclass(frozen=True)
class Requirement:
    """What labels and predictions need for a metric of a class to be defined.

    Attributes:
      holds: of labels `[B]`, predictions `[B]` and K, for each class whether it is so, `[K]` bool.
      sentence: what is missing where it is not, with a place for the classes.
    """

    holds: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    sentence: str


@dataclasses.dataclass(frozen=True, eq=False)
class BagMetric:
    """A metric of predicted bags.

    Attributes:
      title: as tables have it.
      measure: of labels `[B]` int in [0, K) and probabilities `[B, K]` float64, the metric; of one that is
        `per_class` `[K]`, NaN where it is not defined. scikit-learn's, where that has it.
      higher: whether more is better.
      per_class: whether it is measured for each class against the rest.
      resample: of `Resamples`, the same for each, `[R]` or `[R, K]`; None: `measure` is called for each.
      needs: what has to be there, of all classes or of the class; None: nothing but a bag.
      takes_probabilities: whether values have to be in [0, 1] and to sum to 1; for others their order is all.
      in_table: whether it has a column in the printed table.
    """

    title: str
    measure: Callable[[np.ndarray, np.ndarray], Any]
    higher: bool
    per_class: bool = False
    resample: Callable[[Resamples], np.ndarray] | None = None
    needs: Requirement | None = None
    takes_probabilities: bool = False
    in_table: bool = False

    def compute(
        self, labels: np.ndarray, probabilities: np.ndarray, positive: int | None
    ) -> np.ndarray:
        """Computes the metric of predictions.

        Args:
          labels: `[B]` int in [0, K), B at least 1.
          probabilities: `[B, K]` float64, all finite.
          positive: place of the positive class; None: none is.

        Returns:
          `[1]` float64, or of one that is `per_class` `[1 + K]`: `headline`, and that of each class; NaN
          where it is not defined.
        """
        if self._refuse(labels, probabilities):
            return np.full(1 + self.per_class * probabilities.shape[1], np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of classes without bags, and of sums that are nearly 1
            values = self.measure(labels, self._clip(probabilities))
        return self.headline(np.asarray(values, np.float64), positive)

    def compute_resamples(self, resamples: Resamples, positive: int | None) -> np.ndarray:
        """Computes what `compute` does for each resample, `[R, 1]` or `[R, 1 + K]`."""
        if self.resample is not None:
            if self.takes_probabilities:
                clipped = self._clip(resamples.probabilities)
                resamples = dataclasses.replace(resamples, probabilities=clipped)
            return self.headline(self.resample(resamples), positive)
        rows = np.arange(len(resamples.labels))
        values = []
        for counts in resamples.counts.astype(np.int64):
            own = np.repeat(rows, counts)
            values.append(
                self.compute(resamples.labels[own], resamples.probabilities[own], positive)
            )
        return np.array(values)

    def headline(self, values: np.ndarray, positive: int | None) -> np.ndarray:
        """Puts one number for all classes before those of each class.

        Args:
          values: `[...]`, or of one that is `per_class` `[..., K]`.
          positive: place of the positive class, whose number it is; None: the mean over classes, NaN where
            one of them is.

        Returns:
          `[..., 1]` or `[..., 1 + K]`.
        """
        if not self.per_class:
            return values[..., None]
        first = values.mean(axis=-1) if positive is None else values[..., positive]
        return np.concatenate([first[..., None], values], axis=-1)

    def explain_undefined(
        self, labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]
    ) -> list[str | None]:
        """Says why the metric is not defined; None where it is.

        Args:
          labels, probabilities: as of `compute`.
          classes: K names.

        Returns:
          For all classes, and of one that is `per_class` for each; the headline of a positive class has that
          class's.
        """
        reason = self._refuse(labels, probabilities)
        if reason is not None or self.needs is None:
            return [reason] * (1 + self.per_class * len(classes))
        predictions = np.argmax(probabilities, axis=1)
        holds = self.needs.holds(labels, predictions, len(classes))
        each = [
            None if there else self.needs.sentence.format(name)
            for name, there in zip(classes, holds, strict=True)
        ]
        missing = [name for name, there in zip(classes, holds, strict=True) if not there]
        whole = self.needs.sentence.format(" and of ".join(missing)) if missing else None
        return [whole, *each] if self.per_class else [whole]

    def _refuse(self, labels: np.ndarray, probabilities: np.ndarray) -> str | None:
        """Says what of the data as a whole is in the way; None: nothing."""
        if probabilities.shape[1] < 2:
            return "there is one class only"
        outside = np.abs(probabilities - np.clip(probabilities, 0, 1)).max()
        if self.takes_probabilities and max(
            outside, np.abs(probabilities.sum(axis=1) - 1).max()
        ) > (_ROUNDING):
            return "predictions are no probabilities, which are from 0 to 1 and sum to 1"
        return None

    def _clip(self, probabilities: np.ndarray) -> np.ndarray:
        return np.clip(probabilities, 0, 1) if self.takes_probabilities else probabilities


def ranking_scores(probabilities: np.ndarray) -> np.ndarray:
    """Scores by which bags are ranked for each class, `[B, K]`.

    Of two classes both have the second one's probability, so that rounding near 1 makes no ties for the first
    one that are none for the second, and both have the same area.

    Args:
      probabilities: `[B, K]`.
    """
    if probabilities.shape[1] != 2:
        return probabilities
    return np.stack([-probabilities[:, 1], probabilities[:, 1]], axis=1)


def calibration_bins(values: np.ndarray) -> np.ndarray:
    """The bins of probabilities: 0 for those below 1 / 15, the last from 14 / 15 to 1."""
    return np.clip((values * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)


def _one_hot(places: np.ndarray, count: int) -> np.ndarray:
    return (places[:, None] == np.arange(count)).astype(np.float64)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides in float64; NaN where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    bottom = np.broadcast_to(denominator, shape)
    return np.divide(numerator, bottom, out=np.full(shape, np.nan), where=bottom != 0)


def _each_class(
    labels: np.ndarray, scores: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    """`[K]`: a metric of two classes for each against the rest; NaN for one without both."""
    values = np.full(scores.shape[1], np.nan)
    for k in np.flatnonzero(_both_sides(labels, labels, scores.shape[1])):
        values[k] = measure(labels == k, scores[:, k])
    return values


def _has_bag(labels: np.ndarray, predictions: np.ndarray, count: int) -> np.ndarray:
    return np.isin(np.arange(count), labels)


def _both_sides(labels: np.ndarray, predictions: np.ndarray, count: int) -> np.ndarray:
    bags = np.bincount(labels, minlength=count)
    return (bags > 0) & (bags < len(labels))


def _occurs(labels: np.ndarray, predictions: np.ndarray, count: int) -> np.ndarray:
    return np.isin(np.arange(count), labels) | np.isin(np.arange(count), predictions)


_A_BAG = Requirement(_has_bag, "there is no bag of {}")
_BOTH_SIDES = Requirement(_both_sides, "there are not both bags of {} and others")
_AN_OCCURRENCE = Requirement(_occurs, "no bag is, or is predicted to be, of {}")


def _accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of bags whose most probable class is theirs."""
    return sklearn.metrics.accuracy_score(labels, np.argmax(probabilities, axis=1))


def _accuracy_of_resamples(resamples: Resamples) -> np.ndarray:
    return resamples.mean((resamples.truth * resamples.predicted).sum(axis=1))


def _balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean over classes of the share of a class's bags that are predicted rightly."""
    if not _has_bag(labels, labels, probabilities.shape[1]).all():
        return np.nan  # scikit-learn takes the mean over the other classes
    return sklearn.metrics.balanced_accuracy_score(labels, np.argmax(probabilities, axis=1))


def _balanced_accuracy_of_resamples(resamples: Resamples) -> np.ndarray:
    return _divide(resamples.hits, resamples.labelled).mean(axis=1)


def _f1(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """2 hits / (bags of the class + bags that are predicted to be)."""
    return sklearn.metrics.f1_score(
        labels,
        np.argmax(probabilities, axis=1),
        labels=np.arange(probabilities.shape[1]),
        average=None,
        zero_division=np.nan,
    )


def _f1_of_resamples(resamples: Resamples) -> np.ndarray:
    either = resamples.labelled + resamples.counts @ resamples.predicted
    return _divide(2 * resamples.hits, either)


def of_label(
    labels: np.ndarray, probabilities: np.ndarray, place: int
) -> tuple[np.ndarray, np.ndarray]:
    """One of several labels as two classes, of which the second is to have it.

    Args:
      labels: `[B, K]` 0 and 1.
      probabilities: `[B, K]`, each by itself.
      place: of the label.

    Returns:
      `[B]` int64 and `[B, 2]` float64, which every metric takes.
    """
    own = probabilities[:, place].astype(np.float64)
    return labels[:, place].astype(np.int64), np.stack([1 - own, own], axis=1)


def mean_auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Computes the AUROC that tables and summaries have: of two classes that of the second.

    Args:
      labels: `[B]` int in [0, K); or of several labels `[B, K]` 0 and 1.
      probabilities: `[B, K]`.

    Returns:
      Of more classes the mean over them, one against the rest; NaN where a class has no bag, or where a
      probability is not finite. Of several labels the mean over labels; NaN where all bags or none have one.
    """
    classes = probabilities.shape[1]
    if has_several(labels):
        if not np.isfinite(probabilities).all():
            return math.nan
        pairs = (of_label(labels, probabilities, k) for k in range(classes))
        return float(np.mean([mean_auroc(*pair) for pair in pairs]))
    if len(np.unique(labels)) < classes or not np.isfinite(probabilities).all():
        return math.nan
    if classes == 2:
        return float(sklearn.metrics.roc_auc_score(labels, probabilities[:, 1]))
    return float(sklearn.metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))


def _auroc(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """How probably a bag of the class is ranked above another; equal ones count half."""
    return _each_class(labels, ranking_scores(probabilities), sklearn.metrics.roc_auc_score)


def _auroc_of_resamples(resamples: Resamples) -> np.ndarray:
    areas = []
    for of_class, others in resamples.ranks:
        below = others.sum(axis=1, keepdims=True) - np.cumsum(others, axis=1)
        pairs = (of_class * (below + others / 2)).sum(axis=1)
        areas.append(_divide(pairs, of_class.sum(axis=1) * others.sum(axis=1)))
    return np.stack(areas, axis=1)


def _average_precision(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The sum over scores of precision times the rise in recall; not interpolated."""
    return _each_class(
        labels, ranking_scores(probabilities), sklearn.metrics.average_precision_score
    )


def _average_precision_of_resamples(resamples: Resamples) -> np.ndarray:
    values = []
    for of_class, others in resamples.ranks:
        hits = np.cumsum(of_class, axis=1)
        # Where nothing is found there is no rise in recall either.
        precision = np.nan_to_num(_divide(hits, hits + np.cumsum(others, axis=1)))
        total = of_class.sum(axis=1)
        both = np.where(others.sum(axis=1) > 0, total, 0)
        values.append(_divide((of_class * precision).sum(axis=1), both))
    return np.stack(values, axis=1)


def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of -log of the label's probability, which is at least 2.2e-16, in nats."""
    return sklearn.metrics.log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1]))


def _log_loss_of_resamples(resamples: Resamples) -> np.ndarray:
    smallest = np.finfo(np.float64).eps
    own = (resamples.probabilities * resamples.truth).sum(axis=1)
    return resamples.mean(-np.log(np.clip(own, smallest, 1 - smallest)))


def _brier_score(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The mean of (probability - whether the bag is of the class) ** 2."""
    return np.array(
        [
            sklearn.metrics.brier_score_loss(
                labels == k, probabilities[:, k], pos_label=True, labels=[False, True]
            )
            for k in range(probabilities.shape[1])
        ]
    )


def _brier_score_of_resamples(resamples: Resamples) -> np.ndarray:
    return resamples.mean((resamples.probabilities - resamples.truth) ** 2)


def _expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The predicted class's probability beside its accuracy, in bins (ECE of Guo et al. 2017)."""
    once = np.ones((1, len(labels)))
    return float(_expected_of_resamples(Resamples(labels, probabilities, once))[0])


def _expected_of_resamples(resamples: Resamples) -> np.ndarray:
    confidence = resamples.probabilities.max(axis=1)
    right = (resamples.truth * resamples.predicted).sum(axis=1)
    return _calibration_gap(resamples, confidence, right)


def _classwise_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The class's probability beside its frequency, in bins (classwise-ECE of Kull et al. 2019)."""
    once = np.ones((1, len(labels)))
    return _classwise_of_resamples(Resamples(labels, probabilities, once))[0]


def _classwise_of_resamples(resamples: Resamples) -> np.ndarray:
    pairs = zip(resamples.probabilities.T, resamples.truth.T, strict=True)
    return np.stack([_calibration_gap(resamples, *pair) for pair in pairs], axis=1)


def _calibration_gap(
    resamples: Resamples, probabilities: np.ndarray, outcomes: np.ndarray
) -> np.ndarray:
    """`sum over bins |sum of (outcome - probability)| / bags` of each resample, `[R]`."""
    member = _one_hot(calibration_bins(probabilities), CALIBRATION_BINS)
    return np.abs(resamples.mean(member * (outcomes - probabilities)[:, None])).sum(axis=1)


BAG_METRICS = Registry(
    "metric of bags",
    BagMetric,
    {
        "accuracy": BagMetric("accuracy", _accuracy, True, resample=_accuracy_of_resamples),
        "auroc": BagMetric(
            "AUROC",
            _auroc,
            True,
            per_class=True,
            resample=_auroc_of_resamples,
            needs=_BOTH_SIDES,
            in_table=True,
        ),
        "auprc": BagMetric(
            "AUPRC",
            _average_precision,
            True,
            per_class=True,
            resample=_average_precision_of_resamples,
            needs=_BOTH_SIDES,
            in_table=True,
        ),
        "balanced_accuracy": BagMetric(
            "balanced accuracy",
            _balanced_accuracy,
            True,
            resample=_balanced_accuracy_of_resamples,
            needs=_A_BAG,
            in_table=True,
        ),
        "f1": BagMetric(
            "F1",
            _f1,
            True,
            per_class=True,
            resample=_f1_of_resamples,
            needs=_AN_OCCURRENCE,
        ),
        "log_loss": BagMetric(
            "log loss",
            _log_loss,
            False,
            resample=_log_loss_of_resamples,
            takes_probabilities=True,
            in_table=True,
        ),
        "brier_score": BagMetric(
            "Brier score",
            _brier_score,
            False,
            per_class=True,
            resample=_brier_score_of_resamples,
            takes_probabilities=True,
        ),
        "expected_calibration_error": BagMetric(
            "expected calibration error",
            _expected_calibration_error,
            False,
            resample=_expected_of_resamples,
            takes_probabilities=True,
        ),
        "classwise_calibration_error": BagMetric(
            "class-wise calibration error",
            _classwise_calibration_error,
            False,
            per_class=True,
            resample=_classwise_of_resamples,
            takes_probabilities=True,
        ),
    },
)
