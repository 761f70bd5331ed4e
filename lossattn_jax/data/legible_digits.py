"""The handwritten digits of scikit-learn, made ready for drawing, without those that are hard to read."""

import dataclasses
import functools

import numpy as np

from lossattn_jax.data.digit_rendering import DIGIT_SIZE, Glyph

ORIGINALS = 1797  # digits of scikit-learn
_TEST_SHARE = 5  # every fifth digit of a class is a test digit
_NEIGHBOURS, _AGREEING = 5, 4  # of a digit's nearest neighbours, so many have to share its label
_MAX_THICKNESS = 0.385  # of a stroke, as a fraction of the digit's height


@dataclasses.dataclass(frozen=True)
class Digits:
    """Some of the original digits.

    Attributes:
      glyphs: the digits, made ready for drawing.
      labels: int64 [n].
      sources: int64 [n], their places in scikit-learn's data set.
    """

    glyphs: list[Glyph]
    labels: np.ndarray
    sources: np.ndarray

    def select(self, rows: np.ndarray) -> "Digits":
        """Takes the digits at some positions."""
        return Digits([self.glyphs[row] for row in rows], self.labels[rows], self.sources[rows])


@functools.lru_cache(maxsize=1)  # several ask for it, and it takes a second
def load_legible() -> Digits:
    """Loads the 1,797 digits less those that are hard to read, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, DIGIT_SIZE, DIGIT_SIZE)
    glyphs = [Glyph.of(image) for image in images]
    rows = np.flatnonzero(legible(images, labels, glyphs))
    return Digits([glyphs[row] for row in rows], labels[rows], rows)


def legible(images: np.ndarray, labels: np.ndarray, glyphs: list[Glyph]) -> np.ndarray:
    """Finds digits that can be read without doubt.

    Some 7 % of the originals are blotted or ambiguous.

    Args:
      images: float64 [n, 8, 8] in 0 ... 16.
      labels: int64 [n].
      glyphs: the same digits, made ready for drawing.

    Returns:
      bool [n]. False for a digit that most of its nearest neighbours contradict, and for one whose
      strokes are so thick that they fill its shape.
    """
    flat = images.reshape(len(images), -1)
    squares = (flat * flat).sum(1)
    distances = squares[:, None] - 2 * flat @ flat.T + squares
    np.fill_diagonal(distances, np.inf)
    # Squared distances are whole numbers, of which some are equal: which of these come first is NumPy's
    # choice, and another one where the processor has AVX-512. The earlier digit is the nearer one here.
    keys = len(flat) * distances + np.arange(len(flat))
    nearest = np.argpartition(keys, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    agreeing = (labels[nearest] == labels[:, None]).sum(1)
    thickness = np.array([glyph.thickness() for glyph in glyphs])
    return (agreeing >= _AGREEING) & (thickness < _MAX_THICKNESS)


@functools.lru_cache(maxsize=1)  # both splits ask for it, and it takes a second
def split_digits(seed: int) -> dict[str, Digits]:
    """Divides scikit-learn's legible digits between 'train' and 'test'.

    Args:
      seed: of the random division, which keeps the classes' shares.

    Returns:
      The digits of either split.
    """
    digits = load_legible()
    order = np.random.Generator(np.random.Philox(seed)).permutation(ORIGINALS)
    rows = np.searchsorted(digits.sources, order[np.isin(order, digits.sources)])
    is_test = np.zeros(len(rows), bool)
    for label in range(10):
        is_test[np.flatnonzero(digits.labels[rows] == label)[::_TEST_SHARE]] = True
    return {
        "train": digits.select(np.sort(rows[~is_test])),
        "test": digits.select(np.sort(rows[is_test])),
    }
