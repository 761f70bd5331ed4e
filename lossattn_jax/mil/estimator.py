"""The interface of every method for bags: `fit`, `predict`, `predict_proba`, `instance_scores`.

All follow scikit-learn's conventions (settings are keywords of the constructor, `get_params` and
`sklearn.base.clone` work, what `fit` learns ends in an underscore), with a list of bags in the place of X:

    for name in methods.NAMES:
        method = methods.make(name).fit(bags, labels)       # bags: list of [n_i, D]
        print(name, np.mean(method.predict(other_bags) == other_labels))
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from lossattn_jax.errors import UserError
from lossattn_jax.mil import precision


class BagClassifier(BaseEstimator, abc.ABC):
    """Classifies bags of instances.

    A subclass implements `_fit`, `_predict_proba` and `_instance_scores` on bags that were checked and,
    with `standardise`, scaled to mean 0 and variance 1 of the training bags' instances.

    Attributes:
      standardise: whether features are standardised on the training bags; a feature that is constant
        there is only centred.
      classes_: `[K]` the labels seen in `fit`, sorted.
    """

    standardise: bool
    classes_: np.ndarray

    @classmethod
    def candidates(cls) -> tuple[Mapping[str, Any], ...]:
        """Settings to select among on held-out bags; the first, empty, is the default."""
        return ({},)

    def fit(self, bags: Sequence[ArrayLike], labels: ArrayLike) -> Self:
        """Learns from labelled bags.

        Args:
          bags: arrays `[n_i, D]`, each with at least one instance.
          labels: `[bags]` of any sortable type; at least two different ones.

        Raises:
          UserError: a bag is empty, has another number of features or a value that is not finite; there
            are not as many labels as bags, or fewer than two classes.
        """
        arrays = checked(bags)
        labels = np.asarray(labels)
        if labels.shape != (len(arrays),):
            raise UserError(
                f"labels have the shape {labels.shape}, but must be one for each of {len(arrays)} bags"
            )
        self.classes_, encoded = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(
                f"all {len(arrays)} bags have the label {self.classes_[0]!r}, but there must be two"
            )
        self._features = arrays[0].shape[1:]
        instances = np.concatenate(arrays)
        self._mean: Any = 0.0
        self._scale: Any = 1.0
        if self.standardise:
            self._mean, self._scale = standardisation(instances)
        self._fit(self._standardised(arrays), encoded.astype(np.int64))
        return self

    def predict_proba(self, bags: Sequence[ArrayLike]) -> np.ndarray:
        """`[B, K]` float64: how probable each of `classes_` is for each bag; rows sum to 1."""
        return self._predict_proba(self._standardised(self._seen(bags)))

    def predict(self, bags: Sequence[ArrayLike]) -> np.ndarray:
        """`[B]` the most probable of `classes_` for each bag."""
        probabilities = self.predict_proba(bags)
        return self.classes_[np.argmax(probabilities, axis=1)]

    def instance_scores(self, bags: Sequence[ArrayLike]) -> list[np.ndarray]:
        """For each bag `[n_i]` float64: how much each instance says for its bag's label.

        Attention weights where the method has them; elsewhere how far an instance speaks for a class
        other than the first (of two classes: for the positive one). Each method's docstring says which.
        """
        return self._instance_scores(self._standardised(self._seen(bags)))

    @abc.abstractmethod
    def _fit(self, bags: list[np.ndarray], labels: np.ndarray) -> None: ...

    @abc.abstractmethod
    def _predict_proba(self, bags: list[np.ndarray]) -> np.ndarray: ...

    @abc.abstractmethod
    def _instance_scores(self, bags: list[np.ndarray]) -> list[np.ndarray]: ...

    def _seen(self, bags: Sequence[ArrayLike]) -> list[np.ndarray]:
        if not hasattr(self, "classes_"):
            raise UserError(f"{type(self).__name__} was not fitted; call fit(bags, labels) first")
        arrays = checked(bags)
        if arrays[0].shape[1:] != self._features:
            raise UserError(
                f"instances have the shape {arrays[0].shape[1:]}, but must have {self._features} "
                "as the bags of fit had"
            )
        return arrays

    def _standardised(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        return [(bag - self._mean) / self._scale for bag in bags]


def standardisation(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each feature: `(x - mean) / scale` has mean 0 and variance 1.

    A feature counts as constant where its standard deviation is no more than four units in the last place of
    its float64 values; an offset alone, such as that of a Unix time, does not make it so.

    Args:
      instances: `[N, features...]`, finite.

    Returns:
      Two float64 arrays `[features...]`; the scale of a constant feature is 1.

    Raises:
      UserError: a value is too large for float32.
    """
    low, high = (np.asarray(end(instances, axis=0), np.float64) for end in (np.min, np.max))
    largest = np.maximum(np.abs(low), np.abs(high))
    if largest.size and largest.max() > np.finfo(np.float32).max:
        raise UserError(
            f"an instance has a feature of the size {largest.max():g}, but values must be finite in float32"
        )
    mean = np.asarray(np.mean(instances, axis=0, dtype=np.float64))
    spread = np.asarray(np.std(instances, axis=0, dtype=np.float64))
    unsure = (high > low) & ((spread == 0) | ~precision.survives(mean, spread))
    if unsure.any():
        mean[unsure], spread[unsure] = precision.moments(instances[:, unsure])
    tiny = 4 * np.finfo(np.float64).eps * largest
    return mean, np.where((high > low) & (spread > tiny), spread, 1.0)


def checked(bags: Sequence[ArrayLike]) -> list[np.ndarray]:
    """The bags as float64 arrays `[n_i, features...]`.

    Raises:
      UserError: there is no bag, or one is empty, has other features than the first, or a value that is
        not finite; bags are counted from 0.
    """
    arrays = [np.asarray(bag, np.float64) for bag in bags]
    if not arrays:
        raise UserError("there is no bag, but there must be one at least")
    for number, array in enumerate(arrays):
        if array.ndim < 2:
            raise UserError(
                f"bag {number} has the shape {array.shape}, but must be [instances, features]"
            )
        if not len(array):
            raise UserError(f"bag {number} has no instance, but must have one at least")
        if array.shape[1:] != arrays[0].shape[1:]:
            raise UserError(
                f"the instances of bag {number} have the shape {array.shape[1:]}, but must have "
                f"{arrays[0].shape[1:]} as those of bag 0"
            )
        if not np.isfinite(array).all():
            raise UserError(f"bag {number} holds a value that is not finite")
    return arrays
