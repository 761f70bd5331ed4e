"""A fitted support vector machine as plain arrays, with the decisions that scikit-learn's `SVC` computes."""

import itertools
from typing import Any, NamedTuple, Self

import numpy as np

_ROWS = 1 << 22  # products that are in memory at once


class PairwiseSVM(NamedTuple):
    """Machines that tell K classes apart pair by pair, by precomputed kernel values.

    Attributes:
      support: `[S]` int64, places of the support vectors among the training examples, class by class.
      counts: `[K]` int64, support vectors of each class.
      coefficients: `[K - 1, S]` float64; of a vector of class i those in its machines, in the order of the
        other classes.
      biases: `[K (K - 1) / 2]` float64 of the machines (0, 1), (0, 2), ..., (K - 2, K - 1).
    """

    support: np.ndarray
    counts: np.ndarray
    coefficients: np.ndarray
    biases: np.ndarray

    @classmethod
    def of(cls, svc: Any) -> Self:
        """The arrays of a fitted `sklearn.svm.SVC`."""
        return cls(
            np.array(svc.support_, np.int64),
            np.array(svc.n_support_, np.int64),
            np.array(svc.dual_coef_, np.float64, order="C"),
            np.array(svc.intercept_, np.float64),
        )

    def decisions(self, kernel: np.ndarray) -> np.ndarray:
        """Decision values, with every bit as `SVC.decision_function` has them.

        Of two classes it is the machine's value, positive for the second class. Of more it is the number of
        pairs that a class wins, and less than a third for the sum of its values.

        Args:
          kernel: `[B, examples]` float64.

        Returns:
          `[B, 1]` for two classes, otherwise `[B, K]`.
        """
        pairs = self._pairs(kernel)
        classes = len(self.counts)
        if classes == 2:
            return pairs
        votes, sums = np.zeros((2, len(kernel), classes))
        for number, (one, other) in enumerate(itertools.combinations(range(classes), 2)):
            value = pairs[:, number]
            sums[:, one] += value
            sums[:, other] -= value
            votes[:, one] += value >= 0
            votes[:, other] += value < 0
        return votes + sums / (3 * (np.abs(sums) + 1))

    def _pairs(self, kernel: np.ndarray) -> np.ndarray:
        """`[B, pairs]`: of each machine `sum_s coefficients[s] k(x, s) + bias`, added in that order."""
        ends = np.cumsum(self.counts)
        starts = ends - self.counts
        values = np.empty((len(kernel), len(self.biases)))
        machines = itertools.combinations(range(len(self.counts)), 2)
        for number, (one, other) in enumerate(machines):
            places = np.r_[starts[one] : ends[one], starts[other] : ends[other]]
            own = np.concatenate(
                [
                    self.coefficients[other - 1, starts[one] : ends[one]],
                    self.coefficients[one, starts[other] : ends[other]],
                ]
            )
            rows = max(1, _ROWS // max(1, len(places)))
            for start in range(0, len(kernel), rows):
                part = slice(start, start + rows)
                products = kernel[part][:, self.support[places]] * own
                # One after the other, as LIBSVM adds, and not in the order of a faster sum.
                values[part, number] = np.add.accumulate(products, axis=1)[:, -1]
        return values + self.biases
