"""Maps of a bag: values of its instances where their coordinates are, as small pictures.

A map has a pixel for each place of the grid on which instances lie, and so is small however many there are.
Coordinates that are on no grid, such as those of cells, are put on one.
"""

import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax.explain.report import pictures

MOST_CELLS = 512  # of a side
# Attributes for the side of an instance, and the slide's size, in units of coordinates; as TRIDENT has them.
_PATCH, _SIZE = "patch_size_level0", ("level0_width", "level0_height")
_EMPTY = 255  # in a palette: no instance


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where instances lie, in units of their coordinates.

    Attributes:
      left, top: of the first cell.
      cell: side of a cell.
      shape: rows and columns of cells.
      cells: `[n]` int64, the cell of each instance, row by row.
      patch: side of an instance: what the file says, else their distance.
    """

    left: float
    top: float
    cell: float
    shape: tuple[int, int]
    cells: np.ndarray
    patch: float

    @property
    def width(self) -> float:
        """Of all cells, in units of coordinates."""
        return self.shape[1] * self.cell

    @property
    def height(self) -> float:
        """Likewise."""
        return self.shape[0] * self.cell


def find_grid(coords: np.ndarray, attributes: Mapping[str, Any] | None = None) -> Grid:
    """Finds the grid on which instances lie.

    A cell is as wide as the smallest distance of two columns or rows, but at least half of what an instance
    would have if all shared the whole area, and so large that no side has more than `MOST_CELLS`.

    Args:
      coords: `[n, 2]` finite, x to the right and y downwards, of an instance's upper left corner.
      attributes: of the coordinates, by name; "patch_size_level0" is the side of an instance.
    """
    low, high = coords.min(axis=0), coords.max(axis=0)
    extent = high - low
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    step = float(steps.min()) if len(steps) else 0.0
    patch = _positive_number((attributes or {}).get(_PATCH)) or step or 1.0
    step = step or patch
    spacing = math.sqrt((extent[0] + step) * (extent[1] + step) / len(coords)) / 2
    cell = max(step, spacing, float(extent.max()) / (MOST_CELLS - 1))
    places = np.floor((coords - low) / cell + 1e-9).astype(np.int64)
    columns, rows = (int(places[:, axis].max()) + 1 for axis in (0, 1))
    return Grid(
        left=float(low[0]),
        top=float(low[1]),
        cell=cell,
        shape=(rows, columns),
        cells=places[:, 1] * columns + places[:, 0],
        patch=patch,
    )


def slide_size(attributes: Mapping[str, Any]) -> tuple[float, float] | None:
    """Width and height of a slide in units of coordinates, where its file says so."""
    width, height = (_positive_number(attributes.get(name)) for name in _SIZE)
    return None if width is None or height is None else (width, height)


def rasterise(grid: Grid, values: np.ndarray) -> np.ndarray:
    """Puts values of instances on their grid.

    Args:
      grid: of the n instances.
      values: `[n]`; of several in one cell it is the one that is furthest from 0.

    Returns:
      float64 `[rows, columns]`, NaN where no instance is.
    """
    flat = np.full(grid.shape[0] * grid.shape[1], np.nan)
    order = np.argsort(np.abs(values), kind="stable")
    flat[grid.cells[order]] = values[order]
    return flat.reshape(grid.shape)


def draw_map(raster: np.ndarray, signed: bool) -> bytes:
    """Draws a map as PNG with a palette; where no instance is, it is transparent.

    Args:
      raster: `[rows, columns]`, NaN where no instance is.
      signed: whether colours go both ways from 0 ("RdBu_r"), and not from 0 upwards ("inferno").
    """
    from PIL import Image

    top = highest(raster)
    level = np.nan_to_num(raster) / top if top else np.zeros(raster.shape)
    share = 0.5 + level / 2 if signed else level
    places = np.rint(np.clip(share, 0, 1) * (_EMPTY - 1)).astype(np.uint8)
    places[np.isnan(raster)] = _EMPTY
    picture = Image.fromarray(places, mode="P")
    picture.putpalette(palette(signed).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", transparency=_EMPTY, optimize=True)
    return buffer.getvalue()


def lay_over(raster: np.ndarray, picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Lays a map of values that are not negative over a picture.

    Args:
      raster: `[rows, columns]`, NaN where no instance is.
      picture: uint8 `[H, W, 3]`.
      box: left, top, right and bottom of the map on it, in pixels; may reach beyond it.

    Returns:
      uint8 `[H, W, 3]`.
    """
    left, top, right, bottom = box
    y = np.arange(max(top, 0), min(bottom, picture.shape[0]))
    x = np.arange(max(left, 0), min(right, picture.shape[1]))
    row = (y - top) * raster.shape[0] // (bottom - top)
    column = (x - left) * raster.shape[1] // (right - left)
    values = raster[row[:, None], column]
    share = np.nan_to_num(values) / (highest(raster) or 1.0)
    colour = palette(False)[np.rint(np.clip(share, 0, 1) * (_EMPTY - 1)).astype(int)]
    opacity = np.where(np.isnan(values), 0.0, pictures.OPACITY)[..., None]
    result = picture.copy()
    under = picture[y[:, None], x]
    result[y[:, None], x] = np.rint((1 - opacity) * under + opacity * colour).astype(np.uint8)
    return result


def palette(signed: bool) -> np.ndarray:
    """Colours of a map, uint8 `[256, 3]`; the last is that of no instance."""
    table = pictures.colours("RdBu_r" if signed else "inferno")
    own = table[np.rint(np.linspace(0, 255, _EMPTY)).astype(int)]
    return np.concatenate([own, np.full((1, 3), 255, np.uint8)])


def highest(raster: np.ndarray) -> float:
    """The value that has the strongest colour of a map; 0 where all are 0."""
    finite = np.abs(raster[np.isfinite(raster)])
    return float(finite.max()) if finite.size else 0.0


def count_holders(weights: np.ndarray, share: float = 0.5) -> int:
    """Counts how few instances hold a share of all weight.

    Args:
      weights: `[n]`, none negative.
      share: between 0 and 1.
    """
    sums = np.cumsum(-np.sort(-weights.astype(np.float64)))
    return min(int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12))) + 1, len(weights))


def _positive_number(value: Any) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if ok else None
