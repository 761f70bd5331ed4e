"""mi-SVM and MI-SVM: support vector machines that learn instances' labels.

Both are of Andrews, Tsochantaridis & Hofmann, "Support Vector Machines for Multiple-Instance Learning"
(NIPS 2002). A positive bag is one with a positive instance at least, so both maximise an instance
classifier's soft margin over its parameters and over which instances of the positive bags are positive.
The set kernels of `bag_kernels` take an instance kernel and the map from decisions to probabilities
from here.
"""

import abc
import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from sklearn.metrics.pairwise import linear_kernel, rbf_kernel
from sklearn.svm import SVC

from lossattn_jax.errors import UserError
from lossattn_jax.mil.estimator import BagClassifier

BLOCK = 1024  # rows of instances whose kernel values are computed at once

_KERNELS = {
    "rbf": rbf_kernel,
    "linear": lambda x, y, gamma: gamma * linear_kernel(x, y),
}


class Machine(NamedTuple):
    """An SVM of one class against the others.

    Its decision is `decision(x) = sum_p coefficients[p] k(x, p) + bias`.

    Attributes:
      coefficients: `[P]` of the points that the machine was trained on; 0 for most.
      bias: the constant.
      rounds: how many times an SVM was fitted until nothing changed.
    """

    coefficients: np.ndarray
    bias: float
    rounds: int


class Weights(NamedTuple):
    """Weights of a machine's errors, of one class against the others.

    Attributes:
      positive: the weight of positive instances.
      negative: `[B]` the weight of negative instances of each bag.
    """

    positive: float
    negative: np.ndarray


class _InstanceSVM(BagClassifier):
    unequal_classes = True

    def __init__(
        self,
        *,
        kernel: str = "rbf",
        gamma_factor: float = 1.0,
        C: float = 1.0,
        class_weight: str | Mapping[Any, float] | None = None,
        max_iterations: int = 50,
        standardise: bool = True,
        positive: Any = None,
    ) -> None:
        self.kernel = kernel
        self.gamma_factor = gamma_factor
        self.C = C
        self.class_weight = class_weight
        self.max_iterations = max_iterations
        self.standardise = standardise
        self.positive = positive

    @classmethod
    def candidates(cls) -> tuple[Mapping[str, Any], ...]:
        return (
            {},
            {"C": 10.0},
            {"C": 10.0, "gamma_factor": 4.0},
            {"kernel": "linear", "C": 10.0},
            {"kernel": "linear", "C": 100.0},
            {"class_weight": "balanced"},
        )

    @classmethod
    def memory(cls, lengths: np.ndarray, labels: np.ndarray) -> int:
        return 8 * (int(lengths.sum()) ** 2 + 2 * BLOCK * int(lengths.sum()))

    def _fit(self, bags: list[np.ndarray], labels: np.ndarray) -> None:
        self.check_params()
        bags = flat(bags)
        offsets = np.cumsum([0] + [len(bag) for bag in bags])
        instances = np.concatenate(bags)
        self._gamma = bandwidth(instances, self.gamma_factor)
        points = self._points_of(instances, bags)
        gram = np.empty((len(points), len(points)))
        for start in range(0, len(points), BLOCK):
            block = points[start : start + BLOCK]
            gram[start : start + BLOCK] = _KERNELS[self.kernel](block, points, gamma=self._gamma)
        classes = len(self.classes_)
        machines = [
            self._machine(gram, offsets, labels == label, self._weights_of(label, labels))
            for label in ([1] if classes == 2 else range(classes))
        ]
        self.rounds_ = [machine.rounds for machine in machines]
        coefficients = np.stack([machine.coefficients for machine in machines], axis=1)
        is_support = coefficients.any(axis=1)
        self._points, self._coefficients = points[is_support], coefficients[is_support]
        self._biases = np.array([machine.bias for machine in machines])

    def _state(self) -> dict[str, np.ndarray]:
        return {
            "gamma": np.array(self._gamma),
            "points": self._points,
            "coefficients": self._coefficients,
            "biases": self._biases,
            "rounds": np.array(self.rounds_, np.int64),
        }

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.check_params()
        self._gamma = float(state["gamma"])
        self._points, self._coefficients = state["points"], state["coefficients"]
        self._biases = state["biases"]
        self.rounds_ = state["rounds"].tolist()

    @abc.abstractmethod
    def _points_of(self, instances: np.ndarray, bags: list[np.ndarray]) -> np.ndarray:
        """Returns all points that an SVM may be trained on, `[P, D]`.

        The instances come first.
        """

    @abc.abstractmethod
    def _machine(
        self, gram: np.ndarray, offsets: np.ndarray, positive: np.ndarray, weights: Weights | None
    ) -> Machine:
        """Trains on the points' kernel values `[P, P]`."""

    def _weights_of(self, label: int, labels: np.ndarray) -> Weights | None:
        """Returns the weights of one class' machine.

        None without any, and where they are balanced in each round.
        """
        if self._class_weights is None or isinstance(self.class_weight, str):
            return None
        weights = self._class_weights
        # Of which class a negative instance in a positive bag is, is known of two classes only.
        others = float(np.delete(weights, label).mean())
        return Weights(weights[label], np.where(labels == label, others, weights[labels]))

    def _solve(
        self, gram: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
    ) -> tuple[np.ndarray, float]:
        class_weight = self.class_weight if isinstance(self.class_weight, str) else None
        svc = SVC(C=self.C, kernel="precomputed", class_weight=class_weight)
        svc.fit(gram, labels, sample_weight=weights)
        coefficients = np.zeros(len(gram))
        coefficients[svc.support_] = svc.dual_coef_[0]
        return coefficients, float(svc.intercept_[0])

    def _decisions(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        """Computes decision values, for each bag `[n_i, machines]`."""
        instances = np.concatenate(flat(bags))
        decisions = np.concatenate(
            [
                _KERNELS[self.kernel](
                    instances[start : start + BLOCK], self._points, gamma=self._gamma
                )
                @ self._coefficients
                for start in range(0, len(instances), BLOCK)
            ]
        )
        return np.split(decisions + self._biases, np.cumsum([len(bag) for bag in bags])[:-1])

    def _predict_proba(self, bags: list[np.ndarray]) -> np.ndarray:
        return probabilities(np.stack([d.max(axis=0) for d in self._decisions(bags)]))

    def _instance_scores(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        return [scores(decisions) for decisions in self._decisions(bags)]

    def check_params(self) -> None:
        """See `BagClassifier.check_params`."""
        if self.kernel not in _KERNELS:
            raise UserError(
                f"kernel is {self.kernel!r}, but must be one of {', '.join(sorted(_KERNELS))}"
            )
        check_positive("gamma_factor", self.gamma_factor)
        check_positive("C", self.C)
        if not isinstance(self.max_iterations, numbers.Integral) or self.max_iterations < 1:
            raise UserError(
                f"max_iterations is {self.max_iterations!r}, but must be a whole number above 0"
            )


class MiSVM(_InstanceSVM):
    """mi-SVM: every instance has a label, unknown in positive bags.

        min over y_i, w, b of  |w|^2 / 2 + C sum_i max(0, 1 - y_i (<w, x_i> + b))
        with  y_i = -1 in negative bags  and  y_i = 1 for one instance at least of each positive bag

    Solved as there by turns: an SVM is fitted with all instances of positive bags positive, then each of
    them takes the sign of its decision value (the largest of a bag is positive in any case), and so on
    until the labels are such as they were before (the same again, or a cycle). A bag's decision is its
    instances' largest. More than two classes are learned one against the rest.

    The defaults are scikit-learn's for an SVM, an RBF kernel of its "scale" width with C = 1: a margin
    soft enough for labels to change. The paper selects its settings by cross-validation; it has an RBF
    kernel on Musk and linear ones, too, on the Corel images, so that `candidates()` has both.

    `predict_proba` maps decisions monotonically (a sigmoid; softmax for more classes) and is not
    calibrated. `instance_scores` are the instances' decision values; for more than two classes, by how
    much the largest of the others is above that of the first.

    Attributes:
      kernel: "rbf", `exp(-g |x - y|^2)`, or "linear", `g <x, y>`.
      gamma_factor: g as a multiple of 1 / (features * variance of the training values); 1 is what
        scikit-learn calls "scale". In the linear kernel it only scales C.
      C: weight of the margin errors.
      class_weight: None, or "balanced" for errors of the two kinds of instances in inverse proportion
        to their number (counted anew in each round): there are many more negative instances where bags
        are large. Or a dictionary with the weight of each label, 1 for those that it has not: a positive
        instance has the weight of its class, a negative one that of its bag's, and in a positive bag that of
        the other class (the mean of the others' where there are more).
      max_iterations: most SVMs fitted for a class.
      standardise, positive: see `BagClassifier`; of two classes the positive one has to be known.
      rounds_: number of SVMs fitted for each class (one number for two classes).
    """

    def _points_of(self, instances: np.ndarray, bags: list[np.ndarray]) -> np.ndarray:
        return instances

    def _machine(
        self, gram: np.ndarray, offsets: np.ndarray, positive: np.ndarray, weights: Weights | None
    ) -> Machine:
        inside = np.repeat(positive, np.diff(offsets))
        labels, earlier = inside, set[bytes]()
        while True:
            earlier.add(labels.tobytes())
            own = None
            if weights is not None:
                negative = np.repeat(weights.negative, np.diff(offsets))
                own = np.where(labels, weights.positive, negative)
            coefficients, bias = self._solve(gram, labels, own)
            decisions = gram @ coefficients + bias
            labels = inside & (decisions > 0)
            labels[_largest(decisions, offsets, positive)] = True
            if labels.tobytes() in earlier or len(earlier) == self.max_iterations:
                return Machine(coefficients, bias, len(earlier))


class MISVM(_InstanceSVM):
    """MI-SVM: a positive bag is represented by its most positive instance.

        min over w, b of  |w|^2 / 2 + C sum_B max(0, 1 - Y_B max_{i in B} (<w, x_i> + b))

    Solved as there by turns: an SVM is fitted to the mean of each positive bag and all instances of the
    negative bags, then each mean is replaced by the instance of its bag with the largest decision value,
    and so on until the choice is such as it was before (the same again, or a cycle). A bag's decision is
    its instances' largest. More than two classes are learned one against the rest.

    One thing differs: in the paper the instances of a negative bag share one margin error, that of the
    worst of them; here each has its own, which is an ordinary SVM and the same where all are kept
    outside the margin.

    Defaults, `predict_proba`, `instance_scores` and attributes are as in `MiSVM`; with "balanced" the
    kinds counted are positive bags and negative instances.
    """

    @classmethod
    def memory(cls, lengths: np.ndarray, labels: np.ndarray) -> int:
        # Its points are the bags' means as well; it keeps the values of the negative ones twice.
        points = np.append(lengths, len(lengths))
        negative = max(int(lengths[labels != label].sum()) for label in np.unique(labels))
        return super().memory(points, labels) + 8 * (negative + len(lengths)) ** 2

    def _points_of(self, instances: np.ndarray, bags: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([instances, [bag.mean(axis=0) for bag in bags]])

    def _machine(
        self, gram: np.ndarray, offsets: np.ndarray, positive: np.ndarray, weights: Weights | None
    ) -> Machine:
        negatives = np.flatnonzero(np.repeat(~positive, np.diff(offsets)))
        witnesses = offsets[-1] + np.flatnonzero(positive)
        own = None
        if weights is not None:
            negative = np.repeat(weights.negative, np.diff(offsets))[negatives]
            own = np.append(negative, np.full(len(witnesses), weights.positive))
        labels = np.repeat([0, 1], [len(negatives), len(witnesses)])
        work = np.empty((len(labels), len(labels)))
        work[: len(negatives), : len(negatives)] = gram[np.ix_(negatives, negatives)]
        earlier = set[bytes]()
        while True:
            earlier.add(witnesses.tobytes())
            points = np.concatenate([negatives, witnesses])
            # Only the witnesses' values change, and negative instances may be many.
            work[len(negatives) :] = gram[np.ix_(witnesses, points)]
            work[:, len(negatives) :] = work[len(negatives) :].T
            coefficients = np.zeros(len(gram))
            coefficients[points], bias = self._solve(work, labels, own)
            decisions = gram[: offsets[-1]] @ coefficients + bias
            witnesses = _largest(decisions, offsets, positive)
            if witnesses.tobytes() in earlier or len(earlier) == self.max_iterations:
                return Machine(coefficients, bias, len(earlier))


def _largest(decisions: np.ndarray, offsets: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Finds the largest decision value in each positive bag."""
    return np.array(
        [
            offsets[bag] + np.argmax(decisions[offsets[bag] : offsets[bag + 1]])
            for bag in np.flatnonzero(positive)
        ]
    )


def flat(bags: list[np.ndarray]) -> list[np.ndarray]:
    """Flattens each instance's features to one row."""
    return [bag.reshape(len(bag), -1) for bag in bags]


def bandwidth(instances: np.ndarray, factor: float) -> float:
    """Computes the kernel's g of instances `[N, D]`.

    It is `factor / (features * variance)`, and `factor` where all values are equal.
    """
    return factor / (instances.shape[1] * float(instances.var()) or 1.0)


def probabilities(decisions: np.ndarray) -> np.ndarray:
    """Maps decision values monotonically to [0, 1]; not calibrated.

    They sum to 1.

    Args:
      decisions: `[B, 1]` for two classes, positive for the second; `[B, K]` for more.

    Returns:
      `[B, K]`: sigmoids, or the softmax.
    """
    if decisions.shape[1] == 1:
        return scipy.special.expit(decisions * np.array([[-1.0, 1.0]]))
    return scipy.special.softmax(decisions, axis=1)


def scores(decisions: np.ndarray) -> np.ndarray:
    """Computes decisions for a class other than the first, `[B]`.

    Decisions are as in `probabilities`.
    """
    if decisions.shape[1] == 1:
        return decisions[:, 0]
    return decisions[:, 1:].max(axis=1) - decisions[:, 0]


def check_positive(name: str, value: Any) -> None:
    """Refuses a setting that is not above 0 with a `UserError`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 < value < math.inf:
        raise UserError(f"{name} is {value!r}, but must be a number above 0")
