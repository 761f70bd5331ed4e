"""What a data set's files have to offer, of whatever kind they are."""

import abc
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.subset import digest_of_part
from lossattn_jax.data.views import CROP


@dataclasses.dataclass(frozen=True)
class SplitDigests:
    """Digests of a split, SHA-256 in hexadecimal digits.

    Attributes:
      examples: of what its examples are made from, and how they are stored.
      pictures: of which pictures with which labels there are, at whatever size they are stored.
    """

    examples: str
    pictures: str

    def take(self, indices: np.ndarray) -> "SplitDigests":
        """Digests the part of the split at `indices` int64 [n]."""
        return SplitDigests(
            digest_of_part(self.examples, indices), digest_of_part(self.pictures, indices)
        )


class SplitSource(abc.ABC):
    """Random access to the decoded examples of a split.

    An example is a dict: `image` uint8 [H, W, C] of `spec.view.stored_shape`, `label` int (or the multi-hot
    uint8 [K] of the objects in the image where `spec.multi_label`), and where the data set has boxes `box`
    float32 [4] (ymin, xmin, ymax, xmax as fractions of what a network sees of the image). Where an image may
    have several, `box` is [M, 4] with M = `spec.max_boxes`, and `box_label` int32 [M] their classes; see
    `boxes.fixed_number`.

    Attributes:
      spec: the data set.
      split: 'train' or 'test'.
    """

    spec: DatasetSpec
    split: str

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Reads many examples at once."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """Reads all labels, without decoding images.

        int32 [N], or uint8 [N, K] if `spec.multi_label`.
        """

    @property
    @abc.abstractmethod
    def folder(self) -> str:
        """Returns the folder that caches of it are written to."""

    @abc.abstractmethod
    def digests(self) -> SplitDigests:
        """Digests the split's files, which are read where they have changed.

        Raises:
          UserError: a file cannot be read, or is not as it was when the data set was first read.
        """

    @property
    def name(self) -> str:
        """Names the split, and the stored size where that is not the data set's usual one, for files."""
        name = re.sub(r"\W+", "_", self.spec.split(self.split)).strip("_")
        if self.spec.fit != CROP:
            return name
        return f"{name}_{'x'.join(map(str, self.spec.view.stored_shape))}"
