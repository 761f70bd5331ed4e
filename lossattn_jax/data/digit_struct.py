"""SVHN's `digitStruct.mat`: each image's digits and their boxes.

The file is MATLAB's version 7.3, which is HDF5. `/digitStruct/name` and `/digitStruct/bbox` hold a reference
for each image: to its name, an array of character codes, and to a group with the datasets `label`, `left`,
`top`, `width` and `height`. Each of these is a single number where the image shows one digit, and otherwise
an array of references to one number each.
"""

import math
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_MOST_VALUES = 1 << 22  # of a dataset; the published ones name 202,353 images at most
# What h5py and NumPy raise where a file is not HDF5, lacks something, or holds something else there.
_READ_ERRORS = (OSError, RuntimeError, KeyError, IndexError, TypeError, AttributeError, ValueError)


class Digit(NamedTuple):
    """A digit of an image: class 0 ... 9, box in pixels.

    The box may stick out of the image.
    """

    label: int
    left: float
    top: float
    width: float
    height: float

    def corners(self) -> tuple[float, float, float, float]:
        """Returns (ymin, xmin, ymax, xmax) in pixels.

        The first pixel's edge is 0: what comes with the published images counts `left` and `top` from 0,
        and `width` and `height` take their pixels whole.
        """
        return self.top, self.left, self.top + self.height, self.left + self.width


class DigitStruct:
    """An open `digitStruct.mat`.

    `names` are the images' in its order, and `digits` returns what one shows.
    """

    def __init__(self, file: BinaryIO):
        """Opens the file.

        Args:
          file: the content, where any place can be read.

        Raises:
          ValueError: it is not in the published format.
        """
        import h5py  # when a file is opened, not with the command

        try:
            self._file = h5py.File(file, "r")
            names = _values(self._file["digitStruct/name"])
            self._boxes = _values(self._file["digitStruct/bbox"])
            self.names = [self._text(name) for name in names]
        except _READ_ERRORS as error:
            raise _malformed_error("its names cannot be read") from error
        if len(self.names) != len(self._boxes):
            raise _malformed_error(f"it has {len(self.names)} names, but {len(self._boxes)} boxes")
        self._places = {name: place for place, name in enumerate(self.names)}

    def digits(self, name: str) -> list[Digit]:
        """Reads an image's digits, in the file's order.

        Args:
          name: one of `names`.

        Raises:
          ValueError: they are not in the published format.
        """
        try:
            group = self._file[self._boxes[self._places[name]]]
            fields = {field: list(self._numbers(group[field])) for field in Digit._fields}
            rows = zip(*fields.values(), strict=True)
            return [Digit(_label(label), *box) for label, *box in rows]
        except _READ_ERRORS as error:
            raise _malformed_error(f"the digits of {name} cannot be read") from error

    def _text(self, reference: Any) -> str:
        return "".join(map(chr, _values(self._file[reference])))

    def _numbers(self, dataset: Any) -> Iterator[float]:
        values = _values(dataset)
        if values.dtype == object:
            values = np.array([_values(self._file[reference]).item() for reference in values])
        for value in values:
            if not math.isfinite(value):
                raise ValueError("a number is not finite")
            yield float(value)


def _values(dataset: Any) -> np.ndarray:
    """Reads an HDF5 dataset's values, flat."""
    if dataset.size > _MOST_VALUES:
        raise ValueError(f"a dataset has {dataset.size} values")
    return dataset[()].ravel()


def _malformed_error(what: str) -> ValueError:
    return ValueError(f"digitStruct.mat is malformed: {what}")


def _label(value: float) -> int:
    if value not in range(11):
        raise ValueError(f"{value} is no digit")
    return int(value) % 10  # 10 stands for 0
