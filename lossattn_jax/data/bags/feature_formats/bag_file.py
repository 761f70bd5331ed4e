"""A bag's reader, made of the named arrays of its file.

The instances are in the array `features`, else `feats`, else in the only one beside `coords`: `[N, D]`, or
`[1, N, D]` as some programs write them. `coords`, where it is there, is `[N, 2]` or `[1, N, 2]`.
"""

import contextlib
import dataclasses
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from lossattn_jax import files
from lossattn_jax.errors import UserError, name_first

FEATURES, COORDS = ("features", "feats"), "coords"
_FLOATS = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_NUMPYS_BFLOAT16 = np.dtype("V2")  # what bfloat16 is called in files of NumPy's formats
_MOST_NAMED = 8
_LONGEST = 200  # characters of a library's message


class StoredArray(Protocol):
    """An array of an opened file, read by slices.

    Attributes:
      shape, dtype: known without reading it.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, index: Any, /) -> Any:
        """Reads a slice of instances; of `[1, N, ...]` after a 0."""


# Opens the arrays of a file by name, and closes the file at the end of `with`.
Arrays = Callable[[str], AbstractContextManager[Mapping[str, StoredArray]]]


@dataclasses.dataclass(frozen=True)
class _Place:
    """An array of a file: its name, stored shape and stored dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class BagFile:
    """Reads the instances of a bag's file, as a `BagReader`.

    The file is open during reads only.

    Attributes:
      place: the file's path.
      shape: `(N, D)`.
      dtype: of what is read: float16, bfloat16, float32 or float64.
      features: names of the features; None where the file has none.
    """

    place: str
    shape: tuple[int, ...]
    dtype: np.dtype
    features: tuple[str, ...] | None
    _arrays: Arrays
    _instances: _Place
    _coords: _Place | None

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """`[n, D]`: instances `start` to `stop`, by default all.

        Raises:
          UserError: the file is gone, damaged, or not what it was.
        """
        first, last, _ = slice(start, stop).indices(self.shape[0])
        values = self._read(self._instances, first, max(first, last))
        return _with_type(values).astype(self.dtype, copy=False)

    def read_coords(self) -> np.ndarray | None:
        """Reads the coordinates `[N, 2]` float64; None where there are none.

        Their unit is that of the file, such as pixels or micrometres.

        Raises:
          UserError: as of `read`.
        """
        if self._coords is None:
            return None
        return self._read(self._coords, 0, self.shape[0]).astype(np.float64)

    def _read(self, place: _Place, start: int, stop: int) -> np.ndarray:
        rows = slice(start, stop)
        with opening(self.place), self._arrays(self.place) as arrays:
            array = arrays[place.name] if place.name in arrays else None
            if array is None or (tuple(array.shape), np.dtype(array.dtype)) != (
                place.shape,
                place.dtype,
            ):
                raise UserError(
                    f"{self.place} is not what it was when it was opened: it had {place.name!r} of the shape "
                    f"{place.shape}; start again"
                )
            return np.array(array[(0, rows) if len(place.shape) == 3 else rows])


def open_bag(path: str, arrays: Arrays, features: tuple[str, ...] | None = None) -> BagFile:
    """Makes a bag's reader; reads shapes and types alone.

    Args:
      path: of the file, or of the folder of a format that makes one.
      arrays: opens those of the file.
      features: their names, where the format has some.

    Raises:
      UserError: there is no such file, it cannot be read, it has no array of features or several, it or that
        of coordinates has another shape, or holds no numbers.
    """
    with opening(path), arrays(path) as stored:
        name = _find_features(path, stored)
        instances = _place(name, stored[name])
        coords = _place(COORDS, stored[COORDS]) if COORDS in stored and name != COORDS else None
    shape = _without_first(instances.shape)
    if len(shape) != 2:
        hint = "" if len(shape) != 1 else ", not one vector for the whole bag"
        raise UserError(
            f"{path} has {name!r} of the shape {instances.shape}, but must have [instances, features]{hint}"
        )
    if coords is not None and _without_first(coords.shape) != (shape[0], 2):
        raise UserError(
            f"{path} has {COORDS!r} of the shape {coords.shape}, but must have ({shape[0]}, 2) for its "
            f"{shape[0]} instances"
        )
    if coords is not None and coords.dtype.kind not in "iuf":
        raise UserError(
            f"{path} has {COORDS!r} of the type {coords.dtype}, but they must be numbers"
        )
    return BagFile(path, shape, _type_read(path, instances), features, arrays, instances, coords)


@contextlib.contextmanager
def opening(path: str) -> Iterator[None]:
    """Turns errors of reading a file of features into a sentence.

    Raises:
      UserError: there is no such file, or something was raised within.
    """
    try:
        yield
    except (UserError, ImportError):
        raise
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except MemoryError:
        raise UserError(f"{path} is damaged, or needs more memory than there is") from None
    # A damaged file ends in exceptions of almost any kind.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in files.LACKS:
            raise
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        raise UserError(f"{path} cannot be read: it is damaged ({_shorten(error)})") from error


def check_regular(path: str) -> None:
    """Refuses what is no regular file.

    A library that opened it might wait for ever.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is a folder, FIFO, socket or device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{path} is no regular file")


def _shorten(error: BaseException) -> str:
    """The first line of a library's message, cut to a readable length."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:_LONGEST]


def _find_features(path: str, arrays: Mapping[str, StoredArray]) -> str:
    usual = [name for name in FEATURES if name in arrays]
    others = [name for name in arrays if name != COORDS]
    if len(usual) == 1:
        return usual[0]
    if not usual and len(others) == 1:
        return others[0]
    has = "no array"
    if arrays:
        has = f"the arrays {name_first(list(map(repr, arrays)), _MOST_NAMED)}"
    raise UserError(
        f"{path} has {has}, but must have one called {' or '.join(map(repr, FEATURES))}"
    )


def _place(name: str, array: StoredArray) -> _Place:
    return _Place(name, tuple(map(int, array.shape)), np.dtype(array.dtype))


def _without_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the 1 that it begins with, of three."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _type_read(path: str, instances: _Place) -> np.dtype:
    """Finds the type for reading; whole numbers stay exact in it."""
    dtype = instances.dtype
    if dtype == _NUMPYS_BFLOAT16:
        return _BFLOAT16
    if dtype.kind in "iu":
        return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    native = dtype.newbyteorder("=")
    if native not in _FLOATS:
        raise UserError(
            f"{path} has {instances.name!r} of the type {dtype}, but must have one of "
            f"{', '.join(map(str, _FLOATS))}, or whole numbers"
        )
    return native


def _with_type(values: np.ndarray) -> np.ndarray:
    return values.view(_BFLOAT16) if values.dtype == _NUMPYS_BFLOAT16 else values


def contiguous_rows(shape: tuple[int, ...], index: Any) -> tuple[int, tuple[int, ...]]:
    """Finds rows in a C-ordered array: numbers before them, their shape.

    Args:
      shape: of the array.
      index: as of `StoredArray`.
    """
    rows = index[1] if isinstance(index, tuple) else index
    shape = shape[1:] if isinstance(index, tuple) else shape
    start, stop, _ = rows.indices(shape[0])
    return start * math.prod(shape[1:]), (max(0, stop - start), *shape[1:])
