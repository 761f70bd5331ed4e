"""Labels of bags for `fit`, and weights of classes."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.multiclass import type_of_target

from lossattn_jax.data.bags.invalid import InvalidInput
from lossattn_jax.data.bags.missing import is_missing
from lossattn_jax.errors import UserError

# Numbers of a float type that are more than so many, and more than half as many as bags, are no classes.
_MOST_FLOATS = 20


def check_labels(labels: ArrayLike | None, bags: int) -> np.ndarray:
    """Checks labels of bags.

    They are returned as an array `[bags]` of text, numbers or truth values.

    Raises:
      InvalidInput: there is not one label for each bag; a label is missing (masked, or as
        `missing.is_missing` has it), infinite, neither text nor a real number, or a number with a fraction;
        there are floats as many as if they were to be estimated; or some labels are text and others numbers.
    """
    if labels is None:
        raise InvalidInput(
            "fit requires y to be passed, but the target y is None; y are the bags' labels"
        )
    if isinstance(labels, np.ma.MaskedArray):
        labels = np.array(labels.tolist(), dtype=object)  # None where masked
    # As objects, for an array of text would make a NaN the word "nan", and of 1 and "a" two words.
    values = np.asarray(labels, dtype=object)
    if values.shape != (bags,):
        raise InvalidInput(
            f"labels have the shape {values.shape}, but must be one for each of {bags} bags"
        )
    for number, value in enumerate(values):
        # NumPy and pandas make words of NaN and None.
        if is_missing(value) or _is_infinite(value):
            label = repr(str(value)) if isinstance(value, str) else value
            rename = ", or rename the class" if isinstance(value, str) else ""
            raise InvalidInput(
                f"bag {number} has no label but {label}; give it one or leave the bag out{rename}"
            )
        if isinstance(value, str | np.bool_):
            continue
        if not isinstance(value, numbers.Real):
            raise InvalidInput(
                f"the label of bag {number} is {value!r}, but must be text, a whole number or a truth value"
            )
    is_text = [isinstance(value, str) for value in values]
    if any(is_text) and not all(is_text):
        one, other = is_text.index(True), is_text.index(False)
        raise InvalidInput(
            f"the labels of bags {one} and {other} are {values[one]!r} and {values[other]!r}, but must be "
            "all text or all numbers"
        )
    array = np.array(values.tolist()) if np.asarray(labels).dtype == object else np.asarray(labels)
    if type_of_target(array) not in ("binary", "multiclass"):
        number = int(np.argmax(array != np.floor(array)))
        raise InvalidInput(
            f"the label of bag {number} is {array[number]!s}, but a label names a class by text, a whole "
            "number or a truth value (Unknown label type: continuous)"
        )
    different = len(np.unique(array))
    if array.dtype.kind == "f" and different > max(_MOST_FLOATS, bags / 2):
        raise InvalidInput(
            f"the labels of {bags} bags are {different} different floats, which look like numbers to be "
            "estimated; where they are classes, make them whole numbers or text"
        )
    return array


def class_weights(value: Any, classes: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """Computes each class' weight in the error.

    Args:
      value: None; "balanced", for weights `B / (K * bags of the class)`; or a dictionary with the weights of
        labels, 1 for those that it has not.
      classes: `[K]` different labels, sorted.
      labels: `[B]` of the bags, each one of `classes`.

    Returns:
      `[K]` float64; None for None.

    Raises:
      UserError: `value` is something else, a weight is not above 0, or a key is no label while a label has
        no weight.
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "balanced":
        counts = np.array([np.sum(labels == label) for label in classes])
        return len(labels) / (len(classes) * counts)
    if not isinstance(value, Mapping):
        raise UserError(
            f"class_weight is {value!r}, but must be None or 'balanced' or a dictionary with a weight for "
            "each label"
        )
    for label, weight in value.items():
        real = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
        if not real or not 0 < weight < math.inf:
            raise UserError(
                f"class_weight of {label!r} is {weight!r}, but must be a number above 0"
            )
    own_labels = classes.tolist()
    unknown = [label for label in value if label not in own_labels]
    if unknown and not all(label in value for label in own_labels):
        raise UserError(
            f"class_weight has a weight for {unknown[0]!r}, which is no label; labels are "
            f"{', '.join(map(repr, own_labels))}"
        )
    return np.array([value.get(label, 1.0) for label in own_labels], np.float64)


def weights_of_part(value: Any, classes: int, labels: np.ndarray) -> np.ndarray | None:
    """Computes weights of classes from the bags of one training.

    Args:
      value: as `class_weights` takes it, a dictionary by numbers.
      classes: K.
      labels: `[B]` int in [0, K), of the bags that are trained on.

    Returns:
      `[K]` float64, as `class_weights` of the classes that occur among them, and 1 for others; None for None.
    """
    occurring = np.unique(labels)
    own = class_weights(value, occurring, labels)
    if own is None:
        return None
    weights = np.ones(classes)
    weights[occurring] = own
    return weights


def _is_infinite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not math.isfinite(value)
