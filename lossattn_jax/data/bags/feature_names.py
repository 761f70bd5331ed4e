"""Features of bags by their names, for methods that were fitted on others in another order."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lossattn_jax.data.bags.lazy_bags import BagReader, Bags
from lossattn_jax.errors import UserError, name_first

_MOST_NAMED = 3


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnReader:
    """Reads some of the features of a bag of vectors.

    Attributes:
      reader: of all features.
      columns: `[D]` int, places of those that are wanted, in their order.
    """

    reader: BagReader
    columns: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, D)`."""
        return (self.reader.shape[0], len(self.columns))

    @property
    def dtype(self) -> np.dtype:
        """As stored."""
        return self.reader.dtype

    @property
    def place(self) -> str:
        """As of `reader`."""
        return self.reader.place

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """`[n, D]` of the stored dtype."""
        return np.ascontiguousarray(self.reader.read(start, stop)[:, self.columns])

    def read_coords(self) -> np.ndarray | None:
        """As of `reader`."""
        return self.reader.read_coords()


def match_features(bags: Bags, names: Sequence[str] | None) -> Bags:
    """Bags with the features of these names in this order, where both sides have names.

    Args:
      bags: nothing of them is read.
      names: that are wanted; None: they are not known.

    Returns:
      The bags as they are where names are not known, or are the same.

    Raises:
      UserError: the bags lack a feature.
    """
    if names is None or bags.features is None or tuple(names) == bags.features:
        return bags
    places = {name: place for place, name in enumerate(bags.features)}
    missing = [name for name in names if name not in places]
    if missing:
        raise UserError(
            f"the bags of {bags.name} lack {len(missing)} of {len(names)} features that were trained on: "
            f"{name_first(list(map(repr, missing)), _MOST_NAMED)}"
        )
    columns = np.array([places[name] for name in names])
    return dataclasses.replace(
        bags,
        readers=tuple(ColumnReader(reader, columns) for reader in bags.readers),
        features=tuple(names),
    )
