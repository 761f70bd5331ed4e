"""Features of tiles by a fixed random convolution network that computes the same everywhere.

Three convolutions, each with a rectifier; weights are small whole numbers of a seed, and so are activations,
which are divided by powers of two and rounded down. Every sum stays below 2^24, where float32 has all whole
numbers, so that features do not depend on the machine or on the order of sums. Nothing is learned.
"""

import dataclasses
import functools

import numpy as np

WIDTH = 128  # features of a tile

_SEED = 0x7117E
_CHUNK = 256  # tiles at once
_HIGHEST = 255  # activation of a layer


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A convolution without bias, its rectifier, and the division of its sums."""

    kernel: int
    stride: int
    channels: int
    halvings: int


_LAYERS = (_Layer(5, 2, 16, 5), _Layer(3, 2, 32, 5), _Layer(3, 1, 8, 6))
_GRID = 4  # of the last layer's means over a tile, a side


@functools.cache
def _weights() -> tuple[np.ndarray, ...]:
    """Weights `[kernel * kernel * inputs, channels]` of each layer, whole numbers as float32."""
    rng = np.random.Generator(np.random.Philox(_SEED))
    inputs, arrays = 1, []
    for layer in _LAYERS:
        shape = (layer.kernel**2 * inputs, layer.channels)
        weights = rng.integers(-4, 5, shape)
        # Even grey says nothing.
        weights[-1] -= weights.sum(0) if inputs == 1 else 0
        arrays.append(weights.astype(np.float32))
        inputs = layer.channels
    return tuple(arrays)


def compute_features(tiles: np.ndarray) -> np.ndarray:
    """Computes features of grey tiles.

    Args:
      tiles: uint8 `[n, side, side]`, the side a multiple of 8.

    Returns:
      float16 `[n, WIDTH]`.
    """
    parts = [_of_chunk(tiles[start : start + _CHUNK]) for start in range(0, len(tiles), _CHUNK)]
    return np.concatenate([np.empty((0, WIDTH), np.float16), *parts])


def _of_chunk(tiles: np.ndarray) -> np.ndarray:
    values = 255 - tiles[..., None].astype(np.float32)  # ink is high, glass 0
    for layer, weights in zip(_LAYERS, _weights(), strict=True):
        sums = _convolve(values, layer, weights)
        values = np.clip(np.floor(sums / 2**layer.halvings), 0, _HIGHEST)
    count, side, _, channels = values.shape
    part = side // _GRID
    sums = values.reshape(count, _GRID, part, _GRID, part, channels).sum((2, 4))
    return (sums.reshape(count, -1) / 2**5).astype(np.float16)


def _convolve(values: np.ndarray, layer: _Layer, weights: np.ndarray) -> np.ndarray:
    """Sums of weights times values `[n, side, side, inputs]`, padded with zeros to the same side."""
    margin = layer.kernel // 2
    padded = np.pad(values, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (layer.kernel, layer.kernel), (1, 2))
    windows = windows[:, :: layer.stride, :: layer.stride]  # [n, rows, columns, inputs, k, k]
    count, rows, columns = windows.shape[:3]
    return (windows.reshape(-1, len(weights)) @ weights).reshape(count, rows, columns, -1)
