"""EM-DD: a point in feature space that all positive bags come near.

Zhang & Goldman, "EM-DD: An Improved Multiple-Instance Learning Technique" (NIPS 2001), on the diverse
density of Maron & Lozano-Perez, "A Framework for Multiple-Instance Learning" (NIPS 1997). An instance x is
positive with the probability

    Pr(x) = exp(-d(x)),    d(x) = sum_j s_j^2 (x_j - h_j)^2

for the concept of point h and scales s, and a bag with the largest probability of its instances. The
negative logarithm of the diverse density of a concept, NLDD, is -log Pr summed over the positive bags plus
-log(1 - Pr) summed over the negative ones; it is to be small.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from threadpoolctl import threadpool_limits

from lossattn_jax.errors import UserError
from lossattn_jax.mil.embeddings import check_whole
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.svm import check_positive, flat, probabilities

# An instance of a negative bag at the point itself would make NLDD infinite: no distance d is less.
_NEAREST = 1e-10
_FARTHEST = 700.0  # exp of more is infinite; its share in NLDD is 0 either way
_LEAST_FALL = 1e-6  # of NLDD, for another round to be worth it


class Concept(NamedTuple):
    """A concept of EM-DD, learned from one start.

    Attributes:
      point: `[D]` h.
      scales: `[D]` s; their signs mean nothing.
      nldd: NLDD of the training bags at the start and after each round; the last is the concept's.
    """

    point: np.ndarray
    scales: np.ndarray
    nldd: tuple[float, ...]


class Bags(NamedTuple):
    """Training bags of one class against the rest.

    Attributes:
      instances: `[N, D]` of all bags, one bag after the other.
      starts: `[B]` place of each bag's first instance.
      positive: `[B]` bool.
    """

    instances: np.ndarray
    starts: np.ndarray
    positive: np.ndarray


def distances(point: np.ndarray, scales: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Computes distances d of instances `[N, D]`: `[N]`, not negative."""
    differences = (instances - point) * scales
    return np.einsum("nd,nd->n", differences, differences)


def log_one_minus(distance: np.ndarray) -> np.ndarray:
    """Computes `log(1 - exp(-d))` for d > 0, exact at both ends."""
    return np.where(
        distance < math.log(2),
        np.log(-np.expm1(-np.minimum(distance, 1.0))),
        np.log1p(-np.exp(-distance)),
    )


def nldd(distance: np.ndarray, positive: np.ndarray) -> float:
    """Computes NLDD of bags from their nearest instances' distances d.

    Args:
      distance: `[B]` float64, not negative; in negative bags taken as 1e-10 at least, so that the result
        is finite.
      positive: `[B]` bool.
    """
    others = np.maximum(distance[~positive], _NEAREST)
    return float(distance[positive].sum() - log_one_minus(others).sum())


def objective(
    parameters: np.ndarray, instances: np.ndarray, squares: np.ndarray, positive: np.ndarray
) -> tuple[float, np.ndarray]:
    """Computes NLDD of one instance per bag, and its gradient.

    It is what the M-step minimises.

    Written with products of matrices and vectors only, which is twice as fast as with `distances`; the
    instances' mean should be near 0, or digits are lost.

    Args:
      parameters: `[2 * D]` h, then s.
      instances: `[B, D]`.
      squares: `[B, D]` of the instances.
      positive: `[B]` bool.

    Returns:
      NLDD and `[2 * D]`.
    """
    h, s = np.split(parameters, 2)
    s2 = s * s
    distance = np.maximum(squares @ s2 - 2 * (instances @ (s2 * h)) + s2 @ (h * h), 0.0)
    # dNLDD / dd: 1 in positive bags, -p / (1 - p) in negative ones.
    slope = np.ones(len(distance))
    slope[~positive] = -1 / np.expm1(np.clip(distance[~positive], _NEAREST, _FARTHEST))
    total, first, second = slope.sum(), slope @ instances, slope @ squares
    gradient = [-2 * s2 * (first - total * h), 2 * s * (second - 2 * h * first + total * h * h)]
    return nldd(distance, positive), np.concatenate(gradient)


def learn(bags: Bags, start: np.ndarray, scale: float, max_steps: int, max_rounds: int) -> Concept:
    """Runs EM-DD from one start.

    E-step: the instance with the highest probability is chosen in each bag. M-step: a quasi-Newton
    method (L-BFGS-B) finds h and s of less NLDD for these instances. Repeated while the NLDD of the bags,
    their best instances chosen anew, falls. A round after which it does not is undone.

    Args:
      bags: the training bags.
      start: `[D]` first h.
      scale: first s of all features.
      max_steps: most steps of an M-step.
      max_rounds: most rounds.
    """
    point, scales = start, np.full(len(start), scale)
    nearest, distance = _nearest(bags, point, scales)
    trace = [nldd(distance, bags.positive)]
    for _ in range(max_rounds):
        instances = bags.instances[nearest]
        solution = scipy.optimize.minimize(
            objective,
            np.concatenate([point, scales]),
            args=(instances, np.square(instances), bags.positive),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_steps},
        )
        new_point, new_scales = np.split(solution.x, 2)
        nearest, distance = _nearest(bags, new_point, new_scales)
        value = nldd(distance, bags.positive)
        if not value < trace[-1] - _LEAST_FALL:
            break
        point, scales = new_point, new_scales
        trace.append(value)
    return Concept(point, scales, tuple(trace))


class EMDD(BagClassifier):
    """EM-DD: expectation maximisation for diverse density.

    The module's docstring has the equations.

    Zhang & Goldman 2001 start EM once from each instance of k random positive bags, all scales being 0.1.
    They report, in each fold, the hypothesis with the least error on the bags that are tested, which is
    too good (Andrews, Tsochantaridis & Hofmann, NIPS 2002, say so and have corrected figures). Here the
    hypothesis with the lowest NLDD of the training bags is kept or, on request, the probabilities under
    all hypotheses are averaged, much as in the ensemble of Rahmani et al., "Localized Content Based Image
    Retrieval" (MIR 2005). What is not of the paper: the number of starts is bounded, and so is that of
    steps in an M-step (1000 in place of 100 take 3 to 8 times as long and are no better on MUSK1 and TIGER).

    A bag is positive if the largest probability of its instances is above the threshold. `predict_proba`
    is, with two classes, that probability p itself for a threshold t of 0.5, otherwise such that
    its odds are p / (1 - p) * (1 - t) / t. More than two classes have a concept each, learned against the
    rest, and are as probable as these odds, normalised. Overfitted as concepts in many dimensions are,
    this is not calibrated. `instance_scores` are the probabilities Pr(x) of the positive class; for
    more than two classes, the largest of those for a class other than the first.

    Training bags and instances are put into an order of their own, so that theirs changes nothing but
    rounding errors. These can become visible after hundreds of steps.

    Attributes:
      start_bags: k, positive bags whose instances are starts; fewer where there are not as many.
      max_starts: most starts, a random choice of these instances.
      scale: first scale of all features.
      max_steps: most steps of an M-step.
      max_rounds: most rounds of EM.
      threshold: of a positive bag's probability, in (0, 1).
      hypotheses: "best", the one of lowest NLDD, or "average".
      seed: of the choice of bags and instances.
      standardise, positive: see `BagClassifier`; of two classes the positive one has to be known.
      concepts_: after `fit`, for the positive class (more than two classes: for each class) the
        `Concept`s in use, in terms of the standardised features.
    """

    unequal_classes = True

    def __init__(
        self,
        *,
        start_bags: int = 3,
        max_starts: int = 20,
        scale: float = 0.1,
        max_steps: int = 100,
        max_rounds: int = 20,
        threshold: float = 0.5,
        hypotheses: str = "best",
        seed: int = 0,
        standardise: bool = True,
        positive: Any = None,
    ) -> None:
        self.start_bags = start_bags
        self.max_starts = max_starts
        self.scale = scale
        self.max_steps = max_steps
        self.max_rounds = max_rounds
        self.threshold = threshold
        self.hypotheses = hypotheses
        self.seed = seed
        self.standardise = standardise
        self.positive = positive

    @classmethod
    def candidates(cls) -> tuple[Mapping[str, Any], ...]:
        return ({}, {"max_steps": 20, "hypotheses": "average"})

    def _fit(self, bags: list[np.ndarray], labels: np.ndarray) -> None:
        self.check_params()
        bags, labels = _sort_bags(flat(bags), labels)
        lengths = np.array([len(bag) for bag in bags])
        instances = np.concatenate(bags)
        # `objective` wants it so; the points of the concepts are moved back.
        mean = instances.mean(axis=0)
        instances = instances - mean
        classes = len(self.classes_)
        self.concepts_ = []
        for label in [1] if classes == 2 else range(classes):
            data = Bags(instances, np.cumsum(lengths) - lengths, labels == label)
            # Thousands of small products, in which several threads would wait for each other.
            with threadpool_limits(1, user_api="blas"):
                concepts = [
                    learn(data, start, self.scale, self.max_steps, self.max_rounds)
                    for start in self._starts(data, lengths)
                ]
            if self.hypotheses == "best":
                concepts = [min(concepts, key=lambda concept: concept.nldd[-1])]
            self.concepts_.append([c._replace(point=c.point + mean) for c in concepts])

    def _state(self) -> dict[str, np.ndarray]:
        concepts = [concept for of_class in self.concepts_ for concept in of_class]
        return {
            "concepts": np.array([len(of_class) for of_class in self.concepts_], np.int64),
            "points": np.stack([concept.point for concept in concepts]),
            "scales": np.stack([concept.scales for concept in concepts]),
            "rounds": np.array([len(concept.nldd) for concept in concepts], np.int64),
            "nldd": np.concatenate([concept.nldd for concept in concepts]),
        }

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.check_params()
        traces = np.split(state["nldd"], np.cumsum(state["rounds"])[:-1])
        concepts = iter(
            Concept(point, scales, tuple(trace.tolist()))
            for point, scales, trace in zip(state["points"], state["scales"], traces, strict=True)
        )
        self.concepts_ = [[next(concepts) for _ in range(count)] for count in state["concepts"]]

    def _starts(self, bags: Bags, lengths: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(self.seed)
        start_bags = generator.permutation(np.flatnonzero(bags.positive))[: self.start_bags]
        places = np.concatenate([bags.starts[bag] + np.arange(lengths[bag]) for bag in start_bags])
        return bags.instances[generator.permutation(places)[: self.max_starts]]

    def _log_probabilities(self, bags: list[np.ndarray], largest: bool) -> np.ndarray:
        """Computes log Pr of instances, or with `largest` of bags.

        `[N or, with largest, B; concepts]`; a bag has the probability of its most probable instance.
        """
        instances = np.concatenate(flat(bags))
        lengths = np.array([len(bag) for bag in bags])
        columns = []
        for concepts in self.concepts_:
            logs = np.stack([-distances(c.point, c.scales, instances) for c in concepts])
            if largest:
                logs = np.maximum.reduceat(logs, np.cumsum(lengths) - lengths, axis=1)
            columns.append(scipy.special.logsumexp(logs, axis=0) - math.log(len(concepts)))
        return np.stack(columns, axis=1)

    def _predict_proba(self, bags: list[np.ndarray]) -> np.ndarray:
        log = np.minimum(self._log_probabilities(bags, largest=True), -_NEAREST)
        return probabilities(log - log_one_minus(-log) - scipy.special.logit(self.threshold))

    def _instance_scores(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        logs = self._log_probabilities(bags, largest=False)
        likely = np.exp(logs if logs.shape[1] == 1 else logs[:, 1:]).max(axis=1)
        return np.split(likely, np.cumsum([len(bag) for bag in bags])[:-1])

    def check_params(self) -> None:
        """See `BagClassifier.check_params`."""
        for name in ("start_bags", "max_starts", "max_steps", "max_rounds"):
            check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed, 0)
        check_positive("scale", self.scale)
        check_positive("threshold", self.threshold)
        if self.threshold >= 1:
            raise UserError(f"threshold is {self.threshold!r}, but must be less than 1")
        if self.hypotheses not in ("best", "average"):
            raise UserError(f"hypotheses is {self.hypotheses!r}, but must be 'best' or 'average'")


def _nearest(bags: Bags, point: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds each bag's nearest instance: places and distances, both `[B]`."""
    distance = distances(point, scales, bags.instances)
    nearest = (
        np.array([part.argmin() for part in np.split(distance, bags.starts[1:])]) + bags.starts
    )
    return nearest, distance[nearest]


def _sort_bags(bags: list[np.ndarray], labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Sorts bags by their least instances, and each bag's instances.

    Equal bags are sorted by their labels.
    """
    bags = [bag[np.lexsort(bag.T[::-1])] for bag in bags]
    # Bags that share their least instance may still differ in others.
    keys = [(bag.tolist(), label) for bag, label in zip(bags, labels, strict=True)]
    order = sorted(range(len(bags)), key=keys.__getitem__)
    return [bags[place] for place in order], labels[order]
