"""MI-Kernel and mi-Graph: support vector machines with a kernel between bags.

Both kernels between bags are a weighted sum of an RBF kernel between their instances,

    K(X, Y) = sum_{x in X} sum_{y in Y} u_X(x) u_Y(y) exp(-g |x - y|^2),

and differ in the weights u_X, which depend on nothing but the bag X.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC

from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.pairwise_svm import PairwiseSVM
from lossattn_jax.mil.svm import (
    BLOCK,
    bandwidth,
    check_positive,
    flat,
    probabilities,
    scores,
)

_WHOLE = 8192  # instances of the largest bag whose kernel values are all in memory at once
_BLOCK_VALUES = 1 << 24  # of larger ones


class WeightedBags(NamedTuple):
    """Bags with weights of their instances.

    Attributes:
      instances: `[N, D]` of all bags.
      weights: `[N]` u in the set kernel.
      starts: `[B]` place of each bag's first instance.
    """

    instances: np.ndarray
    weights: np.ndarray
    starts: np.ndarray


class Similarities:
    """RBF kernel values of a bag's instances, in blocks of rows.

    Of a large bag all of them would take more memory than there is.
    """

    def __init__(self, bag: np.ndarray, gamma: float):
        """Stores a bag `[n, D]` and the kernel's g."""
        self._bag, self._gamma = bag, gamma

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields `[rows, n]`."""
        count = len(self._bag)
        if count <= _WHOLE:
            yield rbf_kernel(self._bag, gamma=self._gamma)
            return
        rows = max(1, _BLOCK_VALUES // count)
        for start in range(0, count, rows):
            yield rbf_kernel(self._bag[start : start + rows], self._bag, gamma=self._gamma)


def weigh_instances(
    bags: list[np.ndarray], weights: Callable[[Iterable[np.ndarray]], np.ndarray], gamma: float
) -> WeightedBags:
    """Weights the instances of bags `[n_i, D]`.

    Args:
      bags: the bags.
      weights: `set_weights` or `graph_weights`.
      gamma: g of the RBF kernel.
    """
    return WeightedBags(
        np.concatenate(bags),
        np.concatenate([weights(Similarities(bag, gamma)) for bag in bags]),
        np.cumsum([0] + [len(bag) for bag in bags[:-1]]),
    )


def set_kernel(rows: WeightedBags, columns: WeightedBags, gamma: float) -> np.ndarray:
    """Computes the set kernel between two lists of bags, `[B, B']`.

    The module's docstring has the equation.
    """
    kernel = np.zeros((len(rows.starts), len(columns.starts)))
    bag_of = np.zeros(len(rows.instances), int)
    bag_of[rows.starts[1:]] = 1
    bag_of = np.cumsum(bag_of)
    for start in range(0, len(rows.instances), BLOCK):
        part = slice(start, start + BLOCK)
        values = rbf_kernel(rows.instances[part], columns.instances, gamma=gamma)
        values *= columns.weights
        values = np.add.reduceat(values, columns.starts, axis=1) * rows.weights[part, None]
        bags, firsts = np.unique(bag_of[part], return_index=True)
        # Added, for a bag may reach over several blocks.
        kernel[bags] += np.add.reduceat(values, firsts, axis=0)
    return kernel


def set_weights(similarity: Iterable[np.ndarray]) -> np.ndarray:
    """Computes MI-Kernel's weights `[n]` from a bag's kernel values `[n, n]`.

    All are `1 / sqrt(sum_xy k(x, y))`, which makes `K(X, X) = 1`.
    """
    totals, count = [], 0
    for block in similarity:
        totals.append(block.sum())
        count = block.shape[1]
    return np.full(count, 1 / np.sqrt(sum(totals)))


def graph_weights(similarity: Iterable[np.ndarray]) -> np.ndarray:
    """Computes mi-Graph's weights `[n]` from a bag's kernel values `[n, n]`.

    Two instances are joined if their Gaussian distance `1 - k(x, y)` is below the average of all pairs
    in the bag; each is joined with itself. An instance joined with many others, itself among them,
    weighs the less, in inverse proportion to their number.
    """
    totals, count = [], 0
    for own, block in _with_diagonal(similarity):
        totals.append(block[~own].sum())
        count = block.shape[1]
    if count == 1:
        return np.ones(1)
    average = sum(totals) / (count * (count - 1))
    neighbours = [
        (own | (block > average)).sum(axis=1) for own, block in _with_diagonal(similarity)
    ]
    weights = 1 / np.concatenate(neighbours)
    return weights / weights.sum()


def _with_diagonal(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the mask of the diagonal, bool `[rows, n]`, and each block."""
    start = 0
    for block in blocks:
        own = np.eye(len(block), block.shape[1], start, dtype=bool)
        start += len(block)
        yield own, block


class _BagKernelSVM(BagClassifier):
    def __init__(
        self,
        *,
        gamma_factor: float = 1.0,
        C: float = 10.0,
        class_weight: str | Mapping[Any, float] | None = None,
        standardise: bool = True,
        positive: Any = None,
    ) -> None:
        self.gamma_factor = gamma_factor
        self.C = C
        self.class_weight = class_weight
        self.standardise = standardise
        self.positive = positive

    @classmethod
    def candidates(cls) -> tuple[Mapping[str, Any], ...]:
        return (
            {},
            {"C": 1.0},
            {"C": 100.0},
            {"gamma_factor": 0.25},
            {"gamma_factor": 4.0},
            {"gamma_factor": 4.0, "C": 100.0},
        )

    @classmethod
    def memory(cls, lengths: np.ndarray, labels: np.ndarray) -> int:
        whole = min(int(lengths.max()), _WHOLE)
        return 8 * max(3 * whole**2, 2 * BLOCK * int(lengths.sum()))

    def check_params(self) -> None:
        """See `BagClassifier.check_params`."""
        check_positive("gamma_factor", self.gamma_factor)
        check_positive("C", self.C)

    @abc.abstractmethod
    def _weights(self, similarity: Iterable[np.ndarray]) -> np.ndarray: ...

    def _fit(self, bags: list[np.ndarray], labels: np.ndarray) -> None:
        self.check_params()
        bags = flat(bags)
        self._gamma = bandwidth(np.concatenate(bags), self.gamma_factor)
        self._training = weigh_instances(bags, self._weights, self._gamma)
        weights = None if self._class_weights is None else dict(enumerate(self._class_weights))
        svc = SVC(C=self.C, kernel="precomputed", class_weight=weights)
        svc.fit(set_kernel(self._training, self._training, self._gamma), labels)
        self._svm = PairwiseSVM.of(svc)

    def _state(self) -> dict[str, np.ndarray]:
        return {
            "gamma": np.array(self._gamma),
            **self._training._asdict(),
            **self._svm._asdict(),
        }

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._gamma = float(state["gamma"])
        self._training = WeightedBags(*(state[name] for name in WeightedBags._fields))
        self._svm = PairwiseSVM(*(state[name] for name in PairwiseSVM._fields))

    def _decisions(self, bags: WeightedBags) -> np.ndarray:
        """Decision values, `[B, 1]` or, for more than two classes, `[B, K]`."""
        kernel = set_kernel(bags, self._training, self._gamma)
        return self._svm.decisions(kernel)

    def _predict_proba(self, bags: list[np.ndarray]) -> np.ndarray:
        return probabilities(
            self._decisions(weigh_instances(flat(bags), self._weights, self._gamma))
        )

    def _instance_scores(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        instances = np.concatenate(flat(bags))
        # The only instance of a bag has the weight 1 in both kernels.
        alone = WeightedBags(instances, np.ones(len(instances)), np.arange(len(instances)))
        ends = np.cumsum([len(bag) for bag in bags])
        return np.split(scores(self._decisions(alone)), ends[:-1])


class MIKernel(_BagKernelSVM):
    """MI-Kernel: an SVM with the normalised set kernel.

        K(X, Y) = s(X, Y) / sqrt(s(X, X) s(Y, Y)),    s(X, Y) = sum_{x in X} sum_{y in Y} exp(-g |x - y|^2)

    Gaertner, Flach, Kowalczyk & Smola, "Multi-Instance Kernels" (ICML 2002): the set kernel with its
    normalisation in feature space, of an RBF kernel, a power of which is an RBF kernel again (their
    multi-instance kernel). Bags of one instance each make it an ordinary SVM. More than two classes are
    told apart as scikit-learn's `SVC` does it, pair by pair.

    By default the RBF kernel has scikit-learn's "scale" width. C is ten times scikit-learn's since the
    training examples are bags, and few.

    `predict_proba` maps decisions monotonically (a sigmoid; softmax for more classes) and is not
    calibrated. `instance_scores` are the decision values for bags of the one instance; in a bag X, an
    instance's share of the decision for X is the same up to a constant factor and summand.

    Attributes:
      gamma_factor: g as a multiple of 1 / (features * variance of the training values).
      C: weight of the margin errors.
      class_weight: None, or "balanced" for errors in inverse proportion to the number of a class' bags, or a
        dictionary with the weight of each label, 1 for those that it has not.
      standardise, positive: see `BagClassifier`; the two classes are treated equally.
    """

    def _weights(self, similarity: Iterable[np.ndarray]) -> np.ndarray:
        return set_weights(similarity)


class MIGraph(_BagKernelSVM):
    """mi-Graph: an SVM with a kernel on groups of similar instances.

    A bag's groups count, not all of its instances.

        K(X, Y) = sum_ab w_X(a) w_Y(b) exp(-g |x_a - y_b|^2) / (sum_a w_X(a) sum_b w_Y(b))
        w_X(a) = 1 / |{u in X: u = a or 1 - exp(-g |x_a - x_u|^2) < delta_X}|

    where delta_X is the average of this distance over the pairs of different instances of X.
    Zhou, Sun & Li, "Multi-Instance Learning by Treating Instances As Non-I.I.D. Samples" (ICML 2009),
    section 4: their efficient kernel, miGraph. Bags of one instance each make it an ordinary SVM. More
    than two classes are told apart as scikit-learn's `SVC` does it, pair by pair.

    The paper selects g and C by cross-validation; the defaults, `predict_proba`, `instance_scores` and
    attributes are as in `MIKernel`.
    """

    def _weights(self, similarity: Iterable[np.ndarray]) -> np.ndarray:
        return graph_weights(similarity)
