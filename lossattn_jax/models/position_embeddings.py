"""Position embeddings of another grid, by bicubic interpolation as PyTorch does it."""

import dataclasses
import math

import numpy as np

# The cubic kernel's slope at 1: with antialiasing PyTorch has Pillow's, otherwise OpenCV's.
_SLOPE_ANTIALIASED, _SLOPE = -0.5, -0.75


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How a family of networks interpolates its position embeddings.

    Attributes:
      antialias: whether the kernel widens where the grid becomes coarser, and weights beyond the edge are
        left out; without it the edge's values go on.
      offset: added to the new grid's sides in the scale, not in the number of places.
    """

    antialias: bool
    offset: float = 0.0


def resample(square: np.ndarray, grid: tuple[int, int], resampling: Resampling) -> np.ndarray:
    """Interpolates places bicubically.

    Args:
      square: `[side, side, C]` float.
      grid: new (rows, columns).
      resampling: how.

    Returns:
      `[rows, columns, C]` float32.
    """
    rows, columns = (_weights(square.shape[0], length, resampling) for length in grid)
    return np.einsum("ri,cj,ijd->rcd", rows, columns, square.astype(np.float64)).astype(np.float32)


def _weights(before: int, after: int, resampling: Resampling) -> np.ndarray:
    """Weights `[after, before]` of the old places in the new ones, along one axis."""
    step = before / (after + resampling.offset)
    centres = step * (np.arange(after) + 0.5) - 0.5
    places = np.arange(before)
    if resampling.antialias:
        wide = max(step, 1.0)
        weights = _cubic((places - centres[:, None]) / wide, _SLOPE_ANTIALIASED)
        return weights / weights.sum(axis=1, keepdims=True)
    weights = np.zeros((after, before))
    for new, centre in enumerate(centres):
        first = math.floor(centre) - 1
        for place in range(first, first + 4):
            weights[new, min(max(place, 0), before - 1)] += _cubic(place - centre, _SLOPE)
    return weights


def _cubic(distance: np.ndarray | float, slope: float) -> np.ndarray:
    """Keys' kernel of 1981."""
    x = np.abs(distance)
    near = ((slope + 2) * x - (slope + 3)) * x * x + 1
    far = slope * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
