"""Bags of instances as one flat array, padded to few lengths.

    dataset = BagDataset.from_bags([np.ones((3, 2)), np.zeros((5, 2))], labels=[1, 0])
    for bucket in dataset.buckets():
        predict(bucket.instances, bucket.mask)      # [B, L, 2] and [B, L]

A program is compiled for every length that bags are padded to, and each padded slot is computed for
nothing: `bucket_lengths` finds the fewest lengths that keep the slots within a multiple of the instances.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from lossattn_jax.data.bags import precision
from lossattn_jax.data.bags.label_sets import has_several
from lossattn_jax.data.bags.missing import is_missing
from lossattn_jax.data.bags.positive import find_positive
from lossattn_jax.errors import UserError

# Slots for each instance: padding may double the work, which compiling one more length outweighs.
MAX_WASTE = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """Bags padded to one length.

    Attributes:
      instances: `[B, L, features...]` of the data set's dtype, zero at padding.
      mask: `[B, L]` bool, True for a real instance.
      labels: `[B]` int32.
      rows: `[B]` int64, the bags' positions in the data set.
      instance_labels: `[B, L]` int32, -1 at padding; None where the data set has none.
    """

    instances: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    instance_labels: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class BagDataset:
    """Bags, each with one label, or with any number of them.

    Any array that can be values_by_field is taken; the attributes have the types below.

    Attributes:
      instances: `[N, features...]`, the instances of all bags, one bag after the other: float32, or
        float64 where the spread of a feature would not survive that (`precision.survives`).
      lengths: `[bags]` int64, instances of each bag, at least 1; their sum is N.
      labels: `[bags]` int32 in [0, K), the place of the bag's label in `classes`; or `[bags, K]`, 1 for each
        label that a bag has and 0 for others.
      ids: one name per bag; a bag that was selected twice is there twice.
      classes: K labels as the user knows them. Of two the last is the positive one where that is known;
        where they are given the other way round, they and all labels change places.
      instance_labels: `[N]` int32 in [0, K), where the instances' own labels are known; never trained
        on.
      name: of the data set, for messages and tables.
      positive: the positive one of two classes: where None is given the one that `find_positive` knows;
        None where it knows none, and for more classes.
      features: names of the features of vectors, where they are known.
      groups: of each bag what it shares with others, such as a patient; bags of a group are not divided
        between training and test. None where bags have none.

    Raises:
      UserError: there is no bag, a bag is empty or holds a value that is not finite in float32, the
        lengths of the arrays do not fit, a label is not in [0, K), or `positive` is none of two classes.
    """

    instances: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    classes: tuple[Any, ...]
    instance_labels: np.ndarray | None = None
    name: str = "bags"
    positive: Any = None
    features: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        values_by_field: dict[str, Any] = {
            "instances": precision.narrow(np.asarray(self.instances)),
            "lengths": np.asarray(self.lengths, np.int64),
            "labels": np.asarray(self.labels, np.int32),
            "ids": tuple(map(str, self.ids)),
            "classes": tuple(self.classes),
        }
        if self.instance_labels is not None:
            values_by_field["instance_labels"] = np.asarray(self.instance_labels, np.int32)
        if self.features is not None:
            values_by_field["features"] = tuple(map(str, self.features))
        if self.groups is not None:
            values_by_field["groups"] = tuple(map(str, self.groups))
        for field, value in values_by_field.items():
            object.__setattr__(self, field, value)
        _check(self)
        self._put_positive_last()

    def _put_positive_last(self) -> None:
        """Finds the positive class, and makes it the second."""
        if self.several_labels:
            object.__setattr__(self, "positive", None)
            return
        words = () if self.positive is None else (self.positive,)
        if words and self.num_classes != 2:
            raise UserError(
                f"positive is {self.positive!r}, but {self.name} has {self.num_classes} classes, and only "
                "one of two can be positive"
            )
        positive = find_positive(self.classes, words, self.name)
        object.__setattr__(self, "positive", positive)
        if positive is None or positive == self.classes[1]:
            return
        object.__setattr__(self, "classes", self.classes[::-1])
        object.__setattr__(self, "labels", 1 - self.labels)
        if self.instance_labels is not None:
            object.__setattr__(self, "instance_labels", 1 - self.instance_labels)

    @classmethod
    def from_bags(
        cls,
        bags: Sequence[ArrayLike],
        labels: ArrayLike,
        ids: Sequence[str] | None = None,
        instance_labels: Sequence[ArrayLike] | None = None,
        name: str = "bags",
        classes: Sequence[Any] | None = None,
        *,
        positive: Any = None,
        features: Sequence[str] | None = None,
    ) -> Self:
        """Makes a data set of bags that are separate arrays.

        Args:
          bags: arrays `[n_i, features...]`.
          labels: `[bags]` of any sortable type.
          ids: one per bag; None: "0", "1", ...
          instance_labels: for each bag `[n_i]` ints in [0, K), places in `classes` or, without them, in
            the sorted labels; None if they are not known.
          name: of the data set.
          classes: what labels may occur, sorted; None: those that do.
          positive: the positive one of two classes; None: the one that `find_positive` knows, if any.
          features: names of the features of vectors; None if they are not known.

        Raises:
          UserError: as of the class, or the instances of two bags have different shapes, or a label is
            missing (None, NaN or a word of `missing.WORDS`) or none of `classes`.
        """
        arrays = [np.asarray(bag) for bag in bags]
        names = tuple(map(str, range(len(arrays)) if ids is None else ids))
        _check_counts(name, len(arrays), {"labels": np.shape(labels), "ids": (len(names),)})
        for array, bag_id in zip(arrays, names, strict=True):
            if array.ndim < 2 or array.shape[1:] != arrays[0].shape[1:]:
                feature_shape = arrays[0].shape[1:] if arrays[0].ndim > 1 else "features..."
                raise UserError(
                    f"bag {bag_id!r} of {name} has the shape {array.shape}, but must be "
                    f"[instances, {str(feature_shape).strip('(),')}]"
                )
        own = None
        if instance_labels is not None:
            parts = [np.asarray(part) for part in instance_labels]
            _check_counts(name, len(arrays), {"lists of instance labels": (len(parts),)})
            for array, part, bag_id in zip(arrays, parts, names, strict=True):
                if part.shape != array.shape[:1]:
                    raise UserError(
                        f"bag {bag_id!r} of {name} has instance labels of the shape {part.shape}, "
                        f"but must have one for each of its {len(array)} instances"
                    )
            own = np.concatenate(parts)
        values = _known_labels(labels, names, name)
        ordered_classes = tuple(sorted(set(values)) if classes is None else classes)
        place = {value: number for number, value in enumerate(ordered_classes)}
        for value, bag_id in zip(values, names, strict=True):
            if value not in place:
                raise UserError(
                    f"bag {bag_id!r} of {name} has the label {value!r}; allowed are "
                    f"{', '.join(map(repr, ordered_classes))}"
                )
        return cls(
            instances=np.concatenate(arrays),
            lengths=np.array([len(array) for array in arrays]),
            labels=np.array([place[value] for value in values]),
            ids=names,
            classes=ordered_classes,
            instance_labels=own,
            name=name,
            positive=positive,
            features=None if features is None else tuple(features),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an instance: `(features...)`."""
        return self.instances.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.classes)

    @property
    def several_labels(self) -> bool:
        """Whether a bag may have any number of labels."""
        return has_several(self.labels)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """`[bags + 1]` int64: bag i is `instances[offsets[i]:offsets[i + 1]]`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def feature_name(self, number: int) -> str:
        """Names a feature for messages, counted from 0."""
        return repr(self.features[number]) if self.features else f"number {number}"

    def bag(self, row: int) -> np.ndarray:
        """`[n_i, features...]`: the instances of a bag, as a view."""
        return self.instances[self.offsets[row] : self.offsets[row + 1]]

    @property
    def bags(self) -> list[np.ndarray]:
        """Every bag's instances, as views."""
        return [self.bag(row) for row in range(len(self))]

    def select(self, rows: ArrayLike) -> Self:
        """Takes the bags at some positions, with all classes.

        `rows` are positions, or a boolean `[bags]`.
        """
        places = self._rows(rows)
        within = self._places(places)
        own = self.instance_labels
        part = dataclasses.replace(
            self,
            instances=self.instances[within],
            lengths=self.lengths[places],
            labels=self.labels[places],
            ids=tuple(self.ids[row] for row in places),
            instance_labels=None if own is None else own[within],
            groups=None if self.groups is None else tuple(self.groups[row] for row in places),
        )
        # Whether float32 will do is a matter of all bags, not of those that happen to be chosen.
        object.__setattr__(part, "instances", self.instances[within])
        return part

    def pad(self, rows: ArrayLike, length: int) -> Bucket:
        """Pads the bags at these positions to one length.

        Raises:
          UserError: a bag is longer.
        """
        places = self._rows(rows)
        lengths = self.lengths[places]
        if len(places) and lengths.max() > length:
            row = places[np.argmax(lengths)]
            raise UserError(
                f"bag {self.ids[row]!r} of {self.name} has {self.lengths[row]} instances, which do "
                f"not fit into the length {length}"
            )
        mask = np.arange(length)[None, :] < lengths[:, None]
        within = self._places(places)
        instances = np.zeros((*mask.shape, *self.instances.shape[1:]), self.instances.dtype)
        instances[mask] = self.instances[within]
        own = None
        if self.instance_labels is not None:
            own = np.full(mask.shape, -1, np.int32)
            own[mask] = self.instance_labels[within]
        return Bucket(instances, mask, self.labels[places], places, own)

    def buckets(self, max_waste: float = MAX_WASTE) -> tuple[Bucket, ...]:
        """Pads all bags to as few lengths as `bucket_lengths` allows.

        The shortest come first.

        Args:
          max_waste: in each bucket, slots (padding included) for each real instance; at least 1.
        """
        tops = np.array(bucket_lengths(self.lengths, max_waste))
        number = np.searchsorted(tops, self.lengths)
        return tuple(
            self.pad(np.flatnonzero(number == bucket), int(top)) for bucket, top in enumerate(tops)
        )

    def in_order_of_appearance(self) -> Self:
        """Orders two classes of unknown meaning by their first bags.

        So their order does not follow from the alphabet. Known and more classes stay as they are.
        """
        if self.several_labels or self.num_classes != 2 or self.positive is not None:
            return self
        if not self.labels[0]:
            return self
        own = self.instance_labels
        return dataclasses.replace(
            self,
            classes=self.classes[::-1],
            labels=1 - self.labels,
            instance_labels=None if own is None else 1 - own,
        )

    def _rows(self, rows: ArrayLike) -> np.ndarray:
        places = np.asarray(rows)
        if places.dtype == bool:
            places = np.flatnonzero(places)
        return places.astype(np.int64)

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Finds the places of these bags' instances."""
        lengths = self.lengths[rows]
        before = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(self.offsets[rows] - before, lengths)


def bucket_lengths(lengths: ArrayLike, max_waste: float = MAX_WASTE) -> tuple[int, ...]:
    """Finds the fewest lengths to pad bags to.

    Each bag is padded to the first of them that it fits into.

    Among the ways to do with that many, it is one with the fewest slots in all. (By dynamic programming
    over the different lengths: the bags of a bucket follow each other in the order of their lengths.)

    Args:
      lengths: `[bags]` int, at least 1 each.
      max_waste: slots (bags times padded length) for each instance that a bucket may have, at least 1.

    Returns:
      Rising lengths; the last is the largest of `lengths`.

    Raises:
      UserError: `max_waste` is less than 1.
    """
    if not max_waste >= 1:
        raise UserError(f"max_waste is {max_waste}, but must be 1 (no padding) or more")
    distinct, counts = np.unique(np.asarray(lengths, np.int64), return_counts=True)
    bags = np.concatenate([[0], np.cumsum(counts)])
    instances = np.concatenate([[0], np.cumsum(counts * distinct)])
    # Of the shortest j different lengths: the best number of buckets, their slots, and where the last begins.
    buckets, slots, begin = (np.zeros(len(distinct) + 1, np.int64) for _ in range(3))
    for end in range(1, len(distinct) + 1):
        own = distinct[end - 1] * (bags[end] - bags[:end])
        starts = np.flatnonzero(own <= max_waste * (instances[end] - instances[:end]))
        total = slots[starts] + own[starts]
        best = np.lexsort((total, buckets[starts]))[0]
        begin[end] = starts[best]
        buckets[end] = buckets[starts[best]] + 1
        slots[end] = total[best]
    tops = []
    end = len(distinct)
    while end:
        tops.append(int(distinct[end - 1]))
        end = int(begin[end])
    return tuple(reversed(tops))


def padding_waste(lengths: ArrayLike, tops: Sequence[int]) -> float:
    """Counts padded slots per instance.

    Every bag is padded to the first of `tops` that it fits into.

    Args:
      lengths: `[bags]` int.
      tops: rising lengths, as `bucket_lengths` gives them.

    Raises:
      UserError: a bag is longer than all of `tops`.
    """
    own = np.asarray(lengths, np.int64)
    number = np.searchsorted(np.asarray(tops), own)
    if number.max() >= len(tops):
        raise UserError(f"a bag has {own.max()} instances, but the longest bucket is {max(tops)}")
    return float(np.asarray(tops)[number].sum() / own.sum())


def _check_counts(name: str, bags: int, shapes: dict[str, tuple[int, ...]]) -> None:
    if not bags:
        raise UserError(f"{name} has no bag, but must have one at least")
    for what, shape in shapes.items():
        if shape != (bags,):
            raise UserError(
                f"{name} has {what} of the shape {shape}, but must have one for each of {bags} bags"
            )


def _known_labels(labels: Any, ids: Sequence[str], name: str) -> list[Any]:
    """Turns labels of bags into Python's own values.

    A `UserError` names a bag whose label is missing.
    """
    # One by one: NumPy makes the text "nan" of a NaN among words.
    for label, bag_id in zip(labels, ids, strict=True):
        if is_missing(label):
            raise UserError(
                f"bag {bag_id!r} of {name} has the label {label!r}, which stands for a missing one; leave "
                "the bag out, or rename the class"
            )
    return np.asarray(labels).tolist()


def _check(dataset: BagDataset) -> None:
    """Raises the `UserError`s of `BagDataset`."""
    name, instances, lengths = dataset.name, dataset.instances, dataset.lengths
    shapes = {"labels": dataset.labels.shape[:1], "ids": (len(dataset.ids),)}
    if dataset.groups is not None:
        shapes["groups"] = (len(dataset.groups),)
    _check_counts(name, len(dataset.ids), {"lengths": lengths.shape, **shapes})
    if lengths.min() < 1:
        bag_id = dataset.ids[int(np.argmin(lengths))]
        raise UserError(f"bag {bag_id!r} of {name} has no instance, but must have one at least")
    if instances.ndim < 2 or len(instances) != lengths.sum():
        raise UserError(
            f"the lengths of the bags of {name} add up to {lengths.sum()}, but the instances have the "
            f"shape {instances.shape} and must be [{lengths.sum()}, features...]"
        )
    if dataset.several_labels:
        if (
            dataset.labels.shape[1] != dataset.num_classes
            or not np.isin(dataset.labels, (0, 1)).all()
        ):
            raise UserError(
                f"the labels of {name} have the shape {dataset.labels.shape}, but must be 0 or 1 for each of "
                f"{len(dataset.ids)} bags and {dataset.num_classes} labels"
            )
        wrong = np.zeros(len(dataset.ids), bool)
    else:
        wrong = (dataset.labels < 0) | (dataset.labels >= dataset.num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"bag {dataset.ids[row]!r} of {name} has the label {dataset.labels[row]}, but must have "
            f"one of 0 to {dataset.num_classes - 1}"
        )
    finite = np.isfinite(instances).all(axis=tuple(range(1, instances.ndim)))
    if not finite.all():
        raise UserError(
            f"bag {_owner(dataset, ~finite)!r} of {name} holds a value that is not finite"
        )
    _check_features(dataset)
    own = dataset.instance_labels
    if own is None:
        return
    if own.shape != (len(instances),):
        raise UserError(
            f"the instance labels of {name} have the shape {own.shape}, but must be one for each of "
            f"{len(instances)} instances"
        )
    wrong = (own < 0) | (own >= dataset.num_classes)
    if wrong.any():
        raise UserError(
            f"bag {_owner(dataset, wrong)!r} of {name} has the instance label {own[np.argmax(wrong)]}, "
            f"but they must be of 0 to {dataset.num_classes - 1}"
        )


def _check_features(dataset: BagDataset) -> None:
    names, shape = dataset.features, dataset.instances.shape[1:]
    if names is not None and ((len(names),) != shape or len(set(names)) < len(names)):
        raise UserError(
            f"the features of {dataset.name} have {len(names)} names, {len(set(names))} of them different, "
            f"but must have one each for the shape {shape}"
        )


def _owner(dataset: BagDataset, which: np.ndarray) -> str:
    """Finds the bag of the first instance where `which` is True."""
    row = np.searchsorted(dataset.offsets, int(np.argmax(which)), side="right") - 1
    return dataset.ids[int(row)]
