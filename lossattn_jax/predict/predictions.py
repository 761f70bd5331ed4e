"""What a network says of pictures, row by row, and as a table."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lossattn_jax.data.bags import label_sets
from lossattn_jax.errors import UserError
from lossattn_jax.models import PatchGrid

_LEAST = 0.5  # probability above which a class is predicted of pictures with several


@dataclasses.dataclass(frozen=True, repr=False)
class Predictions:
    """Predictions for N pictures.

    Of a picture with an output that is not finite `predicted` is None, and its probabilities and attention
    are NaN.

    Attributes:
      names: of the pictures: paths, or places such as "images[3]".
      class_names: K names.
      logits: `[N, K]` float32.
      probabilities: `[N, K]` float32; see `losses.probabilities`.
      predicted: labels; of a network for pictures of several classes the names of those above one half,
        with semicolons between them.
      attention: `[N, P]` float32 weights of the patches, each row summing to 1.
      patch_probabilities: `[N, P, K]` float32.
      grid: places of the P patches, in row-major order.
      refusals: by the name of each file that could not be read, and is left out, why.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    predicted: tuple[str | None, ...]
    attention: np.ndarray
    patch_probabilities: np.ndarray
    grid: PatchGrid
    refusals: dict[str, str]

    @property
    def patch_classes(self) -> np.ndarray:
        """Each patch's most probable class, `[N, P]` places in `class_names`."""
        return self.patch_probabilities.argmax(axis=-1)

    @property
    def nonfinite(self) -> tuple[str, ...]:
        """Names of the pictures with an output that is not finite."""
        return tuple(
            name for name, label in zip(self.names, self.predicted, strict=True) if label is None
        )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        several = [f"{len(self)} pictures", f"{len(self.class_names)} classes"]
        more = [f"{len(self.refusals)} files left out"] if self.refusals else []
        return f"<Predictions of {', '.join([*several, f'{self.grid.patches} patches', *more])}>"

    def to_pandas(self) -> Any:
        """Makes a data frame: a row for each picture, in the columns of `columns`.

        Raises:
          UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError(
                "to_pandas needs pandas, which is not installed: pip install pandas"
            ) from None
        path, label, predicted, *classes = columns(self.class_names)
        front = {path: self.names, label: [None] * len(self), predicted: self.predicted}
        numbers = zip(classes, self.probabilities.T, strict=True)
        return pandas.DataFrame({**front, **dict(numbers)})


def columns(class_names: Sequence[str]) -> list[str]:
    """Names the columns of a table of predictions."""
    return ["path", "label", "predicted", *(f"p_{name}" for name in class_names)]


def label_of(
    logits: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], several: bool
) -> str:
    """Names what is predicted of a picture.

    Args:
      logits: `[K]`, of which the highest counts.
      probabilities: `[K]`, which count where there may be several classes.
      class_names: K names.
      several: whether there may be.
    """
    if several:
        return label_sets.as_text(np.array(class_names)[probabilities > _LEAST].tolist())
    return class_names[int(logits.argmax())]
