"""The interface of every method for bags.

`fit`, `predict`, `predict_proba`, `instance_scores`.

All are classifiers of scikit-learn with a list of bags in the place of X (settings are keywords of the
constructor, what `fit` learns ends in an underscore), so that its tools work on them:

    for name in methods.NAMES:
        method = methods.make(name).fit(bags, labels)       # bags: list of [n_i, D]
        print(name, method.score(other_bags, other_labels))
    cross_val_score(methods.make("mi_kernel"), bags, labels, cv=5, scoring="roc_auc")
    methods.make("mi_svm", positive="cancer").fit(bags, ["healthy", "cancer", ...])
    GridSearchCV(methods.make("attention"), {"settings__learning_rate": [1e-4, 1e-3]}).fit(bags, labels)
    method.save("models/mi_kernel")                         # lossattn_jax.mil.load reads it
"""

import abc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags

from lossattn_jax.data.bags import label_sets
from lossattn_jax.data.bags.feature_names import match_features
from lossattn_jax.data.bags.invalid import InvalidInput, NotFitted
from lossattn_jax.data.bags.labels import check_labels, class_weights
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.data.bags.positive import find_positive
from lossattn_jax.data.bags.precision import standardisation
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests
from lossattn_jax.mil.bag_predictions import InstancePredictions

_FITTED = (
    "fitted."  # how names of what a class' own `_fit` has learned begin, among those of all methods
)


class BagClassifier(ClassifierMixin, BaseEstimator, abc.ABC):
    """Classifies bags of instances.

    A subclass implements `_fit`, `_predict_proba` and `_instance_scores` on bags that were checked and,
    with `standardise`, scaled to mean 0 and variance 1 of the training bags' instances. Its labels are 0 to
    K - 1, of two classes 1 for the positive one, and so are the columns of its probabilities.

    Of two classes the positive one is that of `positive`; without it, the second of 0/1, -1/1, no/yes and
    the like (`positive.WORD_PAIRS`). Where these do not say, a method that treats the classes unequally is
    not fitted; for the others the class of the first bag is 0, so that predictions do not depend on words.

    Attributes:
      standardise: whether features are standardised on the training bags; a feature that is constant
        there is only centred.
      positive: the label that is positive; None: found by the words. Of two classes only.
      class_weight: of methods that have it: None, "balanced" or weights by label, see `labels.class_weights`.
      unequal_classes: whether the method treats two classes unequally, so that one has to be positive.
      not_stored: settings that say nothing of the method, only of the machine.
      classes_: `[K]` the labels seen in `fit`, sorted.
      positive_: the one of `classes_` that is positive; None where that is not known.
      n_features_in_: values of an instance.
      feature_names_: of vectors; None where `fit` had no `Bags` with names. `Bags` that have them as well are
        matched by them.
      trained_on_: digests of the bags and of the labels of `fit`, and how many bags there were.
      takes_several_labels: whether bags may have any number of labels.
      several_labels_: whether those of `fit` have.
      chosen_: what held-out bags have chosen in `fit`; None where nothing was.
    """

    standardise: bool
    positive: Any = None
    class_weight: Any = None
    unequal_classes: bool = False
    not_stored: tuple[str, ...] = ()
    classes_: np.ndarray
    positive_: Any
    n_features_in_: int
    feature_names_: tuple[str, ...] | None
    trained_on_: dict[str, Any]
    chosen_: dict[str, Any] | None = None
    several_labels_: bool = False
    takes_several_labels: bool = False
    _mean: Any
    _scale: Any

    @classmethod
    def candidates(cls) -> tuple[Mapping[str, Any], ...]:
        """Returns settings to select among; the first, {}, is the default.

        On held-out bags.
        """
        return ({},)

    @classmethod
    def memory(cls, lengths: np.ndarray, labels: np.ndarray) -> int:
        """Estimates the bytes that `fit` takes besides copies of its bags.

        Args:
          lengths: `[B]` int, instances of the bags, at least one bag.
          labels: `[B]` int, the bags' classes.
        """
        return 0

    def check_params(self) -> None:
        """Refuses parameters that no bags can be learned with.

        `fit` does so too, since scikit-learn sets parameters afterwards.

        Raises:
          UserError: there is one; the sentence names it, its value and what is allowed.
        """

    def fit(self, bags: Sequence[ArrayLike], labels: ArrayLike | None = None) -> Self:
        """Learns from labelled bags.

        Args:
          bags: arrays `[n_i, D]`, each with at least one instance; or `Bags`, which networks read one by one
            where they are large.
          labels: `[bags]` text, whole numbers or truth values; at least two different ones. None: those that
            `Bags` have.

        Raises:
          UserError: a bag is empty, has another number of features or a value that is not finite; there
            are not as many labels as bags, or fewer than two classes; a label is missing or a number with
            a fraction; or the method has to know which of two classes is positive, and does not.
        """
        if labels is None and isinstance(bags, Bags):
            labels = bags.named_labels()
        originals = list(bags)  # those of files are read once
        arrays = check_bags(originals)
        encoded = self._learn_classes(labels, len(arrays))
        self._learn_features(arrays[0].shape[1:], bags.features if isinstance(bags, Bags) else None)
        self._note_data(map(_digest, originals, arrays), encoded)
        del originals
        if self.standardise:
            self._mean, self._scale = standardisation(np.concatenate(arrays))
        self._fit(self._standardise(arrays), encoded)
        return self

    def _learn_classes(self, labels: ArrayLike | None, bags: int) -> np.ndarray:
        """`[bags]` int64 labels as the method numbers the classes, which it learns of them."""
        sets = label_sets.find_sets(labels)
        self.several_labels_ = sets is not None
        if sets is not None:
            return self._learn_several(*sets, bags)
        labels = check_labels(labels, bags)
        self.classes_, class_places = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InvalidInput(
                f"all {bags} bags have the label {self.classes_.tolist()[0]!r}, but there must be "
                "two: one class alone is nothing to learn"
            )
        self.positive_ = self._find_positive()
        self._order = self._order_of(int(class_places[0]))
        weights = class_weights(self.class_weight, self.classes_, labels)
        self._class_weights = None if weights is None else weights[self._order]
        return np.argsort(self._order)[class_places].astype(np.int64)

    def _learn_several(
        self, classes: tuple[Any, ...], encoded: np.ndarray, bags: int
    ) -> np.ndarray:
        """Takes note of labels of which a bag may have several; gives `[bags, K]` int32 back."""
        if not self.takes_several_labels:
            raise InvalidInput(
                f"bags have several labels each, but {self._name} takes one; take a network such as "
                "loss_attention, or one label of each bag"
            )
        if self.class_weight is not None:
            raise InvalidInput(
                f"class_weight is {self.class_weight!r}, but bags have several labels each, whose losses are "
                "not weighed; leave it out"
            )
        if len(encoded) != bags:
            raise InvalidInput(f"there are labels of {len(encoded)} bags, but {bags} bags")
        self.classes_ = np.array(classes)
        self.positive_, self._class_weights = None, None
        self._order = np.arange(len(classes))
        return encoded

    def _learn_features(self, shape: tuple[int, ...], names: Sequence[str] | None) -> None:
        """Takes note of the shape of an instance; features are not standardised yet."""
        self._features = tuple(shape)
        self.feature_names_ = None if names is None else tuple(names)
        self.n_features_in_ = int(np.prod(shape))
        self._mean, self._scale = 0.0, 1.0

    def _note_data(self, bag_digests: Iterable[str], encoded: np.ndarray) -> None:
        """Takes note of what is trained on: digests of the bags, and labels as the method numbers them."""
        names = label_sets.names(encoded, self.classes_[self._order].tolist())
        self.trained_on_ = describe_data(bag_digests, names)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a fitted method into a folder; `lossattn_jax.mil.load` reads it, without pickle.

        Args:
          folder: made where it is absent.

        Raises:
          NotFitted: it was not fitted.
          UserError: the folder has a model already or cannot be written, or a method of the user's own cannot
            be saved.
        """
        from lossattn_jax.mil import (
            stored_models,  # which makes methods, and so imports this module
        )

        stored_models.save(self, folder)

    def state(self) -> dict[str, np.ndarray]:
        """What `fit` has learned, but for the parameters of networks, as arrays by name.

        Raises:
          NotFitted: it was not fitted.
          UserError: a class of the user's own has no `_state`.
        """
        self._refuse_unfitted()
        positive = [] if self.positive_ is None else self.classes_.tolist().index(self.positive_)
        names = {} if self.feature_names_ is None else {"feature_names": self.feature_names_}
        return {
            "classes": self.classes_,
            "order": np.asarray(self._order, np.int64),
            "positive": np.array(positive, np.int64),
            "shape": np.array(self._features, np.int64),
            "mean": np.asarray(self._mean),
            "scale": np.asarray(self._scale),
            **{name: np.array(value) for name, value in names.items()},
            **({"several_labels": np.array(True)} if self.several_labels_ else {}),
            **{f"{_FITTED}{name}": value for name, value in self._state().items()},
        }

    def restore(self, state: Mapping[str, np.ndarray], trained_on: Mapping[str, Any]) -> None:
        """Makes a method what it was when `state` was called.

        Args:
          state: of a method of the same class and settings.
          trained_on: its `trained_on_`.
        """
        names = state.get("feature_names")
        shape = tuple(state["shape"].tolist())
        self._learn_features(shape, None if names is None else names.tolist())
        self.trained_on_ = dict(trained_on)
        self.classes_, self._order = state["classes"], state["order"]
        self.several_labels_ = "several_labels" in state
        positive = state["positive"]
        self.positive_ = self.classes_.tolist()[int(positive)] if positive.ndim == 0 else None
        self._mean, self._scale = state["mean"], state["scale"]
        own = {
            name.removeprefix(_FITTED): value
            for name, value in state.items()
            if name.startswith(_FITTED)
        }
        self._restore(own)

    def predict_bags(self, bags: Bags) -> Iterator[InstancePredictions]:
        """Predicts for bags one after the other; what it says of one does not depend on the others.

        Args:
          bags: which need no labels.

        Yields:
          What the method says of each bag, for the classes in the order of `classes_`.

        Raises:
          UserError: the method was not fitted, instances have another width, or a bag cannot be read.
        """
        bags = self.open_features(bags)
        for row in range(len(bags)):
            own = [bags.read(row)]
            yield InstancePredictions(
                row, self.predict_proba(own)[0], None, None, self.instance_scores(own)[0]
            )

    def predict_proba(self, bags: Sequence[ArrayLike]) -> np.ndarray:
        """`[B, K]` float64: how probable each of `classes_` is for each bag.

        Rows sum to 1, but for several labels, each of which is probable by itself.
        """
        probabilities = self._probabilities(bags)
        return probabilities[:, np.argsort(self._order)]

    def predict(self, bags: Sequence[ArrayLike]) -> np.ndarray:
        """`[B]` the most probable of `classes_` for each bag; of two equal ones the negative one.

        Of several labels `[B, K]` int64: 1 for each of `classes_` above one half.
        """
        if self.several_labels_:
            return (self.predict_proba(bags) > 0.5).astype(np.int64)
        probabilities = self._probabilities(bags)
        return self.classes_[self._order[np.argmax(probabilities, axis=1)]]

    def numbered_classes(self) -> list[Any]:
        """The labels in the order in which the method numbers them."""
        return self.classes_[self._order].tolist()

    def name_classes(self, names: Sequence[Any], positive: Any) -> None:
        """Calls the classes by names.

        Args:
          names: K different ones, in the order in which the method numbers the classes.
          positive: the one of two that is positive; None where that is not known.
        """
        self.classes_, self._order = np.unique(np.array(list(names)), return_inverse=True)
        self.positive_ = positive

    def label_of(self, probabilities: np.ndarray) -> Any:
        """The most probable of `classes_`, as `predict` chooses it; None where one is not finite.

        Of several labels the text of all that are predicted.

        Args:
          probabilities: `[K]` in the order of `classes_`.
        """
        if not np.isfinite(probabilities).all():
            return None
        if self.several_labels_:
            return label_sets.name(probabilities > 0.5, self.classes_.tolist())
        return self.classes_[self._order[np.argmax(probabilities[self._order])]].item()

    def open_features(self, bags: Bags) -> Bags:
        """The bags with the features that were trained on; nothing of them is read.

        Args:
          bags: whose features are matched by name where both have names.

        Raises:
          UserError: the method was not fitted, or instances have another width.
        """
        self._refuse_unfitted()
        bags = match_features(bags, self.feature_names_)
        if bags.shape != self._features:
            own, expected = (" x ".join(map(str, shape)) for shape in (bags.shape, self._features))
            raise UserError(
                f"the instances of {bags.name} have {own} features, but the model was trained on {expected}; "
                "take features that were computed as those were"
            )
        return bags

    def instance_scores(self, bags: Sequence[ArrayLike]) -> list[np.ndarray]:
        """Scores each bag's instances for the bag's label, `[n_i]` float64.

        Attention weights where the method has them; elsewhere how far an instance speaks for a class
        other than the first (of two classes: for the positive one, or where that is not known, for the
        last of `classes_`). Each method's docstring says which.
        """
        return [self._orient_scores(part) for part in self._scores(bags)]

    def _orient_scores(self, scores: np.ndarray) -> np.ndarray:
        """Turns scores for the last class by the method's numbers into those for the last of `classes_`.

        They differ where neither of two classes is known to be positive.
        """
        if self.several_labels_:
            return scores
        if self.positive_ is None and len(self.classes_) == 2 and self._order[1] == 0:
            return self._for_the_other_class(scores)
        return scores

    def _probabilities(self, bags: Sequence[ArrayLike]) -> np.ndarray:
        """`[B, K]` of the classes as the method numbers them."""
        return self._predict_proba(self._standardise(self._check_bags(bags)))

    def _scores(self, bags: Sequence[ArrayLike]) -> list[np.ndarray]:
        """`[n_i]` scores of each bag's instances, for the classes as the method numbers them."""
        return self._instance_scores(self._standardise(self._check_bags(bags)))

    def __sklearn_tags__(self) -> Tags:
        """Tags a classifier that needs labels and takes bags."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.allow_nan = False
        tags.target_tags.required = True
        tags.classifier_tags.multi_class = True
        return tags

    @abc.abstractmethod
    def _fit(self, bags: list[np.ndarray], labels: np.ndarray) -> None: ...

    @abc.abstractmethod
    def _predict_proba(self, bags: list[np.ndarray]) -> np.ndarray: ...

    @abc.abstractmethod
    def _instance_scores(self, bags: list[np.ndarray]) -> list[np.ndarray]: ...

    def _state(self) -> dict[str, np.ndarray]:
        """What `_fit` has learned, as arrays by name."""
        raise UserError(
            f"{type(self).__name__} cannot be saved: it has no _state and _restore, by which a "
            "BagClassifier says what it has learned"
        )

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Makes what `_fit` has learned of what `_state` gave; settings and classes are there already."""
        raise UserError(
            f"{type(self).__name__} cannot be loaded: it has no _restore for what it has learned"
        )

    def _for_the_other_class(self, scores: np.ndarray) -> np.ndarray:
        """Turns instance scores for class 0 into scores for class 1.

        Of decision values.
        """
        return -scores

    @property
    def _name(self) -> str:
        """Name for messages."""
        return type(self).__name__

    def _find_positive(self) -> Any:
        """Finds the positive one of `classes_`; None where it is not known."""
        classes = self.classes_.tolist()
        if self.positive is not None and len(classes) > 2:
            raise InvalidInput(
                f"positive is {self.positive!r}, but there are {len(classes)} classes; leave it out"
            )
        try:
            label = find_positive(classes, () if self.positive is None else (self.positive,))
        except UserError as error:
            raise InvalidInput(str(error)) from None
        if label is None and len(classes) == 2 and self.unequal_classes:
            raise InvalidInput(
                f"{self._name} treats the two classes unequally, and neither {classes[0]!r} nor "
                f"{classes[1]!r} is known to be the positive one: name it by positive={classes[0]!r} or "
                f"positive={classes[1]!r}"
            )
        return label

    def _order_of(self, first: int) -> np.ndarray:
        """Orders `classes_` as the method numbers them, `[K]` places."""
        if len(self.classes_) > 2:
            return np.arange(len(self.classes_))
        if self.positive_ is not None:
            first = 1 - self.classes_.tolist().index(self.positive_)
        return np.array([first, 1 - first])

    def _check_bags(self, bags: Sequence[ArrayLike]) -> list[np.ndarray]:
        self._refuse_unfitted()
        if isinstance(bags, Bags):
            bags = match_features(bags, self.feature_names_)
        arrays = check_bags(bags)
        self._refuse_features(arrays[0].shape[1:])
        return arrays

    def _refuse_unfitted(self) -> None:
        if not hasattr(self, "classes_"):
            raise NotFitted(f"{type(self).__name__} was not fitted; call fit(bags, labels) first")

    def _refuse_features(self, shape: tuple[int, ...]) -> None:
        if shape != self._features:
            raise InvalidInput(
                f"instances have the shape {shape}, but must have {self._features} as the bags "
                f"of fit had: X has {np.prod(shape)} features, but {type(self).__name__} is "
                f"expecting {self.n_features_in_} features as input"
            )

    def _standardise(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        return [(bag - self._mean) / self._scale for bag in bags]


def check_bags(bags: Sequence[ArrayLike]) -> list[np.ndarray]:
    """Checks bags, and returns them as float64 arrays `[n_i, features...]`.

    Raises:
      InvalidInput: there is no bag, or one is empty, has no feature or others than the first, or holds
        something that is no real number or is not finite; bags are counted from 0.
    """
    arrays = [_real_array(bag, number) for number, bag in enumerate(bags)]
    if not arrays:
        raise InvalidInput("there is no bag, but there must be one at least")
    for number, array in enumerate(arrays):
        if array.ndim < 2:
            raise InvalidInput(
                f"bag {number} has the shape {array.shape}, but must be [instances, features]: Reshape "
                "your data, of which a bag of one instance x is x[None]"
            )
        if not len(array):
            raise InvalidInput(f"bag {number} has no instance, but must have one at least")
        if array.shape[1:] != arrays[0].shape[1:]:
            raise InvalidInput(
                f"the instances of bag {number} have the shape {array.shape[1:]}, but must have "
                f"{arrays[0].shape[1:]} as those of bag 0"
            )
        if not array.size:
            raise InvalidInput(
                f"bag {number} has 0 feature(s) (shape={array.shape}) while a minimum of 1 is required."
            )
        if not np.isfinite(array).all():
            raise InvalidInput(f"bag {number} holds a value that is not finite (NaN or inf)")
    return arrays


def describe_parts(bags: Bags) -> dict[str, Any]:
    """What of bags, beside themselves and their labels, says which of them are held out.

    For `BagClassifier.trained_on_` of methods that choose on held-out bags.
    """
    values = {"groups": bags.groups, "splits": bags.splits}
    return {
        name: None if value is None else digests.of_json(list(value))
        for name, value in values.items()
    }


def describe_data(bag_digests: Iterable[str], labels: Sequence[Any]) -> dict[str, Any]:
    """What a method was trained on, as `BagClassifier.trained_on_` has it.

    Args:
      bag_digests: of each bag, as `bag_survey.Survey` has it.
      labels: of the bags, as the user knows them.
    """
    return {
        "bags": digests.of_json(list(bag_digests)),
        "labels": digests.of_json(list(labels)),
        "count": len(labels),
    }


def _digest(bag: ArrayLike, checked_bag: np.ndarray) -> str:
    """The digest of a bag as its user has it, if its bytes say what it is."""
    array = np.asarray(bag)
    return digests.of_arrays({"": array if array.dtype.kind in "biuf" else checked_bag})


def _real_array(bag: ArrayLike, number: int) -> np.ndarray:
    if scipy.sparse.issparse(bag):
        raise InvalidInput(f"bag {number} is a sparse array, but must be dense: take its toarray()")
    try:
        array = np.asarray(bag)
        if not np.iscomplexobj(array):
            return np.asarray(array, np.float64, order="C")  # in which sums are added by rows
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"bag {number} is no array of numbers: {error}") from None
    raise InvalidInput(
        f"bag {number} has the type {array.dtype}: Complex data not supported, take real and imaginary parts"
    )
