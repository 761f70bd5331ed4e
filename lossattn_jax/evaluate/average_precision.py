"""Average precision for images of several classes, in float64.

It needs the scores of the whole test set at once, so it is no sum over batches like those of
`metrics`. Examples of equal score count as one threshold: they are taken together or not at all, so
that the result does not depend on the order of the examples.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

_BINS = 11  # of the published average precision
Points = Literal["11", "all", "exact"]


def average_precision(scores: np.ndarray, positives: np.ndarray, points: Points = "all") -> float:
    """Computes the average precision of one class.

    The interpolated precision at a recall is the highest precision at that recall or above. '11'
    averages it over the recalls 0, 0.1, ..., 1 (PASCAL VOC 2007); 'all' is the area under it
    (PASCAL VOC 2010 and later). 'exact' interpolates nothing: the mean over the positive examples of the
    precision at the score of each, as scikit-learn's `average_precision_score`.

    Args:
      scores: [N], the higher, the more the example is thought to show the class.
      positives: bool [N], which examples do show it.
      points: '11', 'all' or 'exact'.

    Returns:
      Between 0 and 1; nan where there is no positive example.

    Raises:
      ValueError: scores that are not finite, shapes that do not fit, or unknown `points`.
    """
    if points not in _SUMMARIES:
        allowed = " or ".join(map(repr, _SUMMARIES))
        raise ValueError(f"points is {points!r}, but must be {allowed}")
    scores, positives = _check(scores, positives, dimensions=1)
    if not positives.any():
        return float("nan")
    return _SUMMARIES[points](_Curve.of(scores, positives))


def mean_average_precision(
    scores: np.ndarray, positives: np.ndarray, points: Points = "all"
) -> float:
    """Computes the mean of the classes' average precisions.

    Args:
      scores: [N, K].
      positives: bool [N, K].
      points: as of `average_precision`.

    Returns:
      Between 0 and 1. Classes without a positive example are left out of the mean, which is nan where no
      class has any.

    Raises:
      ValueError: scores that are not finite, shapes that do not fit, or unknown `points`.
    """
    scores, positives = _check(scores, positives, dimensions=2)
    of_classes = [
        average_precision(scores[:, label], positives[:, label], points)
        for label in np.flatnonzero(positives.any(axis=0))
    ]
    return float(np.mean(of_classes)) if of_classes else float("nan")


def published_average_precision(scores: np.ndarray, positives: np.ndarray) -> float:
    """Computes the average precision of one class as the TIP 2021 paper's code does.

    Of T positive examples, ranked by score, the c-th has the recall c / T. For k = 1, 2, ..., 10 a bin
    ends before the first example whose recall is between (k - 1) / 10 and k / 10, both excluded, until
    there is none; one more ends before the last positive example. Each of these at most 11 bins has the
    highest precision in it, 0 where it is empty; those that are missing of 11 have the precision of the
    first example of all, which is 1 or 0. The result is the mean of the 11. So with ten positive examples
    or fewer it says little but whether the first example is positive.

    It is `calculate_AP` in `utils/calculate_AP.py` of the repository that the paper names, also in its
    recalls, which PyTorch makes in float32 as c times the reciprocal of T, so that rounding decides at
    the edges: where T times its reciprocal is not 1, as for 41, the bin before the last positive example
    is missing too. Examples of equal score are in their order, where `torch.sort` leaves it open.

    Args:
      scores: [N], the higher, the more the example is thought to show the class.
      positives: bool [N], which examples do show it.

    Returns:
      Between 0 and 1; 0 where there is no positive example.

    Raises:
      ValueError: scores that are not finite, or shapes that do not fit.
    """
    scores, positives = _check(scores, positives, dimensions=1)
    total = int(positives.sum())
    if not total:
        return 0.0
    ranks = np.flatnonzero(positives[np.argsort(-scores, kind="stable")])  # from 0
    counts = np.arange(1, total + 1)
    precision = counts / (ranks + 1)
    recall = counts.astype(np.float32) * (np.float32(1) / np.float32(total))
    edges = (0.1 * np.arange(_BINS)).astype(np.float32)
    # The first example beyond each edge ends a bin where it is before the next edge.
    beyond = np.searchsorted(recall, edges[:-1], side="right")
    within = recall[np.minimum(beyond, total - 1)] < edges[1:]
    ends = beyond[np.logical_and.accumulate(within & (beyond < total))]
    if recall[-1] == 1:
        ends = np.append(ends, total - 1)
    first = float(ranks[0] == 0)
    values = np.full(_BINS, first)
    starts = np.concatenate([[0], ends[:-1]])
    # Only the first bin can be empty. Where it begins the ranking, its own example counts for it.
    values[: len(ends)] = np.where(ranks[ends] == 0, first, 0.0)
    full = starts < ends
    if full.any():
        values[np.flatnonzero(full)] = np.maximum.reduceat(precision[: ends[-1]], starts[full])
    return float(np.mean(values))


def published_mean_average_precision(scores: np.ndarray, positives: np.ndarray) -> float:
    """Computes the mean over classes of `published_average_precision`.

    Args:
      scores: [N, K].
      positives: bool [N, K].

    Returns:
      Between 0 and 1. Classes without a positive example count as 0.

    Raises:
      ValueError: scores that are not finite, or shapes that do not fit.
    """
    scores, positives = _check(scores, positives, dimensions=2)
    pairs = zip(scores.T, positives.T, strict=True)
    return float(np.mean([published_average_precision(*pair) for pair in pairs]))


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Precision over recall, a point per distinct score.

    From the highest score down.

    Attributes:
      hits: int64 [T], positive examples at this score or above; ends with all of them.
      precision: float64 [T].
      envelope: float64 [T], the highest precision here or at a lower score.
    """

    hits: np.ndarray
    precision: np.ndarray
    envelope: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, positives: np.ndarray) -> "_Curve":
        order = np.argsort(-scores)
        sorted_scores = scores[order]
        last = np.append(
            np.flatnonzero(sorted_scores[1:] != sorted_scores[:-1]), len(sorted_scores) - 1
        )
        hits = np.cumsum(positives[order], dtype=np.int64)[last]
        precision = hits / (last + 1)
        return cls(hits, precision, np.maximum.accumulate(precision[::-1])[::-1])

    def mean_at_eleven_recalls(self) -> float:
        # In whole numbers: as floats, 3 hits of 10 would miss the recall 3 * 0.1.
        places = np.searchsorted(10 * self.hits, np.arange(11) * self.hits[-1])
        return float(np.mean(self.envelope[places]))

    def area(self) -> float:
        return self._mean_over_hits(self.envelope)

    def mean_precision(self) -> float:
        return self._mean_over_hits(self.precision)

    def _mean_over_hits(self, values: np.ndarray) -> float:
        return float(np.sum(np.diff(self.hits, prepend=0) * values) / self.hits[-1])


_SUMMARIES: Mapping[str, Callable[[_Curve], float]] = {
    "11": _Curve.mean_at_eleven_recalls,
    "all": _Curve.area,
    "exact": _Curve.mean_precision,
}


def _check(
    scores: np.ndarray, positives: np.ndarray, dimensions: int
) -> tuple[np.ndarray, np.ndarray]:
    scores, positives = np.asarray(scores, np.float64), np.asarray(positives, bool)
    if scores.ndim != dimensions or scores.shape != positives.shape:
        raise ValueError(
            f"scores and positives have to be of one shape of {dimensions} dimensions, not "
            f"{scores.shape} and {positives.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores have to be finite")
    return scores, positives
