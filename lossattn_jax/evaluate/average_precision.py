"""Average precision for images of several classes, in float64.

It needs the scores of the whole test set at once, so it is no sum over batches like those of
`metrics`. Examples of equal score count as one threshold: they are taken together or not at all, so
that the result does not depend on the order of the examples.
"""

import dataclasses
from typing import Literal

import numpy as np

Points = Literal["11", "all"]


def average_precision(scores: np.ndarray, positives: np.ndarray, points: Points = "all") -> float:
    """Computes the interpolated average precision of one class.

    The interpolated precision at a recall is the highest precision at that recall or above. '11'
    averages it over the recalls 0, 0.1, ..., 1 (PASCAL VOC 2007); 'all' is the area under it
    (PASCAL VOC 2010 and later).

    Args:
      scores: [N], the higher, the more the example is thought to show the class.
      positives: bool [N], which examples do show it.
      points: '11' or 'all'.

    Returns:
      Between 0 and 1; nan where there is no positive example.

    Raises:
      ValueError: scores that are not finite, shapes that do not fit, or unknown `points`.
    """
    if points not in ("11", "all"):
        raise ValueError(f"points is {points!r}, but must be '11' or 'all'")
    scores, positives = _check(scores, positives, dimensions=1)
    if not positives.any():
        return float("nan")
    curve = _Curve.of(scores, positives)
    return curve.mean_at_eleven_recalls() if points == "11" else curve.area()


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


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Precision over recall, a point per distinct score.

    From the highest score down.

    Attributes:
      hits: int64 [T], positive examples at this score or above; ends with all of them.
      envelope: float64 [T], the highest precision here or at a lower score.
    """

    hits: np.ndarray
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
        return cls(hits, np.maximum.accumulate(precision[::-1])[::-1])

    def mean_at_eleven_recalls(self) -> float:
        # In whole numbers: as floats, 3 hits of 10 would miss the recall 3 * 0.1.
        places = np.searchsorted(10 * self.hits, np.arange(11) * self.hits[-1])
        return float(np.mean(self.envelope[places]))

    def area(self) -> float:
        return float(np.sum(np.diff(self.hits, prepend=0) * self.envelope) / self.hits[-1])


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
