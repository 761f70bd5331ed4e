"""Bags whose instances are read when they are needed and given back, for data larger than memory.

    bags = Bags.from_arrays([np.ones((3, 2)), np.zeros((5, 2))], labels=[1, 0])
    bags[0]                         # [3, 2], read now
    bags.select(bags.labels == 1)   # reads nothing

The instances of a bag are read by a `BagReader`: of an array in memory, or of a feature file.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol, Self, overload

import numpy as np
from numpy.typing import ArrayLike

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.label_sets import find_sets, has_several
from lossattn_jax.errors import UserError


class BagReader(Protocol):
    """Reads the instances of one bag.

    Attributes:
      shape: `(N, features...)`, known without reading the instances.
      dtype: as they are stored: float16, bfloat16, float32 or float64.
      place: where they are, for messages: a file's path, or "memory".
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def place(self) -> str: ...

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """`[n, features...]` of the stored dtype: instances `start` to `stop`, by default all.

        Raises:
          UserError: the file is gone, damaged, or not what it was.
        """

    def read_coords(self) -> np.ndarray | None:
        """`[N, 2]` float64, where each instance is; None where that is not known."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayReader:
    """Instances that are in memory.

    Attributes:
      array: `[N, features...]`.
      coords: `[N, 2]`, or None.
    """

    array: np.ndarray
    coords: np.ndarray | None = None
    place: str = "memory"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the instances."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the instances."""
        return self.array.dtype

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A view of instances `start` to `stop`."""
        return self.array[start:stop]

    def read_coords(self) -> np.ndarray | None:
        """`coords`."""
        return self.coords


@dataclasses.dataclass(frozen=True, eq=False)
class Bags(Sequence[np.ndarray]):
    """Bags that are read one by one.

    Attributes:
      readers: of each bag's instances.
      ids: one name per bag.
      labels: `[bags]` int32, the place of the bag's label in `classes`; or `[bags, K]`, 1 for each label that
        a bag has; None of bags without labels.
      classes: K labels as the user knows them; of two the last is the positive one where that is known.
        Empty without labels.
      groups: of each bag what it shares with others, such as a patient; None where bags have none.
      splits: of each bag "train", "validation" or "test"; None where that is not given.
      folds: `[bags]` int32, the fold in which a bag is tested; None where that is not given.
      positive: the positive one of two classes; None where that is not known.
      name: of the data set, for messages and tables.
      features: names of the features of vectors; None where they are not known.

    Raises:
      UserError: there is no bag, a bag has no instance or others than the first, two have the same id, or
        something that each bag has is not there for each.
    """

    readers: tuple[BagReader, ...]
    ids: tuple[str, ...]
    labels: np.ndarray | None = None
    classes: tuple[Any, ...] = ()
    groups: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    folds: np.ndarray | None = None
    positive: Any = None
    name: str = "bags"
    features: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for field in ("labels", "folds"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, np.asarray(value, np.int32))
        _check(self)

    @classmethod
    def from_arrays(
        cls,
        bags: Sequence[ArrayLike],
        labels: ArrayLike | None = None,
        *,
        ids: Sequence[str] | None = None,
        coords: Sequence[np.ndarray] | None = None,
        groups: Sequence[str] | None = None,
        name: str = "bags",
    ) -> Self:
        """Makes bags of arrays, which are not copied.

        Args:
          bags: arrays `[n_i, features...]`.
          labels: `[bags]` of any sortable type, or as `label_sets.find_sets` takes them; None: there are
            none.
          ids: one per bag; None: "0", "1", ...
          coords: for each bag `[n_i, 2]`; None: they are not known.
          groups: one per bag; None: there are none.
          name: of the data set.

        Raises:
          UserError: as of the class.
        """
        places = [None] * len(bags) if coords is None else list(coords)
        readers = tuple(
            ArrayReader(np.asarray(bag), xy) for bag, xy in zip(bags, places, strict=True)
        )
        sets = find_sets(labels)
        classes: tuple[Any, ...] = ()
        encoded: np.ndarray | None = None
        if sets is not None:
            classes, encoded = sets
        elif labels is not None:
            different, encoded = np.unique(labels, return_inverse=True)
            classes = tuple(different.tolist())
        return cls(
            readers,
            tuple(map(str, range(len(bags)) if ids is None else ids)),
            encoded,
            classes,
            groups=None if groups is None else tuple(map(str, groups)),
            name=name,
        )

    @classmethod
    def from_dataset(cls, dataset: BagDataset) -> Self:
        """The bags of a data set in memory, as views."""
        return cls(
            tuple(map(ArrayReader, dataset.bags)),
            dataset.ids,
            dataset.labels,
            dataset.classes,
            groups=dataset.groups,
            positive=dataset.positive,
            name=dataset.name,
            features=dataset.features,
        )

    def __len__(self) -> int:
        return len(self.readers)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> Self: ...  # type: ignore[overload-overlap]
    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.select(np.arange(len(self))[row])
        return self.read(row)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`[bags]` int64, instances of each bag."""
        return np.array([reader.shape[0] for reader in self.readers], np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an instance: `(features...)`."""
        return self.readers[0].shape[1:]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def several_labels(self) -> bool:
        """Whether a bag may have any number of labels."""
        return has_several(self.labels)

    def named_labels(self) -> list[Any] | None:
        """Each bag's label as the user knows it, a tuple where there are several; None without labels."""
        if self.labels is None:
            return None
        if self.several_labels:
            return [tuple(self.classes[k] for k in np.flatnonzero(own)) for own in self.labels]
        return [self.classes[label] for label in self.labels]

    @property
    def nbytes(self) -> int:
        """Bytes of all instances as float32, which is how networks take them."""
        return int(self.lengths.sum()) * int(np.prod(self.shape)) * 4

    def read(self, row: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads instances of a bag.

        Args:
          row: of the bag.
          start, stop: of the instances; by default all.

        Returns:
          `[n, features...]` of the stored dtype.

        Raises:
          UserError: as of `BagReader.read`, or a value is not finite in float32.
        """
        reader = self.readers[row]
        instances = reader.read(start, stop)
        check_finite(self.ids[row], reader.place, instances, start)
        return instances

    def read_coords(self, row: int) -> np.ndarray | None:
        """`[n_i, 2]` float64, where the instances of a bag are; None where that is not known."""
        return self.readers[row].read_coords()

    def select(self, rows: ArrayLike) -> Self:
        """The bags at these positions (or where a boolean `[bags]` is True), with the same classes."""
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)

        def pick(values: Any) -> Any:
            if values is None or isinstance(values, np.ndarray):
                return None if values is None else values[chosen]
            return tuple(values[row] for row in chosen)

        fields = ("readers", "ids", "labels", "groups", "splits", "folds")
        return dataclasses.replace(self, **{name: pick(getattr(self, name)) for name in fields})

    def in_order_of_appearance(self) -> Self:
        """Numbers two classes of unknown meaning as `BagDataset.in_order_of_appearance` does."""
        labels = self.labels
        if self.several_labels:
            return self
        if labels is None or self.num_classes != 2 or self.positive is not None or not labels[0]:
            return self
        return self.swap_classes()

    def swap_classes(self) -> Self:
        """Swaps the two classes of labelled bags."""
        assert self.labels is not None
        return dataclasses.replace(self, classes=self.classes[::-1], labels=1 - self.labels)

    def load(self) -> BagDataset:
        """All bags in memory.

        Raises:
          UserError: they have no labels, or as of `BagDataset`.
        """
        if self.labels is None:
            raise UserError(f"the bags of {self.name} have no labels, but training needs them")
        instances = np.concatenate([_widened(self.read(row)) for row in range(len(self))])
        return BagDataset(
            instances=instances,
            lengths=self.lengths,
            labels=self.labels,
            ids=self.ids,
            classes=self.classes,
            name=self.name,
            positive=self.positive,
            features=self.features,
            groups=self.groups,
        )


def _widened(instances: np.ndarray) -> np.ndarray:
    """Half precision as float32, which has all its values; types of half precision have no common one."""
    return instances.astype(np.float32) if instances.dtype.itemsize < 4 else instances


def check_finite(bag_id: str, place: str, instances: np.ndarray, start: int = 0) -> None:
    """Refuses instances that are not finite in float32, in which networks compute.

    Args:
      bag_id: of the bag, for the message.
      place: where they were read.
      instances: `[n, features...]`.
      start: number of the first of them in the bag.

    Raises:
      UserError: a value is infinite or no number.
    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(instances.astype(np.float32, copy=False))
    if finite.all():
        return
    first = tuple(int(axis[0]) for axis in np.nonzero(~finite))
    at = ", ".join(map(str, first[1:]))
    raise UserError(
        f"bag {bag_id!r} in {place} has the value {float(instances[first]):g} in feature {at} of instance "
        f"{start + first[0]} (counted from 0), but values must be finite numbers (in float32); mend the "
        "file, or leave the bag out"
    )


def _check(bags: Bags) -> None:
    """Raises the `UserError`s of `Bags`; reads no instance."""
    if not bags.readers:
        raise UserError(f"{bags.name} has no bag, but must have one at least")
    for what, values in (
        ("ids", bags.ids),
        ("labels", bags.labels),
        ("groups", bags.groups),
        ("splits", bags.splits),
        ("folds", bags.folds),
    ):
        if values is not None and len(values) != len(bags.readers):
            raise UserError(
                f"{bags.name} has {len(values)} {what}, but must have one for each of "
                f"{len(bags.readers)} bags"
            )
    known: dict[str, int] = {}
    for row, (bag_id, reader) in enumerate(zip(bags.ids, bags.readers, strict=True)):
        if known.setdefault(bag_id, row) != row:
            raise UserError(
                f"{bags.name} has two bags {bag_id!r}, in {bags.readers[known[bag_id]].place} and in "
                f"{reader.place}, but ids must differ"
            )
        if len(reader.shape) < 2:
            raise UserError(
                f"bag {bag_id!r} in {reader.place} has the shape {reader.shape}, but must be "
                "[instances, features]"
            )
        if not reader.shape[0]:
            raise UserError(f"bag {bag_id!r} in {reader.place} has no instance")
        if reader.shape[1:] != bags.shape:
            raise UserError(
                f"the instances of bag {bag_id!r} in {reader.place} have the shape {reader.shape[1:]}, but "
                f"must have {bags.shape} as those of bag {bags.ids[0]!r} in {bags.readers[0].place}"
            )
