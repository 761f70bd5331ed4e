"""miVLAD and miFV: one vector per bag, and a linear SVM.

Wei, Wu & Zhou, "Scalable Multi-instance Learning" (ICDM 2014) and "Scalable Algorithms for Multi-Instance
Learning" (IEEE TNNLS 28, 2017). The vector says how a bag's instances deviate from what instances of all
training bags are like: from the centres of a k-means clustering (miVLAD), or from a mixture of Gaussians
(miFV). Its length does not depend on the number of instances, and it is found in one pass over them.

Where the papers leave a choice, the defaults are those of the authors' public program (January 2016): two
centres or Gaussians, no PCA, every element of the vectors scaled to [0, 1] on the training bags, and
LIBLINEAR's squared hinge loss with C = 0.05.
"""

import abc
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.svm import LinearSVC

from lossattn_jax.errors import UserError
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.svm import check_positive, flat, probabilities, scores

# Elements of vectors of length 1 that vary by less than this are constant, up to rounding and its root.
_CONSTANT = 1e-6
# What of fitted ones their predictions are made of.
_MIXTURE = ("weights_", "means_", "covariances_", "precisions_cholesky_")
_PCA = ("components_", "mean_", "explained_variance_")


def vlad_vectors(instances: np.ndarray, lengths: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Computes VLAD vectors (Jegou et al. 2010), before normalisation.

    A bag's vector is, one after the other for all centres c_k, `v_k = sum_i (x_i - c_k)` over those of
    its instances x_i to which c_k is the nearest; 0 where there is none.

    Args:
      instances: `[N, D]` float64, the instances of all bags, one bag after the other.
      lengths: `[B]` int, instances in each bag, at least 1.
      centres: `[K, D]`.

    Returns:
      `[B, K * D]` float64.
    """
    # |x|^2 is the same for all centres.
    nearest = np.argmin(np.square(centres).sum(axis=1) - 2 * instances @ centres.T, axis=1)
    residuals = instances - centres[nearest]
    starts = _starts(lengths)
    return np.concatenate(
        [np.add.reduceat(residuals * (nearest == k)[:, None], starts) for k in range(len(centres))],
        axis=1,
    )


def fisher_vectors(
    instances: np.ndarray, lengths: np.ndarray, mixture: GaussianMixture
) -> np.ndarray:
    """Computes Fisher vectors (Sanchez et al., IJCV 105, 2013), before normalisation.

    The gradient of the mean log likelihood of a bag's n instances, with respect to the logits of the
    weights w_k, the means m_k and the standard deviations s_k of the Gaussians, each divided by the root
    of its (approximate) Fisher information. With g_k(x) the probability that x is from Gaussian k:

        1 / (n sqrt(w_k)) * sum_i g_k(x_i) - w_k
        1 / (n sqrt(w_k)) * sum_i g_k(x_i) (x_i - m_k) / s_k
        1 / (n sqrt(2 w_k)) * sum_i g_k(x_i) ((x_i - m_k)^2 / s_k^2 - 1)

    Args:
      instances: `[N, D]` float64, the instances of all bags, one bag after the other.
      lengths: `[B]` int, instances in each bag, at least 1.
      mixture: fitted, with covariances of type "diag".

    Returns:
      `[B, K * (1 + 2 * D)]` float64: the weight's, the means' and the deviations' parts of the first
      Gaussian, then those of the second, and so on.
    """
    member = mixture.predict_proba(instances)
    blocks = []
    for k, weight in enumerate(mixture.weights_):
        g = member[:, k : k + 1]
        z = (instances - mixture.means_[k]) / np.sqrt(mixture.covariances_[k])
        parts = np.concatenate([g - weight, g * z, g * (z * z - 1) / np.sqrt(2)], axis=1)
        blocks.append(np.add.reduceat(parts, _starts(lengths)) / np.sqrt(weight))
    return np.concatenate(blocks, axis=1) / np.asarray(lengths)[:, None]


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Normalises vectors `[B, F]` by signed square root and length.

    Each element becomes `sign(v) sqrt(|v|)`, then each row has the length 1; rows of zeros stay.
    """
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors))
    norms = np.linalg.norm(roots, axis=1, keepdims=True)
    return roots / np.where(norms > 0, norms, 1.0)


def check_whole(name: str, value: Any, low: int) -> None:
    """Refuses a setting that is no whole number from `low` on.

    With a `UserError`.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= value < 2**32:
        raise UserError(f"{name} is {value!r}, but must be a whole number from {low} on")


class _BagVectorSVM(BagClassifier):
    C: float
    rescale: bool
    seed: int

    def check_params(self) -> None:
        """See `BagClassifier.check_params`."""
        check_positive("C", self.C)
        check_whole("seed", self.seed, 0)

    @abc.abstractmethod
    def _learn(self, instances: np.ndarray, counts: np.ndarray) -> None:
        """Learns centres or mixture, from different instances and their counts."""

    @abc.abstractmethod
    def _vectors(self, instances: np.ndarray, lengths: np.ndarray) -> np.ndarray: ...

    def _fit(self, bags: list[np.ndarray], labels: np.ndarray) -> None:
        self.check_params()
        bags = flat(bags)
        # Sorted, so that what is learned does not depend on the order of bags or instances.
        self._learn(*np.unique(np.concatenate(bags), axis=0, return_counts=True))
        vectors = self._bag_vectors(bags)
        self._low, self._slope = np.zeros(vectors.shape[1]), np.ones(vectors.shape[1])
        if self.rescale:
            self._low = vectors.min(axis=0)
            spread = vectors.max(axis=0) - self._low
            varies = spread > _CONSTANT
            self._slope = np.where(varies, 1 / np.where(varies, spread, 1.0), 0.0)
        # The primal problem has one solution, whatever the order of the bags.
        svc = LinearSVC(C=self.C, dual=False, tol=1e-6, max_iter=10_000)
        weights = None if self._class_weights is None else self._class_weights[labels]
        svc.fit(self._rescale(vectors), labels, sample_weight=weights)
        self._weights, self._biases = np.ascontiguousarray(svc.coef_), np.array(svc.intercept_)

    def _state(self) -> dict[str, np.ndarray]:
        return {
            "low": self._low,
            "slope": self._slope,
            "weights": self._weights,
            "biases": self._biases,
        }

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._low, self._slope = state["low"], state["slope"]
        self._weights, self._biases = state["weights"], state["biases"]

    def _bag_vectors(self, bags: list[np.ndarray]) -> np.ndarray:
        return normalise(self._vectors(np.concatenate(bags), np.array([len(bag) for bag in bags])))

    def _rescale(self, vectors: np.ndarray) -> np.ndarray:
        return (vectors - self._low) * self._slope

    def _decisions(self, vectors: np.ndarray) -> np.ndarray:
        """Decision values, `[B, 1]` or, for more than two classes, `[B, K]`."""
        return self._rescale(vectors) @ self._weights.T + self._biases

    def _predict_proba(self, bags: list[np.ndarray]) -> np.ndarray:
        return probabilities(self._decisions(self._bag_vectors(flat(bags))))

    def _instance_scores(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        instances = np.concatenate(flat(bags))
        alone = normalise(self._vectors(instances, np.ones(len(instances), int)))
        ends = np.cumsum([len(bag) for bag in bags])
        return np.split(scores(self._decisions(alone)), ends[:-1])


class MiVLAD(_BagVectorSVM):
    """miVLAD: a bag's vector sums its instances' residuals to k-means centres.

        v = (v_1, ..., v_K),    v_k = sum of x_i - c_k over the instances x_i of the bag nearest to c_k
        f = u / |u|,            u = sign(v) sqrt(|v|)

    Wei, Wu & Zhou 2014 and 2017; a linear SVM with squared hinge loss classifies f, one class against the
    rest for more than two. Of defaults and sources see the module's docstring; the authors' program takes
    the mean of a centre's residuals in place of the papers' sum, and an SVM without intercept.

    The order of bags, and of instances in a bag, changes nothing but rounding errors.

    `predict_proba` maps decisions monotonically (a sigmoid; softmax for more classes) and is not
    calibrated. `instance_scores` are the decision values for bags of the one instance; for more than two
    classes, by how much the largest of the others is above that of the first.

    Attributes:
      centres: K of k-means, at most the number of different instances.
      C: weight of the margin errors.
      rescale: whether each element of f is brought to [0, 1] on the training bags.
      seed: of k-means, the best of ten runs.
      standardise, positive: see `BagClassifier`; the two classes are treated equally.
      class_weight: None, or "balanced" for errors in inverse proportion to the number of a class' bags, or a
        dictionary with the weight of each label, 1 for those that it has not.
    """

    def __init__(
        self,
        *,
        centres: int = 2,
        C: float = 0.05,
        rescale: bool = True,
        seed: int = 0,
        standardise: bool = True,
        class_weight: str | Mapping[Any, float] | None = None,
        positive: Any = None,
    ) -> None:
        self.centres = centres
        self.C = C
        self.rescale = rescale
        self.seed = seed
        self.standardise = standardise
        self.class_weight = class_weight
        self.positive = positive

    @classmethod
    def candidates(cls) -> tuple[Mapping[str, Any], ...]:
        return (
            {},
            {"centres": 1},
            {"centres": 4},
            {"C": 0.5},
            {"rescale": False, "C": 1.0},
        )

    def check_params(self) -> None:
        """See `BagClassifier.check_params`."""
        super().check_params()
        check_whole("centres", self.centres, 1)

    def _learn(self, instances: np.ndarray, counts: np.ndarray) -> None:
        _check_enough("centres", self.centres, len(instances))
        means = KMeans(self.centres, n_init=10, random_state=self.seed)
        self._centres = means.fit(np.repeat(instances, counts, axis=0)).cluster_centers_

    def _state(self) -> dict[str, np.ndarray]:
        return {**super()._state(), "centres": self._centres}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        super()._restore(state)
        self._centres = state["centres"]

    def _vectors(self, instances: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return vlad_vectors(instances, lengths, self._centres)


class MiFV(_BagVectorSVM):
    """miFV: a bag's vector is the Fisher vector of its instances.

    It is taken under a mixture of Gaussians.

        f = u / |u|,    u = sign(v) sqrt(|v|)

    with v as in `fisher_vectors`, the improved Fisher vector. Wei, Wu & Zhou 2014 and 2017; a linear SVM
    with squared hinge loss classifies f, one class against the rest for more than two. Of defaults and
    sources see the module's docstring; the authors' program leaves out the gradients for the weights, and
    the SVM's intercept.

    Order, `predict_proba` and `instance_scores` are as in `MiVLAD`.

    Attributes:
      components: number of Gaussians, at most the number of different instances; their covariances are
        diagonal.
      pca_energy: share of the variance, in (0, 1], that the principal components keep onto which
        instances are projected before; 1: they are not projected.
      C: weight of the margin errors.
      rescale: whether each element of f is brought to [0, 1] on the training bags.
      seed: of the mixture's first guess, by k-means.
      standardise, positive: see `BagClassifier`; the two classes are treated equally.
      class_weight: None, or "balanced" for errors in inverse proportion to the number of a class' bags, or a
        dictionary with the weight of each label, 1 for those that it has not.
    """

    def __init__(
        self,
        *,
        components: int = 2,
        pca_energy: float = 1.0,
        C: float = 0.05,
        rescale: bool = True,
        seed: int = 0,
        standardise: bool = True,
        class_weight: str | Mapping[Any, float] | None = None,
        positive: Any = None,
    ) -> None:
        self.components = components
        self.pca_energy = pca_energy
        self.C = C
        self.rescale = rescale
        self.seed = seed
        self.standardise = standardise
        self.class_weight = class_weight
        self.positive = positive

    @classmethod
    def candidates(cls) -> tuple[Mapping[str, Any], ...]:
        return (
            {},
            {"components": 1},
            {"components": 4},
            {"pca_energy": 0.9},
            {"rescale": False, "C": 1.0},
        )

    def check_params(self) -> None:
        """See `BagClassifier.check_params`."""
        super().check_params()
        check_whole("components", self.components, 1)
        check_positive("pca_energy", self.pca_energy)
        if self.pca_energy > 1:
            raise UserError(f"pca_energy is {self.pca_energy!r}, but must be at most 1")

    def _learn(self, instances: np.ndarray, counts: np.ndarray) -> None:
        _check_enough("components", self.components, len(instances))
        all_instances = np.repeat(instances, counts, axis=0)
        # Equal instances have no variance to keep a share of.
        reduce = self.pca_energy < 1 and len(instances) > 1
        self._pca = (
            PCA(float(self.pca_energy), svd_solver="full").fit(all_instances) if reduce else None
        )
        self._mixture = GaussianMixture(
            self.components, covariance_type="diag", max_iter=300, random_state=self.seed
        )
        with warnings.catch_warnings():
            # The likelihood may still grow a little: any mixture will do to describe bags by.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._mixture.fit(self._project(all_instances))

    def _state(self) -> dict[str, np.ndarray]:
        parts = {"mixture": (self._mixture, _MIXTURE), "pca": (self._pca, _PCA)}
        return {
            **super()._state(),
            **{
                f"{part}.{name}": np.asarray(getattr(fitted, name))
                for part, (fitted, names) in parts.items()
                if fitted is not None
                for name in names
            },
        }

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        super()._restore(state)
        self._mixture = GaussianMixture(len(state["mixture.weights_"]), covariance_type="diag")
        for name in _MIXTURE:
            setattr(self._mixture, name, state[f"mixture.{name}"])
        self._pca = None
        if "pca.components_" in state:
            self._pca = PCA(float(self.pca_energy), svd_solver="full")
            for name in _PCA:
                setattr(self._pca, name, state[f"pca.{name}"])

    def _vectors(self, instances: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return fisher_vectors(self._project(instances), lengths, self._mixture)

    def _project(self, instances: np.ndarray) -> np.ndarray:
        return instances if self._pca is None else self._pca.transform(instances)


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Finds the place of each bag's first instance."""
    return np.cumsum(lengths) - lengths


def _check_enough(name: str, value: int, different: int) -> None:
    if value > different:
        raise UserError(
            f"{name} is {value}, but must be at most the number of different instances, {different}"
        )
