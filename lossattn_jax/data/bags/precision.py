"""Features whose spread float32 loses, and how networks get them.

A float32 number has 24 significant bits: a Unix time, 1.7e9, is rounded to multiples of 128 seconds. So
moments are computed in float64, and what is not exact enough in float32 is centred and scaled before that.
"""

from collections.abc import Iterator

import numpy as np

from lossattn_jax.errors import UserError

# Rounding may be this share of a feature's standard deviation.
RATIO = 1e-4
# Of standard deviations that float32 has with all bits, and their inverses too.
_SMALLEST, _LARGEST = 1e-30, 1e30
_BLOCK = 1 << 20  # numbers that are looked at together
_FLOAT32 = np.finfo(np.float32)


def survives(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Whether float32 rounding is small against the spread of features.

    Values near a mean that is large against their spread are rounded by about `eps * |mean|`, eps being
    2**-23.

    Args:
      mean: `[...]` float64 of features.
      spread: `[...]` float64, their standard deviations; a constant feature, 0, has none to lose.

    Returns:
      `[...]` bool.
    """
    small = _FLOAT32.eps * np.abs(mean) <= RATIO * spread
    return (spread == 0) | (small & (spread >= _SMALLEST) & (spread <= _LARGEST))


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and standard deviation of features, exact at any offset.

    Args:
      values: `[N, D]` of any real dtype, finite in float32.

    Returns:
      Two float64 arrays `[D]`; the standard deviation is 0 for constant features only.
    """
    means, spreads = np.empty(values.shape[1]), np.empty(values.shape[1])
    for columns in _blocks(*values.shape):
        block = values[:, columns].astype(np.float64)
        first = block[0].copy()
        block -= first  # so that the offset takes no digits from the sums
        middle = block.mean(axis=0)
        block -= middle
        unit = np.abs(block).max(axis=0, initial=0)
        constant = unit == 0
        block /= np.where(constant, 1.0, unit)  # so that no square is too small or too large
        means[columns] = first + middle
        spreads[columns] = unit * np.sqrt(np.square(block).mean(axis=0))
    return means, spreads


def narrow(instances: np.ndarray) -> np.ndarray:
    """Casts instances to float32 where features survive it, else to float64.

    Args:
      instances: `[N, features...]` of any real dtype.
    """
    if instances.dtype == np.float32:
        return instances
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        values = instances.astype(np.float32)
    if instances.ndim < 2 or np.can_cast(instances.dtype, np.float32) or not len(instances):
        return values
    if np.isfinite(values).all() and loses_spread(instances).any():
        return instances.astype(np.float64)
    return values


def loses_spread(instances: np.ndarray) -> np.ndarray:
    """Finds features whose spread float32 loses, `[features...]` bool.

    Args:
      instances: `[N, features...]`, N > 0, finite.
    """
    return ~survives(*moments(instances.reshape(len(instances), -1))).reshape(instances.shape[1:])


def in_float32(
    instances: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Casts instances and moments so that float32 can standardise.

    Features that would not survive get another origin and unit, the mean of the models' ones, before
    they are rounded; all others are rounded as they are. Without standardisation (mean 0, scale 1) nothing
    is shifted.

    Args:
      instances: `[N, features...]` float32 or float64.
      mean, scale: `[M, features...]` float64 of M models, or ones in the places of features.

    Returns:
      The three in float32, of the same shapes. A value that is too large for float32 on the other scale is
      infinite.
    """
    mean, scale = np.asarray(mean, np.float64), np.asarray(scale, np.float64)
    shift = ~survives(mean, scale).all(axis=0)
    with np.errstate(over="ignore"):
        values = instances.astype(np.float32, copy=bool(shift.any()))
        if shift.any():
            origin = np.where(shift, mean.mean(axis=0), 0.0)
            unit = np.where(shift, scale.mean(axis=0), 1.0)
            mean, scale = (mean - origin) / unit, scale / unit
            values[:, shift] = (instances[:, shift] - origin[shift]) / unit[shift]
        return values, mean.astype(np.float32), scale.astype(np.float32)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    width = max(1, _BLOCK // max(1, rows))
    for start in range(0, columns, width):
        yield slice(start, start + width)


def standardisation(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and scale of each feature.

    `(x - mean) / scale` has mean 0 and variance 1.

    A feature counts as constant where its standard deviation is no more than four units in the last place of
    its float64 values; an offset alone, such as that of a Unix time, does not make it so.

    Args:
      instances: `[N, features...]`, finite.

    Returns:
      Two float64 arrays `[features...]`; the scale of a constant feature is 1.

    Raises:
      UserError: a value is too large for float32.
    """
    low, high = (np.asarray(end(instances, axis=0), np.float64) for end in (np.min, np.max))
    largest = np.maximum(np.abs(low), np.abs(high))
    if largest.size and largest.max() > np.finfo(np.float32).max:
        raise UserError(
            f"an instance has a feature of the size {largest.max():g}, but values must be finite in float32"
        )
    mean = np.asarray(np.mean(instances, axis=0, dtype=np.float64))
    spread = np.asarray(np.std(instances, axis=0, dtype=np.float64))
    unsure = (high > low) & ((spread == 0) | ~survives(mean, spread))
    if unsure.any():
        mean[unsure], spread[unsure] = moments(instances[:, unsure])
    tiny = 4 * np.finfo(np.float64).eps * largest
    return mean, np.where((high > low) & (spread > tiny), spread, 1.0)
